"""Names for files and folders while they are written, and the removal of leftovers.

A name identifies the writing process, and has a random part: no two names are equal, whatever
machines or containers they come from.
"""

import os
import re
import secrets
import shutil
import time
from pathlib import Path

from pdfast.storage import processes
from pdfast.storage.processes import Process

# Process, kind, final name; version 0.1.0 wrote only the process's number.
LEFT = re.compile(rf"\.(?:({processes.PATTERN})-[0-9a-f]{{8}}|(\d+))\.(tmp|old)\.(.+)")
ABANDONED = 24 * 3600.0  # seconds without a change after which a leftover counts as abandoned


def beside(path: Path, kind: str) -> Path:
    """Return a new name in the same folder, with the same suffix, that `sweep` recognizes.

    Args:
        path: The final path.
        kind: "tmp" for a file or folder being written, "old" for one being replaced.
    """
    owner = f"{processes.this()}-{secrets.token_hex(4)}"
    return path.with_name(f".{owner}.{kind}.{path.name}")


def is_left(name: str) -> bool:
    """Return whether a file or folder of this name was named by `beside`."""
    return LEFT.fullmatch(name) is not None


def sweep(folder: Path, locked: bool = False) -> None:
    """Remove what killed processes left half-written in a folder; restore what they half-replaced.

    Files that a living process of this machine may still be writing stay, except for those of this
    process, which must write nothing there during the call. Whether a process of another machine or
    container is alive cannot be known: its leftovers are removed after a day without a change.

    Args:
        folder: The folder.
        locked: This process holds the folder's lock, so remove such leftovers at once.
    """
    for left in folder.glob(".*"):
        match = LEFT.fullmatch(left.name)
        if match is None:
            continue
        owner, number, kind, name = match[1], match[5], match[6], match[7]
        if kind == "old" and not (folder / name).exists():
            left.rename(folder / name)  # killed between two renames: restore the old one
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
    """Return when a file, or anything in a folder, was last written to."""
    times = [0.0]
    for path in (left, *left.rglob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except OSError:  # it was just removed
            continue
    return max(times)
