"""Columns of a table with pictures: which ones to read, and the classes in a label column."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers.class_names import numbered
from pdfast.data.readers.pictures import MAX_LABEL, label
from pdfast.data.readers.reading import listen
from pdfast.errors import UsageError, printable

NO_LABEL = -1  # how sets on the Hugging Face hub mark a row without a label
MAX_TEXTS = 2**16  # classes given by name, at most


class Table(NamedTuple):
    """One split of a data set."""

    num: int
    features: dict[str, Any]
    column: Callable[[str, int], Iterator[Any]]
    """Stored values of a column in order, from a row on."""
    called: str = ""
    """The source, with the split."""
    files: tuple[Path, ...] = ()
    """All files of the table."""
    caches: tuple[Path, ...] = ()
    """Folders in which the library keeps downloads of a set on the hub: a picture stored as a
    path is opened only if it lies inside one of them."""


def choose(source: str, table: Table, named: str, labels: bool) -> tuple[str, str | None]:
    """Choose the columns of the pictures and of the labels.

    Args:
        source: The source, for error messages.
        table: The split to read.
        named: Columns that the source names: one, or two separated by a comma; "" for none.
        labels: Whether labels are wanted.

    Returns:
        The column of the pictures, and the column of the labels, or None if labels are not wanted
            or there is no such column.

    Raises:
        UsageError: A column does not exist, or the choice is ambiguous.
    """
    chosen = [named] if named in table.features or not named else named.split(",")
    for name in filter(None, chosen):
        if name not in table.features:
            raise UsageError(
                f"{source} has no column {name} (columns: {', '.join(table.features) or 'none'})"
            )
    images = [name for name in chosen if name and kind(table.features[name]) == "Image"]
    others = [name for name in chosen if name and name not in images]
    if len(images) > 1 or len(others) > 1:
        raise UsageError(f"{source} must name one column of pictures at most, and one of labels")
    image = images[0] if images else _only(table, "Image", "pictures", others)
    if image is None:
        raise UsageError(
            f"{source} has no column of pictures, type Image (columns: "
            f"{', '.join(table.features) or 'none'}): cast one to datasets.Image"
        )
    if not labels:
        return image, None
    if others:
        return image, others[0]
    found = _only(table, "ClassLabel", "labels", images)
    usable = [name for name, of in table.features.items() if _may_be_classes(of)]
    if found is None and usable:
        raise UsageError(
            f"{source} has no column of type ClassLabel: name the label column, as in "
            f"{table.called}:{','.join([*images, usable[0]])} (columns: {', '.join(usable)})"
        )
    return image, found


def _only(table: Table, type_: str, what: str, beside: list[str]) -> str | None:
    """Return the only column of a type, or None if no column has it."""
    found = [name for name, of in table.features.items() if type(of).__name__ == type_]
    if len(found) > 1:
        raise UsageError(
            f"{table.called} has {len(found)} columns of {what}, {', '.join(found)}: name one, as "
            f"in {table.called}:{','.join([*beside, found[0]])}"
        )
    return found[0] if found else None


def classes(
    source: str, table: Table, column: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Read the classes of a label column.

    Args:
        source: The source, for error messages.
        table: The split to read.
        column: The label column: of type ClassLabel, whole numbers or texts.

    Returns:
        The classes, int64 (N,), or None if no row has a label; and the class names by number, () if
            the classes have no names.

    Raises:
        UsageError: Only some rows have a label, or a value is not a class.
    """
    of = table.features[column]
    named = type(of).__name__ == "ClassLabel"
    if not (named or _may_be_classes(of)):
        raise UsageError(
            f"{source} has the column {column} of type {kind(of)}: classes are of type "
            "ClassLabel, whole numbers or texts"
        )
    same: dict[Any, Any] = {}
    values = []
    for value in table.column(column, 0):
        listen()
        value = None if value == "" or (named and value == NO_LABEL) else value
        values.append(same.setdefault(value, value))
        if isinstance(value, str) and len(same) > MAX_TEXTS:
            raise UsageError(
                f"{source} has more than {MAX_TEXTS:,} texts in column {column}, too many "
                "for classes: name another column"
            )
    if None in same:
        if len(same) == 1:
            return None, ()
        raise UsageError(
            f"{source}: row {values.index(None)} has no label in column {column}, as others have: "
            "label all or none"
        )
    if kind(of).endswith("string"):
        return numbered([str(value) for value in values])
    for value in same:
        if not 0 <= int(value) < MAX_LABEL:
            where = f"{source}: row {values.index(value)} has in column {column} the label"
            label(int(value), where)
    names = tuple(map(printable, (of.names or ()) if named else ()))
    if names and max(same) >= len(names):
        raise UsageError(beyond(source, column, max(same), len(names)))
    if names == tuple(map(str, range(len(names)))):
        names = ()  # the library's placeholders for classes without names
    return np.array(values, np.int64), names


def kind(of: Any) -> str:
    """Return the name of a column's type."""
    return str(getattr(of, "dtype", None) if type(of).__name__ == "Value" else type(of).__name__)


def _may_be_classes(of: Any) -> bool:
    return kind(of).startswith(("int", "uint", "bool", "string", "large_string"))


def beyond(source: str, name: str, k: int, num: int) -> str:
    """Return the error message for a class beyond the named ones."""
    return f"{source} has the class {k} in column {name}, which names {num} classes"
