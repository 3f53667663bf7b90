"""Data sources: what `data.source` names, opened by the reader of its kind.

prepare.py turns pictures into one .npz, once, which all processes map into memory.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.console.progress import Screen
from pdfast.data import prepare
from pdfast.data.prepare import SETTLED, Order
from pdfast.data.readers import decoding, npz, registry
from pdfast.data.readers.pictures import Held, Pictures
from pdfast.data.readers.reading import Arrays, Wanted, listen
from pdfast.errors import UsageError

registry.discover()

FEW = 64  # pictures that are read to estimate how long all take
NONE = "no data: pass --data.source FOLDER_OR_NPZ (data.source in the config)"
EXAMPLE = "YOUR_IMAGES"  # stands for a source in pages and messages


def read(data: DataConfig, model: NetConfig, screen: Screen | None = None) -> Arrays:
    """Read images and labels of `data.source`, in the model's size and channels.

    Pictures are prepared in the cache folder, or found there if they were prepared before.

    Args:
        data: The source and how to read it.
        model: The model's config: image_size, channels and num_classes.
        screen: Where progress is shown; None: nowhere.

    Returns:
        Images uint8 (N, H, W, C), and labels if the model has classes and the source has labels.

    Raises:
        UsageError: The source cannot be used; the message names the file and the fix.
    """
    asked, source = wanted(data, model), data.source
    before = stamp(source)
    found = opened(source, asked)
    if isinstance(found, Pictures):
        return prepared(source, asked, found, screen)
    return found._replace(stamp=before)


def prepared(source: str, asked: Wanted, found: Pictures, screen: Screen | None = None) -> Arrays:
    """Return a source's pictures as images of one size, prepared in the cache folder if needed.

    Args:
        source: The source.
        asked: The wanted size, channels, labels and resize method.
        found: The source's pictures.
        screen: Where progress is shown; None: nowhere.

    Raises:
        UsageError: A picture cannot be used, or the cached file is damaged.
        PdfastError: The cache folder cannot be written.
    """
    order = Order(source, asked)
    key = prepare.key_of(order, found, settle=True)
    path = _place(key)
    prepare.make_once(order, found, path, screen or Screen(quiet=True), key)
    try:
        try:
            read = npz.read_prepared(path, asked)
        except UsageError as error:
            raise UsageError(f"{error}: delete it to have it prepared again") from None
        _settle(path, read)
        lacking = prepare.left_out(path, found.left_out, asked.skip_bad)
        return read._replace(stamp=_stamp([path]), left_out=lacking, unused=found.unused)
    finally:
        if not list(found.paths()):  # without its files, the set cannot be recognized next time
            path.unlink(missing_ok=True)


def _place(key: str) -> Path:
    """Return the path of the prepared set of a key."""
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return prepare.cache_folder() / f"prepared-{name}.npz"


def _settle(path: Path, read: Arrays) -> None:
    """Wait until a large file that was just made has a stamp, so that its digest can be cached."""
    for _ in range(30):
        if read.images.nbytes < npz.MAPPED or _stamp([path]):
            return
        listen()
        time.sleep(0.1)


def wanted(data: DataConfig, model: NetConfig) -> Wanted:
    """Return what a run wants of its source, by its config."""
    return Wanted(
        model.image_size,
        model.channels,
        bool(model.num_classes),
        folders=data.labels,
        method=data.resize,
        skip_bad=data.skip_bad,
    )


def find(source: str, wanted: Wanted) -> Pictures:
    """Return the pictures of any source, yet to be decoded, cropped and resized."""
    found = opened(source, wanted)
    return found if isinstance(found, Pictures) else pictures_of(source, found)


def pictures_of(source: str, found: Arrays) -> Pictures:
    """Return images of one size as pictures that are yet to be cropped and resized.

    Raises:
        UsageError: The file that holds the images is damaged.
    """
    images, labels, names, left_out = found[:4]
    if found.checksum is not None:
        found.checksum.check(images, listen)
    numbers = None if labels is None else labels.astype(np.int64)

    def files(start: int) -> Iterator[tuple[str, Held]]:
        return ((f"{source}: image {n}", images[n]) for n in range(start, len(images)))

    return Pictures(len(images), files, numbers, names, left_out, lambda: _files_of_arrays(source))


def checked_labels(
    data: DataConfig, model: NetConfig, labels: NDArray[np.integer[Any]] | None
) -> NDArray[np.integer[Any]]:
    """Return the labels of a source for a model with classes.

    Raises:
        UsageError: It has no labels, or one is not the number of a class of the model.
    """
    where = data.source
    if labels is None:
        raise UsageError(
            f"{where} has no labels, but model.num_classes is {model.num_classes}: add labels "
            f"({registry.labels()}) or set it to 0"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise UsageError(f"{where} has negative labels ({least}): number classes from 0")
    if most >= model.num_classes:
        raise UsageError(
            f"{where} has labels from {least} to {most}, outside "
            f"0 .. {model.num_classes - 1}: set model.num_classes to {most + 1}"
        )
    return labels


def absolute(source: str) -> str:
    """Return the same source with an absolute path, so that it is found from any folder."""
    if not source:
        return source
    reader = registry.by_text(source)
    if reader is not None and reader.absolute is not None:
        return reader.absolute(source)
    return str(Path(source).absolute())


def resizes(source: str) -> bool:
    """Return whether `read` crops and resizes the source's images.

    A source of arrays of one size is not resized: that size must be the model's.
    """
    try:
        return registry.reader_of_arrays(source) is None
    except (UsageError, OSError):  # reading it reports the cause
        return True


def stamp(source: str) -> str:
    """Fingerprint a source's files; it changes whenever one is written to or replaced.

    Returns:
        The fingerprint; "" for sources that are not files of arrays, and for files so new that a
            change may not show.
    """
    try:
        return _stamp(_files_of_arrays(source))
    except (UsageError, OSError):
        return ""


def _stamp(paths: Sequence[Path]) -> str:
    found = []
    try:
        for path in paths:
            with path.open("rb") as file:  # makes a network file system fetch fresh attributes
                of = os.fstat(file.fileno())
            found.append([of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns])
    except OSError:
        return ""
    settled = all(max(times) < time.time_ns() - SETTLED for _, _, _, *times in found)
    return json.dumps(found) if found and settled else ""


def files_of(source: str, found: Arrays | Pictures) -> list[Path]:
    """Return all files that an opened source is read from; [] if they are not known."""
    return list(found.paths()) if isinstance(found, Pictures) else _files_of_arrays(source)


def _files_of_arrays(source: str) -> list[Path]:
    """Return the files of a source whose images have one size; [] for any other source."""
    reader = registry.reader_of_arrays(source)
    return reader.files(source) if reader is not None and reader.files is not None else []


def count(data: DataConfig) -> int | None:
    """Count the images that `read` would return; None if there is no such set.

    Images are not read for this, except for the digits and CIFAR. Nothing is downloaded.
    """
    source = data.source
    wanted = Wanted(1, resize=True, folders=data.labels, skip_bad=data.skip_bad)
    try:
        reader = registry.reader_of(source) if source else None
        if reader is None or (reader.downloads is not None and reader.downloads(source)):
            return None
        if reader.count is not None:
            return reader.count(source)
        found = reader.open(source, wanted)
    except (UsageError, OSError):
        return None
    return found.num if isinstance(found, Pictures) else len(found.images)


def seconds(data: DataConfig, model: NetConfig, arrays: bool = True) -> float | None:
    """Measure or estimate how long `read` takes.

    Pictures are estimated from the first FEW of them; arrays are timed by opening them.

    Args:
        data: The source and how to read it.
        model: The model's config: image_size, channels and num_classes.
        arrays: Also time sources whose images have one size.

    Returns:
        Seconds; None for a source of arrays unless `arrays` is set.

    Raises:
        UsageError: The source cannot be used, or its labels are not the model's classes.
    """
    source, asked = data.source, wanted(data, model)
    start = time.perf_counter()
    if not (arrays or resizes(source)):
        return None
    found = opened(source, asked)
    if model.num_classes:
        checked_labels(data, model, found.labels)
    if not isinstance(found, Pictures):
        return time.perf_counter() - start
    order = Order(source, asked)
    if _place(prepare.key_of(order, found)).is_file():  # prepared before
        return time.perf_counter() - start
    begun, num = time.perf_counter(), min(FEW, found.num)
    few = Pictures(num, lambda first: itertools.islice(found.files(first), num))
    decoding.check_all(asked, few)
    return begun - start + (time.perf_counter() - begun) * found.num / num


def opened(source: str, wanted: Wanted) -> Arrays | Pictures:
    """Open a source with its reader.

    Raises:
        UsageError: The source is empty, no reader recognizes it, it does not exist, or it cannot be
            read.
    """
    if not source:
        raise UsageError(NONE)
    path = Path(source)
    try:
        reader = registry.reader_of(source)
        if reader is not None:
            return reader.open(source, wanted)
        there = path.exists()
    except OSError as error:
        raise UsageError(f"data source {path} cannot be read: {error.strerror}") from None
    if there:
        raise UsageError(f"{path} is neither {registry.kinds()}")
    raise UsageError(missing(source))


def exists(source: str) -> bool:
    """Return whether there is such a source on this machine, or one that is named by a keyword."""
    return bool(source) and (registry.by_text(source) is not None or Path(source).exists())


def trouble(data: DataConfig) -> str:
    """Return why `count` does not find the set; "" for one that is downloaded when it is read."""
    source = data.source
    if not exists(source):
        return missing(source)
    try:
        reader = registry.reader_of(source)
        if reader is None or reader.downloads is None or not reader.downloads(source):
            opened(source, Wanted(1, resize=True, folders=data.labels, skip_bad=data.skip_bad))
    except (UsageError, OSError) as error:
        return str(error)
    return ""


def missing(source: str) -> str:
    """Return a message on a source that does not exist, with the fix."""
    if not source:
        return NONE
    if source == EXAMPLE or Path(source).name == EXAMPLE:
        return f"data.source is still {EXAMPLE}: replace it by your folder of images or .npz"
    looked = "" if Path(source).is_absolute() else f" (looked in {Path.cwd()})"
    return f"data source {source} does not exist{looked}: correct the path"
