"""How much memory this process has, and can have: the machine's, or less by its cgroup's limit.

And that what it frees stays its own, where it works on a CPU.
"""

import ctypes
import os
import resource
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")

# Of glibc's mallopt (malloc.h): from what size on a free end of the heap is given back, and a block
# is mapped for itself. The second is the most that it takes.
KEPT = {-1: 2**30, -3: 2**25}


def keep_freed() -> bool:
    """Have the C library keep what is freed for what is allocated next; returns whether it will.

    By default glibc gives memory back to the kernel within every update, and the kernel clears the
    same pages again for the next one: some 2,000 of them for the digits' network.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, size) for option, size in KEPT.items())


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
