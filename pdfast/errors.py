"""Errors that a user can fix. Each message is one sentence that names the fix.

Messages are written with the command line's flags; `for_python` has them name Python's arguments.
"""

import functools
import re
import signal
from collections.abc import Callable
from typing import Any

AGAIN = "the same command resumes from there"  # ends the message of work that was saved
MAX_TEXT = 1000  # characters of a message
# A flag; or a command with its flags, which a message to a caller from Python names as it is.
WORDS = "auto|cpu|diffusers|fp32|onnx"  # values of flags in messages
FLAG = re.compile(
    r"(?:pdfast|pip|torchrun) [a-z-][^,;:)]*"
    rf"|(?<![\w-])--([a-z][a-z.-]*[a-z])(?: ({WORDS})\b)?"
)
ARGUMENTS = {"force": "force=True", "other-data": "other_data=True", "data.source": "data"}
ARGUMENTS |= {"from": "origin"}


def as_arguments(text: str) -> str:
    """Return a message with the arguments of Python's functions in place of flags."""

    def named(match: re.Match[str]) -> str:
        flag, value = match.groups()
        name = ARGUMENTS.get(flag, flag.replace("-", "_")) if flag else match[0]
        return f"{name}='{value}'" if value else name

    return FLAG.sub(named, text)


def printable(text: str) -> str:
    """Return the text with control characters escaped, so that it is one line on any terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class PdfastError(Exception):
    """An error that the user can fix. The command line prints one line and exits with code 1."""

    exit_code = 1

    def __str__(self) -> str:
        """Return one printable line of bounded length, whatever a foreign file put into it."""
        text = super().__str__()
        if len(text) > MAX_TEXT:  # the file is named at the beginning, the fix at the end
            text = f"{text[: MAX_TEXT // 2]} ... {text[-MAX_TEXT // 2 :]}"
        return printable(text)


class UsageError(PdfastError, ValueError):
    """A wrong flag, config key or argument. The command line exits with code 2."""

    exit_code = 2


class Stopped(PdfastError):  # noqa: N818  # it ends a run, but is no error
    """A signal or the caller's `stop` ended the run, whose state is saved.

    The same call resumes it. The command line exits with 128 + the signal's number.
    """

    def __init__(self, signum: int, saved: str) -> None:
        """Build the message.

        Args:
            signum: Number of the signal; 0 for the caller's `stop`.
            saved: What was saved, as the end of the message.
        """
        by = f"by {signal.Signals(signum).name}" if signum else "as stop() asked"
        super().__init__(f"stopped {by}; {saved}")
        self.exit_code = 128 + signum if signum else 1

    @property
    def signum(self) -> int:
        """Number of the signal; 0 for the caller's `stop`."""
        return max(0, self.exit_code - 128)


def for_python(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function of the Python interface, whose errors name arguments instead of flags.

    Args:
        function: The function as the command line uses it.
        name: Its name in the package `pdfast`.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except PdfastError as error:
            error.args = tuple(as_arguments(a) if isinstance(a, str) else a for a in error.args)
            raise

    call.__module__, call.__qualname__ = "pdfast", name  # where pickle finds it
    return call
