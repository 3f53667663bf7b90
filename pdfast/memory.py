"""How much memory this process can have: the machine's, or less where its cgroup has a limit."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


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
