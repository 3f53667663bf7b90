"""Labels of WebDataset's samples: `<key>.cls`, `<key>.json` or `<key>.txt`, in this order.

The suffixes .class, .jsn and .text mean the same. Two labels of one kind that differ are refused.

Whole numbers are classes; texts are class names, which are numbered in the order of class_names.py.
A set's labels are either all numbers or all texts.

- `.cls` is used if any sample has one; then every sample must have one.
- Else `.json`, with a number or a text under one of `KEYS` in every sample. Keys whose numbers
  differ are refused, as are keys whose texts differ if there are no numbers. A text that always
  goes with the same number is the name of that class.
- Else `.txt`, if every sample has one. Captions use this suffix too. So a text is a label only if
  it is one short line, and if all samples together have at most half as many different texts as
  there are samples; otherwise the texts are refused.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers.class_names import MAX_TEXT, is_name, numbered
from pdfast.data.readers.pictures import MAX_LABEL, label
from pdfast.errors import UsageError, printable

KEYS = (
    *("label", "cls", "class", "target", "category"),
    *("label_id", "class_id", "class_idx", "class_index", "category_id"),
    *("label_name", "class_name", "category_name"),
)
KINDS = ("cls", "json", "txt")
SUFFIXES = {kind: kind for kind in KINDS} | {"class": "cls", "jsn": "json", "text": "txt"}
"""Suffixes of label members, as WebDataset's own decoders know them, and the kind of each."""
MAX_NAMED = 2**20  # classes with names beside their numbers
MAX_JSON = 2**20  # bytes of a sample's .json; a longer one is not read as a label
MAX_TEXTS = 2**16  # different texts in .txt; more are taken for captions
WHOLE = re.compile(r"-?[0-9]{1,18}")
CAPTION = "\n"  # replaces a text too long for a class name, and every text beyond MAX_TEXTS

Value = int | str
Column = tuple[str, str]
"""A kind of member, and for .json the key; else ""."""
Said = tuple[tuple[Column, Value], ...]
"""The labels that a member gives, by column."""


def most(kind: str) -> int:
    """Return the bytes to read of a member of a kind: one more than a label may have."""
    return 1 + (MAX_JSON if kind == "json" else MAX_TEXT)


class Labels:
    """The labels of all samples, by column: "cls", "txt", and KEYS of "json"."""

    def __init__(self) -> None:
        self._columns: dict[Column, list[Value | None]] = {}
        self._num = 0
        self._texts: set[Value] = set()
        self._same: dict[Said, Said] = {}

    def read(self, kind: str, content: bytes) -> Said:
        """Parse a member of a sample.

        Args:
            kind: One of KINDS.
            content: The member's bytes, at most `most(kind)`.

        Returns:
            Its labels; equal ones share one object, to save memory.
        """
        said = _said(kind, content)
        if kind == "txt" and said[0][1] not in self._texts:
            if len(self._texts) < MAX_TEXTS:
                self._texts.add(said[0][1])
            else:
                said = ((said[0][0], CAPTION),)
        return self._same.setdefault(said, said)

    def add(self, said: Iterable[Said]) -> None:
        """Append the labels of the next sample's members."""
        for column, value in itertools.chain.from_iterable(said):
            values = self._columns.setdefault(column, [])
            values += [None] * (self._num - len(values))
            values.append(value)
        self._num += 1

    def classes(
        self, source: str, where: Callable[[int], str]
    ) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Choose the label column, and number the classes.

        Args:
            source: The source, for error messages.
            where: Returns the name of a sample, by its number, for error messages.

        Returns:
            The samples' classes, int64 (N,), or None if the samples have no labels; and the class
                names by number, () if the classes have no names.

        Raises:
            UsageError: Labels are missing, contradictory, or not classes.
        """
        for column, values in self._columns.items():
            self._columns[column] = values + [None] * (self._num - len(values))
        whole = {c: values for c, values in self._columns.items() if None not in values}
        of_json = {key: values for (kind, key), values in whole.items() if kind == "json"}
        if ("cls", "") in self._columns:
            values = self._columns["cls", ""]
            return _resolved(_all(values, where, "label (.cls)"), of_json, where, ".cls")
        if of_json:
            return _of_json(of_json, where)
        partly = [column for column in self._columns if column[0] == "json"]
        if partly:
            values = min((self._columns[column] for column in partly), key=lambda v: v.count(None))
            key = next(column[1] for column in partly if self._columns[column] is values)
            _all(values, where, f'label ("{key}" in its .json)')
        if ("txt", "") in whole:
            texts = whole["txt", ""]
            different = len(set(texts))
            if CAPTION in texts or different > len(texts) // 2:
                raise UsageError(
                    f"{source}: the .txt of its samples are captions, not classes "
                    f"({different:,} texts of {len(texts):,} samples differ): write the classes "
                    "as .cls, or ask for no labels"
                )
            return _resolved(_all(texts, where, ".txt"), {}, where, ".txt")
        return None, ()


def _said(kind: str, content: bytes) -> Said:
    if kind != "json":
        text = content.decode("utf-8-sig", "backslashreplace").strip()
        if len(content) > MAX_TEXT or (kind == "txt" and len(text.splitlines()) > 1):
            text = CAPTION if kind == "txt" else f"\n{text[:36]}..."  # not a valid class name
        return (((kind, ""), _value(text)),)
    if len(content) > MAX_JSON:
        return ()
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):  # not JSON, so not a label
        return ()
    if not isinstance(table, dict):
        return ()
    found: list[tuple[Column, Value]] = []
    for key in KEYS:
        value = table.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | int | float) and len(str(value)) <= MAX_TEXT:
            found.append((("json", key), _value(str(value).strip())))
    return tuple(found)


def _value(text: str) -> Value:
    return int(text) if WHOLE.fullmatch(text) else text


def _all(values: Sequence[Value | None], where: Callable[[int], str], what: str) -> list[Value]:
    """Return the values, none of which may be missing."""
    found = []
    for n, value in enumerate(values):
        if value is None:
            raise UsageError(f"{where(n)} has no {what}, as others have: label all or none")
        found.append(value)
    return found


def _resolved(
    values: Sequence[Value],
    others: Mapping[str, Sequence[Any]],
    where: Callable[[int], str],
    what: str,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return classes and their names, which may stand in another column."""
    if all(isinstance(value, str) and is_name(value) for value in values):
        return numbered([str(value) for value in values])
    checked: set[Value] = set()
    for n, value in enumerate(values):
        if value not in checked:
            if type(value) is not int or not 0 <= value < MAX_LABEL:
                label(value, f"{where(n)} has in its {what} the label")
            checked.add(value)
    return np.array(values, np.int64), _names(values, others)


def _of_json(
    columns: Mapping[str, Sequence[Any]], where: Callable[[int], str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    numbers = [key for key in columns if any(isinstance(value, int) for value in columns[key])]
    chosen = numbers or list(columns)
    for other in chosen[1:]:
        for n, (one, two) in enumerate(zip(columns[chosen[0]], columns[other], strict=True)):
            if one != two:
                raise UsageError(
                    f'{where(n)} has two labels in its .json, "{chosen[0]}" {_shown(one)} and '
                    f'"{other}" {_shown(two)}: keep one of them, or write .cls'
                )
    return _resolved(columns[chosen[0]], columns, where, f'.json ("{chosen[0]}")')


def _shown(value: Value) -> str:
    return repr(value)[:40]


def _names(values: Sequence[Value], others: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Return the first column of texts that has exactly one name per class, all different."""
    for column in others.values():
        pairs = set(zip(values, column, strict=True))
        names: dict[Any, Any] = dict(pairs)
        if not all(isinstance(name, str) and is_name(name) for name in names.values()):
            continue
        if len(pairs) == len(names) == len(set(names.values())) and max(names) < MAX_NAMED:
            return tuple(printable(names.get(k, "")) for k in range(max(names) + 1))
    return ()
