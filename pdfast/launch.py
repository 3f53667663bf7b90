"""What torchrun's environment says of this process. Imports no torch."""

import os

from pdfast.errors import UsageError

TIMEOUT = 600  # seconds without an answer after which a process counts as lost
MOST = 10**6  # seconds
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def speaks() -> bool:
    """Return whether this process, the only one or the first, prints for the whole run."""
    return not launched() or os.environ["RANK"] == "0"


def check_timeout(seconds: float) -> None:
    """Raise UsageError unless a timeout is in 1 .. 10^6 seconds."""
    if not 1 <= seconds <= MOST:
        raise UsageError(f"timeout must be in 1 .. {MOST} seconds, not {seconds:g}")
