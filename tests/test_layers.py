"""The order of the packages, including kernels/, which import-linter checks (pyproject.toml)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path):
    """Copy the packages and their contract, with the links of a checkout."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("pdfast", "kernels", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder):
    """Run import-linter on a copy; return (exit status, output)."""
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    return done.returncode, done.stdout + done.stderr


def test_the_order_is_kept(copy):
    code, output = lint(copy)
    assert code == 0, output
    assert "2 kept, 0 broken" in output


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("pdfast/config/names.py", "pdfast.storage.lock"),
        ("pdfast/runs/run.py", "pdfast.data.dataset"),  # packages on one level
        ("pdfast/models/unet.py", "pdfast.training.loop"),
        ("kernels/philox.py", "pdfast.models.unet"),
    ],
)
def test_an_import_against_the_order_is_found(copy, file, planted):
    path = copy / file
    path.write_text(f"{path.read_text()}\nimport {planted}\n")
    code, output = lint(copy)
    assert code == 1, output
    importer = file.removesuffix(".py").replace("/", ".").replace("kernels.", "pdfast.kernels.", 1)
    assert f"{importer} -> {planted}" in output


def test_a_cycle_within_a_package_is_found(copy):
    """prepare.py imports the readers."""
    path = copy / "pdfast/data/readers/decoding.py"
    path.write_text(f"{path.read_text()}\nimport pdfast.data.prepare\n")
    code, output = lint(copy)
    assert code == 1, output
    assert "No cycles are allowed in pdfast.data." in output


FIRST = """
import importlib, os, pkgutil, sys
import matplotlib.figure, numpy, torch, tyro  # slow imports, independent of pdfast
import pdfast

failed = []
for module in pkgutil.walk_packages(pdfast.__path__, "pdfast."):
    if module.name in ("pdfast.__main__", "pdfast.configs"):
        continue
    pid = os.fork()
    if pid == 0:
        importlib.import_module(module.name)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        failed.append(module.name)
sys.exit(f"cannot be imported first: {', '.join(failed)}" if failed else 0)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_first():
    done = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
