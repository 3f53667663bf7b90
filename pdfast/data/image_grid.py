"""Images of a set, or samples of a model, in rows of one picture."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

MIN_TILE = 48  # pixels that a shown image has at least
GAP, TEXT_HEIGHT = 2, 14

Row = tuple[str, Tensor]  # a caption and samples as they are stored, (N, H, W, C)


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


def rows(named: Sequence[Row]) -> Image.Image:
    """One strip per row of uint8 images, its caption above it."""
    strips = [grid(images, len(images)).convert("RGB") for _, images in named]
    height = sum(strip.height + TEXT_HEIGHT for strip in strips)
    sheet = Image.new("RGB", (max(strip.width for strip in strips), height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (caption, _), strip in zip(named, strips, strict=True):
        draw.text((GAP, top + 1), caption, fill="black")
        sheet.paste(strip, (0, top + TEXT_HEIGHT))
        top += strip.height + TEXT_HEIGHT
    return sheet
