"""log.txt of a run: what is said on the screen, each line with its time, over all resumptions."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pdfast.errors import printable

LOG = "log.txt"
TAIL = 2**16  # bytes of a torn last line that are looked through for its beginning

_opened: list["Log"] = []  # of this process


def last_words(text: str) -> None:
    """Write what ends this process to every log that is open."""
    for log in _opened:
        log.write(text, datetime.now())


class Log:
    """A file that whole lines are appended to, by one process, and that may fail: work goes on.

    A line is one write to a file without a buffer, so that one that was said outlasts a kill.
    """

    def __init__(self, path: Path, failed: Callable[[OSError], None]) -> None:
        """Go on with the file, or begin it; `failed` is told of the first error, and no other."""
        self._failed: Callable[[OSError], None] | None = failed
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._drop_torn_line()
            _opened.append(self)
        except OSError as error:
            self._tell(error)

    def write(self, text: str, at: datetime) -> None:
        """Append a line, or several of one time."""
        if self._fd < 0:
            return
        stamp = at.astimezone().isoformat(" ", "seconds")
        lines = [f"{stamp} {printable(line)}\n" for line in text.splitlines() or [""]]
        content = "".join(lines).encode("utf-8", "backslashreplace")
        try:
            written = os.write(self._fd, content)
            if written < len(content):  # a disk that is nearly full takes a part
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(28, os.strerror(28))
        except OSError as error:
            self._tell(error)

    def close(self) -> None:
        """Let go of the file."""
        if self in _opened:
            _opened.remove(self)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _drop_torn_line(self) -> None:
        """Forget a last line that a crash cut short."""
        size = os.fstat(self._fd).st_size
        start = max(0, size - TAIL)
        tail = os.pread(self._fd, size - start, start)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._fd, start + tail.rfind(b"\n") + 1)

    def _tell(self, error: OSError) -> None:
        if self._failed is not None:
            tell, self._failed = self._failed, None
            tell(error)
