"""A run's output: a progress bar on a terminal, plain lines elsewhere, and all lines in a log."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
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

SILENT = 30.0  # seconds without a line after which work in progress prints one, if no bar is shown
EARLY = 1000  # lines printed before there is a log that are kept for it, at most


def short(value: float, digits: int) -> str:
    """Format a number to `digits` significant digits, without an exponent: 1234.5 as 1,230."""
    return f"{float(f'{value:.{digits}g}'):,.15g}"


class Task:
    """A stretch of work with a known number of steps."""

    def __init__(
        self,
        bar: Progress | None,
        title: str,
        total: int,
        done: int = 0,
        advanced: Callable[["Task"], None] | None = None,
    ) -> None:
        self.title, self.total = title, total
        self.done, self.start, self._first = done, time.perf_counter(), done
        self._bar, self._advanced = bar, advanced
        self._id = bar.add_task(title, total=total, completed=done, note="") if bar else None

    def advance(self) -> None:
        """Count one step as done."""
        self.done += 1
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, advance=1)
        if self._advanced is not None:
            self._advanced(self)

    @property
    def has_bar(self) -> bool:
        """Whether the work is shown as a bar."""
        return self._bar is not None

    def note(self, text: str) -> None:
        """Show a text after the bar."""
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, note=text)

    def rate(self) -> float:
        """Return the steps per second since the task began."""
        return (self.done - self._first) / (time.perf_counter() - self.start)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue silently when the reader of the output has gone, as with `| head`."""
        self.quiet = True
        nobody_listens()


def nobody_listens() -> None:
    """Redirect standard output to the null device after its reader has closed it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Screen:
    """A run's output: `say` prints a line, `task` shows a bar while work is in progress.

    Of several processes only the first prints. Every line also goes to the log, if there is one,
    whether it is shown or not.
    """

    def __init__(self, quiet: bool = False) -> None:
        quiet = quiet or not speaks()
        options: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
        self.console = _Console(quiet=quiet, **options)
        # Warnings are shown even with --quiet.
        self._alarm = (
            _Console(stderr=True, quiet=not speaks(), **options) if quiet else self.console
        )
        self.plain = quiet or not self.console.is_terminal
        self._printed = time.perf_counter()  # when the last line was
        self._log: Log | None = None
        self._early: deque[tuple[datetime, str]] = deque(maxlen=EARLY)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)
        self._printed = time.perf_counter()
        self.note(text)

    def progress(self, text: str) -> None:
        """Print one line about progress, unless a bar shows it already."""
        if self.plain:
            self.console.print(text)
            self._printed = time.perf_counter()
        self.note(text)

    def warn(self, text: str) -> None:
        """Print a warning on one line; on stderr if other output is suppressed."""
        self._alarm.print(f"warning: {text}", style="yellow")
        self.note(f"warning: {text}")

    def _break_silence(self, task: Task) -> None:
        """Print where a task is, if nothing was printed for long."""
        if time.perf_counter() - self._printed < SILENT:
            return
        rate = task.rate()
        self.say(
            f"{task.title}: {task.done:,}/{task.total:,}  {short(rate, 3)}/s  "
            f"ETA {(task.total - task.done) / rate:.0f} s"
        )

    # -- the log ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Write lines to the log only."""
        if self._log is None:
            self._early.append((datetime.now(), text))
        else:
            self._log.write(text, datetime.now())

    def open_log(self, path: Path) -> None:
        """Start the log, with the lines printed so far; only the first process has one.

        If the log cannot be written, one warning says so.
        """
        if self._log is not None or not speaks():
            return

        def failed(error: OSError) -> None:
            why = (error.strerror or str(error)).lower()
            text = f"{path} cannot be written ({why}): the run continues, and the log lacks lines"
            self._alarm.print(f"warning: {text}", style="yellow")

        self._log = Log(path, failed)
        while self._early:
            at, text = self._early.popleft()
            self._log.write(text, at)

    def close_log(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show a bar for `total` steps, `done` of which are done, while the block runs.

        Without a terminal there is no bar, but a line after every SILENT seconds without another.
        """
        if self.plain:
            yield Task(None, title, total, done, self._break_silence)
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
