"""What a run shows: a progress bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pdfast.launch import speaks


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

    Of several processes the first alone has one; the others' is quiet.
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

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """Print one line that asks for attention; on stderr where the rest is quiet."""
        self._alarm.print(f"warning: {text}", style="yellow")

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
