"""Pictures: grids of samples, and the report's plot."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from pdfast.model import Model
from pdfast.signals import poll

NUM_SHOWN = 16
MIN_TILE = 48  # pixels that a shown image has at least
GAP, TEXT_HEIGHT = 2, 14


def grid(images: Tensor, columns: int) -> Image.Image:
    """uint8 images (N, H, W, C) in rows of `columns`, small ones enlarged by whole pixels."""
    n, height, width, channels = images.shape
    scale = max(1, -(-MIN_TILE // width))
    rows = -(-n // columns)
    sheet = torch.full(
        (rows * (height * scale + GAP) + GAP, columns * (width * scale + GAP) + GAP, channels),
        255,
        dtype=torch.uint8,
    )
    for k, image in enumerate(images.cpu()):
        big = image.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        top = GAP + (k // columns) * (height * scale + GAP)
        left = GAP + (k % columns) * (width * scale + GAP)
        sheet[top : top + height * scale, left : left + width * scale] = big
    array = sheet.numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


Row = tuple[str, Tensor]  # a caption and uint8 images (N, H, W, C)


def sample_row(model: Model, steps: int, seed: int) -> Row:
    """The first samples of a model: every row of one seed starts from the same noise."""
    name = "student" if model.steps else "teacher"
    images = model.sample_images(NUM_SHOWN, steps, seed, on_step=poll)
    return f"{name}, {counted(steps)}", images.cpu()


def counted(steps: int) -> str:
    """The number of steps in words: 1 step, 4 steps."""
    return f"{steps} step{'s' if steps > 1 else ''}"


def rows(named: Sequence[Row]) -> Image.Image:
    """One strip per row, its caption above it."""
    strips = [grid(images, len(images)).convert("RGB") for _, images in named]
    height = sum(strip.height + TEXT_HEIGHT for strip in strips)
    sheet = Image.new("RGB", (max(strip.width for strip in strips), height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (caption, _), strip in zip(named, strips, strict=True):
        draw.text((GAP, top + 1), caption, fill="black")
        sheet.paste(strip, (0, top + TEXT_HEIGHT))
        top += strip.height + TEXT_HEIGHT
    return sheet


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
    ticks = sorted({k for _, points in curves for k in points})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xlabel("sampling steps (network calls per image)")
    axes.set_ylabel(f"{metric} (lower is better)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
