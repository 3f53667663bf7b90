"""The plot of distance against what was spent: a point a student, labelled with its steps."""

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
NEAR = 1.1  # points of two lines whose evaluations differ by less have their labels on two sides
NARROW = 4  # a range of distances below this ratio has ticks closer together
COARSE, FINE = (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
HEADROOM = 0.13  # for the labels, of the height of what is drawn
DIGIT = 0.015  # width of a label's digit, over that of all points
RAISED = 9  # points by which a label is farther off than the one beside it


class Line(NamedTuple):
    """Students of one kind."""

    name: str
    points: Sequence[tuple[int, float, int]]
    """(evaluations, distance, sampling steps) of each."""
    joined: bool = True
    """Whether a line is drawn through the points."""


class Panel(NamedTuple):
    """Distances that can be compared."""

    metric: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    """Distances without evaluations of their own."""


def plot_price(panels: Sequence[Panel]) -> Figure:
    """Distance against evaluations, the panels below each other."""
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
        last, raised = 0.0, False  # where the label before this one ends
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
    """The logarithm of the ratio of the largest evaluations to the smallest."""
    found = [at for line in shown for at, _, _ in line.points]
    return math.log(max(found) / min(found)) or 1.0


def _is_below(number: int, at: int, distance: float, shown: Sequence[Line]) -> bool:
    """Whether another line has a point near this one's evaluations, and above it; of two that are
    one, whether this is the later line's.
    """
    return any(
        other != number and max(x, at) < NEAR * min(x, at) and (y, number) > (distance, other)
        for other, line in enumerate(shown)
        for x, y, _ in line.points
    )
