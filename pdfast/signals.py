"""Signals as a flag that long work polls, so that state can be saved first.

SIGINT, SIGTERM, SIGUSR1 (which schedulers send ahead of a time limit) and SIGHUP (a terminal that
closes) ask the work to stop. In a run of several processes a signal to one of them stops all, at
the same point: there every process must poll equally often. Imports no torch, so that a signal
that comes while torch is being imported is heard.
"""

import signal
from types import FrameType

from pdfast.errors import Stopped
from pdfast.launch import launched

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_requested = 0  # the signal that came to this process; its handler alone sets it
_agreed = 0  # the one that all processes stop for


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested:  # the second signal means now
        # torchrun repeats signals, and kills by itself what is slow; the end of a session sends
        # SIGHUP right after SIGTERM.
        if launched() or signum == signal.SIGHUP:
            return
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)
    _requested = signum


def install() -> None:
    """Catch the signals for the rest of the process; a second one ends it at once."""
    global _requested, _agreed
    _requested = _agreed = 0
    for signum in CAUGHT:
        if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
            continue  # by nohup: the run is to outlive its terminal
        signal.signal(signum, _on_signal)


def requested() -> bool:
    """Whether a signal has asked the work, on any process, to stop.

    Raises ProcessLost if another process has ended.
    """
    global _agreed
    from pdfast.distributed import largest

    _agreed = largest(_requested)
    return bool(_agreed)


def stop(saved: str) -> Stopped:
    """The exception that ends the work; `saved` says what was kept."""
    return Stopped(_agreed, saved)


def poll(saved: str = "finished models are whole; the same command goes on from there") -> None:
    """Raise `Stopped` if a signal came; for work that has nothing of its own to save."""
    if requested():
        raise stop(saved)
