"""SIGINT and SIGTERM as a flag that long work polls, so that state can be saved first.

In a run of several processes a signal to one of them stops all, at the same point: there every
process must poll equally often.
"""

import signal
from types import FrameType

from pdfast import distributed
from pdfast.errors import Stopped

_requested = 0  # the signal that came to this process; its handler alone sets it
_agreed = 0  # the one that all processes stop for


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested:  # the second signal means now
        if distributed.launched():  # torchrun repeats signals, and kills by itself what is slow
            return
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)
    _requested = signum


def install() -> None:
    """Catch SIGINT and SIGTERM for the rest of the process; a second one ends it at once."""
    global _requested, _agreed
    _requested = _agreed = 0
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _on_signal)


def requested() -> bool:
    """Whether a signal has asked the work, on any process, to stop.

    Raises ProcessLost if another process has ended.
    """
    global _agreed
    _agreed = distributed.largest(_requested)
    return bool(_agreed)


def stop(saved: str) -> Stopped:
    """The exception that ends the work; `saved` says what was kept."""
    return Stopped(_agreed, saved)


def poll(saved: str = "finished models are whole; the same command goes on from there") -> None:
    """Raise `Stopped` if a signal came; for work that has nothing of its own to save."""
    if requested():
        raise stop(saved)
