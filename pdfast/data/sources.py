"""Data sources: what `data.source` names, read by the reader that it is for.

Of pictures, prepare.py makes one .npz, once, which all processes map into their memory.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.console.progress import Screen
from pdfast.data import prepare
from pdfast.data.prepare import SETTLED, Order
from pdfast.data.readers import decoding, npz, registry
from pdfast.data.readers.pictures import Held, Pictures
from pdfast.data.readers.reading import Arrays, Wanted, listen
from pdfast.errors import UsageError

registry.discover()

FEW = 64  # pictures that are read to see how long all take


def read(data: DataConfig, model: NetConfig, screen: Screen | None = None) -> Arrays:
    """Images and labels of `data.source`, of the model's size and channels.

    Pictures are prepared in the cache folder, or found there from the time before.
    """
    asked, source = wanted(data, model), data.source
    before = stamp(source)
    found = opened(source, asked)
    if isinstance(found, Pictures):
        return prepared(source, asked, found, screen)
    return found._replace(stamp=before)


def prepared(source: str, asked: Wanted, found: Pictures, screen: Screen | None = None) -> Arrays:
    """The pictures of a source as images of one size, made in the cache folder, or found there."""
    order = Order(source, asked)
    key = prepare.key_of(order, found, settle=True)
    path = _place(key)
    prepare.make_once(order, found, path, screen or Screen(quiet=True), key)
    try:
        try:
            read = npz.read_prepared(path, asked)
        except UsageError as error:
            raise UsageError(f"{error}: delete it, and it is prepared again") from None
        _settle(path, read)
        lacking = prepare.left_out(path, found.left_out, asked.skip_bad)
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
    found = opened(source, wanted)
    return found if isinstance(found, Pictures) else pictures_of(source, found)


def pictures_of(source: str, found: Arrays) -> Pictures:
    """Images of one size as pictures, which are yet to be cropped and resized."""
    images, labels, names, left_out = found[:4]
    if found.checksum is not None:
        found.checksum.check(images, listen)
    numbers = None if labels is None else labels.astype(np.int64)

    def files(start: int) -> Iterator[tuple[str, Held]]:
        return ((f"{source}: image {n}", images[n]) for n in range(start, len(images)))

    return Pictures(len(images), files, numbers, names, left_out, lambda: _files_of_arrays(source))


def absolute(source: str) -> str:
    """The same source, found from any folder."""
    reader = registry.by_text(source)
    if reader is not None and reader.absolute is not None:
        return reader.absolute(source)
    return str(Path(source).absolute())


def resizes(source: str) -> bool:
    """Whether `read` crops and resizes images; those of one size must have the model's."""
    try:
        return registry.reader_of_arrays(source) is None
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


def files_of(source: str, found: Arrays | Pictures) -> list[Path]:
    """All files that an opened source is read from; [] where those are not known."""
    return list(found.paths()) if isinstance(found, Pictures) else _files_of_arrays(source)


def _files_of_arrays(source: str) -> list[Path]:
    """The files of a source whose images have one size; none of another source."""
    reader = registry.reader_of_arrays(source)
    return reader.files(source) if reader is not None and reader.files is not None else []


def count(data: DataConfig) -> int | None:
    """How many images `read` would give; None where there is no such set.

    Images are not read for it, but for those of the digits and of CIFAR; nor is anything
    downloaded.
    """
    source = data.source
    wanted = Wanted(1, resize=True, folders=data.labels, skip_bad=data.skip_bad)
    try:
        reader = registry.reader_of(source)
        if reader is None or (reader.downloads is not None and reader.downloads(source)):
            return None
        if reader.count is not None:
            return reader.count(source)
        found = reader.open(source, wanted)
    except (UsageError, OSError):
        return None
    return found.num if isinstance(found, Pictures) else len(found.images)


def seconds(data: DataConfig, model: NetConfig, arrays: bool = True) -> float | None:
    """How long `read` takes: of pictures, by the first few; None of `arrays`, unless asked for."""
    source, asked = data.source, wanted(data, model)
    start = time.perf_counter()
    if not (arrays or resizes(source)):
        return None
    found = opened(source, asked)
    if not isinstance(found, Pictures):
        return time.perf_counter() - start
    order = Order(source, asked)
    if _place(prepare.key_of(order, found)).is_file():  # it was prepared before
        return time.perf_counter() - start
    begun, num = time.perf_counter(), min(FEW, found.num)
    few = Pictures(num, lambda first: itertools.islice(found.files(first), num))
    decoding.check_all(asked, few)
    return begun - start + (time.perf_counter() - begun) * found.num / num


def opened(source: str, wanted: Wanted) -> Arrays | Pictures:
    """Open a source with its reader."""
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
    raise UsageError(f"data source {path} does not exist")
