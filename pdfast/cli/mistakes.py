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
HINTS = "Arguments? similar to|Similar arg|Perhaps you meant|Available subc|For full"  # tyro's own
# In tyro's box, by indentation; without a terminal it has no frame.
MISSING = re.compile(r"^[\u2502 ] {5}(\S.*?)[\u2502 ]*$", re.MULTILINE)


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
    return (
        _value_of_bool(flags, args)
        or _unknown(flags, args, word)
        or _missing(box, word)
        or _of_tyro(_one_line(box), flags, word)
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
    meant = dict.fromkeys(filter(None, (suggestion(name, flags, word) for name in wrong)))
    guess = f"; did you mean {' and '.join(meant)}?" if meant else " (see --help)"
    are = "is no option" if len(wrong) == 1 else "are no options"
    return f"{' and '.join(wrong)} {are} of pdfast {word}{guess}"


def _missing(box: str, word: str) -> str:
    """Name the required arguments that are missing; "" if none is."""
    names = MISSING.findall(box.partition("For full helptext")[0])
    if "Missing from" not in box or not names:
        return ""
    *most, last = names
    needed = f"{', '.join(most)} and {last}" if most else last
    return f"pdfast {word} needs {needed} (see --help)"


# ------------------------------------------------------------------------------------------
# tyro's sentences


def _of_tyro(said: str, flags: list[Flag], word: str) -> str:
    """Return a sentence of tyro's in pdfast's words; any other as it is."""
    for pattern, words in SENTENCES.items():
        if found := re.fullmatch(pattern, said):
            return words(found)
    stray = said.removeprefix("unrecognized options: ")
    if stray == said:
        return said
    is_config = stray.endswith(".toml") or stray in config_names()
    meant = is_config and any(flag.name == "--config" for flag in flags)
    guess = f"; did you mean --config {stray}?" if meant else " (see --help)"
    return f"{stray} is no argument of pdfast {word}{guess}"


def _no_choice(found: re.Match[str]) -> str:
    value, name, listed = found.groups()
    choices = sorted({*re.findall(r"'([^']*)'", listed)} - {"None"})
    return f"{name} cannot be '{value}'{nearest(value, choices)} (choices: {', '.join(choices)})"


SENTENCES: dict[str, Callable[[re.Match[str]], str]] = {
    r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*)\)\.": _no_choice,
    r"error parsing (\S+): invalid literal for int\(\) with base 10: (.*)": lambda found: (
        f"{found[1]} must be {NAMES[int]}, not {found[2]}"
    ),
    r"error parsing (\S+): could not convert string to float: (.*)": lambda found: (
        f"{found[1]} must be {NAMES[float]}, not {found[2]}"
    ),
    r"error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]": lambda found: (
        f"{found[1]} cannot be {found[2]}: several values are separated by spaces (see --help)"
    ),
    r"missing value for argument '(\S+)'\. Expected 1 values\.": lambda found: (
        f"{found[1]} needs a value"
    ),
}
"""Messages, by the pattern of tyro's sentence."""


def _one_line(box: str) -> str:
    """Return tyro's framed error as one sentence, without its hints."""
    lines = [line.strip("\u2502| ") for line in box.splitlines()[1:]]
    text = " ".join(line for line in lines if re.search(r"[\w)]", line))
    text = re.split(HINTS, text)[0].strip()
    text = re.sub(r" Argument helptext.*|^Error parsing fields[\w.]*: ", "", text)
    text = re.sub(r" \(applied to [^)]*\)| Arguments are applied to .* can matter\.", "", text)
    return f"{text[0].lower()}{text[1:]}" if text else "the arguments cannot be read; see --help"
