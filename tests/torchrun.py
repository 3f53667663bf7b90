"""Runs of several processes, by torchrun."""

import os
import re
import subprocess
import sys
from typing import NamedTuple

LIMIT = 240  # seconds, for two processes that share a slow machine with others
ALARM = 220  # the same of their own, should torchrun be killed without a chance to pass it on


class Ended(NamedTuple):
    """What is left of a run."""

    output: str
    said: list[str]
    """The lines of pdfast on stderr."""
    codes: dict[int, int]
    """Exit statuses by process, where torchrun names them: none if all is well."""
    errors: str


def start(cwd, *args, processes=2):
    """Processes in a folder; `--` before a flag keeps torchrun from taking it for its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(running):
    """Wait for the end."""
    try:
        output, errors = running.communicate(timeout=LIMIT)
    except BaseException:
        running.terminate()  # passes on to the processes, which a SIGKILL would leave alone
        raise
    pairs = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)", errors)
    said = [line for line in errors.splitlines() if line.startswith("pdfast: ")]
    return Ended(output, said, {int(rank): int(code) for rank, code in pairs}, errors)


def run(cwd, *args, processes=2):
    """Start and finish."""
    return finish(start(cwd, *args, processes=processes))


def lost(rank):
    """What a process of two says when the other has ended."""
    return (
        f"pdfast: process {rank} of 2: another process of this run has ended; its own message says "
        "why; the last saved state is whole, and the same command resumes from there"
    )
