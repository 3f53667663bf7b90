"""Conversion of TOML and JSON tables to frozen dataclasses and back.

Every error is a `UsageError` that names the key. Nothing in a file is trusted. This module does not
import torch.
"""

import codecs
import dataclasses
import difflib
import re
import reprlib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from pdfast.errors import UsageError, printable

T = TypeVar("T")

# Bounds beyond any sensible config, so that no file can make pdfast hang or overflow.
MAX_TOML = 2**18  # bytes; the betas of 8192 timesteps take most of that
MAX_NESTING = 50  # dots in a line outside numbers: the parser's time is quadratic in them
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell's ">" writes
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
EXAMPLES = {int: "[1, 2]", float: "[0.5, 0.9]"}  # of lists
MAX_SHOWN = 80  # characters of a wrong line
AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")  # in messages of tomllib
PYTHONS_BOOL = re.compile(r"=\s*(True|False)\b")
NUMBER = re.compile(rb"[\s,\[=][-+]?\d+\.\d+(?:[eE][-+]?\d+)?(?=[\s,\]])")  # in lists of numbers


def check(condition: bool, message: str) -> None:
    """Raise `UsageError(message)` unless `condition` holds."""
    if not condition:
        raise UsageError(message)


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    """Return "; did you mean 'y'?" for the choice most like `word`; "" if no choice is like it."""
    close = difflib.get_close_matches(word[:100], list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: The file cannot be read, or is not valid TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOML + 1).removeprefix(codecs.BOM_UTF8)
        if content.startswith(UTF16) or b"\0" in content[:2]:
            raise ValueError("it is in UTF-16: save it as UTF-8")
        if len(content) > MAX_TOML:
            raise ValueError(f"it is longer than {MAX_TOML:,} bytes")
        if any(_dots(line) > MAX_NESTING for line in content.splitlines()):
            raise ValueError(f"it has a line of more than {MAX_NESTING} dots")
        text = content.decode("utf-8")
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}{_line_of(error, text)}") from None


def _line_of(error: Exception, text: str) -> str:
    """Return the line that a parser's error names, as it stands, and the fix if it is a known one.

    Args:
        error: The error, whose message ends in "(at line 3, column 5)".
        text: The parsed text.
    """
    found = AT_LINE.search(str(error))
    if found is None:
        return ""
    line = text.split("\n")[int(found[1]) - 1].strip()
    fix = ": TOML writes true and false in lower case" if PYTHONS_BOOL.search(line) else ""
    return f": {printable(line[:MAX_SHOWN])}{fix}"


def _dots(line: bytes) -> int:
    """Count the dots of a line outside numbers, each of which may join keys."""
    return line.count(b".") - len(NUMBER.findall(line + b"\n"))


def to_table(value: Any) -> Any:
    """Convert a value for TOML or JSON.

    Dataclasses and tuples of pairs become dicts, other tuples lists.
    """
    if dataclasses.is_dataclass(value):
        return {f.name: to_table(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        pairs = bool(value) and all(isinstance(item, tuple) for item in value)
        return {str(key): item for key, item in value} if pairs else list(value)
    return value


def from_table(cls: type[T], table: dict[str, Any], prefix: str = "") -> T:
    """Build a dataclass from a TOML or JSON table.

    Args:
        cls: The dataclass.
        table: The table; fields that it lacks have their defaults.
        prefix: Prefix of the keys in messages.

    Raises:
        UsageError: A key is unknown, or its value has a wrong type. The message names the key.
    """
    hints = typing.get_type_hints(cls)
    for key in [key for key in table if key not in hints]:
        names = [prefix + name for name in hints]
        raise UsageError(f"unknown key '{prefix}{key}'{nearest(prefix + key, names)}")
    return cls(**{key: _convert(hints[key], table[key], prefix + key) for key in table})


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Convert a value to the type `hint`, or raise a `UsageError` that names the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        check(isinstance(value, dict), f"{key} must be a table, [{key}]")
        return from_table(typing.cast(type, hint), value, f"{key}.")
    if origin is Literal:
        if isinstance(value, bool) and {"on", "off"} <= set(args):  # TOML's own true and false
            value = "on" if value else "off"
        expected = ", ".join(args)
        close = nearest(value, args) if isinstance(value, str) else ""
        check(value in args, f"{key} must be one of {expected}{close}")
        return value
    if origin is tuple and typing.get_origin(args[0]) is tuple and isinstance(value, dict):
        for k in value:
            check(
                k.isascii() and k.isdecimal() and len(k) <= 9,
                f"{key} must have whole numbers as keys, of at most 9 digits",
            )
        kind = typing.get_args(args[0])[1]
        return tuple((int(k), _convert(kind, item, f"{key}.{k}")) for k, item in value.items())
    if origin is tuple:
        kind = f"a list, such as {EXAMPLES[args[0]]}" if args[0] in EXAMPLES else "a table of pairs"
        check(isinstance(value, list | tuple), f"{key} must be {kind}, not {_shown(value)}")
        if args[-1] is not Ellipsis:
            check(len(value) == len(args), f"{key} must hold {len(args)} values")
        return tuple(_convert(args[0], item, f"{key}[{n}]") for n, item in enumerate(value))
    if origin is types.UnionType:
        check(
            type(value) in args,
            f"{key} must be {' or '.join(NAMES[arg] for arg in args)}, not {_shown(value)}",
        )
        return _convert(type(value), value, key)
    if hint is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not hint:
        raise UsageError(f"{key} must be {NAMES[hint]}, not {_shown(value)}")
    check(hint is not int or -(2**63) <= value < 2**63, f"{key} must be a number of 64 bits")
    return value


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print numbers of more than 4300 digits
        return "a number too long to print"
