"""A folder of images of any size, whose class sub-folders, if any, are the labels."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pdfast.config import NetConfig
from pdfast.errors import UsageError
from pdfast.sources.reading import Arrays, allocate, check_shape, listen

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# The decoders of those suffixes and no others: some of Pillow's start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 2**26  # of one image, before it is scaled down


def read(path: Path, model: NetConfig) -> Arrays:
    """Images cropped and resized to the model's size, and labels if it has classes."""
    files = sorted(_files(path))
    if not files:
        raise UsageError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    size, channels = model.image_size, model.channels
    labels = _labels(path, files) if model.num_classes else None
    shape = (len(files), size, size, channels)
    check_shape(str(path), shape, model)
    images = allocate(str(path), shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of oddities in what they can read
        for n, file in enumerate(files):
            listen()
            images[n] = _image(file, size, channels)
    return images, labels


def count(path: Path) -> int | None:
    """Number of image files; None for none."""
    return sum(1 for _ in _files(path)) or None


def _files(path: Path) -> Iterator[Path]:
    for file in path.rglob("*"):
        listen()
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield file


def _labels(path: Path, files: list[Path]) -> NDArray[np.int64]:
    inside = [file.relative_to(path).parts for file in files]
    stray = [file for file, parts in zip(files, inside, strict=True) if len(parts) < 2]
    if stray:
        raise UsageError(f"{stray[0]} is in no class sub-folder, but model.num_classes is not 0")
    classes = {name: k for k, name in enumerate(sorted({parts[0] for parts in inside}))}
    return np.array([classes[parts[0]] for parts in inside], np.int64)


def _image(file: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Centre crop to a square, then antialiased resize: uint8 (size, size, channels).

    Turned as its EXIF tag says; transparency shows white; of several frames the first.
    """
    try:
        with Image.open(file, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise UsageError(
                    f"{file} has {width}x{height} pixels, more than {MAX_PIXELS:,}: make it smaller"
                )
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{file} has more than 8 bits per channel: save it with 8")
            ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
    except UsageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise UsageError(f"{file} has more than {MAX_PIXELS:,} pixels: make it smaller") from None
    except MemoryError:
        raise UsageError(f"{file} takes more memory than there is: make it smaller") from None
    except Exception:  # a damaged picture makes Pillow's decoders fail in any way
        raise UsageError(f"{file} is not a readable image: repair or remove it") from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        # Pillow's filters widen with the scale, so that shrinking does not alias.
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(size, size, channels)
