"""The lock of a run directory, for one process at a time: `.lock` in it, a lock of the file system.

The operating system releases the lock when its process ends, in whatever way. The file's content
only names the owner, or, if nobody holds the lock, a process that was killed.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import platform
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pdfast.errors import PdfastError
from pdfast.storage.files import reason

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
MAX_BYTES = 4096  # of the file's content


class Lock:
    """The right to work in a folder, until `release` or the end of the process."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        """Take the lock of an existing folder.

        Args:
            folder: The folder.
            warn: Takes a message if the last process was killed, or the file system has no locks.

        Raises:
            PdfastError: Another process, or this one, holds the lock; the message names it.
            OSError: The folder cannot be written.
        """
        self._path = folder / LOCK
        self._file: io.FileIO | None = _open_locked(self._path, warn)
        if self._file is None:
            return
        left = _owner(self._file)
        if left:
            warn(
                f"{folder}: its last process ({left}) ended without releasing the lock; taking over"
            )
        owner = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        }
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(owner).encode() + b"\n")
        except OSError:
            self.release()
            raise

    @property
    def excludes(self) -> bool:
        """Whether other processes are kept out, which requires a file system with locks."""
        return self._file is not None

    def is_ours(self) -> bool:
        """Return whether the folder still has the locked file or, without locks, still exists."""
        return self._path.parent.is_dir() if self._file is None else names(self._path, self._file)

    def release(self) -> None:
        """Release the lock, and remove its file."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if names(self._path, self._file):
                self._path.unlink()
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None


def _open_locked(path: Path, warn: Callable[[str], None]) -> io.FileIO | None:
    """Open and lock the file; None if the file system has no locks."""
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(file) or "another process"
            file.close()
            raise PdfastError(
                f"{path.parent} is in use by {owner}: wait for it to end, or stop it"
            ) from None
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS:
                raise
            warn(
                f"{path.parent}: its file system has no locks ({reason(error)}); nothing keeps a "
                "second process from working there at the same time"
            )
            return None
        if names(path, file):
            return file
        file.close()  # its owner removed it between open and flock


def names(path: Path, file: io.FileIO) -> bool:
    """Return whether the path is that of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _owner(file: io.FileIO) -> str:
    """Describe the process that wrote the file; "" if the file is empty."""
    try:
        content = os.pread(file.fileno(), MAX_BYTES, 0).decode("utf-8", "replace")
    except OSError:
        content = ""
    try:
        owner = json.loads(content)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "an unknown process" if content.strip() else ""
