"""IDX files, the format of MNIST and Fashion-MNIST: bytes after a header of big-endian numbers.

Images are `<set>-images-idx3-ubyte`, or with a dot `<set>-images.idx3-ubyte`; their labels are
`<set>-labels-idx1-ubyte` next to them, with a hyphen or a dot. Any may be gzipped (.gz).
"""

import contextlib
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from pdfast.data.readers.reading import (
    MAX_RATIO,
    UNREADABLE,
    Arrays,
    Gunzip,
    Wanted,
    allocate,
    check_shape,
    fill,
    unreadable,
)
from pdfast.data.readers.registry import Reader, register
from pdfast.errors import UsageError

IMAGES = re.compile(r"(.*)images[-.]idx3-ubyte(\.gz)?", re.IGNORECASE | re.DOTALL)
TRAIN = "train-images-idx3-ubyte"


def train_images(path: Path) -> Path | None:
    """Find the images of the training set in a folder of IDX files.

    Args:
        path: The folder; may be a file or absent.

    Returns:
        The file of the images; None if `path` is not a folder of IDX files.

    Raises:
        UsageError: The folder has IDX files, but none of a training set.
    """
    if not path.is_dir():
        return None
    found = sorted(
        file.name for file in path.iterdir() if IMAGES.fullmatch(file.name) and file.is_file()
    )
    for name in found:
        match = IMAGES.fullmatch(name)
        if match and match[1].lower() == "train-":
            return path / name
    if found:
        raise UsageError(
            f"{path} holds IDX files but no {TRAIN}[.gz]: name the one to read, such as "
            f"{path / found[0]}"
        )
    return None


def read(path: Path, wanted: Wanted) -> Arrays:
    """Read the images, and their labels if they are wanted.

    Args:
        path: The file of the images.
        wanted: The wanted size and channels, and whether to read labels.

    Returns:
        Images uint8 (N, H, W, 1), and with `wanted.labels` labels uint8 (N,).

    Raises:
        UsageError: A file is damaged or not as wanted, or the labels are missing.
    """
    with _open(path, 3) as (shape, load):
        check_shape(str(path), (*shape, 1), wanted)
        images = allocate(str(path), (*shape, 1))
        fill(images, load)
    if not wanted.labels:
        return Arrays(images)
    beside = _labels(path)
    if beside is None:
        name = f"{_set(path)}labels-idx1-ubyte{'.gz' if path.name.lower().endswith('.gz') else ''}"
        raise UsageError(
            f"{path} has no labels beside it: put {name} there, or ask "
            "for no labels (model.num_classes 0)"
        )
    with _open(beside, 1) as (shape, load):
        if shape != images.shape[:1]:
            raise UsageError(
                f"{beside} has {shape[0]} labels for {len(images)} images of {path}: put the files "
                "of one set beside each other"
            )
        labels = allocate(str(beside), shape)
        fill(labels, load)
    return Arrays(images, labels)


def files(path: Path) -> list[Path]:
    """Return all files that `read` may read."""
    beside = _labels(path)
    return [path] if beside is None else [path, beside]


def _set(path: Path) -> str:
    """Return the prefix of the names of a set's files, such as `train-`."""
    match = IMAGES.fullmatch(path.name)
    return match[1] if match else ""


def _labels(path: Path) -> Path | None:
    """Find the file of the labels, preferably packed as the images are; None if it is missing."""
    match = IMAGES.fullmatch(path.name)
    if match is None:
        return None
    packed = match[2] or ""
    endings = [f"{dot}idx1-ubyte{gz}" for gz in (packed, "" if packed else ".gz") for dot in "-."]
    wanted = [f"{match[1]}labels{ending}".lower() for ending in endings]
    beside = [file for file in path.parent.iterdir() if file.name.lower() in wanted]
    beside.sort(key=lambda file: (wanted.index(file.name.lower()), file.name))
    return next((file for file in beside if file.is_file()), None)


def count(path: Path) -> int:
    """Count the images by the file's header."""
    with _open(path, 3) as (shape, _):
        return shape[0]


@contextlib.contextmanager
def _open(path: Path, ndim: int) -> Iterator[tuple[tuple[int, ...], Callable[[int], bytes]]]:
    """Open a file of `ndim` dimensions; yield its shape, checked against its size, and a reader."""
    try:
        with path.open("rb") as file:
            packed = path.suffix.lower() == ".gz"
            load = Gunzip(file).read if packed else file.read
            header = load(4 * (1 + ndim))
            magic, *shape = struct.unpack(f">{1 + ndim}I", header)
            if magic != 0x800 + ndim:  # 8: unsigned bytes
                raise ValueError(f"it begins with {magic:#010x}, not {0x800 + ndim:#010x}")
            size, needed = os.fstat(file.fileno()).st_size, len(header) + math.prod(shape)
            if needed > size * MAX_RATIO if packed else needed != size:
                raise ValueError(
                    f"its header declares {' x '.join(map(str, shape))} bytes, which is not what "
                    "follows"
                )
            yield tuple(shape), load
    except UsageError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, "IDX file", error, "download it again") from None


def _images(source: str) -> Path:
    """Return the file of the images that a source, a file or a folder, names."""
    return train_images(Path(source)) or Path(source)


register(
    Reader(
        kind="an ...images-idx3-ubyte[.gz] as of MNIST",
        suffixes=tuple(f"images{dot}idx3-ubyte{gz}" for dot in "-." for gz in ("", ".gz")),
        folder=lambda path: train_images(path) is not None,
        priority=20,
        open=lambda source, wanted: read(_images(source), wanted),
        files=lambda source: files(_images(source)),
        count=lambda source: count(_images(source)),
    )
)
