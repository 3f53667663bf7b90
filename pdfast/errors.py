"""Errors that a user can cause, each one a sentence that names the fix."""

import signal

MAX_TEXT = 1000  # characters of a message


def printable(text: str) -> str:
    """The text as one line that does nothing to a terminal: control characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class PdfastError(Exception):
    """Something the user can put right; the command line prints it as one line, exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        """The sentence: one line of bounded length, whatever a foreign file put into it."""
        text = super().__str__()
        if len(text) > MAX_TEXT:  # the file is named at the beginning, the fix at the end
            text = f"{text[: MAX_TEXT // 2]} ... {text[-MAX_TEXT // 2 :]}"
        return printable(text)


class UsageError(PdfastError, ValueError):
    """A wrong flag, config key or argument; the command line exits with 2."""

    exit_code = 2


class Stopped(PdfastError):  # noqa: N818  # it ends a run, but is no error
    """A signal, or the caller's `stop`, asked the run to stop, and its state is saved.

    The same call goes on from there. Exit code 128 + signal; 1 for `stop`.
    """

    def __init__(self, signum: int, saved: str) -> None:
        """`signum` 0: it was the caller's `stop`."""
        by = f"by {signal.Signals(signum).name}" if signum else "as stop() asked"
        super().__init__(f"stopped {by}; {saved}")
        self.exit_code = 128 + signum if signum else 1

    @property
    def signum(self) -> int:
        """The signal; 0 where it was the caller's `stop`."""
        return max(0, self.exit_code - 128)
