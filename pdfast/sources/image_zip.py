"""A zip of images as EDM's `dataset_tool.py` makes it, but for their sizes, which may be any.

The labels are in its `dataset.json`; see edm_labels.py.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pdfast.errors import UsageError
from pdfast.sources import edm_labels
from pdfast.sources.edm_labels import LABELS
from pdfast.sources.pictures import MAX_BYTES, SUFFIXES, Pictures
from pdfast.sources.reading import Wanted
from pdfast.sources.zips import open_member, open_zip

MAX_LIST = 2**27  # bytes of the archive's list of members, and of its labels: a million pictures
KIND = "zip of images"


def reads(name: str) -> bool:
    """Whether a file of this name is for this module."""
    return name.endswith(".zip")


def find(path: Path, wanted: Wanted) -> Pictures:
    """The pictures in it, by name."""
    with open_zip(path, KIND, MAX_LIST) as archive:
        names = [name for name in archive.namelist() if _is_picture(name)]
        if not names:
            raise UsageError(f"{path} holds no images ({', '.join(SUFFIXES)})")
        if len(set(names)) < len(names):
            raise zipfile.BadZipFile("it holds two members of one name")
        names.sort()
        found = _labels(path, archive, names) if wanted.labels else None
    return Pictures(len(names), lambda start: _files(path, names[start:]), found)


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def _files(path: Path, names: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    with open_zip(path, KIND, MAX_LIST) as archive:
        for name in names:
            yield f"{path}: {name}", io.BytesIO(_content(archive, name, MAX_BYTES))


def _content(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member, whose checksum is compared."""
    info = archive.getinfo(name)
    if info.file_size > most:
        raise zipfile.BadZipFile(f"{name} has {info.file_size:,} bytes")
    with open_member(archive, info, name) as file:
        content = file.read()
    if len(content) != info.file_size:
        raise EOFError(f"{name} is cut short")
    return content


def _labels(path: Path, archive: zipfile.ZipFile, names: list[str]) -> NDArray[np.int64] | None:
    """One a picture, or None if there are none."""
    if LABELS not in archive.namelist():
        return None
    content = _content(archive, LABELS, MAX_LIST)
    return edm_labels.parse(f"{path}: {LABELS}", content, names, "the zip")
