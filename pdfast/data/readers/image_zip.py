"""A zip of images in the layout of EDM's `dataset_tool.py`, except that images may have any size.

The labels are in its `dataset.json`; see edm_labels.py. That may lie in a folder, as `zip -r
set.zip set` stores it; the names in it are then relative to that folder.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers import edm_labels
from pdfast.data.readers.edm_labels import LABELS
from pdfast.data.readers.members import is_picture
from pdfast.data.readers.pictures import MAX_BYTES, SUFFIXES, Held, Pictures
from pdfast.data.readers.reading import LeftOut, Wanted
from pdfast.data.readers.registry import Reader, register
from pdfast.data.readers.zips import open_member, open_zip
from pdfast.errors import UsageError, printable

MAX_LIST = 2**27  # bytes of the list of members, and of the label table: a million pictures
KIND = "zip of images"


def find(path: Path, wanted: Wanted) -> Pictures:
    """Find the pictures in a zip, in the order of their names.

    Args:
        path: The zip.
        wanted: Whether labels are wanted.

    Raises:
        UsageError: The zip cannot be read, has no pictures, or its labels are not usable.
    """
    with open_zip(path, KIND, MAX_LIST) as archive:
        left_out = LeftOut()
        names = [name for name in archive.namelist() if is_picture(name, left_out)]
        if not names:
            passed = f"; left out: {left_out}" if left_out else ""
            raise UsageError(f"{path} holds no images ({', '.join(SUFFIXES)}){passed}")
        if len(set(names)) < len(names):
            raise zipfile.BadZipFile("it holds two members of one name")
        names.sort()
        found = _labels(path, archive, names) if wanted.labels else None
    return Pictures(
        len(names),
        lambda start: _files(path, names[start:]),
        found,
        left_out=printable(str(left_out)),
        paths=lambda: [path],
    )


def _files(path: Path, names: list[str]) -> Iterator[tuple[str, Held]]:
    with open_zip(path, KIND, MAX_LIST) as archive:
        for name in names:
            where = f"{path}: {name}"
            yield where, _held(archive, name, where)


def _held(archive: zipfile.ZipFile, name: str, where: str) -> Held:
    try:
        return io.BytesIO(_content(archive, name, MAX_BYTES))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        return UsageError(f"{where} cannot be read ({error}): repair or remove it")


def _content(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Read a member, whose checksum is compared."""
    info = archive.getinfo(name)
    if info.file_size > most:
        raise zipfile.BadZipFile(f"{name} has {info.file_size:,} bytes")
    with open_member(archive, info, name) as file:
        content = file.read()
    if len(content) != info.file_size:
        raise EOFError(f"{name} is cut short")
    return content


def _labels(path: Path, archive: zipfile.ZipFile, names: list[str]) -> NDArray[np.int64] | None:
    """Return one label per picture, or None if the zip has no labels."""
    tables = [name for name in archive.namelist() if f"/{name}".endswith(f"/{LABELS}")]
    if len(tables) > 1:
        raise UsageError(f"{path} has two lists of labels, {tables[0]} and {tables[1]}: keep one")
    if not tables:
        if any("/" in name for name in names):
            raise UsageError(
                f"{path} has no {LABELS}, which a zip's labels are read from; sub-folders are "
                "classes only in a folder: unzip it, and name the folder as data.source"
            )
        return None
    top = tables[0].removesuffix(LABELS)  # names in the table are relative to this folder
    content = _content(archive, tables[0], MAX_LIST)
    inside = [name.removeprefix(top) for name in names]
    return edm_labels.parse(f"{path}: {tables[0]}", content, inside, "the zip", top=top)


register(
    Reader(
        kind="a .zip",
        labels=f"{LABELS} in the .zip",
        suffixes=(".zip",),
        priority=40,
        open=lambda source, wanted: find(Path(source), wanted),
    )
)
