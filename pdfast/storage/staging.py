"""Names for files and folders that are being written, and the removal of leftovers.

A name says which process writes, and has a part drawn at random each time: no two are the same,
whatever machines or containers they come from.
"""

import os
import re
import secrets
import shutil
import time
from pathlib import Path

from pdfast.storage import processes
from pdfast.storage.processes import Process

# Process, kind, final name; version 0.1.0 had the process's number alone.
LEFT = re.compile(rf"\.(?:({processes.PATTERN})-[0-9a-f]{{8}}|(\d+))\.(tmp|old)\.(.+)")
ABANDONED = 24 * 3600.0  # seconds without a change after which nobody is taken to write there


def beside(path: Path, kind: str) -> Path:
    """A name in the same folder, of the same suffix, that `sweep` knows; tmp or old."""
    owner = f"{processes.this()}-{secrets.token_hex(4)}"
    return path.with_name(f".{owner}.{kind}.{path.name}")


def is_left(name: str) -> bool:
    """Whether a file or folder of this name is one that `beside` named."""
    return LEFT.fullmatch(name) is not None


def sweep(folder: Path, locked: bool = False) -> None:
    """Clear what a killed process left half-written in `folder`, or half-replaced.

    What a living process of this machine may still be writing stays, unless it is this process,
    which must write nothing there during the call. Whether a process of another machine or
    container lives cannot be known: what it left is cleared once it has not changed for a day, or
    at once if `locked`, which says that this process holds the folder's lock.
    """
    for left in folder.glob(".*"):
        match = LEFT.fullmatch(left.name)
        if match is None:
            continue
        owner, number, kind, name = match[1], match[5], match[6], match[7]
        if kind == "old" and not (folder / name).exists():
            left.rename(folder / name)  # killed between two renames: the old one still counts
        elif _in_use(left, owner, number, locked):
            continue
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _in_use(left: Path, owner: str | None, number: str, locked: bool) -> bool:
    if owner is None:
        return int(number) != os.getpid() and processes.exists(int(number))
    process = Process.parse(owner)
    if process.is_here():
        return process.pid != os.getpid() and process.is_alive()
    return not locked and time.time() - _changed(left) < ABANDONED


def _changed(left: Path) -> float:
    """When a file, or anything in a folder, was last written to."""
    times = [0.0]
    for path in (left, *left.rglob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except OSError:  # it has just gone
            continue
    return max(times)
