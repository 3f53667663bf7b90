"""The package as an engineer meets it: layout, import names, build."""

import importlib
import subprocess
import sys
from pathlib import Path

import pdfast

ROOT = Path(__file__).parents[1]


def test_public_names():
    for name in pdfast.__all__:
        assert getattr(pdfast, name) is not None
    assert callable(pdfast.distill)
    importlib.import_module("pdfast.api")  # no module may hide a function of the same name
    for name in ("distill", "train", "evaluate", "load", "save"):
        assert callable(getattr(pdfast, name)), name
    assert (ROOT / "pdfast" / "py.typed").is_file()


def test_configs_are_those_at_the_top():
    assert (ROOT / "pdfast" / "configs").resolve() == ROOT / "configs"


def test_reference_shares_no_function_with_the_fast_path():
    source = (ROOT / "pdfast" / "reference.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("from", "import"))]
    ours = [line for line in imports if "pdfast" in line]
    assert ours == ["from pdfast.config import LossWeight"]


def test_building_without_torch_is_one_sentence(tmp_path):
    """setup.py in an interpreter that cannot import torch."""
    block = tmp_path / "torch"
    block.mkdir()
    (block / "__init__.py").write_text("raise ImportError('none here')")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "--no-build-isolation" in done.stderr
    assert done.stderr.count("\n") == 1
