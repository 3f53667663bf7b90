"""What the benchmarks share: how a call is timed on a GPU, and the table of results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

PER_GRAPH = 20  # calls captured in one graph
ROWS = pytest.StashKey[list]()  # what was measured, for the table
COPY = "copy of the same bytes"


def capture(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """PER_GRAPH calls in one graph, after warming up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PER_GRAPH):
            function()
    return graph


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: per op and shape, each implementation's time, rate, and ratios."""
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
    return "\n".join(lines)
