"""How much memory this process has and can have, and whether it keeps what it frees."""

import ctypes
import os
import resource
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")

# Options of glibc's mallopt (malloc.h): the sizes from which a free end of the heap is given back,
# and from which a block is mapped separately. The second is the largest that glibc accepts.
KEPT = {-1: 2**30, -3: 2**25}


def keep_freed() -> bool:
    """Have the C library keep freed memory for later allocations; return whether it will.

    By default glibc gives memory back to the kernel within every update, and the kernel clears the
    same pages again for the next one: some 2,000 pages for the digits' network. It matters on CPUs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, size) for option, size in KEPT.items())


def own() -> int:
    """Return the bytes of memory that only this process uses, without those of mapped files.

    The kernel reclaims the latter whenever it needs them. Where it does not tell them apart, return
    the largest resident size so far.
    """
    try:
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    except (OSError, StopIteration):  # not Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def limit() -> int:
    """Return the bytes of the machine's memory, or the lowest limit of this process's cgroups.

    cgroup version 2 names limits memory.max, version 1 memory.limit_in_bytes. The limits of a
    group's parents apply too (Linux kernel documentation, admin-guide/cgroup-v2 and
    cgroup-v1/memory).
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_of_groups()])


def _of_groups() -> list[int]:
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # not Linux
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
    """Return the limits of a group and its parents; a container may not see part of the path."""
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
