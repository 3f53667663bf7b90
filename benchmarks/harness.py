"""Shared parts of the benchmarks: timing a call on a GPU, and the tables of results."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from parts import GAPS, gpu_hours

from pdfast.models import cuda_graph
from pdfast.training.cuda_launches import NOT_COUNTED
from pdfast.training.op_counter import PARTS, Amount

PER_GRAPH = 20  # calls captured in one graph
ROWS = pytest.StashKey[list]()  # measurements, for the table
COPY = "copy of the same bytes"
ON_GPU = torch.cuda.is_available()
NET = torch.bfloat16 if ON_GPU else torch.float32
"""Number type of the network."""


class Case(NamedTuple):
    """The images of one batch."""

    n: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.n}x{self.channels}x{self.size}x{self.size}"


BATCHES = [Case(256, 3, 64), Case(128, 3, 32), Case(64, 1, 8)]
"""Batches of images for the ops at the ends of an update."""


def capture(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture PER_GRAPH calls in one graph, after warming up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            function()
    torch.cuda.current_stream().wait_stream(stream)

    def calls() -> None:
        for _ in range(PER_GRAPH):
            function()

    return cuda_graph.capture(calls, stream)


def table(rows: list[dict[str, Any]]) -> str:
    """Format rows as Markdown: times, rates and ratios per op and shape; then the updates."""
    kinds = {"update": update_tables, "count": count_tables, "options": options_tables}
    others = [row for row in rows if row.get("kind") in kinds]
    rows = [row for row in rows if row not in others]
    lines: list[str] = []
    for op in dict.fromkeys(row["op"] for row in rows):
        lines += [f"### {op}", ""]
        lines.append("| shape | implementation | ms | GB/s | of the copy's | against eager |")
        lines.append("|---|---|---:|---:|---:|---:|")
        for shape in dict.fromkeys(row["shape"] for row in rows if row["op"] == op):
            group = [row for row in rows if (row["op"], row["shape"]) == (op, shape)]
            by_name = {row["who"]: row["seconds"] for row in group if row["seconds"]}
            for row in group:
                if not row["seconds"]:
                    reason = row.get("absent", "failed")
                    lines.append(f"| {shape} | {row['who']} | {reason} | | | |")
                    continue
                cells = [shape, row["who"], f"{row['seconds'] * 1e3:.4g}"]
                cells.append(f"{row['bytes'] / row['seconds'] / 1e9:.4g}" if row["bytes"] else "")
                for other, form in ((COPY, "{:.0%}"), ("eager", "{:.2f}x")):
                    ratio = by_name[other] / row["seconds"] if other in by_name else None
                    cells.append(form.format(ratio) if ratio else "")
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    for kind, tables in kinds.items():
        lines += tables([row for row in others if row["kind"] == kind])
    return "\n".join(lines)


def update_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Format each update's times, ratios, utilisation and memory; then its time by part."""
    lines: list[str] = []
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in rows):
        group = [row for row in rows if (row["op"], row["shape"]) == (op, shape)]
        group.sort(key=lambda row: row["who"])
        done = [row for row in group if row["seconds"]]
        faster = {row["who"]: ratio(row["link"], row["times"]) for row in done}
        compiled = next((faster[who] for who in faster if who.startswith("(c)")), None)
        lines += [f"### {op}: {shape}", ""]
        lines.append(
            "| | ms | middle half | images/s | (a) beside it, ms | against (a) | against (c) | "
            "of the datasheet's FLOP/s | of a matmul's | peak MB | GPU-hours for 11 rounds |"
        )
        lines.append("|---|" + "---:|" * 10)
        for row in group:
            if not row["seconds"]:
                lines.append(f"| {row['who']} | {row['absent']} |" + " |" * 9)
                continue
            seconds, rate, own = row["seconds"], row["flops"] / row["seconds"], faster[row["who"]]
            cells = [row["who"], f"{seconds * 1e3:.4g}"]
            middle = statistics.quantiles(row["times"] * 2, n=4)[::2]
            cells += [" to ".join(f"{q * 1e3:.4g}" for q in middle), f"{row['images_per_s']:,.0f}"]
            cells.append(f"{statistics.median(row['link']) * 1e3:.4g}" if row["link"] else "")
            cells.append(f"{own:.2f}x" if own else "")
            cells.append(f"{own / compiled:.2f}x" if own and compiled else "")
            cells += [f"{rate / row[of]:.1%}" if row[of] else "" for of in ("datasheet", "matmul")]
            cells.append(f"{row['memory'] / 1e6:,.0f}" if row.get("memory") else "")
            cells.append(f"{gpu_hours(row['config'], seconds):,.1f}" if row.get("config") else "")
            lines.append("| " + " | ".join(cells) + " |")
        lines += [
            "",
            "Each from (c) on has a process of its own, in which (a) is timed beside it, turn by "
            "turn: against (a) is the median over those turns, against (c) the quotient of both "
            "rows' ratios to (a).",
            "",
        ]
        if not done:
            continue
        lines += [
            "Time by part, under torch.profiler: of kernels, on a CPU of ops. FiLM and SiLU are in "
            "other where they are not fused; gaps are wall time that nothing ran in.",
            "",
        ]
        lines.append("| | " + " | ".join(row["who"] for row in done) + " |")
        lines.append("|---|" + "---:|" * len(done))
        for part in (*PARTS, GAPS):
            shares = [row["parts"].get(part, 0.0) / sum(row["parts"].values()) for row in done]
            lines.append(f"| {part} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
        lines.append("")
    return lines


def ratio(others: list[float] | None, times: list[float]) -> float | None:
    """Return the speed-up: the median of the ratios over repeats in which both ran."""
    if others is None:
        return None
    return statistics.median(a / b for a, b in zip(others, times, strict=True))


def count_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Format an update's counts, and the least times that follow from an H100's datasheet."""
    lines: list[str] = []
    for row in rows:
        lines += [f"### {row['shape']}: a count, not a measurement", ""]
        lines += [
            "FLOPs, bytes of every kernel's inputs and outputs, and kernels of one update of "
            "distillation, from the real graph of its ops and what PyTorch launches for each; "
            f"not counted are {NOT_COUNTED}. The last column is a floor: the counts at an H100's "
            "989 TFLOP/s (bf16) and 3.35 TB/s, part after part.",
            "",
        ]
        lines.append("| part | GFLOP | GB moved | kernels | ms at least |")
        lines.append("|---|---:|---:|---:|---:|")
        amounts = {name: Amount(*numbers) for name, numbers in row["parts"].items()}
        total = 0.0
        for name, amount in amounts.items():
            least = amount.seconds(989e12, 3.35e12) * 1e3
            total += least
            lines.append(
                f"| {name} | {amount.flops / 1e9:,.0f} | {amount.bytes / 1e9:,.2f} | "
                f"{amount.launches:,} | {least:.2f} |"
            )
        both = sum(amounts.values(), Amount())
        lines.append(
            f"| together | {both.flops / 1e9:,.0f} | {both.bytes / 1e9:,.2f} | {both.launches:,} | "
            f"{total:.2f} |"
        )
        lines += ["", f"Peak of live tensors, by the same count: {row['peak'] / 1e6:,.0f} MB.", ""]
    return lines


def options_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Format each option's time beside that of the config without it, measured alternately."""
    lines: list[str] = []
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in rows):
        lines += [f"### {op}: {shape}", ""]
        lines += ["| option | ms | without, ms | speed-up |", "|---|---:|---:|---:|"]
        for row in rows:
            if (row["op"], row["shape"]) != (op, shape):
                continue
            cells = [row["who"], row.get("absent", ""), "", ""]
            if row["seconds"]:
                own, base = row["seconds"], row["base"]
                cells[1:] = f"{own * 1e3:.4g}", f"{base * 1e3:.4g}", f"{base / own:.2f}x"
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines
