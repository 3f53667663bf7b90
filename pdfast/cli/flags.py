"""The commands' flags, and messages about wrong ones. The parser is tyro's; see main.py."""

import dataclasses
import difflib
import itertools
import re
import typing
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tyro.conf import FlagCreatePairsOff, Positional

from pdfast.cli.commands import COMMANDS
from pdfast.config import formats
from pdfast.config.formats import FIRST
from pdfast.config.schema import config_names

GLOBAL = ("--help", "--version", "--debug")  # they need no command
LIKENESS = 0.6  # least similarity of a suggested name, from 0 to 1
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
HINTS = "Arguments? similar to|Similar arg|Perhaps you meant|Available subc|For full"  # tyro's own


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
# Messages


def explain(box: str, args: Sequence[str], prog: str) -> str:
    """Return one sentence on arguments that tyro refused.

    Args:
        box: tyro's framed error, used where nothing more specific is known.
        args: The arguments.
        prog: The name of the program for usage messages, "pdfast" or "pdfast COMMAND".
    """
    word = prog.removeprefix("pdfast").strip() or (args[0] if args else "")
    if word not in COMMANDS:
        return _no_command(args)
    flags = flags_of(COMMANDS[word])
    said = _value_of_bool(flags, args) or _unknown(flags, args, word) or _one_line(box)
    return said + _config_without_flag(said, flags)


def _no_command(args: Sequence[str]) -> str:
    wrong = [argument for argument in args if argument.partition("=")[0] not in GLOBAL]
    meant = difflib.get_close_matches(wrong[0] if wrong else "", GLOBAL, 1, LIKENESS)
    guess = f"; did you mean {meant[0]}?" if meant else ""
    return f"no command before {' '.join(wrong)[:200]}{guess} (commands: {', '.join(COMMANDS)})"


def _value_of_bool(flags: list[Flag], args: Sequence[str]) -> str:
    """Explain a switch that was given a value; "" if there is no such switch."""
    switches = {name: flag for flag in flags if flag.is_bool for name in flag.names()}
    for argument, following in itertools.pairwise([*args, ""]):
        name, equals, value = argument.partition("=")
        flag = switches.get(name.replace("_", "-"))
        value = value if equals else following
        if flag is None or value.lower() not in TRUE + FALSE:
            continue
        fix = f"omit {value}"
        if value.lower() in FALSE and not flag.negative:
            fix = f"omit {name}, too"
        elif value.lower() in FALSE:
            fix = f"write {flag.name if name == flag.negative else flag.negative} instead"
        return f"{name} is a switch, which takes no value such as {value}: {fix}"
    return ""


def _unknown(flags: list[Flag], args: Sequence[str], word: str) -> str:
    """Explain flags that the command does not have; "" if it has all of them."""
    known = {name for flag in flags for name in flag.names()}
    names = [a.partition("=")[0] for a in args if a.startswith("--") and len(a) > 2]
    wrong = [name for name in dict.fromkeys(names) if name.replace("_", "-") not in known]
    if not wrong:
        return ""
    meant = dict.fromkeys(filter(None, (suggestion(name, flags, word) for name in wrong)))
    guess = f"; did you mean {' and '.join(meant)}?" if meant else ""
    are = "is no option" if len(wrong) == 1 else "are no options"
    return f"{' and '.join(wrong)} {are} of pdfast {word}{guess}"


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


def _config_without_flag(said: str, flags: list[Flag]) -> str:
    """Suggest --config for a config that was given without it; "" for anything else."""
    stray = said.removeprefix("unrecognized options: ")
    if stray == said or "--config" not in (flag.name for flag in flags):
        return ""
    is_config = stray.endswith(".toml") or stray in config_names()
    return f"; did you mean --config {stray}?" if is_config else ""


def _one_line(box: str) -> str:
    """Return tyro's framed error as one sentence, without its hints."""
    lines = [line.strip("\u2502| ") for line in box.splitlines()[1:]]
    text = " ".join(line for line in lines if re.search(r"[\w)]", line))
    text = re.split(HINTS, text)[0].strip()
    text = re.sub(r" Argument helptext.*| \(required\)$|^Error parsing fields[\w.]*: ", "", text)
    text = re.sub(r" \(applied to [^)]*\)| Arguments are applied to .* can matter\.", "", text)
    return f"{text[0].lower()}{text[1:]}" if text else "the arguments cannot be read; see --help"
