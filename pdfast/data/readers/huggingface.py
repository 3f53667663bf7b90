"""Data sets of Hugging Face's `datasets`, `hf:NAME[:SPLIT[:COLUMN]]`.

NAME is a folder written by `save_to_disk`, a .parquet file, a folder of them, or the name of a set
on the hub, which the library downloads once into its own cache.

Pictures and labels are the columns of type Image and ClassLabel, or the ones that COLUMN names:
`image,label` names both. The label column may also hold whole numbers, which are the classes, or
texts, which are class names (class_names.py orders them). .parquet files may each number the same
class names differently, which the library overlooks: labels are matched by name.

No script of a data set is run: the library runs none from version 4 on.
"""

import contextlib
import importlib
import io
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pdfast.data.readers import columns
from pdfast.data.readers.columns import NO_LABEL, Table, beyond, kind
from pdfast.data.readers.pictures import MAX_BYTES, Held, Pictures
from pdfast.data.readers.reading import Wanted, listen
from pdfast.data.readers.registry import Reader, register
from pdfast.errors import PdfastError, UsageError

PREFIX = "hf:"
ON_HUB = re.compile(r"([^:]+):([A-Za-z_][\w.-]*)?(?::(.+))?")
DEFAULT_SPLIT = "train"  # of several splits
ROWS = 64  # rows of a parquet file that are read at once


def absolute(source: str) -> str:
    """Return the same source with an absolute path, unless it names a set on the hub."""
    name, split, chosen = _parts(source)
    here = Path(name).absolute() if _exists(name) else name
    return f"{PREFIX}{here}{f':{split}' if split or chosen else ''}{chosen and f':{chosen}'}"


def on_hub(source: str) -> bool:
    """Return whether the source names a set on the hub, which may have to be downloaded."""
    return not _exists(_parts(source)[0])


def find(source: str, wanted: Wanted) -> Pictures:
    """Find the pictures of a split, in its order.

    Args:
        source: The source.
        wanted: Whether labels are wanted.

    Returns:
        The pictures; labels and class names if they are wanted and there are any.

    Raises:
        UsageError: The set cannot be read, or its columns are missing or ambiguous.
    """
    with _reading(source):
        table = _open(source)
        image, of_labels = columns.choose(source, table, _parts(source)[2], wanted.labels)
        found = columns.classes(source, table, of_labels) if of_labels is not None else (None, ())
    numbers, names = found

    def files(start: int) -> Iterator[tuple[str, Held]]:
        return _files(source, table, image, start)

    return Pictures(table.num, files, numbers, names, paths=lambda: table.files)


def _parts(source: str) -> tuple[str, str, str]:
    """Split a source into name, split and columns, each empty if it is not named."""
    name = source.removeprefix(PREFIX)
    if _exists(name):
        return name, "", ""
    head, rest = name, list[str]()
    while ":" in head:
        head, _, last = head.rpartition(":")
        rest.insert(0, last)
        if _exists(head):
            return head, rest[0], ":".join(rest[1:])
    match = ON_HUB.fullmatch(name)
    return (match[1], match[2] or "", match[3] or "") if match else (name, "", "")


def _exists(name: str) -> bool:
    """Return whether a file or folder of this name exists."""
    with contextlib.suppress(OSError):  # such as a name that is too long for a path
        return Path(name).exists()
    return False


def _open(source: str) -> Table:
    name, split, _ = _parts(source)
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
        chosen, saved = _split(source, splits, split)
        saved.data.validate(full=True)  # refuses offsets that point outside the data
        _check_names(source, saved, datasets)
        return _mapped(saved, datasets, f"{PREFIX}{name}:{chosen}")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # of the library's types, or of any package that it uses
        raise UsageError(
            f"{source} is not a local file or folder, and cannot be loaded from the hub "
            f"({_why(error)}): correct the name, log in, or check the network"
        ) from None
    kept = (datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME)
    caches = tuple(Path(folder).resolve() for folder in kept)
    chosen, saved = _split(source, loaded, split)
    return _mapped(saved, datasets, f"{PREFIX}{name}:{chosen}")._replace(caches=caches)


def _parquet(source: str, path: Path, split: str, datasets: Any) -> Table:
    if path.is_file():
        with _uncounted(datasets):
            builder = datasets.load_dataset_builder("parquet", data_files=str(path))
    elif any(path.rglob("*.parquet")):
        with _uncounted(datasets):
            builder = datasets.load_dataset_builder(str(path))
    else:
        raise UsageError(f"{path} holds neither what save_to_disk writes nor .parquet files")
    chosen, files = _split(source, builder.config.data_files, split)
    parquet = importlib.import_module("pyarrow.parquet")
    rows: list[int] = []
    of_files: list[dict[str, Any]] = []
    for file in files:
        listen()
        with parquet.ParquetFile(file) as opened:
            rows.append(opened.metadata.num_rows)
            of_files.append(datasets.Features.from_arrow_schema(opened.schema_arrow))
    features = dict(of_files[0])
    for name in features:
        features[name] = _joined(source, name, files, of_files, datasets)

    def column(name: str, start: int) -> Iterator[Any]:
        for file, num, of_file in zip(files, rows, of_files, strict=True):
            first, start = start, max(0, start - num)
            if first < num:
                change = _renumber(source, name, of_file[name], features[name])
                values = itertools.islice(_of_file(parquet, file, name), first, None)
                yield from (map(change, values) if change else values)

    called, paths = f"{PREFIX}{path}:{chosen}", tuple(Path(file) for file in files)
    return Table(sum(rows), features, column, called, paths)


@contextlib.contextmanager
def _uncounted(datasets: Any) -> Iterator[None]:
    """Keep the library from telling the hub that a set is read: these files are local.

    Without a network connection the library would wait for one.
    """
    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _of_file(parquet: Any, file: Any, name: str) -> Iterator[Any]:
    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(ROWS, columns=[name]):
            yield from batch.column(0).to_pylist()


def _joined(
    source: str, name: str, files: list[Any], of_files: list[dict[str, Any]], datasets: Any
) -> Any:
    """Return the type of a column in all files; a ClassLabel gets the class names of all."""
    first = of_files[0][name]
    names: list[str] = []
    for file, features in zip(files, of_files, strict=True):
        of_file = features.get(name)
        if type(of_file) is not type(first):
            raise UsageError(
                f"{source} has the column {name} as {kind(first)} in {files[0]}, but as "
                f"{kind(of_file)} in {file}: write all files with one type"
            )
        names += [one for one in getattr(of_file, "names", None) or () if one not in names]
    return datasets.ClassLabel(names=names) if type(first).__name__ == "ClassLabel" else first


def _renumber(source: str, name: str, of_file: Any, joined: Any) -> Callable[[Any], Any] | None:
    """Return a map from a file's class numbers to those of all files; None if they are the same."""
    mine: list[str] = getattr(of_file, "names", None) or []
    all_: list[str] = getattr(joined, "names", None) or []
    if mine == all_:
        return None
    numbers = [all_.index(one) for one in mine]

    def change(k: int | None) -> int | None:
        if k is None or k == NO_LABEL:
            return None
        if not 0 <= k < len(numbers):
            raise UsageError(beyond(source, name, k, len(numbers)))
        return numbers[k]

    return change


def _check_names(source: str, saved: Any, datasets: Any) -> None:
    """Refuse files of one saved set that number their class names differently."""
    ipc = importlib.import_module("pyarrow.ipc")
    for file in saved.cache_files:
        with ipc.open_stream(file["filename"]) as opened:
            features = datasets.Features.from_arrow_schema(opened.schema)
        for name, of in saved.features.items():
            if type(of).__name__ != "ClassLabel":
                continue
            names = getattr(features.get(name), "names", None)
            if names and names != of.names:
                raise UsageError(
                    f"{source} numbers the classes of column {name} as {_few(of.names)}, but "
                    f"{file['filename']} as {_few(names)}: save it again from the sets that it "
                    "was made from"
                )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _mapped(saved: Any, datasets: Any, called: str) -> Table:
    """Return a set whose files are mapped into memory."""
    plain = saved.with_format(None)  # the saved format may be tensors, or some columns only

    def column(name: str, start: int) -> Iterator[Any]:
        if start >= len(plain):
            return iter(())
        stored = plain.select_columns([name])
        if type(plain.features[name]).__name__ == "Image":
            stored = stored.cast_column(name, datasets.Image(decode=False))
        return (row[name] for row in stored.select(range(start, len(stored))))

    files = tuple(Path(file["filename"]) for file in plain.cache_files)
    return Table(len(plain), plain.features, column, called, files)


def _split(source: str, splits: dict[str, Any], asked: str) -> tuple[str, Any]:
    """Return name and data of the split asked for, else of the only one or the training split."""
    names = list(map(str, splits))
    chosen = asked or (names[0] if len(names) == 1 else DEFAULT_SPLIT)
    if chosen not in names:
        raise UsageError(
            f"{source} has no split {chosen}: append one of {', '.join(names) or 'none'}, as in "
            f"{PREFIX}NAME:SPLIT, and a column as in {PREFIX}NAME:SPLIT:COLUMN"
        )
    return chosen, splits[chosen]


def _files(source: str, table: Table, column: str, start: int) -> Iterator[tuple[str, Held]]:
    with _reading(source):
        for n, value in zip(range(start, table.num), table.column(column, start), strict=True):
            name, stored = f"{source}: row {n}", value or {}
            content, path = stored.get("bytes"), stored.get("path")
            if content is not None and len(content) > MAX_BYTES:
                yield name, UsageError(f"{name} has {len(content):,} bytes: make it smaller")
            elif content is not None:
                yield name, io.BytesIO(content)
            elif path and any(Path(path).resolve().is_relative_to(c) for c in table.caches):
                yield name, Path(path)
            else:
                yield name, UsageError(f"{name} holds no picture: store the picture itself in it")


@contextlib.contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn the library's errors into UsageError, and silence what it logs about them."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    except (PdfastError, MemoryError):
        raise
    except Exception as error:  # of pyarrow's and the library's many types
        raise UsageError(f"{source} cannot be read ({_why(error)})") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _why(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


register(
    Reader(
        keyword=PREFIX,
        labels="a ClassLabel column of a Hugging Face set",
        open=find,
        downloads=on_hub,
        absolute=absolute,
    )
)
