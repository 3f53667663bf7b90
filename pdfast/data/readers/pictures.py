"""Decode, crop and resize pictures of any size and kind.

A picture that no decoder can read, or that is too large, is refused by its name.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pdfast.data.readers import kinds
from pdfast.data.readers.kinds import SUFFIXES as SUFFIXES
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError

MAX_PIXELS = 2**26  # of one image, before it is scaled down
MAX_BYTES = 2**28  # of one image's file, in an archive
MAX_LABEL = 2**31
REPAIR = "repair or remove it"  # ends messages on one picture
EXIF = b"Exif\0\0"  # how the EXIF segment of a JPEG begins
MAX_HEAD = 2**20  # bytes of a JPEG in which its EXIF begins
_TURNS: dict[
    Any, Image.Transpose
] = {  # by the value of the EXIF orientation tag: the turn that shows a picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {1: "L", 3: "RGB"}  # Pillow's modes, by channels
Held = Path | BinaryIO | NDArray[np.uint8] | UsageError
"""A picture to be decoded: a file, its pixels (H, W, C), or the error that makes it unusable."""


@dataclass(frozen=True)
class Pictures:
    """Pictures yet to be decoded."""

    num: int
    files: Callable[[int], Iterator[tuple[str, Held]]]
    """Yields, from a picture's number on, each name for error messages and what holds the
    picture."""
    labels: NDArray[np.int64] | None = None
    """(N,), or None if labels were not asked for or the source has none."""
    names: tuple[str, ...] = ()
    """Class names by number; () if the classes have none."""
    left_out: str = ""
    """Files that were skipped, and why, as a phrase; see LeftOut."""
    paths: Callable[[], Iterable[Path]] = lambda: ()
    """All files that are read; none if they are not known."""
    unused: tuple[str, ...] = ()
    """Sub-folders that could be classes, where no labels are wanted; () for fewer than two."""


def pixels(name: str, file: Held, wanted: Wanted, channels: int) -> NDArray[np.uint8]:
    """Decode a picture, crop it to a square in its centre, and resize it.

    Args:
        name: The picture's name, for error messages.
        file: What holds the picture.
        wanted: The wanted size, and the resize method.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 (size, size, channels).

    Raises:
        UsageError: The picture cannot be used.
    """
    if isinstance(file, UsageError):
        raise file
    if isinstance(file, np.ndarray):
        if file.shape == (wanted.size, wanted.size, channels):
            return file
        flat = file[..., 0] if file.shape[2] == 1 else file
        image = Image.fromarray(flat).convert(_MODES[channels])
    else:
        image = _open(name, file, _MODES[channels])
    return _area(image, wanted.size) if wanted.method == "area" else _bicubic(image, wanted.size)


def own_size(name: str, file: Held) -> tuple[int, int] | None:
    """Read (width, height) of a picture from its header; None if it cannot be read."""
    if isinstance(file, UsageError):
        return None
    if isinstance(file, np.ndarray):
        return file.shape[1], file.shape[0]
    try:
        with Image.open(file, formats=kinds.formats(kinds.suffix(name))) as opened:
            return opened.size
    except Exception:  # decoding it reports the cause
        return None


def label(number: Any, where: str) -> int:
    """Check a label that another program wrote.

    Args:
        number: The label.
        where: Beginning of an error message, to which the label is added.

    Raises:
        UsageError: It is not a whole number in 0 .. MAX_LABEL - 1.
    """
    if type(number) is not int:
        raise UsageError(f"{where} {str(number)[:40]!r}, which is not a whole number")
    if not 0 <= number < MAX_LABEL:
        raise UsageError(f"{where} {number}: number classes from 0")
    return number


def _open(name: str, file: Path | BinaryIO, mode: str) -> Image.Image:
    """Open a picture as grey ("L") or "RGB".

    It is turned upright by its EXIF tag; transparency becomes white; of several frames the first
    counts.
    """
    try:
        try:
            return _decoded(name, file, mode)
        except UnidentifiedImageError:
            return _decoded(name, _without_exif(file), mode)
    except UsageError:
        raise
    except Image.DecompressionBombError:  # Pillow's limit, which is above MAX_PIXELS
        raise UsageError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller") from None
    except MemoryError:
        raise UsageError(f"{name} takes more memory than is available: make it smaller") from None
    except Exception:  # a damaged picture makes Pillow's decoders fail in any way
        if lacking := kinds.lacking(kinds.suffix(name)):
            raise UsageError(
                f"{name} cannot be read by this Pillow, which lacks {lacking}: install a newer one"
            ) from None
        raise UsageError(f"{name} is not a readable image: {REPAIR}") from None


def _decoded(name: str, file: Path | BinaryIO, mode: str) -> Image.Image:
    with Image.open(file, formats=kinds.formats(kinds.suffix(name))) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise UsageError(
                f"{name} has {width}x{height} pixels, more than {MAX_PIXELS:,}: make it smaller"
            )
        if opened.mode.startswith(("I", "F")):
            raise UsageError(f"{name} has more than 8 bits per channel: save it with 8")
        opened.load()
        image = _turned(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == mode else image.convert(mode)


def _without_exif(file: Path | BinaryIO) -> BinaryIO:
    """Return a JPEG with its EXIF disabled, for files whose EXIF Pillow cannot read."""
    if isinstance(file, Path):
        content = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
    else:
        file.seek(0)
        content = file.read()
    head = content[:MAX_HEAD]
    if not (head.startswith(b"\xff\xd8") and EXIF in head):
        raise UnidentifiedImageError
    return io.BytesIO(head.replace(EXIF, EXIF[:-1] + b"?") + content[MAX_HEAD:])


def _turned(image: Image.Image) -> Image.Image:
    """Turn a loaded picture as its EXIF tag asks.

    Pillow's `exif_transpose` also writes the rest of the EXIF again, which fails on values that
    cannot be written. EXIF that cannot be read turns nothing.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except MemoryError:
        raise
    except Exception:  # a damaged table makes the parser fail in any way
        return image
    return image if turn is None else image.transpose(turn)


def _bicubic(image: Image.Image, size: int) -> NDArray[np.uint8]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        # Pillow's filters widen with the scale, so that shrinking does not alias.
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(size, size, -1)


def _area(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Crop and resize as published for ImageNet: each pixel is the mean of what it covers.

    As in the code of Salimans & Ho, whose results stay real numbers; here they are rounded.
    """
    side = min(image.size)
    left, top = image.width // 2 - side // 2, image.height // 2 - side // 2
    square = np.asarray(image.crop((left, top, left + side, top + side)), np.uint8)
    if side == size:
        return square.reshape(size, size, -1)
    square = square.reshape(side, side, -1)
    sums = _covered(_covered(square, size).swapaxes(0, 1), size).swapaxes(0, 1)
    return np.rint(sums / side**2).astype(np.uint8)


def _covered(image: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Sum what each of `size` pixels covers along the first axis, in units of 1/size.

    Computed by differences of running sums, which are exact, being whole numbers.
    """
    side = len(image)
    whole, part = np.divmod(np.arange(size + 1) * side, size)
    before = np.zeros((side + 1, *image.shape[1:]), np.int64)
    np.cumsum(image, 0, out=before[1:])
    ends = before[whole] * size + image[np.minimum(whole, side - 1)] * part[:, None, None]
    sums: NDArray[np.int64] = np.diff(ends, axis=0)
    return sums
