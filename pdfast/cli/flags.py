"""The commands' flags and their help texts. The parser is tyro's; see main.py."""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import textwrap
import types
import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tyro.conf import FlagCreatePairsOff, Positional

from pdfast.config import formats
from pdfast.config.formats import FIRST

LIKENESS = 0.6  # least similarity of a suggested name, from 0 to 1


class Flag(NamedTuple):
    """A flag of a command."""

    name: str
    """Long form, such as `--train.lr`."""
    aliases: tuple[str, ...] = ()
    is_bool: bool = False
    negative: str = ""
    """Flag that turns it off, such as `--engine.no-graph`; "" if it cannot be turned off."""

    def names(self) -> list[str]:
        """Return all forms of the flag."""
        return [name for name in (self.name, *self.aliases, self.negative) if name]


def flags_of(kind: type, prefix: str = "") -> list[Flag]:
    """Return the flags that tyro makes of a dataclass's fields, in their order.

    Args:
        kind: The dataclass.
        prefix: Prefix of the flags, such as "train."; "" for a command's own dataclass.
    """
    found = [Flag("--help")] if not prefix else []
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        plain = hint.__origin__ if marks else hint
        if _is_marked(marks, Positional):
            continue
        config = next((mark for mark in marks if hasattr(mark, "prefix_name")), None)
        named = None if config is None else config.name
        name = (field.name if named is None else named).replace("_", "-")
        before = "" if config is not None and config.prefix_name is False else prefix
        if dataclasses.is_dataclass(plain):
            inner = flags_of(typing.cast(type, plain), f"{before}{name}." if name else before)
            found += [flag for flag in inner if flag.name != "--help"]
            continue
        aliases = tuple(config.aliases or ()) if config is not None else ()
        pairs = plain is bool and not _is_marked(marks, FlagCreatePairsOff)
        negative = f"--{before}no-{name}" if pairs else ""
        found.append(Flag(f"--{before}{name}", aliases, plain is bool, negative))
    return found


def _is_marked(marks: tuple[object, ...], by: object) -> bool:
    """Return whether an annotation has tyro's mark `by`, where `by[T]` is Annotated[T, mark]."""
    mark = typing.get_args(by[int])[1]  # type: ignore[index]
    return mark in marks


def with_new_names(args: Sequence[str]) -> list[str]:
    """Return the arguments by their present names, with a warning about earlier versions' names."""
    found, said, before = [], [], ""
    for argument in args:
        name, equals, value = argument.partition("=")
        for old, new in formats.renamed_after(FIRST.format).items():
            if name == f"--{old}" or name.startswith(f"--{old}."):
                now = f"--{new}{name.removeprefix(f'--{old}')}"
                said.append(f"{name} is called {now} now")
                name = now
        flag, given = (name, value) if equals else (before, name)
        present = formats.value_now(flag.removeprefix("--"), given, FIRST.format)
        if present != given:
            said.append(f"{flag} {given} is called {present} now")
            name, value = (name, present) if equals else (present, value)
        found.append(name + equals + value)
        before = name
    if said:
        warnings.warn(", ".join(said), FutureWarning, stacklevel=2)
    return found


# ------------------------------------------------------------------------------------------
# Help texts


def join_help(kind: type) -> None:
    """Give tyro the docstrings below a dataclass's fields, each as one paragraph.

    By itself tyro (1.0.17) keeps the line breaks of an indented docstring, and wraps each of its
    lines again.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if text := help_text(kind, field.name):
            field.metadata = types.MappingProxyType({**field.metadata, "help": text})
        if dataclasses.is_dataclass(hints[field.name]):
            join_help(hints[field.name])


def help_text(kind: type, name: str) -> str:
    """Return the docstring below a field, of the class or of its bases, in one line."""
    texts = (_docstrings(cls).get(name) for cls in kind.__mro__ if dataclasses.is_dataclass(cls))
    return next(filter(None, texts), "")


@functools.cache
def _docstrings(cls: type) -> Mapping[str, str]:
    """Return the docstrings below the fields of a class, without those of its bases.

    Without the installed source there is no docstring to return.
    """
    try:
        source = inspect.getsource(cls)
    except OSError:
        return {}
    body = ast.parse(textwrap.dedent(source)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                found[name] = " ".join(str(text).split())
    return found


# ------------------------------------------------------------------------------------------
# Suggestions


def suggestion(wrong: str, flags: Iterable[Flag], word: str) -> str:
    """Return the flag that a wrong one most likely means; "" if no flag is similar.

    Flags with the typed prefix are preferred, then flags of the command's own table and flags
    without a prefix, then all others.

    Args:
        wrong: The wrong flag.
        flags: Flags of the command.
        word: Name of the command.
    """
    shown: dict[str, str] = {}  # the form to suggest, by each form
    for flag in flags:
        shown |= {name: name if name == flag.negative else flag.name for name in flag.names()}
    if wrong == "--data" and "--data.source" in shown:
        return "--data.source"
    prefix, _, last = wrong.removeprefix("--").replace("_", "-").rpartition(".")
    prefixes = {_parts(name)[0] for name in shown} - {""}
    if prefix and prefix not in prefixes:
        prefix = next(iter(difflib.get_close_matches(prefix, prefixes, 1, LIKENESS)), "")
    of_prefix = [name for name in shown if prefix and _parts(name)[0] == prefix]
    own = [name for name in shown if _parts(name)[0] in ("", word)]
    for group, alike in (
        (of_prefix, _same),
        (of_prefix, _like),
        (own, _same),
        (shown, _same),
        (own, _like),
        (shown, _like),
    ):
        lasts: dict[str, str] = {}
        for name in group:
            lasts.setdefault(_parts(name)[1], name)
        if found := alike(last, lasts):
            return shown[lasts[found]]
    return ""


def _same(name: str, choices: Iterable[str]) -> str:
    return name if name in choices else ""


def _like(name: str, choices: Iterable[str]) -> str:
    """Return the choice most like a name, or the only one that begins with it; else ""."""
    begun = [choice for choice in choices if name and choice.startswith(name)]
    near = difflib.get_close_matches(name, choices, 1, LIKENESS)
    return next(iter(near or (begun if len(begun) == 1 else [])), "")


def _parts(name: str) -> tuple[str, str]:
    """Return (prefix, rest) of `--prefix.rest`."""
    prefix, _, last = name.removeprefix("--").rpartition(".")
    return prefix, last
