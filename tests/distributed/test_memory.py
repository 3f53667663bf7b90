"""Freed memory stays with the process."""

import platform
import subprocess
import sys

# Blocks like those of an update, of several sizes up to 8 MB, all freed at its end. It prints the
# page faults of ten such updates after the first ten.
ROUNDS = """
import ctypes, resource, sys
from pdfast.distributed import memory
kept = sys.argv[1] == "kept" and memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for n in range(20):
    blocks = []
    for size in [2**20, 2**23, 2**23, 2**22, 2**23, 2**23]:
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
    for block in reversed(blocks):
        libc.free(block)
    if n == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    command = [sys.executable, "-c", ROUNDS, how]
    kept, number = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return kept == "True", int(number)


def test_what_is_freed_is_used_again():
    """With another C library than glibc there is nothing to set, and nothing to see."""
    kept, again = faults("kept")
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:
        assert again < 100
        assert faults("given back")[1] > 1000
