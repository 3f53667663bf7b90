"""The time of an update by kernel and by part (training/op_counter.py); rates and price."""

import functools
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pdfast.config.schema import load_config
from pdfast.kernels.registry import registered
from pdfast.training.op_counter import ATTENTION, NETS, NORMS, OPTIMIZER, OTHER, STEPS

GAPS = "gaps"  # wall time in which no kernel (on a CPU: no op) ran
# Dense bf16 FLOP/s of the datasheets, by torch.cuda.get_device_name.
DATASHEET = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}


def own(kind: str) -> str:
    """Return a pattern of the names of pdfast's ops of a kind, and of their kernels."""
    ops = [op for op in registered().values() if op.kind == kind]
    return "|".join(name for op in ops for name in (op.name, *op.kernel_names))


# Names of ops and kernels, of PyTorch, cuDNN, cuBLAS, Inductor and pdfast; the first match counts.
# Inductor names a fused pointwise kernel after everything in it: such a name is not a convolution.
PATTERNS = {
    OPTIMIZER: rf"^optimizer$|{own(OPTIMIZER)}|multi_tensor|lpnorm",
    STEPS: own(STEPS),
    NORMS: r"group_?norm|pdfast::|rowwisemoments|fusedparams|internalgradients|gammabeta",
    OTHER: r"^triton_(poi|per|red)",
    ATTENTION: r"scaled_dot|flash|fmha|attention",
    NETS: r"conv|gemm|cutlass|cudnn|xmma|nvjet|cublas|[wd]grad|splitk|triton_tem|addmm|::b?mm\b",
}


def part_of(name: str) -> str | None:
    """Return the part that an op or a kernel of this name belongs to, or None."""
    for part, pattern in PATTERNS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return part
    return None


class Kernel(NamedTuple):
    """Time under one name in one update: of a kernel, or on a CPU of an op by itself."""

    seconds: float
    launches: float
    name: str


class Profiled(NamedTuple):
    """Time of an update, by part and by kernel."""

    parts: dict[str, float]
    """Seconds by part, with the gaps."""
    kernels: list[Kernel]
    """Kernels, the longest first."""


def profiled(update: Callable[[], object], times: int, device: torch.device) -> Profiled:
    """Profile an update by torch.profiler; the mean of a few."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as done:
        start = time.perf_counter()
        for _ in range(times):
            update()
        if on_gpu:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - start
    parts: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    for name, part, seconds in kernels_of(done) if on_gpu else ops_of(done):
        parts[part] = parts.get(part, 0.0) + seconds / times
        by_name.setdefault(name, []).append(seconds / times)
    parts[GAPS] = max(0.0, wall / times - sum(parts.values()))
    kernels = [Kernel(sum(each), len(each) / times, name) for name, each in by_name.items()]
    return Profiled(parts, sorted(kernels, reverse=True))


def kernels_of(done: profile) -> Iterator[tuple[str, str, float]]:
    """Yield (name, part, seconds) of every kernel that the GPU ran."""
    events = done.profiler.kineto_results.events()
    ranges = {e.name() for e in events if e.device_type() == DeviceType.CPU}  # shown on both
    for event in events:
        if event.device_type() == DeviceType.CUDA and event.name() not in ranges:
            yield event.name(), part_of(event.name()) or OTHER, event.duration_ns() / 1e9


def ops_of(done: profile) -> Iterator[tuple[str, str, float]]:
    """Yield (name, part, seconds) of every op on a CPU: its own time, its nearest caller's part."""
    for event in done.events():
        part, caller = part_of(event.name), event.cpu_parent
        while part is None and caller is not None:
            part, caller = part_of(caller.name), caller.cpu_parent
        yield event.name, part or OTHER, event.self_cpu_time_total / 1e6


def write_kernels(path: Path, title: str, kernels: Iterable[Kernel]) -> None:
    """Write a table of the kernels of one update, separated by tabs, the longest first."""
    lines = [f"# {title}", "ms\tlaunches\tkernel"]
    for kernel in kernels:
        name = " ".join(kernel.name.split())  # without tabs and line ends
        lines.append(f"{kernel.seconds * 1e3:.4f}\t{kernel.launches:g}\t{name}")
    path.write_text("\n".join(lines) + "\n")


def peak_rate(device: torch.device) -> float:
    """Return the dense bf16 FLOP/s of a known GPU's datasheet, else 0."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rate for known, rate in DATASHEET.items() if known in name), 0.0)


@functools.cache
def matmul_rate(device: torch.device) -> float:
    """Measure a matrix product's FLOP/s: bf16, 8192 wide, on a GPU; float32, 1024, on a CPU."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) / 5)
    return 2 * n**3 / statistics.median(times[3:])


def cpu_peak(make: Callable) -> int:
    """Return the most bytes of live tensors while `make` makes a trainer and it updates once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as done:
        make().update()
    events = done.profiler.kineto_results.events()
    live = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += change
        peak = max(peak, live)
    return peak


def gpu_hours(case: str, seconds: float) -> float:
    """Return the GPU-hours of a config's whole distillation, without sampling."""
    cfg = load_config(case).distill
    rounds = range(1, cfg.rounds + 1)
    return sum(cfg.updates_of(cfg.steps_after(r)) for r in rounds) * seconds / 3600
