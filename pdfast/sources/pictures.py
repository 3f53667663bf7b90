"""A picture of any size and kind, decoded, cropped and resized: all that pdfast reads go this way.

A picture that no decoder can read, or that is too large, is refused by its name.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pdfast.errors import UsageError
from pdfast.sources.reading import Wanted

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# The decoders of those suffixes and no others: some of Pillow's start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 2**26  # of one image, before it is scaled down
MAX_BYTES = 2**28  # of one image's file, in an archive
MAX_LABEL = 2**31
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
Held = Path | BinaryIO | NDArray[np.uint8] | UsageError
"""What a picture is in: a file, its pixels (H, W, C), or why it cannot be used."""


@dataclass(frozen=True)
class Pictures:
    """Pictures yet to be decoded."""

    num: int
    files: Callable[[int], Iterator[tuple[str, Held]]]
    """From a picture's number on: the name for error messages, and what holds the picture."""
    labels: NDArray[np.int64] | None = None
    """(N,), if they were asked for and there are any."""
    names: tuple[str, ...] = ()
    """Of the classes, by number; () where they have none."""
    left_out: str = ""
    """What was passed over, and why; see LeftOut."""
    paths: Callable[[], Iterable[Path]] = lambda: ()
    """All files that are read; none where those are not known."""


def pixels(name: str, file: Held, wanted: Wanted, channels: int) -> NDArray[np.uint8]:
    """A picture as uint8 (size, size, channels): cropped to a square in its centre, and resized.

    Raises UsageError for one that cannot be used.
    """
    if isinstance(file, UsageError):
        raise file
    if isinstance(file, np.ndarray):
        flat = file[..., 0] if file.shape[2] == 1 else file
        image = Image.fromarray(flat).convert(_MODES[channels])
    else:
        image = _open(name, file, _MODES[channels])
    return _area(image, wanted.size) if wanted.method == "area" else _bicubic(image, wanted.size)


def label(number: Any, where: str) -> int:
    """A label that another program wrote; `where` begins the refusal."""
    if type(number) is not int:
        raise UsageError(f"{where} {str(number)[:40]!r}, which is no whole number")
    if not 0 <= number < MAX_LABEL:
        raise UsageError(f"{where} {number}: number classes from 0")
    return number


def _open(name: str, file: Path | BinaryIO, mode: str) -> Image.Image:
    """A picture as grey ("L") or "RGB".

    Turned as its EXIF tag says; transparency shows white; of several frames the first.
    """
    try:
        with Image.open(file, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise UsageError(
                    f"{name} has {width}x{height} pixels, more than {MAX_PIXELS:,}: make it smaller"
                )
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{name} has more than 8 bits per channel: save it with 8")
            ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert(mode)
    except UsageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise UsageError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller") from None
    except MemoryError:
        raise UsageError(f"{name} takes more memory than there is: make it smaller") from None
    except Exception:  # a damaged picture makes Pillow's decoders fail in any way
        raise UsageError(f"{name} is not a readable image: repair or remove it") from None


def _bicubic(image: Image.Image, size: int) -> NDArray[np.uint8]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        # Pillow's filters widen with the scale, so that shrinking does not alias.
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(size, size, -1)


def _area(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The published crop and resize of ImageNet: the mean of all that a pixel covers.

    As Salimans & Ho's code has them, whose results stay real numbers; here they are rounded.
    """
    side = min(image.size)
    left, top = image.width // 2 - side // 2, image.height // 2 - side // 2
    square = np.asarray(image.crop((left, top, left + side, top + side)), np.uint8)
    if side == size:
        return square.reshape(size, size, -1)
    # Sums of whole numbers below 2^53, which are exact in any order.
    covers = _covered(side, size)
    rows = covers @ square.reshape(side, -1).astype(np.float64)
    sums = covers @ rows.reshape(size, side, -1)
    return np.rint(sums / side**2).astype(np.uint8)


@lru_cache(maxsize=256)
def _covered(side: int, size: int) -> NDArray[np.float64]:
    """What each of `size` pixels covers of each of `side`, in parts of 1/size: (size, side)."""
    start, other = np.arange(size)[:, None] * side, np.arange(side) * size
    overlap = np.minimum(start + side, other + size) - np.maximum(start, other)
    covered: NDArray[np.float64] = np.maximum(overlap, 0).astype(np.float64)
    return covered
