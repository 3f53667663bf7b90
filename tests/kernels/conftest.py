"""Triton kernels are tested under Triton's interpreter, or on a GPU."""

import os
from pathlib import Path

import pytest
import torch
from nvcc import compile_norm

from pdfast.kernels import runtime
from pdfast.kernels.registry import registered

OPS = [op.file for op in registered().values() if op.kernels]
TRITON = {*OPS, "shuffle", "launches"}  # the order of images is part of add_noise
if os.environ.get("TRITON_INTERPRET") == "1" and not runtime.HAVE_TRITON:
    raise pytest.UsageError("TRITON_INTERPRET=1 needs Triton 3.6 or newer: pip install triton")
RUNS = runtime.HAVE_TRITON and (runtime.INTERPRETING or torch.cuda.is_available())
collect_ignore = [] if RUNS else [f"test_{name}.py" for name in TRITON]
if runtime.INTERPRETING:  # tests without Triton need no second run
    collect_ignore_glob = ["test_group_norm_silu*.py", "test_acceptance.py", "test_registry.py"]
    collect_ignore_glob += ["test_instructions.py", "test_emulator.py"]
else:
    collect_ignore.append("test_bytes.py")  # counts accesses of the interpreter


def pytest_collection_modifyitems(config, items):
    """Refuse a Triton test named on the command line where only its reference would run.

    pytest collects such a file in spite of `collect_ignore`.
    """
    ignored = {Path(__file__).with_name(name) for name in collect_ignore}
    named = sorted(
        {str(item.path.relative_to(config.rootpath)) for item in items if item.path in ignored}
    )
    if named:
        raise pytest.UsageError(
            f"{', '.join(named)} would compare the reference with itself: set TRITON_INTERPRET=1"
        )


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched during the test, in order."""
    names, real = [], runtime.launch

    def counted(kernel, *args, **kwargs):
        names.append(kernel.fn.__name__)
        real(kernel, *args, **kwargs)

    monkeypatch.setattr(runtime, "launch", counted)
    return names


@pytest.fixture(scope="session")
def norm_machine_code(tmp_path_factory):
    """Compile group_norm_silu.cu by nvcc: ptxas's report, and the folder of the files."""
    base = tmp_path_factory.getbasetemp()  # of this worker, if there are several
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "norm-machine-code"
    return compile_norm(folder), folder
