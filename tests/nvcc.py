"""nvcc, for tests that look at machine code; they need no GPU."""

import fcntl
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import sass

NORM = Path(__file__).parents[1] / "csrc" / "group_norm_silu.cu"
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
# PyTorch's extension builds switch these conversions off.
OFF = [f"-D__CUDA_NO_{k}__" for k in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS")]
FLAGS = ["-std=c++17", "-O3", *OFF, "--expt-relaxed-constexpr"]


def nvcc(*arguments):
    """Run nvcc and return its output; skip the test without nvcc."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))
    if not found:
        pytest.skip("no nvcc")
    command = [found, *FLAGS, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def compile_norm(folder):
    """Compile group_norm_silu for all architectures into a folder; return ptxas's report.

    Processes that use the same folder, such as the workers of one test run, compile once.
    """
    folder.mkdir(exist_ok=True)
    report = folder / "report.txt"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            targets = [
                f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in ARCHITECTURES
            ]
            said = nvcc(
                *["--threads", "2", "-Xptxas", "-v", "-fatbin", *targets],
                *["-gencode=arch=compute_90,code=compute_90", "-Xcompiler", "-Wall"],
                *["--keep", "--keep-dir", folder, "-o", folder / "all.fatbin", NORM],
            )
            report.write_text(said)
        return report.read_text()


def compile_cubin(source, out):
    """Compile one source for sm_90a."""
    nvcc("-cubin", "-arch=sm_90a", "-o", out, source)
    return out


def read_cubin(path):
    """Read it for the emulator; skip the test if Triton comes without the disassembler."""
    if not find_spec("triton"):
        pytest.skip("no Triton")
    return sass.Cubin(path)
