"""Readers of data sets: one module a kind of file, each of which trusts nothing in the file.

A reader gives either arrays, of sets whose images have one size (`read`), or pictures yet to be
decoded (`find`), which pictures.py crops and resizes. It checks each size that a
file declares before it allocates for it, reads in parts that a signal can come between, runs no
code from the file, and raises UsageError naming the file for all that is wrong.
"""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Protocol

from pdfast.config import DataConfig, NetConfig
from pdfast.errors import UsageError
from pdfast.progress import Screen
from pdfast.sources import cifar, digits, emoji, folder, huggingface, idx, image_zip, npz, shards
from pdfast.sources.pictures import Pictures, decode, resize
from pdfast.sources.reading import Arrays, LeftOut, Wanted


class _ArrayFiles(Protocol):
    """A module for files whose images have one size."""

    def reads(self, name: str) -> bool: ...
    def read(self, path: Path, wanted: Wanted) -> Arrays: ...
    def count(self, path: Path) -> int: ...
    def files(self, path: Path) -> list[Path]: ...


SETTLED = 2 * 10**9  # nanoseconds after which a file system's clock has surely moved on
ARRAYS: tuple[_ArrayFiles, ...] = (npz, idx, cifar)
FEW = 64  # pictures that are read to see how long all take


def read(data: DataConfig, model: NetConfig) -> Arrays:
    """Images and labels of `data.source`, of the model's size and channels."""
    return load(data.source, wanted(data, model), Screen(quiet=True))


def wanted(data: DataConfig, model: NetConfig) -> Wanted:
    """What a run wants of its source."""
    return Wanted(
        model.image_size,
        model.channels,
        bool(model.num_classes),
        folders=data.labels,
        method=data.resize,
        skip_bad=data.skip_bad,
    )


def load(source: str, wanted: Wanted, screen: Screen) -> Arrays:
    """Images (N, size, size, channels) and labels of any source, as wanted."""
    found = _open(source, wanted)
    if isinstance(found, Pictures):
        images = decode(source, found, wanted, screen)
        return Arrays(images, found.labels, found.names, found.left_out)
    return found._replace(images=resize(source, found.images, wanted, screen))


def absolute(source: str) -> str:
    """The same source, found from any folder."""
    if source == "digits":
        return source
    if huggingface.reads(source):
        return huggingface.absolute(source)
    kind = emoji.PREFIX if emoji.reads(source) else ""
    return kind + str(Path(source.removeprefix(kind)).absolute())


def resizes(source: str) -> bool:
    """Whether `read` crops and resizes images; files of arrays must have the model's size."""
    if source == "digits":
        return False
    return not _files_of_arrays(source)


def stamp(source: str) -> str:
    """What is another text once a file of the source was written to, or replaced.

    Of files of arrays, whose reading takes little more than a digest of them would; "" of other
    sources, and of files so new that a change may not show.
    """
    found = []
    try:
        for path in _files_of_arrays(source):
            with path.open("rb") as file:  # where files come by a network, that asks anew
                of = os.fstat(file.fileno())
            found.append([of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns])
    except (UsageError, OSError):
        return ""
    settled = all(max(times) < time.time_ns() - SETTLED for _, _, _, *times in found)
    return json.dumps(found) if found and settled else ""


def _files_of_arrays(source: str) -> list[Path]:
    """The files of a source whose images have one size; none of another source."""
    path = idx.train_images(Path(source)) or Path(source)
    kind = _of_arrays(path)
    return kind.files(path) if kind else []


def _of_arrays(path: Path) -> _ArrayFiles | None:
    """The module for a file whose images have one size; None for another file, or a folder."""
    for kind in ARRAYS:
        if kind.reads(path.name.lower()) and path.is_file():
            return kind if kind is not cifar or cifar.holds(path) else None
    return None


def count(source: str) -> int | None:
    """How many images `read` would give; None where there is no such set.

    Images are not read for it, but for those of the digits and of CIFAR; nor is anything
    downloaded.
    """
    if huggingface.reads(source) and huggingface.on_hub(source):
        return None
    wanted = Wanted(1, resize=True)
    path = Path(source)
    try:
        path = idx.train_images(path) or path
        if (kind := _of_arrays(path)) is not None:
            return kind.count(path)
        found = _open(source, wanted)
    except (UsageError, OSError):
        return None
    return found.num if isinstance(found, Pictures) else len(found.images)


def seconds(data: DataConfig, model: NetConfig, arrays: bool = True) -> float | None:
    """How long `read` takes: of pictures, by the first few; None of `arrays`, unless asked for."""
    source, asked = data.source, wanted(data, model)
    start = time.perf_counter()
    if not (arrays or resizes(source)):
        return None
    found = _open(source, asked)
    if not isinstance(found, Pictures):
        resize(source, found.images, asked, Screen(quiet=True))
        return time.perf_counter() - start
    begun, num = time.perf_counter(), min(FEW, found.num)
    few = Pictures(num, lambda first: itertools.islice(found.files(first), num))
    decode(source, few, asked, Screen(quiet=True))
    return begun - start + (time.perf_counter() - begun) * found.num / num


def _open(source: str, wanted: Wanted) -> Arrays | Pictures:
    """What is there, by its name."""
    if source == "digits":
        digits.check_alone(Path(source))
        return digits.read(wanted)
    path = Path(source)
    try:
        if emoji.reads(source):
            return emoji.find(source)
        if huggingface.reads(source):
            return huggingface.find(source, wanted)
        if (paths := shards.named(source)) is not None:
            return shards.find(paths, wanted)
        path = idx.train_images(path) or path
        if path.is_dir():
            left_out = LeftOut()
            paths = shards.inside(path, left_out)
            if not paths:
                return folder.find(path, wanted)
            if any(folder.files(path)):
                raise UsageError(
                    f"{path} holds both images and tar shards, such as {paths[0].name}: keep them "
                    "apart"
                )
            return shards.find(paths, wanted, left_out)
        if (kind := _of_arrays(path)) is not None:
            return kind.read(path, wanted)
        if path.is_file():
            if image_zip.reads(path.name.lower()):
                return image_zip.find(path, wanted)
            if shards.reads(path.name):
                return shards.find([path], wanted)
        there = path.exists()
    except OSError as error:
        raise UsageError(f"data source {path} cannot be read: {error.strerror}") from None
    if there:
        raise UsageError(
            f"{path} is neither a folder of images nor an .npz, an ...images-idx3-ubyte[.gz] as of "
            "MNIST, a .tar.gz of CIFAR, a .zip, or a .tar or .tar.gz of images"
        )
    raise UsageError(f"data source {path} does not exist")
