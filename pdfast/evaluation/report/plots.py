"""Pictures of samples, and the report's plot of distances."""

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
CURVES = 5  # signals per row of a gallery
COLORS = ["tab:blue", "tab:orange", "tab:green", "tab:red"]  # for the channels of a signal


def drawable(model: Model) -> bool:
    """Whether `picture` can show a model's samples, which are images (C = 1 or 3) or signals."""
    return len(model.shape) == 2 or (len(model.shape) == 3 and model.shape[0] in (1, 3))


def sample_row(model: Model, steps: int, seed: int, draw: ClassDraw | None = None) -> Row:
    """Sample a row of pictures; every row of the same seed starts from the same noise.

    Args:
        model: The model.
        steps: Number of sampling steps.
        seed: Seed of noise and classes.
        draw: The distribution of the classes; None for the model's own.

    Returns:
        A caption, and samples on the CPU.
    """
    name = "student" if model.steps else "teacher"
    labels = None if draw is None else draw.labels(seed, NUM_SHOWN)
    images = model.sample_images(NUM_SHOWN, steps, seed, labels, on_step=poll)
    return f"{name}, {counted(steps)}", images.cpu()


def picture(model: Model, named: Sequence[Row]) -> Image.Image:
    """Draw rows of samples.

    Floats are scaled by the range of the model's clip, or of the first row.

    Args:
        model: A `drawable` model, for the kind of its samples.
        named: Captions and samples.
    """
    low, high = _range(model, named[0][1])
    if len(model.shape) == 2:
        return curves(named, low, high)
    return rows([(name, _visible(x, low, high)) for name, x in named])


def gallery(model: Model, samples: Tensor, data: Tensor) -> Image.Image:
    """Draw samples in a square.

    Floats are scaled by the range of the model's clip, or of the data.

    Args:
        model: A `drawable` model, for the kind of its samples.
        samples: The samples.
        data: Some of the data.
    """
    low, high = _range(model, data)
    if len(model.shape) == 2:
        strips = torch.split(samples[: CURVES**2], CURVES)
        return curves([("", strip) for strip in strips], low, high, CURVES)
    return grid(_visible(samples, low, high), round(len(samples) ** 0.5))


def _range(model: Model, samples: Tensor) -> tuple[float, float]:
    """Return the numbers that are shown as the lowest and the highest."""
    return model.clip or (float(samples.min()), float(samples.max()))


def _visible(images: Tensor, low: float, high: float) -> Tensor:
    """Return images as uint8."""
    if not images.is_floating_point():
        return images
    return as_stored((images - low) * (2 / max(high - low, 1e-9)) - 1, torch.uint8)


def curves(named: Sequence[Row], low: float, high: float, columns: int = NUM_SHOWN) -> Image.Image:
    """Draw signals side by side, with a line for each channel.

    Args:
        named: Rows: a caption, and signals (N, 1, L, C).
        low: The lowest number shown.
        high: The highest number shown.
        columns: Signals per row.
    """
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
    """Plot distance against sampling steps.

    Args:
        metric: Name of the distance.
        floor: Distance of resampled data.
        curves: (name, {steps: distance}) of each curve.
    """
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
