"""IDX files, as MNIST and Fashion-MNIST ship them: bytes behind a header of big-endian numbers.

Images are `<set>-images-idx3-ubyte`, their labels `<set>-labels-idx1-ubyte` beside them, either
gzipped (.gz) or not.
"""

import contextlib
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from pdfast.errors import UsageError
from pdfast.sources.reading import (
    MAX_RATIO,
    UNREADABLE,
    Arrays,
    Gunzip,
    Wanted,
    allocate,
    check_shape,
    fill,
)

IMAGES, LABELS = "images-idx3", "labels-idx1"
TRAIN = ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")


def reads(name: str) -> bool:
    """Whether a file of this name is for this module."""
    return name.removesuffix(".gz").endswith(f"{IMAGES}-ubyte")


def train_images(path: Path) -> Path | None:
    """The images of the training set, if `path` is a folder of such files."""
    if not path.is_dir():
        return None
    found = sorted(file.name for file in path.iterdir() if reads(file.name))
    for name in TRAIN:
        if name in found:
            return path / name
    if found:
        raise UsageError(
            f"{path} holds IDX files but no {TRAIN[0]}[.gz]: name the one to read, such as "
            f"{path / found[0]}"
        )
    return None


def read(path: Path, wanted: Wanted) -> Arrays:
    """Images, and labels if they are wanted; see the package."""
    with _open(path, 3) as (shape, load):
        check_shape(str(path), (*shape, 1), wanted)
        images = allocate(str(path), (*shape, 1))
        fill(images, load)
    if not wanted.labels:
        return Arrays(images)
    beside = _labels(path)
    if not beside.is_file():
        raise UsageError(
            f"{path} has its labels in {beside.name}, which is not beside it: put it there, or ask "
            "for no labels (model.num_classes 0)"
        )
    with _open(beside, 1) as (shape, load):
        if shape != images.shape[:1]:
            raise UsageError(f"{beside} has {shape[0]} labels for {len(images)} images of {path}")
        labels = allocate(str(beside), shape)
        fill(labels, load)
    return Arrays(images, labels)


def files(path: Path) -> list[Path]:
    """All that `read` may read."""
    return [file for file in (path, _labels(path)) if file.is_file()]


def _labels(path: Path) -> Path:
    return path.with_name(path.name.replace(IMAGES, LABELS))


def count(path: Path) -> int:
    """Number of images, by the header."""
    with _open(path, 3) as (shape, _):
        return shape[0]


@contextlib.contextmanager
def _open(path: Path, ndim: int) -> Iterator[tuple[tuple[int, ...], Callable[[int], bytes]]]:
    """(shape, reader of the bytes) of a file of `ndim` dimensions, its size checked."""
    try:
        with path.open("rb") as file:
            packed = path.suffix == ".gz"
            load = Gunzip(file).read if packed else file.read
            header = load(4 * (1 + ndim))
            magic, *shape = struct.unpack(f">{1 + ndim}I", header)
            if magic != 0x800 + ndim:  # 8: of unsigned bytes
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
        raise UsageError(f"{path} is not a readable IDX file ({error})") from None
