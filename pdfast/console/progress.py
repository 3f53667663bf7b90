"""What a run shows: a progress bar on a terminal, plain lines elsewhere, and all of it in a log."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pdfast.console.log import Log
from pdfast.launch import speaks

EARLY = 1000  # lines said before there is a log, at most, that go into it


def short(value: float, digits: int) -> str:
    """A number to so many digits; large ones are written out, 1,230 for 1234.5 to three."""
    return f"{float(f'{value:.{digits}g}'):,.15g}"


class Task:
    """One stretch of work with a known number of steps."""

    def __init__(self, bar: Progress | None, title: str, total: int, done: int = 0) -> None:
        self.done, self.start, self._first = done, time.perf_counter(), done
        self._bar = bar
        self._id = bar.add_task(title, total=total, completed=done, note="") if bar else None

    def advance(self) -> None:
        """One step is done."""
        self.done += 1
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, advance=1)

    def note(self, text: str) -> None:
        """Show a text behind the bar."""
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, note=text)

    def rate(self) -> float:
        """Steps per second since the task began."""
        return (self.done - self._first) / (time.perf_counter() - self.start)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read the output has gone (`| head`): the run goes on, and says no more."""
        self.quiet = True
        nobody_listens()


def nobody_listens() -> None:
    """Let what is still printed go nowhere, where standard output was closed by its reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Screen:
    """The run's output: `say` prints a line, `task` shows a bar while it lasts.

    Of several processes the first alone has one; the others' is quiet. What is said is also
    written to a log, where there is one, whether it is shown or not.
    """

    def __init__(self, quiet: bool = False) -> None:
        quiet = quiet or not speaks()
        options: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
        self.console = _Console(quiet=quiet, **options)
        # Who asked for quiet still is to know what went wrong.
        self._alarm = (
            _Console(stderr=True, quiet=not speaks(), **options) if quiet else self.console
        )
        self.plain = quiet or not self.console.is_terminal
        self._log: Log | None = None
        self._early: deque[tuple[datetime, str]] = deque(maxlen=EARLY)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)
        self.note(text)

    def progress(self, text: str) -> None:
        """Print one line of how far the work is, unless a bar shows that."""
        if self.plain:
            self.console.print(text)
        self.note(text)

    def warn(self, text: str) -> None:
        """Print one line that asks for attention; on stderr where the rest is quiet."""
        self._alarm.print(f"warning: {text}", style="yellow")
        self.note(f"warning: {text}")

    # -- the log ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Write lines to the log alone."""
        if self._log is None:
            self._early.append((datetime.now(), text))
        else:
            self._log.write(text, datetime.now())

    def open_log(self, path: Path) -> None:
        """Have a log from here on, with what was said before; none but the first process has one.

        Where it cannot be written a warning says so, once.
        """
        if self._log is not None or not speaks():
            return

        def failed(error: OSError) -> None:
            why = (error.strerror or str(error)).lower()
            text = f"{path} cannot be written ({why}): the run goes on, and lines are missing there"
            self._alarm.print(f"warning: {text}", style="yellow")

        self._log = Log(path, failed)
        while self._early:
            at, text = self._early.popleft()
            self._log.write(text, at)

    def close_log(self) -> None:
        """Have no log any more."""
        if self._log is not None:
            self._log.close()
            self._log = None

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show a bar for `total` steps while the block runs; nothing where there is no terminal."""
        if self.plain:
            yield Task(None, title, total, done)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield Task(bar, title, total, done)
