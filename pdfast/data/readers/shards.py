"""WebDataset shards: tar archives of pictures `<key>.png`, `.jpg`, ..., and their labels.

A source is one shard, a folder of them, or a pattern such as `train/{000..009}.tar`; .tgz and
.tar.gz are read too. Each shard is scanned once for its members, then read in order.

A picture is any member whose last suffix is a picture's, in any case: `photo_x0.5.png` is one.
WebDataset ends a key at the first dot, so that `7.png` and `7.mask.png` are fields of one sample.
Two pictures of one key are refused if one of them has no further field, or if other keys have the
same field. A part without letters, as in `x0.5`, is not a field.

The label of `a.b.png` is `a.b.cls` or else `a.cls`; see shard_labels.py. If a file holds several
archives, each has its own keys. Links are not followed.
"""

import contextlib
import io
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pdfast.data.readers import cifar, shard_labels, tree
from pdfast.data.readers.members import is_picture
from pdfast.data.readers.pictures import MAX_BYTES, SUFFIXES, Pictures
from pdfast.data.readers.reading import UNREADABLE, LeftOut, Wanted, unreadable
from pdfast.data.readers.registry import Reader, register
from pdfast.data.readers.shard_labels import Labels, Said
from pdfast.data.readers.tars import Stream, exactly, members, opened
from pdfast.errors import UsageError, printable

ENDINGS = (".tar", ".tgz", ".tar.gz")
# Archives that look like shards, but are not read.
OTHERS = re.compile(r".*\.(tar\.\w{2,4}|tbz2?|txz|tzst|zip|7z|rar)", re.IGNORECASE | re.DOTALL)
PATTERN = re.compile(
    r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*\.(?:tar|tgz|tar\.gz))", re.IGNORECASE | re.DOTALL
)
MAX_SHARDS = 100_000


class _Shard(NamedTuple):
    """The pictures of one file, in their order."""

    path: Path
    names: list[str]
    offsets: "array[int]"
    sizes: "array[int]"


def named(source: str) -> list[Path] | None:
    """List the shards of a pattern.

    Args:
        source: A pattern such as `train/{000..009}.tar`, or any other source.

    Returns:
        The files; None if the source is not a pattern.

    Raises:
        UsageError: A file does not exist, or there are no files or more than MAX_SHARDS.
    """
    match = PATTERN.fullmatch(source)
    if match is None:
        return None
    before, first, last, after = match.groups()
    if int(last) < int(first):
        raise UsageError(f"{source} names no shards: write the smaller number first")
    if int(last) - int(first) >= MAX_SHARDS:
        raise UsageError(f"{source} names more than {MAX_SHARDS:,} shards: name fewer")
    paths = [Path(f"{before}{k:0{len(first)}}{after}") for k in range(int(first), int(last) + 1)]
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"{path}, of {source}, does not exist: correct the numbers or the path"
            )
    return paths


def inside(folder: Path, left_out: LeftOut) -> list[Path]:
    """List the shards of a folder by name, and note other archives in `left_out`.

    Raises:
        UsageError: The folder holds one shard under two suffixes.
    """
    found: dict[str, Path] = {}
    others = []
    names = (name for name in os.listdir(folder) if _is_shard(name) or OTHERS.fullmatch(name))
    for path in (folder / name for name in sorted(names)):
        if path.name.startswith("."):
            left_out.add("hidden files", path.name)
        elif not _is_shard(path.name):
            others.append(path.name)
        elif path.is_file():
            stem = re.sub(r"\.(tar|tgz|tar\.gz)$", "", path.name, flags=re.IGNORECASE)
            if stem in found:
                raise UsageError(
                    f"{folder} holds {found[stem].name} and {path.name}, which would be the same "
                    "shard twice: keep one of them"
                )
            found[stem] = path
    for name in others if found else ():
        left_out.add("archives of a kind that is not read as a shard", name)
    return list(found.values())


def _is_shard(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def find(paths: list[Path], wanted: Wanted, left_out: LeftOut | None = None) -> Pictures:
    """Find the pictures of all shards, in their order.

    Args:
        paths: The shards.
        wanted: Whether labels are wanted.
        left_out: What was skipped while looking for the shards.

    Returns:
        The pictures; labels and class names if they are wanted and there are any.

    Raises:
        UsageError: A shard is damaged or ambiguous, or there are no pictures.
    """
    left_out = LeftOut() if left_out is None else left_out
    labels = Labels() if wanted.labels else None
    shards = [_look_through(path, labels, left_out) for path in paths]
    num = sum(len(shard.names) for shard in shards)
    if not num:
        if cifar.holds(paths[0]):
            raise UsageError(f"{paths[0]} is an archive of CIFAR: name it itself as data.source")
        passed = f"; left out: {left_out}" if left_out else ""
        raise UsageError(f"{paths[0]} holds no images ({', '.join(SUFFIXES)}){passed}")
    for shard in shards:
        if not shard.names:
            left_out.add("shards without images", shard.path.name)

    def where(n: int) -> str:
        for shard in shards:
            if n < len(shard.names):
                return f"{shard.path}: {shard.names[n]}"
            n -= len(shard.names)
        raise IndexError(n)

    source = str(paths[0].parent if len(paths) > 1 else paths[0])
    numbers, names = labels.classes(source, where) if labels else (None, ())
    return Pictures(
        num,
        lambda start: _files(shards, start),
        numbers,
        names,
        printable(str(left_out)),
        lambda: paths,
    )


def _look_through(path: Path, labels: Labels | None, left_out: LeftOut) -> _Shard:
    """Scan a shard for its pictures, and read its labels into `labels`."""
    shard = _Shard(path, [], array("q"), array("q"))
    found: dict[str, dict[str, Said]] = {kind: {} for kind in shard_labels.KINDS}
    archive = begin = 0
    with _reading(path) as stream:
        for member in members(stream, MAX_BYTES):
            if member.archive != archive:
                _end(shard, begin, found, labels)
                archive, begin = member.archive, len(shard.names)
            if member.kind == "folder" or not is_picture(member.name, left_out, path.name):
                stem, _, suffix = _plain(member.name).rpartition(".")
                kind = shard_labels.SUFFIXES.get(suffix.lower())
                if labels is not None and member.kind == "file" and kind is not None:
                    size = min(member.size, shard_labels.most(kind))
                    said = labels.read(kind, exactly(stream, size))
                    if found[kind].setdefault(stem, said) != said:
                        raise UsageError(
                            f"{path}: {member.name} is the second label of its sample, and differs "
                            "from the first: keep one"
                        )
            elif member.kind != "file":
                why = "links" if member.kind == "link" else "members that are not files"
                left_out.add(why, f"{path.name}: {member.name}")
            else:
                shard.names.append(member.name)
                shard.offsets.append(member.offset)
                shard.sizes.append(member.size)
        _end(shard, begin, found, labels)
    return shard


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _end(
    shard: _Shard, begin: int, found: dict[str, dict[str, Said]], labels: Labels | None
) -> None:
    """Check the keys of an archive's pictures, from number `begin` on, and add their labels."""
    names = [_plain(name) for name in shard.names[begin:]]
    _check(shard.path, names)
    if labels is None:
        return
    used = set()
    for name in names:
        said = []
        for kind, of_kind in found.items():
            key = next((key for key in _keys(name) if key in of_kind), None)
            if key is not None:
                said.append(of_kind[key])
                if kind == "cls":
                    used.add(key)
        labels.add(said)
    for key in found["cls"]:
        if key not in used:
            raise UsageError(
                f"{shard.path}: {key}.cls has no picture beside it: make the shard again"
            )
    for of_kind in found.values():
        of_kind.clear()


def _keys(name: str) -> Iterator[str]:
    """Yield the keys that a picture's label may have: its name up to each dot, last dot first."""
    folder, slash, base = name.rpartition("/")
    while "." in base:
        base = base.rpartition(".")[0]
        yield f"{folder}{slash}{base}"


def _check(path: Path, names: list[str]) -> None:
    """Refuse pictures that may be fields of one sample, such as an image and its mask."""
    stems: dict[str, str] = {}
    for name in names:
        other = stems.setdefault(name.rpartition(".")[0], name)
        if other is not name:
            raise UsageError(
                f"{path}: {name} is the second picture of its sample, after {other}: keep one"
            )
    if all(stem.rpartition("/")[2].count(".") == 0 for stem in stems):
        return
    fields = {name: _field(name) for name in names}
    of_key: dict[str, list[str]] = {}
    for name, (key, _) in fields.items():
        of_key.setdefault(key, []).append(name)
    common = Counter(field for _, field in fields.values())
    for together in of_key.values():
        for name in together if len(together) > 1 else ():
            field = fields[name][1]
            if "." not in field or common[field] > 1:
                other = next(n for n in together if n != name)
                raise UsageError(
                    f"{path}: {name} and {other} may be two pictures of one sample, such as an "
                    "image and its mask, or two images: keep one of each sample, or rename them "
                    "so that no names are the same up to the first dot"
                )


def _field(name: str) -> tuple[str, str]:
    """Split a picture's name into key and field, such as `000/7` and `mask.png`."""
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    split = 1
    while split < len(parts) - 1 and not any(letter.isalpha() for letter in parts[split]):
        split += 1
    return f"{folder}{slash}{'.'.join(parts[:split])}", ".".join(parts[split:]).lower()


def _files(shards: list[_Shard], start: int) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the pictures from number `start` on."""
    for path, names, offsets, sizes in shards:
        first, start = start, max(0, start - len(names))
        if first >= len(names):
            continue
        with _reading(path) as stream:
            for n in range(first, len(names)):
                try:
                    stream.skip_to(offsets[n])
                    content = exactly(stream, sizes[n])
                except EOFError:
                    raise EOFError(f"{names[n]} is cut short") from None
                yield f"{path}: {names[n]}", io.BytesIO(content)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Stream]:
    """Open an archive, and turn its errors into UsageError."""
    try:
        with path.open("rb") as file:
            yield opened(file)
    except UsageError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, "tar shard", error, "make or download it again") from None


# ------------------------------------------------------------------------------------------
# What a source is


def _open(source: str, wanted: Wanted) -> Pictures:
    if (paths := named(source)) is not None:
        return find(paths, wanted)
    path, left_out = Path(source), LeftOut()
    if not path.is_dir():
        return find([path], wanted)
    paths = inside(path, left_out)
    if tree.scan(str(path)).pictures:
        raise UsageError(
            f"{path} holds both images and tar shards, such as {paths[0].name}: keep them apart"
        )
    return find(paths, wanted, left_out)


register(
    Reader(
        kind="a .tar or .tar.gz of images",
        labels=".cls files in the .tar",
        pattern=PATTERN,
        suffixes=ENDINGS,
        folder=lambda path: bool(inside(path, LeftOut())),
        priority=50,
        open=_open,
    )
)
