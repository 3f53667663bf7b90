"""Identify a process among those of all machines and containers.

A process number is not enough: each container has its own numbers, often from 1, and numbers are
reused after their processes have ended.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

PATTERN = r"(\d+)-([0-9a-f]{8})-(\d*)"


class Process(NamedTuple):
    """A process; as text `number-machine-start`, which is part of file names."""

    pid: int
    machine: str
    """Digest of host, boot and PID namespace, within which running processes have unique
    numbers."""
    start: str
    """Start time in clock ticks after boot; "" if the system does not provide it."""

    def __str__(self) -> str:
        return f"{self.pid}-{self.machine}-{self.start}"

    @classmethod
    def parse(cls, text: str) -> "Process":
        """Parse the text of a process.

        Raises:
            ValueError: The text has another form.
        """
        match = re.fullmatch(PATTERN, text)
        if match is None:
            raise ValueError(f"{text[:100]!r} does not name a process")
        return cls(int(match[1]), match[2], match[3])

    def is_here(self) -> bool:
        """Return whether its number means the same process on this machine."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Return whether it still runs; valid only if `is_here` is true."""
        if not exists(self.pid):
            return False
        start = _start(self.pid)
        return start in ("", self.start) or not self.start


def this() -> Process:
    """Return the current process."""
    return Process(os.getpid(), _machine(), _start(os.getpid()))


def exists(pid: int) -> bool:
    """Return whether any process has this number here."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@functools.cache
def _machine() -> str:
    """Return the digest of host, boot and PID namespace, in 8 digits."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # not Linux, so there are no containers either
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text()]
        parts += [os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # the process name before ")" may hold spaces
