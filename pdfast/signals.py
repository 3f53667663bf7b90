"""SIGINT and SIGTERM as a flag that long work polls, so that state can be saved first."""

import signal
from types import FrameType

from pdfast.errors import Stopped

_requested = 0


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested:  # the second signal means now
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)
    _requested = signum


def install() -> None:
    """Catch SIGINT and SIGTERM for the rest of the process; a second one ends it at once."""
    global _requested
    _requested = 0
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _on_signal)


def requested() -> bool:
    """Whether a signal has asked the work to stop."""
    return bool(_requested)


def stop(saved: str) -> Stopped:
    """The exception that ends the work; `saved` says what was kept."""
    return Stopped(_requested, saved)


def poll(saved: str = "finished models are whole; the same command goes on from there") -> None:
    """Raise `Stopped` if a signal came; for work that has nothing of its own to save."""
    if _requested:
        raise stop(saved)
