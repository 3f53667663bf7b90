"""Messages about wrong arguments, each one sentence that names the fix."""

import difflib
import itertools
import re
from collections.abc import Callable, Sequence

from pdfast.cli.commands import COMMANDS
from pdfast.cli.flags import LIKENESS, Flag, flags_of, suggestion
from pdfast.config.schema import config_names
from pdfast.config.serialization import NAMES, nearest

GLOBAL = ("--help", "--version", "--debug")  # they need no command
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
RULE = re.compile(r"^ *-{3,} *$", re.MULTILINE)  # between the parts of tyro's text
INDENT = 6  # spaces before an argument that tyro names as missing


def explain(text: str, args: Sequence[str], prog: str) -> str:
    """Return one sentence on arguments that tyro refused.

    Args:
        text: tyro's error, written where it has neither frames nor colours, in one line a sentence.
        args: The arguments.
        prog: The name of the program for usage messages, "pdfast" or "pdfast COMMAND".
    """
    word = prog.removeprefix("pdfast").strip() or (args[0] if args else "")
    if word not in COMMANDS:
        return _no_command(args)
    flags = flags_of(COMMANDS[word])
    return (
        _value_of_bool(flags, args)
        or _unknown(flags, args, word)
        or _of_tyro(text, args, flags, word)
    )


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
    meant = dict.fromkeys(filter(None, (_meant(name, flags, word) for name in wrong)))
    guess = f"; did you mean {' and '.join(meant)}?" if meant else " (see --help)"
    are = "is no option" if len(wrong) == 1 else "are no options"
    return f"{' and '.join(wrong)} {are} of pdfast {word}{guess}"


def _meant(wrong: str, flags: list[Flag], word: str) -> str:
    """Return the flags that a wrong one may mean, joined by "or": one, or the same key's of others.

    `--lr` may be that of the teacher, `--train.lr`, or that of the rounds, `--distill.lr`.
    """
    first = suggestion(wrong, flags, word)
    table, _, key = first.removeprefix("--").rpartition(".")
    same = [f"--{other}.{key}" for other in ("train", "distill") if other != table]
    found = [name for name in same if any(flag.name == name for flag in flags)]
    return (
        " or ".join([first, *found])
        if table in ("train", "distill") and "." not in wrong
        else first
    )


# ------------------------------------------------------------------------------------------
# tyro's sentences


def _of_tyro(text: str, args: Sequence[str], flags: list[Flag], word: str) -> str:
    """Return tyro's error in pdfast's words, as far as it is known."""
    title, said, *more = [*RULE.split(text), ""]
    lines = said.splitlines()
    missing = [line for line in lines if len(line) - len(line.lstrip()) == INDENT]
    if title.strip() == "Required options" and missing:
        return _missing(missing, word)
    said = " ".join(line.strip() for line in lines if line.strip())
    said = re.sub(r"^Error parsing fields[\w.]*: | \(applied to [^)]*\)", "", said)
    for pattern, explained in SENTENCES.items():
        if found := re.fullmatch(pattern, said, re.DOTALL):
            of = _typed(found["flag"], args)
            return f"{of} {explained(found, ' '.join(more))}"
    if said.startswith(STRAY):
        return _stray(said.removeprefix(STRAY).split(", "), flags, word)
    return f"{said[0].lower()}{said[1:]}" if said else "the arguments cannot be read; see --help"


def _missing(lines: list[str], word: str) -> str:
    """Name the required arguments that are missing."""
    *most, last = [line.strip() for line in lines]
    needed = f"{', '.join(most)} and {last}" if most else last
    return f"{word} needs {needed} (see pdfast {word} --help)"


def _typed(names: str, args: Sequence[str]) -> str:
    """Return the one of a flag's forms, `--a/--b`, that was typed."""
    forms, typed = names.split("/"), {a.partition("=")[0].replace("_", "-") for a in args}
    return next((form for form in forms if form in typed), forms[-1])


def _stray(stray: list[str], flags: list[Flag], word: str) -> str:
    """Explain arguments that belong to no flag."""
    has_config = any(flag.name == "--config" for flag in flags)
    named = [s for s in stray if has_config and (s.endswith(".toml") or s in config_names())]
    guess = f"; did you mean --config {named[0]}?" if named else " (see --help)"
    are = "is no argument" if len(stray) == 1 else "are no arguments"
    return f"{' and '.join(stray)} {are} of pdfast {word}{guess}"


# Each takes the match of a pattern below, and tyro's help of the flag.
def _no_choice(found: re.Match[str], more: str) -> str:
    choices = sorted({*re.findall(r"'([^']*)'", found["listed"])} - {"None"})
    guess = nearest(found["given"], choices)
    return f"cannot be '{found['given']}'{guess} (choices: {', '.join(choices)})"


def _no_whole_number(found: re.Match[str], more: str) -> str:
    return f"must be {NAMES[int]}, not {found['given']}"


def _no_number(found: re.Match[str], more: str) -> str:
    return f"must be {NAMES[float]}, not {found['given']}"


def _no_list(found: re.Match[str], more: str) -> str:
    kind = "whole numbers" if "[INT" in more else "numbers"
    return f"must be {kind} separated by spaces, not {found['given']}"


def _no_value(found: re.Match[str], more: str) -> str:
    return "needs a value"


STRAY = "Unrecognized options: "
OF_FLAG = r"Error parsing (?P<flag>\S+): "
NO_TYPE = r"could be instantiated from \[(?P<given>.*)\]\. Got errors: .*"
SENTENCES: dict[str, Callable[[re.Match[str], str], str]] = {
    r"invalid choice '(?P<given>.*)' for argument '(?P<flag>\S+)'\. "
    r"Expected one of \((?P<listed>.*)\)\.": _no_choice,
    OF_FLAG + r"invalid literal for int\(\) with base 10: (?P<given>.*)": _no_whole_number,
    OF_FLAG + r"no type matching \{None\}\|INT " + NO_TYPE: _no_whole_number,
    OF_FLAG + r"could not convert string to float: (?P<given>.*)": _no_number,
    OF_FLAG + r"no type matching \{None\}\|FLOAT " + NO_TYPE: _no_number,
    OF_FLAG + r"Could not find valid parse for arguments: \[(?P<given>.*)\]": _no_list,
    r"Missing value for argument '(?P<flag>\S+)'\. Expected 1 values\.": _no_value,
}
"""Messages about a flag, by the pattern of tyro's sentence (tyro 1.0.17)."""
