"""The process that follows a run: `python -m pdfast.trackers.follow RUN NAME...`.

It looks at the run's files every second until its standard input gives the run's exit status, or is
closed because the run was killed, and then once more. On its standard output it writes a line of
JSON when its trackers are ready, and one for each tracker that fails.
"""

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pdfast.config.schema import load_config
from pdfast.distributed.signals import CAUGHT
from pdfast.runs.watched_loss import renamed
from pdfast.trackers import Axis, Tracker, tracker

PERIOD = 1.0  # seconds between looks


class Lines:
    """The complete lines of metrics.jsonl, which grows, or is replaced by a shorter file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def fresh(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether the file was replaced since the last call, and the new lines."""
        if not self._path.is_file():
            return False, []
        # While the file is open, no other file can have its inode number.
        anew = self._file is None or not os.path.samestat(
            self._path.stat(), os.fstat(self._file.fileno())
        )
        if self._file is None or anew:
            self.close()
            self._file = self._path.open("rb")
        start, content = self._file.tell(), self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.seek(start + len(whole))
        return anew, [renamed(json.loads(line)) for line in whole.splitlines()]

    def all(self) -> list[dict[str, Any]]:
        """Return all lines, sorted by round, since a round may have been made again."""
        self.close()
        return sorted(self.fresh()[1], key=lambda line: int(line["round"]))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Picture(NamedTuple):
    """A PNG of the run. Pictures of one name are one series."""

    step: int
    name: str
    path: Path


class Follower:
    """A reader that passes new content of a run directory to trackers."""

    def __init__(self, run: Path, names: list[str], tell: Callable[..., None]) -> None:
        """Start the trackers.

        Args:
            run: The run directory.
            names: Names of the trackers.
            tell: Called with `lost`, the name, and `why`, the error, of a tracker that fails.
        """
        self._run, self._tell = run, tell
        self._config = load_config(run / "config.toml")
        self._lines = Lines(run / "metrics.jsonl")
        self._axis, self._step = Axis(self._config), -1
        self._seen: dict[Path, int] = {}
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            self._try(name, partial(self._start, name))
        self._each(lambda t: t.begin())

    def look(self) -> None:
        """Pass on what is new since the last look, in the order of steps."""
        anew, lines = self._lines.fresh()
        points = [self._axis.point(line) for line in lines]
        steps = [self._step, *(point.step for point in points)]
        if anew or steps != sorted(steps):  # a round that is made again comes before others
            points = [self._axis.point(line) for line in self._lines.all()]
            self._seen = {}
            self._each(lambda t: t.begin())
        self._step = points[-1].step if points else self._step
        pictures = sorted(self._pictures())
        for point in points:
            while pictures and pictures[0].step < point.step:
                self._show(pictures.pop(0))
            self._each(methodcaller("add", point))
        for picture in pictures:
            self._show(picture)
        if self._is_new(self._run / "report.json"):  # the report's last file to be written
            self._each(lambda t: t.report(self._run, self._step))
        self._each(lambda t: t.flush())

    def close(self, code: int) -> None:
        """Close the trackers with the exit status of the run."""
        self._each(lambda t: t.close(code))

    @property
    def where(self) -> list[str]:
        """For each tracker that has not failed, the command or address that shows the run."""
        return [of_run.where for of_run in self._trackers.values()]

    def _start(self, name: str) -> None:
        self._trackers[name] = tracker(name, self._run, self._config)

    def _pictures(self) -> Iterator[Picture]:
        """Yield new pictures: a student's at the end of its round, others at the present step."""
        for path in (self._run / "samples").glob("[!.]*.png"):
            if not self._is_new(path):
                continue
            name, step = path.stem, self._step
            if name.startswith("round-"):
                name, step = "rounds", self._axis.point({"round": int(name.split("-")[1])}).step
            yield Picture(step, f"samples/{name}", path)

    def _show(self, picture: Picture) -> None:
        step, name, path = picture
        self._each(lambda t: t.picture(name, path, step))

    def _is_new(self, path: Path) -> bool:
        """Return whether a file exists and has changed since the last look."""
        if not path.is_file():
            return False
        version = path.stat().st_mtime_ns
        had, self._seen[path] = self._seen.get(path), version
        return had != version

    def _each(self, give: Callable[[Tracker], None]) -> None:
        for name, of_run in list(self._trackers.items()):
            self._try(name, partial(give, of_run))

    def _try(self, name: str, work: Callable[[], None]) -> None:
        """Run a tracker's work, and drop the tracker if it fails."""
        try:
            work()
        except Exception as error:  # third-party packages may raise anything
            self._trackers.pop(name, None)
            self._tell(lost=name, why=" ".join((str(error) or type(error).__name__).split()))


def main() -> None:
    """Follow the run directory of the command line."""
    for signum in CAUGHT:  # a job's processes all get them; the run says when to end
        signal.signal(signum, signal.SIG_IGN)
    words = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # discard what the packages print
    os.dup2(nowhere, 2)

    def tell(**word: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run was killed
            print(json.dumps(word), file=words, flush=True)

    names = sys.argv[2:]
    try:
        follower = Follower(Path(sys.argv[1]), names, tell)
        tell(ready=follower.where)
        code, ended = 1, False
        while follower.where and not ended:
            ended = bool(select.select([0], [], [], PERIOD)[0])
            if ended:
                code = int(os.read(0, 100) or b"1")
            follower.look()
        follower.close(code)
    except Exception as error:  # of the run's files, which the run itself reports
        for name in names:
            tell(lost=name, why=f"{error}")


if __name__ == "__main__":
    main()
