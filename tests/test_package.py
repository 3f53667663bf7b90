"""The package as an engineer meets it: layout, names of imports, build."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_cases import weights

import pdfast
from pdfast import former
from pdfast.kernels import group_norm_silu

ROOT = Path(__file__).parents[1]
# The modules that `import pdfast` loads before it checks the checkout.
FIRST = ("__init__", "__main__", "checkout", "errors", "former", "version")


def test_public_names():
    for name in pdfast.__all__:
        assert getattr(pdfast, name) is not None
    assert dir(pdfast) == pdfast.__all__
    assert callable(pdfast.distill)
    importlib.import_module("pdfast.api")  # no module may hide a function of the same name
    for name in ("distill", "train", "evaluate", "compare", "export", "load", "save"):
        assert callable(getattr(pdfast, name)), name
    assert (ROOT / "pdfast" / "py.typed").is_file()


def test_former_names_work_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"pdfast\.adapters is called pdfast\.wrappers now"):
        assert pdfast.adapters is pdfast.wrappers


def test_former_modules_are_the_present_ones():
    from pdfast.evaluation import evaluator
    from pdfast.evaluation.detectors import opening

    spec = evaluator.__spec__
    with pytest.warns(DeprecationWarning, match=r"pdfast\.judge is called"):
        assert importlib.import_module("pdfast.judge") is evaluator
    with pytest.warns(DeprecationWarning, match=r"pdfast\.detectors\.opening is called"):
        assert importlib.import_module("pdfast.detectors.opening") is opening
    assert evaluator.__spec__ is spec
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pdfast.judges")
    assert importlib.import_module("torchgen.model").__name__ == "torchgen.model"  # another's


def test_former_names_of_modules_lead_to_modules():
    for now in former.NAMES.values():
        assert importlib.util.find_spec(f"pdfast.{now}") is not None


def test_configs_are_those_at_the_top():
    assert (ROOT / "pdfast" / "configs").resolve() == ROOT / "configs"


def test_reference_shares_no_function_with_the_fast_path():
    source = (ROOT / "pdfast" / "reference.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("from", "import"))]
    ours = [line for line in imports if "pdfast" in line]
    assert ours == ["from pdfast.config.names import LOSS_WEIGHTS, LossWeight"]  # data


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
from pdfast.cli.main import main
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
from pdfast.cli.main import main
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
    """Without symbolic links, git writes text files that hold the links' targets."""
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


OTHER_TORCH = """
import sys
import torch
torch.__version__ = sys.argv.pop(1)
from pdfast.__main__ import main
code = main(sys.argv[1:])
assert "pdfast._C" not in sys.modules
with open("/proc/self/maps") as file:
    assert "pdfast/_C." not in file.read()
sys.exit(code)
"""


def under(version, *args, cwd):
    """Run the command beside another PyTorch than the extension was built for."""
    command = [sys.executable, "-c", OTHER_TORCH, version, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def release(minor, patch):
    """Return a release of PyTorch relative to the installed one."""
    numbers = [int(number) for number in re.findall(r"\d+", torch.__version__)[:3]]
    return f"{numbers[0]}.{numbers[1] + minor}.{numbers[2] + patch}+cpu"


def test_in_another_patch_release_of_torch_the_reference_runs_with_one_warning(tiny_toml, tmp_path):
    later, numbers = release(0, 1), torch.__version__.split("+")[0]
    args = ("--config", str(tiny_toml), "--out", "run", "--device", "cpu", "--threads", "1")
    done = under(later, "train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warning = (
        f"warning: pdfast's extension was built for PyTorch {numbers}, and PyTorch "
        f"{later.split('+')[0]} is installed: GroupNorm runs as its slower reference until you "
        "build it again with pip install --no-build-isolation --force-reinstall --no-deps on "
        "pdfast\n"
    )
    assert done.stderr == warning
    why = f"PyTorch reference: pdfast was built for PyTorch {numbers}, and this is {later[:-4]}"
    output = " ".join(done.stdout.split())
    assert f"group_norm_silu: {why};" in output
    assert "warning" not in output
    manifest = json.loads((tmp_path / "run" / "teacher" / "manifest.json").read_text())
    assert manifest["group_norm_silu"] == why
    # The model's output equals the reference's.
    pdfast.train(tiny_toml, out=tmp_path / "here", quiet=True)
    here, there = (weights(tmp_path / name / "teacher") for name in ("here", "run"))
    assert all(torch.allclose(tensor, there[name], atol=1e-3) for name, tensor in here.items())


def test_in_another_minor_release_of_torch_nothing_runs(tmp_path):
    version = release(1, 0)
    done = under(version, "doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert f"and PyTorch {version.split('+')[0]} is installed: build it again" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_extension_s_record_is_what_it_was_built_for():
    assert group_norm_silu._built_for() == group_norm_silu.build_facts()["torch"]
