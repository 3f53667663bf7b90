"""The plot of distance against evaluations, with a point for each student."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

PRICE = "report-evaluations.png"
PRICE_NOTE = (
    "A point is a student, labelled with its sampling steps, at the evaluations of all rounds up "
    "to its own. The quick distance after each round is of few images in at most 16 steps, so it "
    "compares rounds only."
)
NEAR = 1.1  # two lines' points with a lower ratio of evaluations get labels on opposite sides
NARROW = 4  # a range of distances below this ratio gets finer ticks
COARSE, FINE = (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
HEADROOM = 0.13  # margin for the labels, as a fraction of the height
DIGIT = 0.015  # width of a label's digit, as a fraction of the width of all points
RAISED = 9  # points by which a label moves away to avoid the one before it


class Line(NamedTuple):
    """The students of one curve."""

    name: str
    points: Sequence[tuple[int, float, int]]
    """(evaluations, distance, sampling steps) of each student."""
    joined: bool = True
    """Whether to draw a line through the points."""


class Panel(NamedTuple):
    """One plot of comparable distances."""

    metric: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    """Names and distances of horizontal lines."""


def plot_price(panels: Sequence[Panel]) -> Figure:
    """Plot distance against evaluations, with the panels stacked."""
    figure = Figure(figsize=(6, 4 if len(panels) == 1 else 3 * len(panels)), dpi=150)
    figure.set_layout_engine("constrained")
    found = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(found, panels, strict=True):
        _draw(axes, panel)
    found[-1].set_xlabel("network evaluations so far")
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    shown = [line for line in panel.lines if line.points]
    spread = _spread(shown)
    for number, (line, marker) in enumerate(zip(shown, "osD^v<>pX*" * len(shown), strict=False)):
        x, y, _ = zip(*line.points, strict=True)
        style = "-" if line.joined else "none"
        color = f"C{number % 10}"
        axes.plot(x, y, marker=marker, linestyle=style, color=color, label=line.name)
        last, raised = 0.0, False  # end of the label before this one
        for at, distance, steps in line.points:
            below, half = _is_below(number, at, distance, shown), DIGIT * (len(str(steps)) + 1) / 2
            place = math.log(at) / spread
            raised = not raised and last > 0 and place - half < last
            last, away = place + half, 6 + RAISED * raised
            axes.annotate(
                str(steps),
                (at, distance),
                xytext=(0, -away if below else away),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                fontsize=8,
                color=color,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    for (name, level), style in zip(panel.levels, (":", "--")[-len(panel.levels) :], strict=False):
        axes.axhline(level, color="grey", linestyle=style, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.08, y=HEADROOM)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=FINE if high / low < NARROW else COARSE))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=COARSE))
    axes.xaxis.set_major_formatter(EngFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"{panel.metric} (lower is better)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _spread(shown: Sequence[Line]) -> float:
    """Return the logarithm of the ratio of the largest to the smallest evaluations."""
    found = [at for line in shown for at, _, _ in line.points]
    return math.log(max(found) / min(found)) or 1.0


def _is_below(number: int, at: int, distance: float, shown: Sequence[Line]) -> bool:
    """Whether a point's label goes below it, as another line has a point close by and above.

    Of two equal points, the later line's label goes below.
    """
    return any(
        other != number and max(x, at) < NEAR * min(x, at) and (y, number) > (distance, other)
        for other, line in enumerate(shown)
        for x, y, _ in line.points
    )
