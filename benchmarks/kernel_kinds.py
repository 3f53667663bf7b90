"""Kernels of one captured update on an H200, by kind, beside pdfast's own count of it.

    python benchmarks/kernel_kinds.py [distill|train] [saved]

The kernels are those of results/h200-2026-11-28-kernels-*.tsv: by name, under the profiler, for a
network that wrote every sum out. `saved` shows other counts instead: with every sum written out,
and with sums left to the ops that read them.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pdfast.config.schema import load_config
from pdfast.cost.counting import count_update
from pdfast.kernels.calls import (
    ADDS,
    ATTENTION,
    CATS,
    COPIES,
    KINDS,
    NORM_BACKWARD,
    NORM_FORWARD,
    NORM_PARAMS,
    POINTWISE,
    PRODUCTS,
    REDUCTIONS,
    RESAMPLING,
    STRIDED_ADDS,
)
from pdfast.kernels.registry import registered
from pdfast.training.op_counter import Amount

RESULTS = Path(__file__).parent / "results"
# Measured in the same run: bf16 products 8192 wide (742 to 768 TFLOP/s), copies of device memory.
FLOP_RATE, BYTE_RATE = 755e12, 4.2e12

INSIDE = "inside cuDNN and cuBLAS, memory sets"  # these are not counted
OWN = {name: op.kind for op in registered().values() for name in op.kernel_names}
# Patterns of the names of other kernels, and of those in csrc/; the first match counts.
PATTERNS = {
    INSIDE: r"^memset|splitkreduce|reducesplitk|split_k_kernel|init_device_workspace|addpadding"
    r"|compute_dot_do_o|convert_dq|epilogue::impl|^void scal_kernel",
    ATTENTION: r"sdpa",
    PRODUCTS: r"(fprop|dgrad|wgrad)|nvjet|gemm",
    NORM_FORWARD: r"pdfast::ForwardBody",
    NORM_BACKWARD: r"pdfast::BackwardBody",
    NORM_PARAMS: r"pdfast::ParamBody",
    STRIDED_ADDS: r"^void at::native::elementwise_kernel<.*CUDAFunctor_add",
    ADDS: r"CUDAFunctor(OnSelf)?_add",
    REDUCTIONS: r"reduce_kernel<",
    CATS: r"CatArrayBatchedCopy",
    COPIES: r"direct_copy_kernel|bfloat16_copy_kernel|^memcpy"
    r"|multi_tensor_apply_kernel<.*(CopyFunctor|UnaryOpFunctor)",
    RESAMPLING: r"avg_pool2d|upsample_nearest2d",
    POINTWISE: r"elementwise_kernel",
}

Phase = Literal["distill", "train"]


class Measured(NamedTuple):
    """The measured kernels of one kind in one update."""

    launches: int
    ms: float


def kind_of(name: str) -> str:
    """Return the kind of a kernel's name, or INSIDE; raise ValueError for an unknown name."""
    if name in OWN:
        return OWN[name]
    for kind, pattern in PATTERNS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    raise ValueError(f"no kind matches the kernel {name}: add its pattern to PATTERNS")


def measured(phase: Phase) -> dict[str, Measured]:
    """Read the launches and milliseconds of the committed table, by kind."""
    found: dict[str, Measured] = {}
    lines = (RESULTS / f"h200-2026-11-28-kernels-{phase}.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    for ms, launches, name in rows[1:]:
        before = found.get(kind_of(name), Measured(0, 0.0))
        found[kind_of(name)] = Measured(before.launches + int(launches), before.ms + float(ms))
    return found


def counted(phase: Phase, defer: bool) -> Mapping[str, Amount]:
    """Count the launches of an update by kind; `defer`: with sums left to their readers."""
    config = load_config("cifar10")
    return count_update(config, phase, kernels=True, precision="bf16", defer=defer).kinds


def saved(phase: Phase) -> str:
    """Format, per kind, the kernels and bytes with sums written out, and left to their readers."""
    both = [counted(phase, defer) for defer in (False, True)]
    rows = {kind: [kinds[kind] for kinds in both] for kind in KINDS}
    rows["together"] = [sum(kinds.values(), Amount()) for kinds in both]
    lines = ["| kernels | without | with | GB without | GB with |", "|---|--:|--:|--:|--:|"]
    for kind, (before, after) in rows.items():
        if before.launches:
            moved = f"{before.bytes / 1e9:,.2f} | {after.bytes / 1e9:,.2f}"
            lines.append(f"| {kind} | {before.launches:,} | {after.launches:,} | {moved} |")
    return "\n".join(lines)


def table(phase: Phase) -> str:
    """Format, per kind, the count, the least time that it takes, and the measurement."""
    kinds = counted(phase, defer=False)  # like the measured update
    seen = measured(phase)
    lines = ["| kernels | counted | measured | GB moved | ms at those rates | ms measured |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    least_of_all = 0.0
    for kind in KINDS:
        if not kinds[kind].launches:
            continue
        least = kinds[kind].seconds(FLOP_RATE, BYTE_RATE) * 1e3
        least_of_all += least
        lines.append(
            f"| {kind} | {kinds[kind].launches:,} | {seen[kind].launches:,} | "
            f"{kinds[kind].bytes / 1e9:,.2f} | {least:.2f} | {seen[kind].ms:.2f} |"
        )
    lines.append(f"| {INSIDE} | | {seen[INSIDE].launches:,} | | | {seen[INSIDE].ms:.2f} |")
    number = sum(amount.launches for amount in kinds.values())
    moved = sum(amount.bytes for amount in kinds.values()) / 1e9
    launches, ms = (sum(column) for column in zip(*seen.values(), strict=True))
    lines.append(
        f"| together | {number:,} | {launches:,} | {moved:,.1f} | {least_of_all:.1f} | {ms:.1f} |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    chosen: Phase = "train" if "train" in sys.argv else "distill"
    print(saved(chosen) if "saved" in sys.argv else table(chosen))
