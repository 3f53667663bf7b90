"""WebDataset shards: tar archives of pictures `<key>.png`, `.jpg`, ..., and labels `<key>.cls`.

A source is one shard, a folder of them, or a pattern such as `train/{000..009}.tar`. Other members
of a sample are ignored. Each shard is looked through once for its members, then read in order.
"""

import contextlib
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pdfast.errors import UsageError
from pdfast.sources.pictures import MAX_BYTES, SUFFIXES, Pictures, label
from pdfast.sources.reading import UNREADABLE, Wanted, listen
from pdfast.sources.tars import Entry

SUFFIX = ".tar"
PATTERN = re.compile(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*\.tar)", re.DOTALL)
MAX_SHARDS = 100_000
MAX_DIGITS = 20  # bytes of a label


class _Sample(NamedTuple):
    name: str
    offset: int
    size: int


class _Entry(Entry):
    most, notes = MAX_BYTES, True


def reads(name: str) -> bool:
    """Whether a file of this name, or a pattern, is for this module."""
    return name.endswith(SUFFIX)


def named(source: str) -> list[Path] | None:
    """The shards of a pattern; None if it is none."""
    match = PATTERN.fullmatch(source)
    if match is None:
        return None
    before, first, last, after = match.groups()
    if not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise UsageError(f"{source} names no shards, or more than {MAX_SHARDS:,}")
    paths = [Path(f"{before}{k:0{len(first)}}{after}") for k in range(int(first), int(last) + 1)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}, of {source}, does not exist")
    return paths


def find(paths: list[Path], wanted: Wanted) -> Pictures:
    """The pictures of all shards, in their order."""
    shards = [(path, _samples(path, wanted.labels)) for path in paths]
    samples = [sample for _, (found, _) in shards for sample in found]
    classes = [k for _, (_, of_shard) in shards for k in of_shard]
    if not samples:
        raise UsageError(f"{paths[0]} holds no images ({', '.join(SUFFIXES)})")
    numbers = None
    if set(classes) != {None}:
        for path, (found, of_shard) in shards:
            for sample, k in zip(found, of_shard, strict=True):
                if k is None:
                    raise UsageError(
                        f"{path}: {sample.name} has no label (.cls), as others have: label all "
                        "or none"
                    )
        numbers = np.array(classes, np.int64)
    of_shards = [(path, found) for path, (found, _) in shards]
    return Pictures(len(samples), lambda start: _files(of_shards, start), numbers)


def _samples(path: Path, labels: bool) -> tuple[list[_Sample], list[int | None]]:
    """The pictures of a shard, and, if they are asked for, the labels that it has."""
    pictures: dict[str, _Sample] = {}
    classes: dict[str, int] = {}
    with _reading(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Entry) as archive:
        for entry in archive:
            listen()
            if not 0 <= entry.size <= MAX_BYTES or entry.sparse is not None:
                raise ValueError(f"its member {entry.name} has {entry.size:,} bytes")
            folder, _, base = entry.name.rpartition("/")
            stem, _, kind = base.partition(".")
            key = f"{folder}/{stem}"
            if not entry.isreg() or not stem:
                continue
            if f".{kind.lower()}" in SUFFIXES:
                if key in pictures:
                    raise ValueError(f"{entry.name} is the second picture of its sample")
                pictures[key] = _Sample(entry.name, entry.offset_data, entry.size)
            elif labels and kind == "cls":
                member = archive.extractfile(entry)
                text = member.read(MAX_DIGITS + 1).decode("ascii", "replace") if member else ""
                whole = re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text)
                classes[key] = label(
                    int(text) if whole else text, f"{path}: {entry.name} holds the label"
                )
        # tarfile takes a damaged header for the end, which two blocks of zeros mark.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("a header is damaged, or its end is missing")
    for key in classes.keys() - pictures.keys():
        raise UsageError(f"{path}: {key.lstrip('/')}.cls has no picture beside it")
    return list(pictures.values()), [classes.get(key) for key in pictures]


def _files(shards: list[tuple[Path, list[_Sample]]], start: int) -> Iterator[tuple[str, BinaryIO]]:
    """The pictures from number `start` on."""
    for path, found in shards:
        samples, start = found[start:], max(0, start - len(found))
        with _reading(path) as file:
            for name, offset, size in samples:
                file.seek(offset)
                content = file.read(size)
                if len(content) < size:
                    raise EOFError(f"{name} is cut short")
                yield f"{path}: {name}", io.BytesIO(content)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """The file; what goes wrong as UsageError."""
    try:
        with path.open("rb") as file:
            yield file
    except UsageError:
        raise
    except (*UNREADABLE, tarfile.TarError) as error:
        raise UsageError(f"{path} is not a readable tar shard ({error})") from None
