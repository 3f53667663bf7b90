"""Pictures of samples, and the report's plot."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from pdfast.console.messages import counted
from pdfast.data.image_grid import Row, grid, rows
from pdfast.distributed.signals import poll
from pdfast.evaluation.class_draw import ClassDraw
from pdfast.models.images import as_stored
from pdfast.models.model import Model

NUM_SHOWN = 16
CURVES = 5  # signals in a row of a square of them
COLORS = ["tab:blue", "tab:orange", "tab:green", "tab:red"]  # of a signal's channels


def drawable(model: Model) -> bool:
    """Whether `picture` can show the model's samples: images of 1 or 3 channels, and signals."""
    return len(model.shape) == 2 or (len(model.shape) == 3 and model.shape[0] in (1, 3))


def sample_row(model: Model, steps: int, seed: int, draw: ClassDraw | None = None) -> Row:
    """The first samples of a model: every row of one seed starts from the same noise.

    `draw`: how their classes are drawn; None as the model does.
    """
    name = "student" if model.steps else "teacher"
    labels = None if draw is None else draw.labels(seed, NUM_SHOWN)
    images = model.sample_images(NUM_SHOWN, steps, seed, labels, on_step=poll)
    return f"{name}, {counted(steps)}", images.cpu()


def picture(model: Model, named: Sequence[Row]) -> Image.Image:
    """Rows of samples of the model's kind, which is `drawable`; floats by the range of its clip,
    or of the first row.
    """
    low, high = _range(model, named[0][1])
    if len(model.shape) == 2:
        return curves(named, low, high)
    return rows([(name, _visible(x, low, high)) for name, x in named])


def gallery(model: Model, samples: Tensor, data: Tensor) -> Image.Image:
    """Samples of the model's kind, which is `drawable`, as a square of them; floats by the range of
    its clip, or of the data.
    """
    low, high = _range(model, data)
    if len(model.shape) == 2:
        strips = torch.split(samples[: CURVES**2], CURVES)
        return curves([("", strip) for strip in strips], low, high, CURVES)
    return grid(_visible(samples, low, high), round(len(samples) ** 0.5))


def _range(model: Model, samples: Tensor) -> tuple[float, float]:
    """What is shown as the lowest and the highest number."""
    return model.clip or (float(samples.min()), float(samples.max()))


def _visible(images: Tensor, low: float, high: float) -> Tensor:
    """Images as uint8."""
    if not images.is_floating_point():
        return images
    return as_stored((images - low) * (2 / max(high - low, 1e-9)) - 1, torch.uint8)


def curves(named: Sequence[Row], low: float, high: float, columns: int = NUM_SHOWN) -> Image.Image:
    """Signals (N, 1, L, C) side by side, a strip per row, its caption above; a line a channel."""
    figure = Figure(figsize=(max(8, 0.875 * columns), 1.2 * len(named)), dpi=100)
    axes, canvas = figure.add_axes((0.01, 0, 0.98, 1)), FigureCanvasAgg(figure)
    lines, colors = [], []
    for row, (name, samples) in enumerate(named):
        heights = ((samples[:, 0].cpu().double() - low) / max(high - low, 1e-9)).clamp(-0.1, 1.1)
        length = samples.shape[2]
        for k, sample in enumerate(heights):
            place = torch.linspace(k, k + 0.9, length).double()
            for channel, heights_of in enumerate(sample.T):
                lines.append(torch.stack([place, heights_of - 1.5 * row], dim=1).numpy())
                colors.append(COLORS[channel % len(COLORS)])
        axes.text(0, 1.15 - 1.5 * row, name, fontsize=8)
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=0.8))
    axes.set(xlim=(0, columns), ylim=(-1.5 * len(named) + 1.3, 1.4))
    axes.set_axis_off()
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels).convert("RGB")


def plot_distances(
    metric: str, floor: float, curves: Sequence[tuple[str, dict[int, float]]]
) -> Figure:
    """Distance against sampling steps, one curve per (name, {steps: distance})."""
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=150)
    axes = figure.subplots()
    for (name, points), marker in zip(curves, "os^", strict=False):
        if points:
            steps = sorted(points)
            axes.plot(steps, [points[k] for k in steps], marker=marker, label=name)
    axes.axhline(floor, color="grey", linestyle="--", label="resampled data (floor)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    ticks = sorted({k for _, points in curves for k in points})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(f"{metric} (lower is better)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
