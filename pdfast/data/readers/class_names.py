"""Classes given by name: their order, and which texts count as names."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pdfast.errors import printable

MAX_TEXT = 200  # characters of a class name, at most


def ordered(names: Iterable[str]) -> list[str]:
    """Sort class names: numerically if all are whole numbers, else alphabetically."""
    found = list(names)
    if all(name.isascii() and name.isdecimal() and len(name) <= MAX_TEXT for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def numbered(texts: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the classes of labels given as texts.

    Args:
        texts: The class name of each sample.

    Returns:
        The class of each sample, int64 (N,), and the class names by number.
    """
    names = ordered(set(texts))
    classes = {name: k for k, name in enumerate(names)}
    numbers = np.fromiter((classes[text] for text in texts), np.int64, len(texts))
    return numbers, tuple(map(printable, names))


def is_name(text: str) -> bool:
    """Return whether a text may name a class: one short line with a letter in it."""
    letters = any(letter.isalpha() for letter in text)
    return letters and len(text) <= MAX_TEXT and len(text.splitlines()) == 1
