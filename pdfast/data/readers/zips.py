"""Zip archives whose sizes are checked before anything is read; nothing is extracted to disk."""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pdfast.data.readers.reading import MAX_RATIO, UNREADABLE, unreadable
from pdfast.errors import UsageError


class _Bounded(io.BufferedReader):
    """A file that refuses unbounded reads of more than `most` bytes: a list of too many members."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(io.FileIO(path))
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and 0 <= size <= self._most:
            return super().read(size)
        found = super().read(self._most + 1)
        if len(found) > self._most:
            raise ValueError(f"its list of members is longer than {self._most >> 20} MB")
        return found


@contextlib.contextmanager
def open_zip(path: Path, kind: str, most: int) -> Iterator[zipfile.ZipFile]:
    """Open an archive, check that no members overlap, and turn its errors into UsageError.

    Args:
        path: The archive.
        kind: What the file should be, for error messages.
        most: Bytes of its list of members, at most; 2^20 or more.

    Yields:
        The archive.

    Raises:
        UsageError: The archive is damaged, or cannot be read.
    """
    try:
        with _Bounded(path, most) as file, zipfile.ZipFile(file) as archive:
            ends = [archive.start_dir]
            for info in sorted(archive.infolist(), key=lambda info: -info.header_offset):
                if info.header_offset < 0 or info.header_offset + info.compress_size > ends[-1]:
                    raise zipfile.BadZipFile("its members overlap")
                ends.append(info.header_offset)
            yield archive
    except UsageError:
        raise
    except (*UNREADABLE, zipfile.BadZipFile) as error:
        raise unreadable(path, kind, error, "make or download it again") from None


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, called: str) -> IO[bytes]:
    """Open a member, if its listed size is possible.

    Args:
        archive: The archive.
        info: The member.
        called: Its name in error messages.

    Raises:
        zipfile.BadZipFile: It is encrypted, compressed by another method than deflate, or its
            listed size is impossible.
    """
    if info.flag_bits & 1:
        raise zipfile.BadZipFile(f"{called} is encrypted")
    most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_RATIO}.get(info.compress_type, 0)
    if not most:
        raise zipfile.BadZipFile(f"{called} is neither stored nor deflated")
    if info.file_size > most * info.compress_size:
        raise zipfile.BadZipFile(f"{called} cannot have the size that is listed")
    return archive.open(info)
