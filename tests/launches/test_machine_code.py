"""Machine code of every Triton kernel, as its op launches it: no stack, no spills, wide accesses.

Registers and shared memory are printed at the end; nothing here says how fast the code is.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from launch_cases import (
    HEADS,
    LARGE,
    PARAMS,
    SMALL,
    WEIGHTS,
    data,
    distill,
    drop,
    noise,
    optimize,
    step,
)

from pdfast.kernels import adamw, add_noise, ddim_step, distill_loss, dropout

CPU = torch.device("cpu")
TOOL = next(Path(triton.__file__).parent.rglob("bin/cuobjdump"))
SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[A-Za-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.b(\d+)\b")


def wide_accesses(ptx, threads):
    """Bytes of a program's loads and stores that are at least 16 bytes a thread."""
    wide = {"ld": 0, "st": 0}
    for kind, vector, bits in ACCESS.findall(ptx):
        size = int(vector or 1) * int(bits) // 8
        wide[kind] += size if size >= 16 else 0
    return wide["ld"] * threads, wide["st"] * threads


@pytest.fixture
def check(driver, launches, tmp_path, record_property):
    def check(arch, loads, stores, call, **options):
        """`loads` and `stores`: bytes per program of the streams that must be wide, of the last
        kernel that `call` launches.
        """
        driver.arch = arch
        call(CPU, **options)
        launch = launches[-1]
        file = tmp_path / "kernel.cubin"
        file.write_bytes(launch.compiled.asm["cubin"])
        command = [TOOL, "--dump-resource-usage", file]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage = re.search(r"REG:\d+ STACK:\d+ SHARED:\d+ LOCAL:\d+", usage)[0]
        registers, shared = re.search(r"REG:(\d+) .*SHARED:(\d+)", usage).groups()
        record_property("machine code", (f"{launch.kernel} sm_{arch}", int(registers), int(shared)))
        assert "STACK:0 " in usage
        assert usage.endswith("LOCAL:0")
        threads = 32 * launch.compiled.metadata.num_warps
        assert wide_accesses(launch.compiled.asm["ptx"], threads) == (loads, stores)

    return check


@pytest.mark.parametrize("dtype", SIZE)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_ddim_step(check, arch, head, dtype):
    block = ddim_step.BLOCK
    loads = 4 + (SIZE[dtype] if head != "both" else 0)
    stores = 4 + (SIZE[dtype] if dtype != "fp32" else 0)
    check(arch, loads * block, stores * block, step, head=head, dtype=dtype)


KINDS = [(90, head, "snr_trunc", dtype, LARGE) for head in HEADS for dtype in SIZE]
KINDS += [(90, head, "snr_trunc", "bf16", SMALL) for head in HEADS]
KINDS += [(arch, head, "snr_trunc", "bf16", LARGE) for arch in (80, 100) for head in ("v", "both")]
LOSSES = [(*kind, target) for kind in KINDS for target in ("even", "given", "uneven")]
OTHERS = WEIGHTS[:2] + WEIGHTS[3:]
LOSSES += [(90, head, weight, "bf16", LARGE, "even") for head in HEADS for weight in OTHERS]


@pytest.mark.parametrize(("arch", "head", "weight", "dtype", "shape", "target"), LOSSES)
def test_distill_loss(check, arch, head, weight, dtype, shape, target):
    """`target`: given, or the teacher's, whose steps are even or not."""
    flat = 0 if head == "both" else SIZE[dtype]
    loads = 3 * flat + (4 if head in ("v", "both") else 0)
    options = {"head": head, "weight": weight, "dtype": dtype, "shape": shape}
    block = distill_loss.block_of(head)
    if target == "given":
        check(arch, (flat + 4) * block, flat * block, data, **options)
    else:
        check(arch, loads * block, flat * block, distill, uneven=target == "uneven", **options)


TIMES = ("discrete", "continuous")
NOISES = [(90, None, "bf16", flip, times) for flip in (False, True) for times in TIMES]
NOISES += [(90, None, dtype, True, "continuous") for dtype in ("fp32", "fp16")]
NOISES += [(90, head, dtype, True, "continuous") for head in HEADS for dtype in ("fp32", "bf16")]
NOISES += [(arch, None, "bf16", True, "discrete") for arch in (80, 100)]
NOISES += [(arch, "v", "bf16", True, "continuous") for arch in (80, 100)]
NOISES += [(arch, head, "bf16", True, "table") for arch in (80, 90, 100) for head in (None, "x")]
GATHERED = [(*case, True, levels) for case in NOISES[::5] for levels in ("u8", "fp32")]
NOISES = [(*case, False, "u8") for case in NOISES] + GATHERED


@pytest.mark.parametrize(("arch", "head", "dtype", "flip", "times", "gathered", "levels"), NOISES)
def test_add_noise(check, arch, head, dtype, flip, times, gathered, levels):
    block = add_noise.BLOCK
    stores = 4 + (SIZE[dtype] if dtype != "fp32" else 0) + (4 if head else 0)
    loads = 4 if levels == "fp32" and not flip else 0
    options = {"head": head, "dtype": dtype, "flip": flip, "times": times}
    options |= {"gathered": gathered, "levels": levels}
    check(arch, loads * block, stores * block, noise, **options)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_add_noise_of_some_images(check, arch, gathered):
    check(arch, 0, (4 + 2) * add_noise.BLOCK, noise, some=True, gathered=gathered)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_add_noise_without_replacement(check, arch):
    check(arch, 0, (4 + 2) * add_noise.BLOCK, noise, shuffled_by=6)


@pytest.mark.parametrize("dtype", SIZE)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_dropout(check, arch, dtype):
    moved = SIZE[dtype] * dropout.BLOCK
    check(arch, moved, moved, drop, dtype=dtype)


def paper_s(device, **options):
    """adamw on the buffers of 60 million parameters."""
    return optimize(device, size=PARAMS, live=False, **options)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_sum_of_squares(check, launches, arch):
    def first(device):
        paper_s(device)
        del launches[1:]

    check(arch, 4 * adamw.BLOCK, 0, first)


COPIES = (None, "bf16", "fp16")
ADAMWS = [(90, ema, copy, n, True) for ema in (0, 1) for copy in COPIES for n in (0, 1)]
ADAMWS += [(arch, 1, "bf16", 1, warmup) for arch in (80, 100) for warmup in (False, True)]
ADAMWS += [(90, 1, "bf16", 1, False)]


@pytest.mark.parametrize(("arch", "ema", "copy", "max_norm", "warmup"), ADAMWS)
def test_adamw(check, arch, ema, copy, max_norm, warmup):
    block, flat = adamw.BLOCK, 4 + ema
    loads = 4 * flat * block + 8 * adamw.PROGRAMS  # and the partial sums
    stores = (4 * (flat - 1) + (2 if copy else 0)) * block
    options = {"ema": bool(ema), "copy": copy, "max_norm": float(max_norm), "warmup": warmup}
    check(arch, loads, stores, paper_s, **options)
