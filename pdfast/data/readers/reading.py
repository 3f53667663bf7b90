"""What every reader needs: checks before memory is taken, and reading in parts."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdfast.config.schema import LabelFolders, Resize
from pdfast.distributed import memory
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError

MIN_IMAGES = 2  # a covariance needs two
CHUNK = 2**18  # bytes read at once
CRC_PART = 2**24  # bytes between two looks for a signal
MAX_SHOWN = 3  # names of what was left out for one reason
MAX_RATIO = 1032  # bytes that deflate can make of one
# How the standard library fails on files that are not what they say. All but MemoryError, which
# `allocate` deals with: parsing takes no more of it than a file's bounded head.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class LeftOut:
    """What a reader passes over, by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}  # how many, and the first names

    def add(self, why: str, name: str) -> None:
        """Note one; `why` is a plural, such as "broken links"."""
        count, names = self._found.setdefault(why, (0, []))
        if len(names) < MAX_SHOWN:
            names.append(name)
        self._found[why] = count + 1, names

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        return "; ".join(
            f"{why}: {count:,} ({', '.join(names)}{', ...' if count > len(names) else ''})"
            for why, (count, names) in self._found.items()
        )


class Checksum(NamedTuple):
    """The CRC-32 that a file has of its images."""

    file: str
    before: int
    """That of what comes before the images in their member of the file."""
    expected: int

    def check(self, images: NDArray[np.uint8], on_part: Callable[[], None]) -> None:
        """Raise UsageError unless the images are as they were written."""
        found, flat = self.before, images.reshape(-1)
        for start in range(0, len(flat), CRC_PART):
            found = zlib.crc32(flat[start : start + CRC_PART].data, found)
            on_part()
        if found != self.expected:
            raise UsageError(
                f"{self.file} is damaged: the CRC-32 of its images is not the one stored in it; "
                "make or download it again, or, where it is a prepared set, delete it"
            )


class Arrays(NamedTuple):
    """Images of one size, and what is known of them."""

    images: NDArray[np.uint8]
    """(N, H, W, C), in C order."""
    labels: NDArray[np.integer[Any]] | None = None
    """(N,); None where there are none or none are wanted."""
    names: tuple[str, ...] = ()
    """Of the classes, by number; () where they have none."""
    left_out: str = ""
    """What was passed over in reading, and why."""
    stamp: str = ""
    """Of the files that they were read from: the same as long as nobody writes to them; "" where
    that is not known."""
    checksum: "Checksum | None" = None
    """Of images that lie in a file that is mapped into memory, which was not compared yet."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a source."""

    size: int
    """Height and width in pixels."""
    channels: int = 0
    """1 or 3; 0: 3 if any picture has colour, else 1."""
    labels: bool = False
    resize: bool = False
    """Crop and resize sets of another size too; else only pictures, which have each their own."""
    folders: LabelFolders = "auto"
    """See DataConfig.labels."""
    method: Resize = "bicubic"
    """See DataConfig.resize."""
    skip_bad: bool = False
    """See DataConfig.skip_bad."""


def listen() -> None:
    """Stop here if a signal came."""
    poll("nothing was started")


def check_number(where: str, num: int) -> None:
    """Refuse too few images."""
    if num < MIN_IMAGES:
        raise UsageError(f"{where} has {num} images; at least {MIN_IMAGES} are needed")


def check_shape(where: str, shape: tuple[int, ...], wanted: Wanted) -> None:
    """Refuse images of shape (N, H, W, C) that are too few, or not what is wanted."""
    num, height, width, channels = shape
    check_number(where, num)
    if wanted.resize and min(height, width) > 0 and channels in (1, 3):
        return
    if height in (1, 3) and channels not in (1, 3):
        raise UsageError(
            f"{where} has images of shape {(height, width, channels)}: put the channels last, "
            "images.transpose(0, 2, 3, 1)"
        )
    if height != width or channels not in (1, 3):
        raise UsageError(
            f"{where} has images of shape {(height, width, channels)}: make them square, "
            "(H, H, C), with 1 channel or 3"
        )
    size, asked = wanted.size, wanted.channels
    if (height, channels) != (size, asked):
        raise UsageError(
            f"{where} has images of {height}x{width}x{channels}, but the config asks for "
            f"{size}x{size}x{asked}: set model.image_size and model.channels to fit, or resize "
            "them with pdfast data"
        )


def allocate(where: str, shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    """An empty array, unless it cannot fit into this machine's memory."""
    needed = np.dtype(dtype).itemsize
    for length in shape:
        needed *= length
    most = memory.limit()
    if needed >= most:
        raise UsageError(
            f"{where} takes {needed / 1e9:,.1f} GB, which do not fit into the {most / 1e9:,.1f} GB "
            "of memory that this process can have: use fewer images or smaller ones"
        )
    try:
        return np.empty(shape, dtype)
    except MemoryError:  # a limit is set for this process
        raise UsageError(
            f"{where} takes {needed / 1e9:,.1f} GB, more than this process can have: free memory, "
            "or use fewer images or smaller ones"
        ) from None


def fill(array: NDArray[Any], read: Callable[[int], bytes], ends: bool = True) -> None:
    """Read exactly the array's bytes, all that is left if it `ends` there; EOFError, ValueError."""
    target, done = memoryview(array.data).cast("B"), 0
    while done < len(target):
        listen()
        part = read(min(CHUNK, len(target) - done))
        if not part:
            raise EOFError(f"it ends {len(target) - done:,} bytes too early")
        target[done : done + len(part)] = part
        done += len(part)
    if ends and read(1):  # at their ends zip and gzip compare their checksums
        raise ValueError("bytes are left over at its end")


class Gunzip:
    """The one gzip stream that a file holds, to be read in order.

    Python's gzip module looks for the end of a header's texts byte by byte, and skips any number
    of empty streams, without ever coming up for air.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        """The next bytes: `size` of them, but at the end, where the checksum is compared."""
        made = bytearray()
        while len(made) < size and not self._inflate.eof:
            listen()
            # What is not used now is copied: so little of it.
            packed = self._inflate.unconsumed_tail or self._file.read(2**14)
            if not packed:
                raise EOFError("it ends too early")
            made += self._inflate.decompress(packed, size - len(made))
        if self._inflate.eof and (self._inflate.unused_data or self._file.read(1)):
            raise ValueError("bytes are left over at its end")
        return bytes(made)
