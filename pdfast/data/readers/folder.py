"""A folder of images of any size, labelled by class sub-folders or a `dataset.json`, if any."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers import edm_labels, kinds, splits, tree
from pdfast.data.readers.edm_labels import LABELS
from pdfast.data.readers.pictures import Pictures
from pdfast.data.readers.reading import Wanted
from pdfast.data.readers.registry import LAST, Reader, register
from pdfast.data.readers.tree import Tree, shown
from pdfast.errors import UsageError

MAX_NAMED = 10  # names that an error lists
FEW = 3  # names that an error gives as examples

_Classes = tuple[NDArray[np.int64], tuple[str, ...]]  # labels, and the names by number


def find(path: Path, wanted: Wanted) -> Pictures:
    """Find the pictures in a folder and below it, in the order of their names.

    Args:
        path: The folder.
        wanted: Whether labels are wanted, how folders give them, and whether to skip broken links.

    Returns:
        The pictures; labels and class names if they are wanted.

    Raises:
        UsageError: There are no pictures, or their labels are missing or ambiguous.
    """
    as_before = wanted.folders == "top-as-text"
    found = tree.scan(str(path), as_before)
    _pass_broken(path, found, wanted)
    if not found.pictures:
        left_out = f", and leaves out {found.left_out}" if found.left_out else ""
        raise UsageError(f"{shown(str(path))} holds no {kinds.MAIN}{left_out}")
    labels, names = _labels(path, found, wanted)
    return Pictures(
        len(found.pictures),
        lambda start: _files(path, found.pictures, start),
        labels,
        names,
        str(found.left_out),
        lambda: (path / name for name in found.pictures),
        () if wanted.labels else _unused(found),
    )


def _unused(found: Tree) -> tuple[str, ...]:
    """Return the folders directly below that hold pictures; () for fewer than two."""
    names = _ordered(_tops(found, empty=False))
    return tuple(map(shown, names)) if names[1:] else ()


def _files(path: Path, pictures: list[str], start: int) -> Iterator[tuple[str, Path]]:
    for k in range(start, len(pictures)):
        file = os.path.join(path, pictures[k])
        yield shown(file), Path(file)


def _pass_broken(path: Path, found: Tree, wanted: Wanted) -> None:
    """Refuse links that lead nowhere, or note them if they may be skipped."""
    broken = found.broken
    # A broken link may be a class: skipping it would give its number to another class.
    classes = [name for name in broken if "/" not in name and not _is_picture(name)]
    needed = wanted.labels and bool(classes)
    if broken and (needed or not wanted.skip_bad):
        named = classes if wanted.skip_bad else broken
        fix = "" if needed else ", or leave them out (data.skip_bad = true, --skip-bad)"
        raise UsageError(
            f"{shown(str(path))} has links that lead nowhere: repair or remove them{fix}: "
            f"{_list(named, MAX_NAMED)}"
        )
    for name in broken:
        found.left_out.add("broken links", shown(name))


def _is_picture(name: str) -> bool:
    return kinds.suffix(name) in kinds.SUFFIXES


def _list(names: list[str], most: int = FEW) -> str:
    more = f", ... {len(names):,} in all" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


# ------------------------------------------------------------------------------------------
# Labels


def _labels(
    path: Path, found: Tree, wanted: Wanted
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return one label per picture and the class names, as `wanted.folders` asks."""
    auto = wanted.folders == "auto"
    if auto and wanted.labels and "" in found.tables:
        return _of_table(path, found), ()
    if auto:
        _check_splits(path, found)
    if not wanted.labels:
        return None, ()
    if auto:
        _check_tables(path, found)
    stray = [name for name in found.pictures if "/" not in name]
    fix = "set model.num_classes to 0 (for pdfast data: omit --labels)"
    if len(stray) == len(found.pictures):
        raise UsageError(
            f"{shown(str(path))} has no class sub-folders, but labels are asked for: make a "
            f"sub-folder for each class, or {fix}"
        )
    if stray:
        others = f", as are {len(stray) - 1:,} others" if stray[1:] else ""
        raise UsageError(
            f"{shown(str(path / stray[0]))} is in no class sub-folder{others}, but labels are "
            f"asked for: move it into one, or elsewhere, or {fix}"
        )
    if auto:
        _check_depth(path, found)
    if wanted.folders == "parent":
        labels, names = _by_parent(found)
    elif wanted.folders == "top-as-text":
        labels, names = _numbered(found, _top, _tops(found, empty=False), sorted)
    else:
        labels, names = _by_top(found)
    counts = np.bincount(labels, minlength=len(names))
    for k in np.flatnonzero(counts == 0):
        found.left_out.add("classes without a picture, which keep their numbers", names[k])
    return labels, names


def _of_table(path: Path, found: Tree) -> NDArray[np.int64]:
    """Read the labels from EDM's table."""
    file = path / LABELS
    where = shown(str(file))
    if file.stat().st_size > edm_labels.MAX_BYTES:
        raise UsageError(f"{where} is larger than {edm_labels.MAX_BYTES >> 20} MB: remove it")
    try:
        content = file.read_bytes()
        labels = edm_labels.parse(where, content, found.pictures, "the folder", {*found.broken})
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{where} is not a readable table of labels ({error})") from None
    if labels is None:
        raise UsageError(
            f"{where} says that the pictures have no labels: write them into it, set "
            'model.num_classes to 0, or set data.labels = "top" (--data.labels top) to take '
            "the sub-folders for classes"
        )
    return labels


def _check_tables(path: Path, found: Tree) -> None:
    """Refuse a set with a label table in a sub-folder."""
    below = [folder for folder in found.tables if folder]
    if below:
        inside = path / below[0]
        raise UsageError(
            f"{shown(str(inside / LABELS))} may hold the labels of the pictures beside it: set "
            f'data.source = "{shown(str(inside))}", or data.labels = "top" (--data.labels top) to '
            "take the sub-folders for classes"
        )


def _check_splits(path: Path, found: Tree) -> None:
    """Refuse a folder that holds the splits of a set, directly or below a single sub-folder."""
    used = np.bincount(np.asarray(found.of_pictures), minlength=len(found.folders)) > 0
    holding = {folder for folder, has in zip(found.folders, used, strict=True) if has}
    inside = ""
    while True:
        below = [folder[len(inside) :] for folder in holding if folder.startswith(inside)]
        names = sorted({folder.partition("/")[0] for folder in below if folder})
        if splits.looks_split(names):
            train = shown(str(path / inside / splits.training(names)))
            raise UsageError(
                f"{shown(str(path / inside))} holds the splits of a set ({_list(names)}): set "
                f'data.source = "{train}", or data.labels = "top" (--data.labels top) to read '
                "all as one"
            )
        if len(names) != 1 or inside[:-1] in holding:
            return
        inside += f"{names[0]}/"


def _check_depth(path: Path, found: Tree) -> None:
    """Refuse pictures below the class sub-folders: those deeper folders may be the classes."""
    deep = [name for name in found.pictures if name.count("/") > 1]
    if not deep:
        return
    ways = {"top": list(_by_top(found)[1]), "parent": list(_by_parent(found)[1])}
    readings = " or ".join(
        f'data.labels = "{way}" (--data.labels {way}) for {len(names):,} classes ({_list(names)})'
        for way, names in ways.items()
    )
    flat = [name for name in found.pictures if name.count("/") == 1]
    if flat:
        where = f"at more than one depth ({shown(flat[0])}, {shown(deep[0])})"
    else:
        where = f"more than one level of sub-folders below it ({shown(deep[0])})"
    raise UsageError(f"{shown(str(path))} holds pictures {where}: set {readings}")


def _by_top(found: Tree) -> _Classes:
    """Take the folders directly below as classes, however deep the pictures lie."""
    return _numbered(found, _top, _tops(found, empty=True), _ordered)


def _by_parent(found: Tree) -> _Classes:
    """Take as classes the folders that hold pictures, and those that hold nothing at all.

    A class is known by its folder's name, or by its path if two of these folders share a name.
    """
    used = np.bincount(np.asarray(found.of_pictures), minlength=len(found.folders)) > 0
    inner = {folder.rpartition("/")[0] for folder in found.folders if folder}
    classes = [
        folder
        for folder, has in zip(found.folders, used, strict=True)
        if folder and (has or folder not in inner)
    ]
    last = [folder.rpartition("/")[2] for folder in classes]
    alike = len(set(last)) < len(last)
    known = dict(zip(classes, classes if alike else last, strict=True))
    return _numbered(found, lambda folder: known.get(folder, ""), set(known.values()), _ordered)


def _top(folder: str) -> str:
    return folder.partition("/")[0]


def _tops(found: Tree, empty: bool) -> set[str]:
    """Return the folders directly below; without `empty` only those with pictures in them."""
    numbers = range(len(found.folders)) if empty else set(found.of_pictures)
    return {_top(found.folders[k]) for k in numbers} - {""}


def _ordered(names: set[str]) -> list[str]:
    """Sort names numerically if every part of every path is a whole number, else alphabetically."""
    parts = {name: name.split("/") for name in names}
    if all(part.isascii() and part.isdigit() for of_one in parts.values() for part in of_one):
        return sorted(names, key=lambda name: ([int(part) for part in parts[name]], name))
    return sorted(names, key=lambda name: parts[name])


def _numbered(
    found: Tree,
    class_of: Callable[[str], str],
    names: set[str],
    order: Callable[[set[str]], list[str]],
) -> _Classes:
    """Number the classes in order, and label each picture by the class of its folder."""
    ordered = order(names)
    numbers = {name: k for k, name in enumerate(ordered)}
    of_folders = np.array([numbers.get(class_of(folder), -1) for folder in found.folders], np.int64)
    return of_folders[np.asarray(found.of_pictures)], tuple(map(shown, ordered))


register(
    Reader(
        kind="a folder of images",
        labels="class sub-folders",
        folder=lambda _: True,
        priority=LAST,
        open=lambda source, wanted: find(Path(source), wanted),
    )
)
