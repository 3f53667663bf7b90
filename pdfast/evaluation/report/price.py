"""The plot of distance against what was spent: a point a student, labelled with its steps."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
HEADROOM = 1.12  # for the labels, as a ratio


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
    for number, (line, marker) in enumerate(zip(shown, "osD^v<>pX*" * len(shown), strict=False)):
        x, y, _ = zip(*line.points, strict=True)
        style = "-" if line.joined else "none"
        color = f"C{number % 10}"
        axes.plot(x, y, marker=marker, linestyle=style, color=color, label=line.name)
        for at, distance, steps in line.points:
            below = _is_below(number, at, distance, shown)
            axes.annotate(
                str(steps),
                (at, distance),
                xytext=(0, -6 if below else 6),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                fontsize=8,
                color=color,
            )
    for (name, level), style in zip(reversed(panel.levels), ("--", ":"), strict=False):
        axes.axhline(level, color="grey", linestyle=style, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.08)
    low, high = axes.get_ylim()
    low, high = low / HEADROOM, high * HEADROOM
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=FINE if high / low < NARROW else COARSE))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=COARSE))
    axes.xaxis.set_major_formatter(EngFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"{panel.metric} (lower is better)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _is_below(number: int, at: int, distance: float, shown: Sequence[Line]) -> bool:
    """Whether another line has a point near this one's evaluations, and above it; of two that are
    one, whether this is the later line's.
    """
    return any(
        other != number and max(x, at) < NEAR * min(x, at) and (y, number) > (distance, other)
        for other, line in enumerate(shown)
        for x, y, _ in line.points
    )
