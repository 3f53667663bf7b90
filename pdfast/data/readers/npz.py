"""An .npz archive: uint8 `images` (N, H, W, C), and `labels` (N,) of any integer type.

`arr_0` is accepted for `images`: `pdfast sample` and the usual reference batches use that name.
`class_names`, texts, are the class names by number. Large images that are stored uncompressed, as
`np.savez` and `pdfast data` write them, are mapped into memory and shared by processes.
"""

import dataclasses
import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers import npz_file
from pdfast.data.readers.pictures import Held, Pictures
from pdfast.data.readers.reading import Arrays, Checksum, Wanted, allocate, check_shape, fill
from pdfast.data.readers.registry import Reader, register
from pdfast.data.readers.zips import open_member, open_zip
from pdfast.errors import UsageError

NAMES = ("images", "arr_0")
MAPPED = 2**28  # bytes of images from which they are mapped, or read one by one
MAX_HEADER = 4096  # bytes of an array's header; NumPy writes 128
MAX_LIST = 2**20  # bytes of the archive's list of members


def read(path: Path, wanted: Wanted) -> Arrays | Pictures:
    """Read the images, and their labels if they are wanted.

    Args:
        path: The archive.
        wanted: The wanted size and channels, and whether to read labels.

    Returns:
        Arrays; large compressed images as pictures, to be read one by one.

    Raises:
        UsageError: The archive is damaged or not as wanted.
    """
    with open_zip(path, ".npz file", MAX_LIST) as archive:
        images = _images(path, archive)
        with images.file:
            check_shape(str(path), images.shape, wanted)
            found = _pixels(path, images)
        if not wanted.labels or "labels.npy" not in archive.namelist():
            return found
        labels = open_array(archive, "labels")
        with labels.file:
            if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
                raise UsageError(
                    f"{path}: `labels` must be {images.shape[0]} whole numbers, not "
                    f"{labels.dtype} of shape {labels.shape}"
                )
            numbers = read_array(labels, f"{path}: `labels`")
        names = _names(path, archive)
        if isinstance(found, Pictures):
            return dataclasses.replace(found, labels=numbers.astype(np.int64), names=names)
        return found._replace(labels=numbers, names=names)


def read_prepared(path: Path, wanted: Wanted) -> Arrays:
    """Read, as `read` does, a file that prepare.py wrote, whose images are never compressed."""
    found = read(path, wanted)
    assert isinstance(found, Arrays)
    return found


def count(path: Path) -> int:
    """Count the images by the array's header."""
    with open_zip(path, ".npz file", MAX_LIST) as archive:
        images = _images(path, archive)
        images.file.close()
        return images.shape[0]


class Member(NamedTuple):
    """An array of the archive whose header has been read."""

    file: Any
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    transposed: bool
    info: zipfile.ZipInfo
    header: bytes


def _pixels(path: Path, images: Member) -> Arrays | Pictures:
    """Return the images; large ones mapped, or as pictures if they are compressed."""
    size, info = math.prod(images.shape), images.info
    if size < MAPPED or images.transposed:
        return Arrays(read_array(images, str(path)))
    if info.compress_type != zipfile.ZIP_STORED:
        return Pictures(images.shape[0], lambda start: _each(path, start), paths=lambda: [path])
    at = npz_file.stored_at(path, info) + len(images.header)
    checksum = Checksum(str(path), zlib.crc32(images.header), info.CRC)
    return Arrays(npz_file.mapped(path, at, images.shape), checksum=checksum)


def _each(path: Path, start: int) -> Iterator[tuple[str, Held]]:
    """Yield each image from number `start` on, in order."""
    with open_zip(path, ".npz file", MAX_LIST) as archive:
        images = _images(path, archive)
        with images.file:
            for n in range(images.shape[0]):
                image = np.empty(images.shape[1:], np.uint8)
                fill(image, images.file.read, ends=n + 1 == images.shape[0])
                if n >= start:
                    yield f"{path}: image {n}", image


def _names(path: Path, archive: zipfile.ZipFile) -> tuple[str, ...]:
    """Return the class names; () if the archive has none."""
    if "class_names.npy" not in archive.namelist():
        return ()
    names = open_array(archive, "class_names")
    with names.file:
        if len(names.shape) != 1 or names.dtype.kind != "U":
            raise UsageError(
                f"{path}: `class_names` must be texts of shape (K,), not {names.dtype} of shape "
                f"{names.shape}"
            )
        try:
            return tuple(map(str, read_array(names, f"{path}: `class_names`")))
        except UnicodeDecodeError:
            raise UsageError(f"{path}: `class_names` holds invalid text") from None


def _images(path: Path, archive: zipfile.ZipFile) -> Member:
    names = archive.namelist()
    name = next((name for name in NAMES if f"{name}.npy" in names), "")
    if not name:
        held = ", ".join(name.removesuffix(".npy") for name in names[:20]) or "nothing"
        raise UsageError(f"{path} has no array `images` (it holds {held})")
    images = open_array(archive, name)
    if images.dtype != np.uint8 or len(images.shape) != 4:
        raise UsageError(
            f"{path}: `{name}` must be uint8 of shape (N, H, W, C), not {images.dtype} of shape "
            f"{images.shape}"
        )
    return images


def open_array(archive: zipfile.ZipFile, name: str) -> Member:
    """Read an array's header, and check it against the sizes that the archive lists.

    To be called inside `zips.open_zip`, which turns the errors into UsageError. Pickled arrays are
    refused.

    Args:
        archive: The archive.
        name: Name of an array in it, without .npy.

    Raises:
        ValueError: The header is damaged, too long, or of an array that is not read.
        zipfile.BadZipFile: The member is encrypted, or there are two of this name.
    """
    info = archive.getinfo(f"{name}.npy")
    if archive.namelist().count(info.filename) > 1:
        raise zipfile.BadZipFile(f"it holds `{name}` twice")
    file = open_member(archive, info, f"`{name}`")
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"`{name}` is in version {version} of NumPy's format")
    start = file.read(2 * version[0])
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise ValueError(f"the header of `{name}` has {length:,} bytes")
    header = io.BytesIO(start + file.read(length))
    parse = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        parse = np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            shape, transposed, dtype = parse(header, max_header_size=MAX_HEADER)
    except Exception as error:  # NumPy's parser raises more types than it documents
        raise ValueError(f"the header of `{name}` cannot be read: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"`{name}` is pickled")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"`{name}` has the shape {shape}")
    needed = math.prod(shape) * dtype.itemsize
    if 8 + len(start) + length + needed != info.file_size:
        raise ValueError(f"`{name}` is not as long as its header says")
    begins = np.lib.format.magic(*version) + header.getvalue()
    return Member(file, shape, dtype, transposed, info, begins)


def read_array(member: Member, where: str) -> NDArray[Any]:
    """Read an array in C order, once it is known to fit into memory.

    To be called inside `zips.open_zip`, like `open_array`.

    Args:
        member: The array, by `open_array`.
        where: Beginning of an error message.
    """
    shape = member.shape[::-1] if member.transposed else member.shape
    array = allocate(where, shape, member.dtype)
    fill(array, member.file.read)
    return np.ascontiguousarray(array.T) if member.transposed else array


register(
    Reader(
        kind="an .npz",
        labels="`labels` in the .npz",
        suffixes=(".npz",),
        priority=10,
        open=lambda source, wanted: read(Path(source), wanted),
        files=lambda source: [Path(source)],
        count=lambda source: count(Path(source)),
    )
)
