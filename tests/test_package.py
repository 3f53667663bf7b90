"""The package as an engineer meets it: layout, import names, build."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pdfast

ROOT = Path(__file__).parents[1]
FIRST = ("__init__", "__main__", "checkout", "errors", "version")  # what an import begins with


def test_public_names():
    for name in pdfast.__all__:
        assert getattr(pdfast, name) is not None
    assert dir(pdfast) == pdfast.__all__
    assert callable(pdfast.distill)
    importlib.import_module("pdfast.api")  # no module may hide a function of the same name
    for name in ("distill", "train", "evaluate", "export", "load", "save"):
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


def test_building_without_a_compiler_says_so_and_goes_on():
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "no C++ compiler ('no-such-compiler' is not on the PATH)" in done.stderr
    assert "references" in done.stderr


WITHOUT_EXTENSION = """
import sys
sys.modules["pdfast._C"] = None  # as where it was not built
from pdfast.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extension_the_reference_runs_and_is_named(tiny_toml, tmp_path):
    def call(*args):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_EXTENSION, *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    why = "PyTorch reference: pdfast was built without a C++ compiler or Python's headers"
    assert why in call("doctor", "--device", "cpu")
    out = call("train", "--config", str(tiny_toml), "--out", "run", "--device", "cpu")
    assert f"group_norm_silu: {why}" in " ".join(out.split())


UNFIT_EXTENSION = """
import importlib, sys
real = importlib.import_module
def fail(name, *rest):
    if name == "pdfast._C":
        raise ImportError("undefined symbol: at::_ops")
    return real(name, *rest)
importlib.import_module = fail
from pdfast.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_extension_of_another_torch_is_one_sentence_that_names_the_fix(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", UNFIT_EXTENSION, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "extension does not load" in done.stderr
    assert "--no-build-isolation" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("windows", [False, True])
def test_a_checkout_without_links_is_told_in_one_sentence(tmp_path, windows):
    """Where git makes no symbolic links, it writes text files that hold where they led."""
    (tmp_path / "pdfast").mkdir()
    for name in ("setup.py", *(f"pdfast/{n}.py" for n in FIRST)):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("kernels", "configs"):
        link = ROOT / "pdfast" / name
        (tmp_path / "pdfast" / name).write_text(os.readlink(link))
    if windows:
        on_windows = "import sys\nsys.platform = 'win32'\n"
        (tmp_path / "sitecustomize.py").write_text(on_windows)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}

    def errors(*args):
        done = subprocess.run(
            [sys.executable, *args],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.splitlines()

    folder = tmp_path / "pdfast"
    expected = f"{folder / 'kernels'} and {folder / 'configs'} should be symbolic links to folders"
    if windows:
        expected = "pdfast runs on Linux and macOS: on Windows, clone it anew inside WSL"
    built, command, imported = (
        errors("setup.py", "--version"),
        errors("-m", "pdfast", "doctor"),
        errors("-c", "import pdfast"),
    )
    assert len(built) == len(command) == 1
    assert built[0].startswith(expected)
    assert command[0].startswith(f"pdfast: {expected}")
    assert imported[-1].startswith(f"ImportError: {expected}")
    if not windows:
        for name in ("kernels", "configs"):  # as it says
            (folder / name).unlink()
            (folder / name).mkdir()
        subprocess.run([sys.executable, "-c", "import pdfast"], cwd=tmp_path, check=True)
