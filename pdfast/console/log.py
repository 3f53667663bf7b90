"""log.txt of a run: every line shown on the screen, with its time; resumed runs append to it."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pdfast.errors import printable

LOG = "log.txt"
TAIL = 2**16  # bytes at the end that are searched for the beginning of a torn last line

_opened: list["Log"] = []  # all open logs of this process


def last_words(text: str) -> None:
    """Write the message that ends this process to every open log."""
    for log in _opened:
        log.write(text, datetime.now())


class Log:
    """A file to which one process appends whole lines; a write that fails does not stop the work.

    Each line is a single unbuffered write, so that it outlasts a kill.
    """

    def __init__(self, path: Path, failed: Callable[[OSError], None]) -> None:
        """Open the file for appending, or create it.

        Args:
            path: The file.
            failed: Called with the first error, and never again.
        """
        self._failed: Callable[[OSError], None] | None = failed
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._drop_torn_line()
            _opened.append(self)
        except OSError as error:
            self._tell(error)

    def write(self, text: str, at: datetime) -> None:
        """Append one line, or several with the same time; errors go to `failed`."""
        if self._fd < 0:
            return
        stamp = at.astimezone().isoformat(" ", "seconds")
        lines = [f"{stamp} {printable(line)}\n" for line in text.splitlines() or [""]]
        content = "".join(lines).encode("utf-8", "backslashreplace")
        try:
            written = os.write(self._fd, content)
            if written < len(content):  # a nearly full disk accepts only a part
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(28, os.strerror(28))
        except OSError as error:
            self._tell(error)

    def close(self) -> None:
        """Close the file."""
        if self in _opened:
            _opened.remove(self)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _drop_torn_line(self) -> None:
        """Remove a last line that a crash cut short."""
        size = os.fstat(self._fd).st_size
        start = max(0, size - TAIL)
        tail = os.pread(self._fd, size - start, start)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._fd, start + tail.rfind(b"\n") + 1)

    def _tell(self, error: OSError) -> None:
        if self._failed is not None:
            tell, self._failed = self._failed, None
            tell(error)
