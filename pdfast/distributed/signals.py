"""Signals as a flag that long work polls, so that state can be saved first.

SIGINT, SIGTERM, SIGUSR1 (which schedulers send ahead of a time limit) and SIGHUP (a terminal that
closes) ask the work to stop. The command line hears them for as long as the process lives
(`install`), a call from Python for as long as it works (`caught`), and so does a function that the
caller gives. In a run of several processes a signal to one of them stops all, at the same point:
there every process must poll equally often. Imports no torch, so that a signal that comes while
torch is being imported is heard.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pdfast.errors import Stopped, UsageError
from pdfast.launch import launched

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
MAY_BE_TAKEN = (signal.SIGINT, signal.SIGTERM)  # by a call, from handlers of the caller's own
ASKED = 2**16  # in a signal's place: the caller's function asks the work to stop

_requested = 0  # the signal that came to this process; its handler alone sets it
_replaced: dict[int, Any] = {}  # the handlers that a call from Python puts back


class _Here(threading.local):
    """What is so in one thread."""

    agreed = 0
    """What all processes stop for."""
    stop: Callable[[], object] | None = None
    """The caller's function."""


_here = _Here()


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested:  # the second signal means now
        # torchrun repeats signals, and kills by itself what is slow; the end of a session sends
        # SIGHUP right after SIGTERM.
        if launched() or signum == signal.SIGHUP:
            return
        signal.signal(signum, _replaced.get(signum, signal.SIG_DFL))
        signal.raise_signal(signum)
        return
    _requested = signum


def install() -> None:
    """Catch the signals for the rest of the process; a second one ends it at once."""
    global _requested
    _requested = _here.agreed = 0
    for signum in CAUGHT:
        if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
            continue  # by nohup: the run is to outlive its terminal
        signal.signal(signum, _on_signal)


@contextlib.contextmanager
def caught(stop: Callable[[], object] | None = None) -> Iterator[None]:
    """Hear the signals, and `stop`, while a call from Python works; then the caller's handlers.

    Signals are for the main thread: elsewhere `stop` alone is asked. An ignored signal stays
    ignored, and SIGUSR1 and SIGHUP are left to a handler that the caller has for them. What
    `Stopped` ends for SIGINT ends by KeyboardInterrupt. A second signal, and one that comes too
    late for the work to hear it, goes to the caller's own handler.
    """
    if stop is not None and not callable(stop):
        raise UsageError(
            "stop must be a function without arguments that says whether to stop, such as "
            f"threading.Event().is_set, not {type(stop).__name__}"
        )
    outer, _here.stop = _here.stop, stop if stop is not None else _here.stop
    try:
        # Not in a command, nor in a call within another.
        if _hears() and not any(signal.getsignal(s) is _on_signal for s in CAUGHT):
            with _installed():
                yield
        else:
            yield
    finally:
        _here.stop = outer


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    global _requested
    told = False
    try:
        for signum in CAUGHT:
            before = signal.getsignal(signum)
            takes = before is signal.SIG_DFL or signum in MAY_BE_TAKEN
            if takes and before not in (signal.SIG_IGN, None):  # None: one that is not Python's
                _replaced[signum] = before
                signal.signal(signum, _on_signal)
        yield
    except Stopped as stopped:
        told = True
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from stopped
        raise
    finally:
        for number, handler in reversed(_replaced.items()):  # SIGINT's, which may raise, last
            signal.signal(number, handler)
        _replaced.clear()
        came, _requested = _requested, 0
        if came and not told:
            signal.raise_signal(came)


def _hears() -> bool:
    """Whether this thread is the one that Python runs signal handlers in."""
    return threading.current_thread() is threading.main_thread()


def requested() -> bool:
    """Whether a signal, or the caller's function, has asked the work, on any process, to stop.

    Raises ProcessLost if another process has ended.
    """
    from pdfast.distributed.collectives import largest

    asked = _requested if _hears() else 0
    if not asked and _here.stop is not None and _here.stop():
        asked = ASKED
    _here.agreed = largest(asked)
    return bool(_here.agreed)


def stop(saved: str) -> Stopped:
    """The exception that ends the work; `saved` says what was kept."""
    return Stopped(0 if _here.agreed == ASKED else _here.agreed, saved)


def poll(saved: str = "finished models are whole; the same command goes on from there") -> None:
    """Raise `Stopped` if the work is to stop; for work that has nothing of its own to save."""
    if requested():
        raise stop(saved)
