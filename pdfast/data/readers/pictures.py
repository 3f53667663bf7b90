"""A picture of any size and kind, decoded, cropped and resized: all that pdfast reads go this way.

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
EXIF = b"Exif\0\0"  # at the head of a segment of JPEG
MAX_HEAD = 2**20  # bytes of a JPEG in which its EXIF begins
_TURNS: dict[
    Any, Image.Transpose
] = {  # what shows a picture upright, by the value of its orientation tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
        if file.shape == (wanted.size, wanted.size, channels):
            return file
        flat = file[..., 0] if file.shape[2] == 1 else file
        image = Image.fromarray(flat).convert(_MODES[channels])
    else:
        image = _open(name, file, _MODES[channels])
    return _area(image, wanted.size) if wanted.method == "area" else _bicubic(image, wanted.size)


def own_size(name: str, file: Held) -> tuple[int, int] | None:
    """(width, height) of a picture as its header says; None where it cannot be read."""
    if isinstance(file, UsageError):
        return None
    if isinstance(file, np.ndarray):
        return file.shape[1], file.shape[0]
    try:
        with Image.open(file, formats=kinds.formats(kinds.suffix(name))) as opened:
            return opened.size
    except Exception:  # decoding it says what is wrong
        return None


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
        try:
            return _decoded(name, file, mode)
        except UnidentifiedImageError:
            return _decoded(name, _without_exif(file), mode)
    except UsageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise UsageError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller") from None
    except MemoryError:
        raise UsageError(f"{name} takes more memory than there is: make it smaller") from None
    except Exception:  # a damaged picture makes Pillow's decoders fail in any way
        if lacking := kinds.lacking(kinds.suffix(name)):
            raise UsageError(
                f"{name} cannot be read by this Pillow, which has no {lacking}: install a newer one"
            ) from None
        raise UsageError(f"{name} is not a readable image: repair or remove it") from None


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
    """A JPEG without its EXIF, where Pillow stumbles over that."""
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
    """A picture that was loaded, turned as its EXIF tag says.

    Pillow's own function writes the rest of the EXIF again, which may hold what cannot be written.
    EXIF that cannot even be read turns nothing.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except MemoryError:
        raise
    except Exception:  # of a damaged table, in any way
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
    """The published crop and resize of ImageNet: the mean of all that a pixel covers.

    As Salimans & Ho's code has them, whose results stay real numbers; here they are rounded.
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
    """Sums of what each of `size` pixels covers along the first axis, in parts of 1/size.

    By differences of running sums, which are exact: whole numbers.
    """
    side = len(image)
    whole, part = np.divmod(np.arange(size + 1) * side, size)
    before = np.zeros((side + 1, *image.shape[1:]), np.int64)
    np.cumsum(image, 0, out=before[1:])
    ends = before[whole] * size + image[np.minimum(whole, side - 1)] * part[:, None, None]
    sums: NDArray[np.int64] = np.diff(ends, axis=0)
    return sums
