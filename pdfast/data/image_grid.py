"""Images of a set, or samples of a model, as a grid or as captioned rows in one picture."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

MIN_TILE = 48  # the least width of a shown image, in pixels
GAP, TEXT_HEIGHT = 2, 14

Row = tuple[str, Tensor]  # a caption and samples as they are stored, (N, H, W, C)


def grid(images: Tensor, columns: int) -> Image.Image:
    """Arrange images in rows of `columns`, small ones enlarged by a whole factor.

    Args:
        images: uint8 (N, H, W, C), with 1 channel or 3, on any device.
        columns: Images in a row.

    Returns:
        A grey or RGB picture with white gaps of GAP pixels between the images.
    """
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
    """Draw one strip of images per row, with its caption above it.

    Args:
        named: Captions and their images, uint8 (N, H, W, C).

    Returns:
        An RGB picture, as wide as the longest strip.
    """
    strips = [grid(images, len(images)).convert("RGB") for _, images in named]
    height = sum(strip.height + TEXT_HEIGHT for strip in strips)
    sheet = Image.new("RGB", (max(strip.width for strip in strips), height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (caption, _), strip in zip(named, strips, strict=True):
        draw.text((GAP, top + 1), caption, fill="black")
        sheet.paste(strip, (0, top + TEXT_HEIGHT))
        top += strip.height + TEXT_HEIGHT
    return sheet
