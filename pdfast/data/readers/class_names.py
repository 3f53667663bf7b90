"""Classes that are given by name: their order, and which texts are names."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pdfast.errors import printable

MAX_TEXT = 200  # characters of a name


def ordered(names: Iterable[str]) -> list[str]:
    """Names that are all whole numbers in the order of these, others in that of the alphabet."""
    found = list(names)
    if all(name.isascii() and name.isdecimal() and len(name) <= MAX_TEXT for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def numbered(texts: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class of each text, and the names of the classes."""
    names = ordered(set(texts))
    classes = {name: k for k, name in enumerate(names)}
    numbers = np.fromiter((classes[text] for text in texts), np.int64, len(texts))
    return numbers, tuple(map(printable, names))


def is_name(text: str) -> bool:
    """Whether a text may name a class: a short line with a letter in it."""
    letters = any(letter.isalpha() for letter in text)
    return letters and len(text) <= MAX_TEXT and len(text.splitlines()) == 1
