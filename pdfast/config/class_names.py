"""Names of the classes of a model or data set, and the class that a --label means."""

import re
from collections.abc import Sequence

from pdfast.config.serialization import check, nearest
from pdfast.errors import UsageError, printable

PLAIN = re.compile(r"[^\W\d][\w.-]*")  # a name that needs no quotes
SHOWN = 10  # classes that a message lists
NAME, NUMBER = "name:", "number:"  # prefixes for a --label that could be either


def quoted(name: str) -> str:
    """Return a name for use in a sentence: in quotes, unless it is one word and not a number."""
    return name if PLAIN.fullmatch(name) else f"'{printable(name)}'"


def shown(label: int, names: Sequence[str]) -> str:
    """Return the number and name of a class, for display."""
    name = names[label] if label < len(names) else ""
    return str(label) if name in ("", str(label)) else f"{label} {quoted(name)}"


def checked(names: object, num_classes: int) -> tuple[str, ...]:
    """Return class names as a model keeps them: a tuple without unnamed classes at its end.

    Args:
        names: A list or tuple of strings; "" for a class without a name.
        num_classes: Number of the model's classes.

    Raises:
        UsageError: `names` is not such a list, or has more names than there are classes.
    """
    check(
        isinstance(names, list | tuple) and all(isinstance(name, str) for name in names),
        "class_names must be a list of texts",
    )
    assert isinstance(names, list | tuple)
    check(
        len(names) <= num_classes,
        f"class_names holds {len(names)} names, but the model has {num_classes} classes",
    )
    return merged(tuple(names), (), num_classes)


def merged(names: Sequence[str], others: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Return the names of `num_classes` classes, from `others` where `names` has none.

    Unnamed classes at the end are omitted.
    """
    pairs = (
        (names[k] if k < len(names) else "") or (others[k] if k < len(others) else "")
        for k in range(min(num_classes, max(len(names), len(others))))
    )
    found = list(pairs)
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def difference(what: str, names: Sequence[str], others: Sequence[str], of: str = "the data") -> str:
    """Describe how the class names of two things differ; "" if they agree.

    A class that only one of the two names does not count as a difference.

    Args:
        what: The thing with the names `names`, such as "the model".
        names: Class names of `what`.
        others: Class names of `of`.
        of: The thing with the names `others`.
    """
    pairs = [(k, *pair) for k, pair in enumerate(zip(names, others, strict=False)) if all(pair)]
    differ = [(k, mine, theirs) for k, mine, theirs in pairs if mine != theirs]
    if not differ:
        return ""
    label, mine, theirs = differ[0]
    more = f", and {len(differ) - 1:,} others differ" if len(differ) > 1 else ""
    return (
        f"class {label} of {what} is {quoted(mine)}, but class {label} of {of} is "
        f"{quoted(theirs)}{more}"
    )


def number_of(text: str, names: Sequence[str], num_classes: int) -> int:
    """Return the number of the class that a --label means.

    Args:
        text: A number, or the exact name of one class. Where it is the number of one class and the
            name of another, the prefix "number:" or "name:" decides.
        names: Names of the model's classes.
        num_classes: Number of the model's classes.

    Raises:
        UsageError: `text` means no class, or more than one.
    """
    named, numbered, within = _named(text, names), _numbered(text), f"0 .. {num_classes - 1}"
    if not named and text.startswith(NAME):
        text, numbered = text.removeprefix(NAME), []
        named = _named(text, names)
    elif not named and text.startswith(NUMBER):
        text = text.removeprefix(NUMBER)
        numbered = _numbered(text)
    outside = [number for number in numbered if number not in range(num_classes)]
    found = sorted({*named, *numbered} - {*outside})
    if len(found) == 1:
        return found[0]
    if found and numbered:
        raise UsageError(
            f"--label {text} is the number of a class, and the name of class "
            f"{', '.join(str(k) for k in named if k not in numbered)}: pass {NUMBER}{text} or "
            f"{NAME}{text}"
        )
    check(not found, f"--label {text} names classes {ranges(found)}: pass a number in {within}")
    check(not outside, f"--label must be in {within}")
    check(
        any(names),
        f"--label {text} is no number, and this model has no class names: pass a number in "
        f"{within}",
    )
    known = [shown(label, names) for label in range(min(num_classes, SHOWN))]
    more = f" and {num_classes - SHOWN:,} more" if num_classes > SHOWN else ""
    raise UsageError(
        f"--label {text} names no class of this model{nearest(text, filter(None, names))}"
        f" (classes: {', '.join(known)}{more})"
    )


def _named(text: str, names: Sequence[str]) -> list[int]:
    return [label for label, name in enumerate(names) if name == text and name]


def _numbered(text: str) -> list[int]:
    return [int(text)] if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else []


def ranges(numbers: Sequence[int]) -> str:
    """Return rising numbers in words, such as "2, 5 to 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = []
    for first, last in runs:
        joint = ", " if last - first == 1 else " to "
        words.append(str(first) if first == last else f"{first}{joint}{last}")
    return ", ".join(words)
