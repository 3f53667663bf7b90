"""Readers of data sets: one module a kind of file, each of which trusts nothing in the file.

A reader gives either arrays, of sets whose images have one size (`read`), or pictures yet to be
decoded (`find`), which pictures.py crops and resizes. For a run, prepare.py makes of them one
.npz, once, which all processes map into their memory. It checks each size that a
file declares before it allocates for it, reads in parts that a signal can come between, runs no
code from the file, and raises UsageError naming the file for all that is wrong.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.console.progress import Screen
from pdfast.data import prepare
from pdfast.data.prepare import SETTLED, Order
from pdfast.data.readers import (
    cifar,
    decoding,
    digits,
    emoji,
    folder,
    huggingface,
    idx,
    image_zip,
    npz,
    shards,
)
from pdfast.data.readers.pictures import Held, Pictures
from pdfast.data.readers.reading import Arrays, LeftOut, Wanted, listen
from pdfast.errors import UsageError


class _ArrayFiles(Protocol):
    """A module for files whose images have one size."""

    def reads(self, name: str) -> bool: ...
    def read(self, path: Path, wanted: Wanted) -> Arrays | Pictures: ...
    def count(self, path: Path) -> int: ...
    def files(self, path: Path) -> list[Path]: ...


ARRAYS: tuple[_ArrayFiles, ...] = (npz, idx, cifar)
FEW = 64  # pictures that are read to see how long all take


def read(data: DataConfig, model: NetConfig, screen: Screen | None = None) -> Arrays:
    """Images and labels of `data.source`, of the model's size and channels.

    Pictures are prepared in the cache folder, or found there from the time before.
    """
    asked, source = wanted(data, model), data.source
    before = stamp(source)
    found = _open(source, asked)
    if not isinstance(found, Pictures):
        return found._replace(stamp=before)
    shown = screen or Screen(quiet=True)
    order = Order(source, asked)
    key = prepare.key_of(order, found, settle=True)
    path = _place(key)
    prepare.make_once(order, found, path, shown, key)
    try:
        try:
            read = npz.read_prepared(path, asked)
        except UsageError as error:
            raise UsageError(f"{error}: delete it, and it is prepared again") from None
        _settle(path, read)
        lacking = prepare.left_out(path, found.left_out, data.skip_bad)
        return read._replace(stamp=_stamp([path]), left_out=lacking)
    finally:
        if not list(found.paths()):  # of what it was made cannot be told the next time
            path.unlink(missing_ok=True)


def _place(key: str) -> Path:
    """Where the prepared set of a key lies."""
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return prepare.cache_folder() / f"prepared-{name}.npz"


def _settle(path: Path, read: Arrays) -> None:
    """Wait until a large file that was just made has a stamp, under which its digest is kept."""
    for _ in range(30):
        if read.images.nbytes < npz.MAPPED or _stamp([path]):
            return
        listen()
        time.sleep(0.1)


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


def find(source: str, wanted: Wanted) -> Pictures:
    """The pictures of any source, yet to be decoded, cropped and resized."""
    found = _open(source, wanted)
    if isinstance(found, Pictures):
        return found
    images, labels, names, left_out = found[:4]
    if found.checksum is not None:
        found.checksum.check(images, listen)
    numbers = None if labels is None else labels.astype(np.int64)

    def files(start: int) -> Iterator[tuple[str, Held]]:
        return ((f"{source}: image {n}", images[n]) for n in range(start, len(images)))

    return Pictures(len(images), files, numbers, names, left_out, lambda: _files_of_arrays(source))


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
    try:
        return not _files_of_arrays(source)
    except (UsageError, OSError):  # reading it says what is wrong
        return True


def stamp(source: str) -> str:
    """A fingerprint of a source's files that changes whenever one is written to or replaced.

    "" for sources that are no files of arrays, and for files so new that a change may not show.
    """
    try:
        return _stamp(_files_of_arrays(source))
    except (UsageError, OSError):
        return ""


def _stamp(paths: Sequence[Path]) -> str:
    found = []
    try:
        for path in paths:
            with path.open("rb") as file:  # where files come by a network, that asks anew
                of = os.fstat(file.fileno())
            found.append([of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns])
    except OSError:
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


def count(data: DataConfig) -> int | None:
    """How many images `read` would give; None where there is no such set.

    Images are not read for it, but for those of the digits and of CIFAR; nor is anything
    downloaded.
    """
    source = data.source
    if huggingface.reads(source) and huggingface.on_hub(source):
        return None
    wanted = Wanted(1, resize=True, folders=data.labels, skip_bad=data.skip_bad)
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
        return time.perf_counter() - start
    order = Order(source, asked)
    if _place(prepare.key_of(order, found)).is_file():  # it was prepared before
        return time.perf_counter() - start
    begun, num = time.perf_counter(), min(FEW, found.num)
    few = Pictures(num, lambda first: itertools.islice(found.files(first), num))
    decoding.check_all(asked, few)
    return begun - start + (time.perf_counter() - begun) * found.num / num


def _open(source: str, wanted: Wanted) -> Arrays | Pictures:
    """Open a source with the reader that its name calls for."""
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
