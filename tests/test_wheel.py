"""A wheel, built and installed where nothing of this folder is: with a compiler and without."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILED = "compiled CPU op"
REFERENCE = "PyTorch reference: pdfast was built without a C++ compiler or Python's headers"


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PRETRAINED = [
    "digits.md",
    *(
        f"digits-{name}/{file}"
        for name in ("teacher", "8", "4", "2", "1")
        for file in ("config.json", "manifest.json", "model.safetensors")
    ),
]


@pytest.mark.slow
@pytest.mark.timeout(900)  # most of it the compiler's
@pytest.mark.parametrize(("compiler", "op"), [("c++", COMPILED), ("no-such-compiler", REFERENCE)])
def test_a_wheel_in_a_fresh_environment(tmp_path, tiny_toml, compiler, op):
    source, wheels, fresh = tmp_path / "source", tmp_path / "wheels", tmp_path / "fresh"
    listed = run("git", "ls-files", "-z", cwd=ROOT).strip("\0").split("\0")
    for name in listed:  # as a clone has it: nothing that was built here
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            copy.symlink_to((ROOT / name).readlink())
        else:
            copy.write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip")
    environment = os.environ | {
        "CXX": os.environ.get("CXX", compiler) if op == COMPILED else compiler
    }
    build = ("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(wheels), str(source))
    run(*pip, *build, env=environment)
    (wheel,) = wheels.glob("pdfast-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("pdfast/_C") for name in names) == (op == COMPILED)
    assert {"pdfast/py.typed", "pdfast/kernels/adamw.py", "pdfast/configs/digits.toml"} <= set(
        names
    )
    assert {f"pdfast/pretrained/{file}" for file in PRETRAINED} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]

    venv.create(fresh, with_pip=False)
    python = fresh / "bin" / "python"
    # What pdfast requires is this environment's; its own .pth files, and so this pdfast, are not.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    parents = [sysconfig.get_paths()["purelib"], *(p for p in sys.path if "site-packages" in p)]
    (Path(site) / "parents.pth").write_text("\n".join(dict.fromkeys(parents)) + "\n")
    run(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    pdfast = str(fresh / "bin" / "pdfast")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = run(python, "-c", "import pdfast; print(pdfast.__file__)", cwd=tmp_path, env=clean)
    assert Path(where.strip()).is_relative_to(fresh)
    assert op in run(pdfast, "doctor", "--device", "cpu", cwd=tmp_path, env=clean)
    sample = (pdfast, "sample", "digits", "--steps", "4", "--out", "grid.png", "--device", "cpu")
    assert "64 images in 4 steps" in run(*sample, cwd=tmp_path, env=clean)
    train = (pdfast, "train", "--config", str(tiny_toml), "--out", "run", "--device", "cpu")
    assert "saved to" in run(*train, cwd=tmp_path, env=clean)
    assert (tmp_path / "run" / "teacher" / "model.safetensors").is_file()
