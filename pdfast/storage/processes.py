"""Identity of a process among those of all machines and containers.

A process number is not enough: each container has its own numbers, often from 1, and a number is
used again after its process has ended.
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
    """A process; as text `number-machine-start`, which is part of a file name."""

    pid: int
    machine: str
    """Digest of host, boot and PID namespace, in which the number is unique at any one time."""
    start: str
    """Its start, in clock ticks after boot; "" where the system does not tell."""

    def __str__(self) -> str:
        return f"{self.pid}-{self.machine}-{self.start}"

    @classmethod
    def parse(cls, text: str) -> "Process":
        """What `str` gave. Raises ValueError for other text."""
        match = re.fullmatch(PATTERN, text)
        if match is None:
            raise ValueError(f"{text[:100]!r} names no process")
        return cls(int(match[1]), match[2], match[3])

    def is_here(self) -> bool:
        """Whether its number means the same process here."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether it still runs; of one that `is_here`."""
        if not exists(self.pid):
            return False
        start = _start(self.pid)
        return start in ("", self.start) or not self.start


def this() -> Process:
    """The process that asks."""
    return Process(os.getpid(), _machine(), _start(os.getpid()))


def exists(pid: int) -> bool:
    """Whether any process has this number here."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@functools.cache
def _machine() -> str:
    """Host, boot and PID namespace, in 8 digits."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # not Linux, so no containers either
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text()]
        parts += [os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # the name before may hold anything
