"""Pictures of any size and kind, decoded, cropped and resized: all that pdfast reads go this way.

A picture that no decoder can read, or that is too large, is refused by its name.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pdfast.errors import UsageError
from pdfast.progress import Screen
from pdfast.sources import kinds
from pdfast.sources.kinds import SUFFIXES as SUFFIXES
from pdfast.sources.reading import Wanted, allocate, check_number, listen

MAX_PIXELS = 2**26  # of one image, before it is scaled down
MAX_BYTES = 2**28  # of one image's file, in an archive
MAX_LABEL = 2**31
EXIF = b"Exif\0\0"  # at the head of a segment of JPEG
MAX_HEAD = 2**20  # bytes of a JPEG in which its EXIF begins
BLOCK = 4096  # images looked at together
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
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


@dataclass(frozen=True)
class Pictures:
    """Pictures yet to be decoded."""

    num: int
    files: Callable[[int], Iterator[tuple[str, Path | BinaryIO]]]
    """From a picture's number on: the name for error messages, and what holds the picture."""
    labels: NDArray[np.int64] | None = None
    """(N,), if they were asked for and there are any."""
    names: tuple[str, ...] = ()
    """Of the classes, by number; () where they have none."""
    left_out: str = ""
    """What was passed over, and why; see LeftOut."""


def decode(where: str, pictures: Pictures, wanted: Wanted, screen: Screen) -> NDArray[np.uint8]:
    """Pictures as (N, size, size, channels)."""
    check_number(where, pictures.num)
    shape = (pictures.num, wanted.size, wanted.size, wanted.channels or 3)
    images = allocate(where, shape)
    with warnings.catch_warnings(), screen.task("reading", pictures.num) as task:
        warnings.simplefilter("ignore")  # decoders warn of oddities in what they can read
        for n, (name, file) in enumerate(pictures.files(0)):
            listen()
            images[n] = _fit(_open(name, file, _MODES[shape[3]]), wanted.size)
            task.advance()
    return images if wanted.channels else without_false_colour(images)


def resize(
    where: str, images: NDArray[np.uint8], wanted: Wanted, screen: Screen
) -> NDArray[np.uint8]:
    """Images (N, H, W, C) of any one size as (N, size, size, channels)."""
    shape = (len(images), wanted.size, wanted.size, wanted.channels or images.shape[3])
    if shape != images.shape:
        native, images = images, allocate(where, shape)
        with screen.task("resizing", len(native)) as task:
            for n, image in enumerate(native):
                listen()
                flat = image[..., 0] if image.shape[2] == 1 else image
                images[n] = _fit(Image.fromarray(flat).convert(_MODES[shape[3]]), wanted.size)
                task.advance()
    return images if wanted.channels else without_false_colour(images)


def without_false_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images of three channels with one, if in none of them the channels differ."""
    blocks = (images[k : k + BLOCK] for k in range(0, len(images), BLOCK))
    if images.shape[3] == 1 or any((block != block[..., :1]).any() for block in blocks):
        return images
    return np.ascontiguousarray(images[..., :1])


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
        return image.convert(mode)


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


def _fit(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Centre crop to a square, then antialiased resize: uint8 (size, size, channels)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        # Pillow's filters widen with the scale, so that shrinking does not alias.
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(size, size, -1)
