"""A folder of images of any size, whose class sub-folders, if any, are the labels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdfast.errors import UsageError
from pdfast.sources.pictures import SUFFIXES, Pictures
from pdfast.sources.reading import Wanted, listen


def find(path: Path, wanted: Wanted) -> Pictures:
    """The pictures in a folder and those below it, by name."""
    found = sorted(files(path))
    if not found:
        raise UsageError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    classes = _labels(path, found) if wanted.labels else None
    return Pictures(len(found), lambda start: ((str(f), f) for f in found[start:]), classes)


def files(path: Path) -> Iterator[Path]:
    """Those that are no hidden ones, in any order."""
    for file in path.rglob("*"):
        listen()
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield file


def _labels(path: Path, files: list[Path]) -> NDArray[np.int64]:
    inside = [file.relative_to(path).parts for file in files]
    stray = [file for file, parts in zip(files, inside, strict=True) if len(parts) < 2]
    if stray:
        raise UsageError(f"{stray[0]} is in no class sub-folder, but labels are asked for")
    classes = {name: k for k, name in enumerate(sorted({parts[0] for parts in inside}))}
    return np.array([classes[parts[0]] for parts in inside], np.int64)
