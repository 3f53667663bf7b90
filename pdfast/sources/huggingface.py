"""Data sets of Hugging Face's `datasets`, `hf:NAME[:SPLIT]`.

NAME is a folder that `save_to_disk` wrote, a .parquet file, a folder of them, or the name of a set
on the hub, which the library downloads once, into its own cache. Pictures and labels are the
columns of type Image and ClassLabel. No script of a data set is run: from its version 4 on the
library runs none.
"""

import contextlib
import importlib
import io
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdfast.errors import PdfastError, UsageError
from pdfast.sources.pictures import MAX_BYTES, Pictures
from pdfast.sources.reading import Wanted, listen

PREFIX = "hf:"
SPLIT = re.compile(r"(.+):([A-Za-z_][\w.-]*)")
DEFAULT_SPLIT = "train"  # where there are several
ROWS = 64  # of a parquet file, read at once
NO_LABEL = -1  # as the hub's sets have it


class _Table(NamedTuple):
    """One split."""

    num: int
    features: dict[str, Any]
    column: Callable[[str], Iterator[Any]]
    """The values of a column as they are stored, in order."""
    caches: tuple[Path, ...] = ()
    """Of a set on the hub, where the library keeps what it downloads: no other path is opened."""


def reads(source: str) -> bool:
    """Whether a source is for this module."""
    return source.startswith(PREFIX)


def absolute(source: str) -> str:
    """The same source, found from any folder."""
    name, split = _parts(source)
    here = Path(name).absolute() if _exists(name) else name
    return f"{PREFIX}{here}{split and f':{split}'}"


def on_hub(source: str) -> bool:
    """Whether it is the name of a set that may have to be downloaded."""
    return not _exists(_parts(source)[0])


def find(source: str, wanted: Wanted) -> Pictures:
    """The pictures of a split, in its order."""
    with _reading(source):
        table = _open(source)
        image = _only(source, table, "Image", "pictures")
        if image is None:
            raise UsageError(
                f"{source} has no column of pictures, type Image (columns: "
                f"{', '.join(table.features) or 'none'}): cast one to datasets.Image"
            )
        classes = _labels(source, table) if wanted.labels else None
    return Pictures(
        table.num,
        lambda start: itertools.islice(_files(source, table, image), start, None),
        classes,
    )


def _parts(source: str) -> tuple[str, str]:
    """Name and split, which is empty if none is named."""
    name = source.removeprefix(PREFIX)
    match = None if _exists(name) else SPLIT.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def _exists(name: str) -> bool:
    """Whether there is a file or folder of this name."""
    with contextlib.suppress(OSError):  # such as of a name that is too long for one
        return Path(name).exists()
    return False


def _open(source: str) -> _Table:
    name, split = _parts(source)
    path = Path(name)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(
            f"reading {source} needs the package datasets: pip install 'pdfast[datasets]'"
        ) from None
    if not on_hub(source):
        if not any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
            return _parquet(source, path, split, datasets)
        saved = datasets.load_from_disk(path)
        splits = saved if isinstance(saved, dict) else {saved.split or DEFAULT_SPLIT: saved}
        saved = _split(source, splits, split)
        saved.data.validate(full=True)  # no offset in it points outside
        return _mapped(saved, datasets)
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # of its own kinds and those of all that it uses
        raise UsageError(
            f"{source} is no folder and no file here, and as a name on the hub it cannot be had "
            f"({_why(error)}): correct it, or log in, or see to the network"
        ) from None
    kept = (datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME)
    caches = tuple(Path(folder).resolve() for folder in kept)
    return _mapped(_split(source, loaded, split), datasets)._replace(caches=caches)


def _parquet(source: str, path: Path, split: str, datasets: Any) -> _Table:
    if path.is_file():
        builder = datasets.load_dataset_builder("parquet", data_files=str(path))
    elif any(path.rglob("*.parquet")):
        builder = datasets.load_dataset_builder(str(path))
    else:
        raise UsageError(f"{path} holds neither what save_to_disk writes nor .parquet files")
    files = _split(source, builder.config.data_files, split)
    parquet = importlib.import_module("pyarrow.parquet")

    def column(name: str) -> Iterator[Any]:
        for file in files:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS, columns=[name]):
                    yield from batch.column(0).to_pylist()

    num = sum(parquet.read_metadata(file).num_rows for file in files)
    features = datasets.Features.from_arrow_schema(parquet.read_schema(files[0]))
    return _Table(num, features, column)


def _mapped(saved: Any, datasets: Any) -> _Table:
    """A set that lies in files that are mapped into memory."""

    def column(name: str) -> Iterator[Any]:
        stored = saved.select_columns([name])
        if type(saved.features[name]).__name__ == "Image":
            stored = stored.cast_column(name, datasets.Image(decode=False))
        return (row[name] for row in stored)

    return _Table(len(saved), saved.features, column)


def _split(source: str, splits: dict[str, Any], asked: str) -> Any:
    """The split that is asked for, or the only one, or that for training."""
    names = list(map(str, splits))
    chosen = asked or (names[0] if len(names) == 1 else DEFAULT_SPLIT)
    if chosen not in names:
        raise UsageError(
            f"{source} has no split {chosen}: name one of {', '.join(names) or 'none'} behind it, "
            f"{PREFIX}NAME:SPLIT"
        )
    return splits[chosen]


def _only(source: str, table: _Table, kind: str, what: str) -> str | None:
    """The column of a type; None if there is none."""
    found = [name for name, of in table.features.items() if type(of).__name__ == kind]
    if len(found) > 1:
        raise UsageError(
            f"{source} has {len(found)} columns of {what}, {', '.join(found)}: keep one, by "
            "remove_columns of datasets"
        )
    return found[0] if found else None


def _labels(source: str, table: _Table) -> NDArray[np.int64] | None:
    """The classes; None if there are none."""
    column = _only(source, table, "ClassLabel", "labels")
    if column is None:
        return None
    classes = []
    for k in table.column(column):
        listen()
        classes.append(NO_LABEL if k is None else k)
    numbers = np.array(classes, np.int64)
    missing = np.flatnonzero(numbers == NO_LABEL)
    if len(missing) == len(numbers):
        return None
    if len(missing):
        raise UsageError(
            f"{source}: row {missing[0]} has no label in column {column}, as others have: label "
            "all or none"
        )
    return numbers


def _files(source: str, table: _Table, column: str) -> Iterator[tuple[str, Path | BinaryIO]]:
    with _reading(source):
        for n, value in zip(range(table.num), table.column(column), strict=True):
            name, stored = f"{source}: row {n}", value or {}
            content, path = stored.get("bytes"), stored.get("path")
            if content is not None and len(content) > MAX_BYTES:
                raise UsageError(f"{name} has {len(content):,} bytes: make it smaller")
            if content is not None:
                yield name, io.BytesIO(content)
            elif path and any(Path(path).resolve().is_relative_to(c) for c in table.caches):
                yield name, Path(path)
            else:
                raise UsageError(f"{name} holds no picture: store the picture itself in it")


@contextlib.contextmanager
def _reading(source: str) -> Iterator[None]:
    """What goes wrong in the library as UsageError; what it logs of it, not at all."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    except (PdfastError, MemoryError):
        raise
    except Exception as error:  # pyarrow's and the library's own, of many kinds
        raise UsageError(f"{source} cannot be read ({_why(error)})") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _why(error: Exception) -> str:
    """The first line that it says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
