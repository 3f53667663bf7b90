"""How much memory this process has, and can have: the machine's, or less by its cgroup's limit."""

import os
import resource
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")


def own() -> int:
    """Bytes of memory that this process has to itself, without those of files that it maps.

    The kernel takes the latter back whenever it needs them. Where it does not tell them apart, all
    that the process ever had.
    """
    try:
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    except (OSError, StopIteration):  # another system than Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def limit() -> int:
    """Bytes of the machine's memory, or of the lowest limit of this process's control groups.

    Version 2 names limits memory.max, version 1 memory.limit_in_bytes; a group's parents' hold, too
    (Linux kernel documentation, admin-guide/cgroup-v2 and cgroup-v1/memory).
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_of_groups()])


def _of_groups() -> list[int]:
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # another system than Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _limits(CGROUPS, path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits(CGROUPS / "memory", path, "memory.limit_in_bytes")
    return found


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Those of a group and its parents; in a container a part of the path may not be seen."""
    group = root / path.lstrip("/")
    found = []
    for folder in [group, *group.parents]:
        if not folder.is_relative_to(root):
            break
        try:
            found.append(int((folder / name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
