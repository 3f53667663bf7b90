"""Triton's C launcher hands the kernels the addresses and numbers that the ops pass."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from launch_cases import CASES

HERE = Path(__file__).parent
INCLUDE = Path(triton.__file__).parent / "backends" / "nvidia" / "include"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The launches that packed.py recorded, by case."""
    folder = tmp_path_factory.mktemp("libcuda")
    compiler = shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed: gcc or clang"
    library, result = folder / "libcuda.so.1", folder / "packed.json"
    flags = ["-shared", "-fPIC", "-I", str(INCLUDE), "-Wl,-soname,libcuda.so.1"]
    source = str(HERE / "fake_libcuda.c")
    subprocess.run([compiler, *flags, source, "-o", str(library)], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]),
    }
    command = [sys.executable, str(HERE / "packed.py"), str(library), str(result)]
    subprocess.run(command, env=environment, check=True)
    return json.loads(result.read_text())


def test_every_case_is_packed_as_it_was_passed(packed):
    assert set(packed) == set(CASES)
    for case, launches in packed.items():
        assert launches, case
        for launch in launches:
            assert launch["launches"] == 1
            for pair in ("grids", "threads", "shared"):
                assert launch[pair][0] == launch[pair][1], (case, pair)
            for name, kind, passed, got in launch["arguments"]:
                assert passed == got, (case, launch["kernel"], name, kind)


def test_what_is_packed(packed):
    """Pointers and numbers, of every type that the kernels take."""
    arguments = [a for launches in packed.values() for one in launches for a in one["arguments"]]
    kinds = {kind for _, kind, _, _ in arguments}
    pointers = {f"*{kind}" for kind in ("fp64", "fp32", "bf16", "fp16", "u8", "i64")}
    assert pointers | {"i32", "i64"} <= kinds
    numbers = {name: got for name, kind, _, got in arguments if not kind.startswith("*")}
    assert numbers["seed"] == 2**32 - 1
    assert numbers["num_steps"] == 6
    assert numbers["num_images"] == 5
