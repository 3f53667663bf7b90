"""Read tar archives forward; each size is checked before it is used, and nothing is unpacked.

The old formats, GNU's long names and pax headers are read; of the latter only a member's name and
size count. Several archives in one file, as `cat a.tar b.tar` makes them, are all read, and so is
gzip, whatever the file is called. tarfile is not used for this: it takes a damaged header in the
middle for the end, and would hold the whole list of members.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from pdfast.data.readers.reading import CHUNK, listen

BLOCK = tarfile.BLOCKSIZE
MAX_NOTE = 2**20  # bytes of a header about the next member, such as extended attributes
MAX_NAME = 2**12  # bytes of a member's name
GZIP = b"\x1f\x8b"
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
GNU_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
LABEL, DUMP = b"V", b"D"  # GNU's types: a volume's name, a folder's list
RECORD = re.compile(rb"(\d{1,10}) ")
SIZE = re.compile(rb"-?\d{1,19}")


class Member(NamedTuple):
    """A member of an archive."""

    name: str
    kind: str
    """"file", "folder", "link" or "other", such as a device or a pipe."""
    offset: int
    """Offset of its first byte in the uncompressed file."""
    size: int
    archive: int
    """Number of its archive in the file."""


class Stream(Protocol):
    """Bytes that are read forward; `at` is the offset of the next one."""

    at: int

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        ...

    def skip_to(self, offset: int) -> None:
        """Move forward to `offset`."""
        ...


class Plain:
    """An uncompressed file, in which skipping costs nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.at = file, 0
        self._end = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        content = self._file.read(size)
        self.at += len(content)
        return content

    def skip_to(self, offset: int) -> None:
        """Move to `offset`.

        Raises:
            EOFError: The file is shorter.
        """
        if offset > self._end:
            raise EOFError("unexpected end of data")
        self.at = self._file.seek(offset)


class Gunzipped:
    """The contents of a gzip file of one or several streams."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.at = file, 0
        self._packed = b""
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end, where the checksum is compared.

        Raises:
            EOFError: The file ends within a stream.
        """
        made = bytearray()
        while len(made) < size:
            listen()
            if self._inflate.eof and not self._next():
                break
            if not self._packed:
                self._packed = self._file.read(2**14)
                if not self._packed:
                    raise EOFError("it ends too early")
            made += self._inflate.decompress(self._packed, size - len(made))
            self._packed = self._inflate.unconsumed_tail or self._inflate.unused_data
        self.at += len(made)
        return bytes(made)

    def _next(self) -> bool:
        """Return whether another stream follows; zeros after the last one are padding."""
        while True:
            listen()
            self._packed = self._packed or self._file.read(2**14)
            if not self._packed:
                return False
            if self._packed[0]:
                self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
                return True
            self._packed = self._packed.lstrip(b"\0")

    def skip_to(self, offset: int) -> None:
        """Read on to `offset`, which must lie ahead.

        Raises:
            EOFError: The contents are shorter.
        """
        while self.at < offset:
            if not self.read(min(CHUNK, offset - self.at)):
                raise EOFError("unexpected end of data")


def opened(file: BinaryIO) -> Stream:
    """Open the archive in a file, which may be compressed by gzip."""
    packed = file.read(len(GZIP)) == GZIP
    file.seek(0)
    return Gunzipped(file) if packed else Plain(file)


def exactly(stream: Stream, size: int) -> bytes:
    """Read exactly `size` bytes.

    Raises:
        EOFError: There are fewer.
    """
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("unexpected end of data")
    return content


def members(stream: Stream, most: int) -> Iterator[Member]:
    """Yield all members of all archives in a file.

    A member's content may be read from `stream` before the next member is requested.

    Args:
        stream: The file.
        most: Bytes of a member, at most.

    Raises:
        ValueError: A header is damaged, or a member is too large, outside its folder, or
            unsupported.
        EOFError: The file is empty or cut short.
    """
    archive, ended = 0, True
    name: str | None = None  # of the next member, given by a header before it
    size: int | None = None
    while True:
        listen()
        at = stream.at
        block = stream.read(BLOCK)
        if block and not block.strip(b"\0"):
            ended = True
            continue
        if not block:
            if not at:
                raise EOFError("empty file")
            if not ended:
                raise EOFError("its end is missing: it was cut short")
            return
        if ended and at:
            archive += 1
        ended = False
        entry = _header(block, at)
        if entry.type in (*PAX, tarfile.XGLTYPE, *GNU_NAMES):
            if not 0 <= entry.size <= MAX_NOTE:
                raise ValueError(f"its member {entry.name} has {entry.size:,} bytes")
            content = exactly(stream, entry.size)
            if entry.type in PAX:
                name, size = _pax(content, entry.name, name, size)
            elif entry.type == tarfile.GNUTYPE_LONGNAME:
                name = _name(content.rstrip(b"\0"))
            elif entry.type == tarfile.XGLTYPE and any(_pax(content, entry.name, None, None)):
                raise ValueError(f"its header {entry.name} gives all members one name or size")
            stream.skip_to(at + BLOCK + _padded(entry.size))
            continue
        member = _member(entry, name, size, at + BLOCK, archive)
        name = size = None
        if not 0 <= member.size <= most:
            raise ValueError(f"its member {member.name} has {member.size:,} bytes")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ValueError(f"its member {member.name} is outside its folder")
        if entry.type != LABEL:
            yield member
        stream.skip_to(member.offset + _padded(member.size))


def _header(block: bytes, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        where = f"the header at byte {at:,} is damaged" if at else "it does not begin as one"
        raise ValueError(f"{where}: {error}") from None


def _member(
    entry: tarfile.TarInfo, name: str | None, size: int | None, offset: int, archive: int
) -> Member:
    name = entry.name if name is None else name
    size = entry.size if size is None else size
    if entry.type == tarfile.GNUTYPE_SPARSE:
        raise ValueError(_holes(f"its member {name}"))
    if entry.isdir() or entry.type in LINKS or entry.type == DUMP:
        kind = "link" if entry.type in LINKS else "folder"
        return Member(name, kind, offset, size if entry.type == DUMP else 0, archive)
    if entry.isreg():
        return Member(name, "file", offset, size, archive)
    if entry.type in (b"M", b"N"):  # GNU's types for members in several volumes
        raise ValueError(f"its member {name} continues in another volume")
    empty = entry.type in tarfile.SUPPORTED_TYPES  # devices and pipes may list a size
    return Member(name, "other", offset, 0 if empty else size, archive)


def _pax(
    content: bytes, where: str, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Return name and size of the next member by a pax header, or the given ones."""
    at = 0
    while at < len(content) and content[at]:
        match = RECORD.match(content, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise ValueError(f"the header {where} is damaged")
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not equals:
            raise ValueError(f"the header {where} is damaged")
        if key == b"path":
            name = _name(value)
        elif key == b"size":
            if not SIZE.fullmatch(value):
                raise ValueError(f"the header {where} has a size that is not a number")
            size = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise ValueError(_holes(f"the member behind the header {where}"))
        at = end
    return name, size


def _name(content: bytes) -> str:
    if len(content) > MAX_NAME:
        raise ValueError(f"it holds a member whose name has {len(content):,} bytes")
    return content.decode("utf-8", "surrogateescape")


def _holes(name: str) -> str:
    return f"{name} is stored as a sparse file: make the archive without --sparse"


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
