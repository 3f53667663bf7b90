"""Shared by all readers: checks before memory is allocated, and reading in parts."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdfast.config.schema import LabelFolders, Resize
from pdfast.distributed import memory
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError

MIN_IMAGES = 2  # the fewest from which a covariance can be estimated
CHUNK = 2**18  # bytes read at once
CRC_PART = 2**24  # bytes between two checks for a signal
MAX_SHOWN = 3  # files named as left out for one reason
MAX_RATIO = 1032  # deflate expands a byte to at most this many
# What the standard library raises on files that are not what they claim to be, without MemoryError:
# `allocate` handles that, and parsing reads only the bounded head of a file.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def unreadable(path: Path, kind: str, error: Exception, fix: str) -> UsageError:
    """Return the error for a file that cannot be read, or is not what it claims to be.

    Args:
        path: The file.
        kind: What it claims to be, such as "IDX file".
        error: One of `UNREADABLE`, or zipfile.BadZipFile.
        fix: What to do about a damaged file.
    """
    if isinstance(error, OSError) and error.strerror:  # of the file system
        return UsageError(f"{path} cannot be read: {error.strerror}")
    return UsageError(f"{path} is not a readable {kind} ({error}): {fix}")


class LeftOut:
    """Skipped files of a source: their number and first names, by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}  # reason -> count, first names

    def add(self, why: str, name: str) -> None:
        """Note a skipped file.

        Args:
            why: The reason, a plural such as "broken links".
            name: The file.
        """
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
    """The CRC-32 that a file stores of its images."""

    file: str
    before: int
    """CRC-32 of what precedes the images in their member of the file."""
    expected: int

    def check(self, images: NDArray[np.uint8], on_part: Callable[[], None]) -> None:
        """Compare the images with the stored checksum.

        Args:
            images: uint8, as they lie in the file.
            on_part: Called between parts, so that a signal can interrupt the work.

        Raises:
            UsageError: The images are not as they were written.
        """
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
    """(N,); None if the source has no labels or none are wanted."""
    names: tuple[str, ...] = ()
    """Class names by number; () if the classes have none."""
    left_out: str = ""
    """Files that reading skipped, and why, as a phrase."""
    stamp: str = ""
    """Fingerprint of the files that were read, unchanged as long as nobody writes to them; "" if
    unknown."""
    checksum: "Checksum | None" = None
    """Checksum, not yet compared, of images that lie in a file mapped into memory."""
    unused: tuple[str, ...] = ()
    """See `pictures.Pictures`."""


@dataclass(frozen=True)
class Wanted:
    """Requirements of a caller on a source."""

    size: int
    """Height and width in pixels."""
    channels: int = 0
    """1 or 3; 0: 3 if any picture has colour, else 1."""
    labels: bool = False
    resize: bool = False
    """Also crop and resize sets of another size; else only pictures, each of which has its own
    size."""
    folders: LabelFolders = "auto"
    """See DataConfig.labels."""
    method: Resize = "bicubic"
    """See DataConfig.resize."""
    skip_bad: bool = False
    """See DataConfig.skip_bad."""


def listen() -> None:
    """Raise Stopped if a signal has come."""
    poll("nothing was started")


def check_number(where: str, num: int) -> None:
    """Refuse a set with too few images.

    Raises:
        UsageError: There are fewer than MIN_IMAGES.
    """
    if num < MIN_IMAGES:
        has = "1 image" if num == 1 else f"{num} images"
        raise UsageError(f"{where} has {has}; at least {MIN_IMAGES} are needed")


def check_shape(where: str, shape: tuple[int, ...], wanted: Wanted) -> None:
    """Refuse images that are too few, or not of the wanted size and channels.

    Args:
        where: Beginning of an error message.
        shape: Shape of the images, (N, H, W, C).
        wanted: The wanted size and channels; with `resize` any size will do.

    Raises:
        UsageError: The images cannot be used.
    """
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
            f"{size}x{size}x{asked}: fit the images by pdfast data (pdfast data SOURCE --size "
            f"{size} --channels {asked} --out NEW.npz), or, where no teacher is given, set "
            "model.image_size and model.channels to theirs"
        )


def allocate(where: str, shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    """Allocate an uninitialized array, unless it cannot fit into this machine's memory.

    Raises:
        UsageError: It takes more memory than this process can have; `where` begins the message.
    """
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
    except MemoryError:  # the process has a limit of its own
        raise UsageError(
            f"{where} takes {needed / 1e9:,.1f} GB, more than this process can have: free memory, "
            "or use fewer images or smaller ones"
        ) from None


def fill(array: NDArray[Any], read: Callable[[int], bytes], ends: bool = True) -> None:
    """Fill an array with bytes from `read`.

    Args:
        array: Any array in C order.
        read: Returns at most so many of the next bytes, none at the end.
        ends: Also require that no bytes are left over.

    Raises:
        EOFError: There are too few bytes.
        ValueError: Bytes are left over.
    """
    target, done = memoryview(array.data).cast("B"), 0
    while done < len(target):
        listen()
        part = read(min(CHUNK, len(target) - done))
        if not part:
            raise EOFError(f"it ends {len(target) - done:,} bytes too early")
        target[done : done + len(part)] = part
        done += len(part)
    if ends and read(1):  # reading to the end makes zip and gzip compare their checksums
        raise ValueError("bytes are left over at its end")


class Gunzip:
    """The single gzip stream of a file, read in order.

    Python's gzip module is not used: it searches for the end of a header's texts byte by byte, and
    skips any number of empty streams, without returning to the caller, so no signal could interrupt
    it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end, where the checksum is compared.

        Raises:
            EOFError: The file ends too early.
            ValueError: Bytes are left over after the stream.
        """
        made = bytearray()
        while len(made) < size and not self._inflate.eof:
            listen()
            # Read little at a time: unused input is copied on each call.
            packed = self._inflate.unconsumed_tail or self._file.read(2**14)
            if not packed:
                raise EOFError("it ends too early")
            made += self._inflate.decompress(packed, size - len(made))
        if self._inflate.eof and (self._inflate.unused_data or self._file.read(1)):
            raise ValueError("bytes are left over at its end")
        return bytes(made)
