"""Write an .npz in place, around images that are already in the file, without copying them.

The images are its first member, stored uncompressed, so that they can be mapped into memory by
their offset. They may be written in any order while nothing else is in the file; `finish` adds what
`np.load` needs to find them.
"""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdfast.storage.marks import MARK

NAME = "images.npy"
DATA = 256  # bytes before the pixels: the zip member's header, and NumPy's
_MEMBER = 30 + len(NAME) + 20  # a zip's local header, and its extra field for sizes beyond 2^32
PART = 2**24  # bytes processed at once


def size_of(shape: tuple[int, ...]) -> int:
    """Return the bytes of a file with images of this shape, without what `finish` adds."""
    return DATA + math.prod(shape)


class NpzFile:
    """uint8 images (N, H, W, C) in a file that becomes an .npz."""

    def __init__(self, file: io.FileIO, shape: tuple[int, ...]) -> None:
        """Map the images of a file into memory.

        Args:
            file: Open for reading and writing, and as large as `size_of(shape)`.
            shape: (N, H, W, C).
        """
        self._file = file
        self._map = np.memmap(file, np.uint8, "r+", DATA, shape)
        self.images: NDArray[np.uint8] = self._map.view(np.ndarray)

    def sync(self) -> None:
        """Flush the images to disk."""
        self._map.flush()

    def keep(self, kept: NDArray[np.bool_], channels: int) -> None:
        """Move the kept images, and their first channels, to the beginning of the file.

        Args:
            kept: Which images to keep, bool (N,).
            channels: How many channels to keep.
        """
        num, height, width, had = self.images.shape
        flat, at = self.images.reshape(-1), 0
        size = height * width * channels
        block = max(1, PART // (height * width * had))
        for start in range(0, num, block):
            some = self.images[start : start + block][kept[start : start + block]]
            moved = np.ascontiguousarray(some[..., :channels]).reshape(-1)
            flat[at * size : at * size + len(moved)] = moved
            at += len(some)
        self.images = flat[: at * size].reshape(at, height, width, channels)

    def finish(
        self, arrays: Callable[[str], Mapping[str, NDArray[Any]]], on_part: Callable[[], None]
    ) -> None:
        """Make the file an .npz of the images, more arrays, and pdfast's mark.

        Args:
            arrays: Returns the other arrays, given the images' SHA-256 as `digests.digest` computes
                it.
            on_part: Called between parts of the images, so that a signal can interrupt the work.
        """
        flat = self.images.reshape(-1)
        digest = hashlib.sha256(f"images torch.uint8 {self.images.shape}\n".encode())
        with zipfile.ZipFile(_InPlace(self._file, DATA, DATA + len(flat)), "w") as archive:
            with archive.open(zipfile.ZipInfo(NAME), "w", force_zip64=True) as member:
                member.write(_header(self.images.shape))
                for start in range(0, len(flat), PART):
                    digest.update(flat[start : start + PART].data)
                    member.write(flat[start : start + PART].data)
                    on_part()
            for name, array in arrays(digest.hexdigest()).items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            archive.comment = MARK
        self._file.truncate(self._file.tell())
        os.fsync(self._file.fileno())


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the .npy header, padded so that the pixels begin at byte DATA."""
    table = {"descr": "|u1", "fortran_order": False, "shape": shape}
    length = DATA - _MEMBER - 10
    text = repr(table).encode().ljust(length - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text


class _InPlace:
    """A file that is rewritten from its beginning, except for bytes that are already in place."""

    def __init__(self, file: io.FileIO, first: int, end: int) -> None:
        file.seek(0)
        self._file, self._first, self._end = file, first, end

    def write(self, content: Any) -> int:
        """Write `content`, but skip over bytes that are already in place."""
        at, size = self._file.tell(), len(content)
        if self._first <= at and at + size <= self._end and size:
            self._file.seek(size, os.SEEK_CUR)
        elif self._file.write(content) != size:
            raise OSError("a part of it was not written")
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # tell, seek, flush


# ------------------------------------------------------------------------------------------
# Reading


def mapped(path: Path, at: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Map the bytes of a file from `at` on into memory, read-only and shared by all processes."""
    return np.memmap(path, np.uint8, "r", at, shape)


def stored_at(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the offset in the file of the content of an uncompressed member."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + 30 + name + extra
