"""What torchrun says of this process; known before torch is imported."""

import os

from pdfast.errors import UsageError

TIMEOUT = 600  # seconds within which a process that does not answer ends the run
MOST = 10**6  # seconds
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def speaks() -> bool:
    """Whether this process prints what all of them would."""
    return not launched() or os.environ["RANK"] == "0"


def check_timeout(seconds: float) -> None:
    """Raise UsageError for what is no `timeout`."""
    if not 1 <= seconds <= MOST:
        raise UsageError(f"timeout must be in 1 .. {MOST} seconds, not {seconds:g}")
