"""Signals as a flag that long work polls, so that state can be saved first.

SIGINT, SIGTERM, SIGUSR1 (which schedulers send ahead of a time limit) and SIGHUP (a terminal that
closes) ask the work to stop. The command line hears them for the life of the process (`install`),
and a call from Python while it works (`caught`). A caller's function can ask the same. In a run of
several processes a signal to one of them stops all, at the same point: every process must poll
equally often. Imports no torch, so that a signal is heard while torch is being imported.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pdfast.errors import AGAIN, Stopped, UsageError
from pdfast.launch import launched, speaks

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
MAY_BE_TAKEN = (signal.SIGINT, signal.SIGTERM)  # even if the caller has a handler for them
TOGETHER = 1.0  # seconds: GNU timeout signals its child and then its group, which are one request
ASKED = 2**16  # instead of a signal: the caller's function asks the work to stop

_requested = 0  # the signal that this process received; only its handler sets it
_since = 0.0  # when that signal came, by time.monotonic
_replaced: dict[int, Any] = {}  # the handlers that a call from Python restores


class _Here(threading.local):
    """State of one thread."""

    agreed = 0
    """Signal, or ASKED, for which all processes stop; 0: none."""
    stop: Callable[[], object] | None = None
    """The caller's function that asks the work to stop."""


_here = _Here()


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _requested, _since
    if not _requested:
        _requested, _since = signum, time.monotonic()
        again = "" if launched() else " (a second signal or Ctrl-C ends it at once)"
        _tell(f"{signal.Signals(signum).name}: stopping after the current step{again}")
        return
    # torchrun repeats signals, and kills slow processes by itself; the end of a session sends
    # SIGHUP right after SIGTERM.
    if launched() or signum == signal.SIGHUP or time.monotonic() - _since < TOGETHER:
        return
    _tell("second signal: ended at once")
    signal.signal(signum, _replaced.get(signum, signal.SIG_DFL))
    signal.raise_signal(signum)


def _tell(text: str) -> None:
    """Print a line on stderr from a signal handler, where Python's own streams may be in use."""
    if speaks():
        begin = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""  # after ^C or a bar
        with contextlib.suppress(OSError):
            os.write(2, f"{begin}{text}\n".encode())


def install() -> None:
    """Catch the signals for the rest of the process; a second one later ends it at once."""
    global _requested
    _requested = _here.agreed = 0
    for signum in CAUGHT:
        if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
            continue  # ignored by nohup: the run should outlive its terminal
        signal.signal(signum, _on_signal)


@contextlib.contextmanager
def caught(stop: Callable[[], object] | None = None) -> Iterator[None]:
    """Hear the signals, and ask `stop`, in the block; restore the caller's handlers after it.

    Only the main thread can hear signals; in other threads only `stop` is asked. An ignored signal
    stays ignored, and SIGUSR1 and SIGHUP stay with a handler that the caller has for them. A
    `Stopped` by SIGINT becomes a KeyboardInterrupt. A second signal, or one that comes too late for
    the work to hear it, goes to the caller's own handler.

    Args:
        stop: Function without arguments that returns whether to stop; None: the one of an outer
            call, if any.

    Raises:
        UsageError: `stop` is not callable.
    """
    if stop is not None and not callable(stop):
        raise UsageError(
            "stop must be a function without arguments that returns whether to stop, such as "
            f"threading.Event().is_set, not {type(stop).__name__}"
        )
    outer, _here.stop = _here.stop, stop if stop is not None else _here.stop
    try:
        # Neither in a command, nor in a call within another call.
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
            if takes and before not in (signal.SIG_IGN, None):  # None: a handler outside Python
                _replaced[signum] = before
                signal.signal(signum, _on_signal)
        yield
    except Stopped as stopped:
        told = True
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from stopped
        raise
    finally:
        for number, handler in reversed(_replaced.items()):  # SIGINT last: its handler may raise
            signal.signal(number, handler)
        _replaced.clear()
        came, _requested = _requested, 0
        if came and not told:
            signal.raise_signal(came)


def _hears() -> bool:
    """Return whether Python runs signal handlers in this thread."""
    return threading.current_thread() is threading.main_thread()


def requested() -> bool:
    """Return whether a signal or the caller's function has asked any process to stop.

    Raises:
        ProcessLost: Another process has ended.
    """
    from pdfast.distributed.collectives import largest

    asked = _requested if _hears() else 0
    if not asked and _here.stop is not None and _here.stop():
        asked = ASKED
    _here.agreed = largest(asked)
    return bool(_here.agreed)


def stop(saved: str) -> Stopped:
    """Return the exception that ends the work; `saved` tells the user what was saved."""
    return Stopped(0 if _here.agreed == ASKED else _here.agreed, saved)


def poll(saved: str = f"finished models are whole; {AGAIN}") -> None:
    """Raise `Stopped` if asked to stop; for work that has no state of its own to save."""
    if requested():
        raise stop(saved)
