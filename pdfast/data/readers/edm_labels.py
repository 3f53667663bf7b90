"""The label table that EDM's `dataset_tool.py` writes, in an archive or in a folder.

`dataset.json` is {"labels": [["00000/img00000000.png", 6], ...]}, or null for a set without labels.
"""

import json
from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers.pictures import label
from pdfast.data.readers.reading import listen
from pdfast.errors import UsageError

LABELS = "dataset.json"
MAX_BYTES = 2**27  # of a table, at most: two million pictures


def parse(
    where: str,
    content: bytes,
    names: list[str],
    place: str,
    passed: Container[str] = (),
    top: str = "",
) -> NDArray[np.int64] | None:
    """Parse a label table into one label per picture.

    Args:
        where: The table's name, for error messages.
        content: The table, JSON.
        names: The pictures, by the names that the table uses.
        place: What holds the pictures, for error messages.
        passed: Pictures left out of `names`, whose labels are ignored.
        top: A folder that names in the table may begin with and `names` do not.

    Returns:
        Labels int64 (N,) in the order of `names`; None if the set has no labels.

    Raises:
        UsageError: The table is malformed, or a picture has no label or two different ones.
    """
    try:
        table = json.loads(content)
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply") from None
    pairs = table.get("labels") if isinstance(table, dict) else table
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise UsageError(f"{where} must have `labels`, a list of [name, class] pairs")
    found = dict.fromkeys(names, -1)
    for pair in pairs:
        listen()
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UsageError(f"{where} must have `labels`, a list of [name, class] pairs")
        name = pair[0].replace("\\", "/")
        name = name if name in found else name.removeprefix(top)
        if name not in found:
            if name in passed:
                continue
            raise UsageError(f"{where} has a label for {name}, which is not a picture in {place}")
        number = label(pair[1], f"{where} gives {name} the label")
        if found[name] not in (-1, number):
            raise UsageError(
                f"{where} has two labels for {name}, {found[name]} and {number}: keep one"
            )
        found[name] = number
    lacking = [name for name, k in found.items() if k < 0]
    if lacking:
        raise UsageError(
            f"{where} has no label for {lacking[0]}, the first of {len(lacking):,} such pictures: "
            "label all or none"
        )
    return np.array([found[name] for name in names], np.int64)
