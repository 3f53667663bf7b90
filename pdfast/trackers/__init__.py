"""Trackers: a run as TensorBoard or Weights & Biases shows it, `--track tensorboard wandb`.

A process of its own (follow.py, started by tracking.py) reads what the run writes, as it grows:
metrics.jsonl, samples/ and the report. So no package of a tracker is imported into the run, where
it could print, catch signals or change the exit status; no update waits for a disk or a network;
and a tracker that fails leaves the run as it is. Nothing here imports torch.
"""

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

from pdfast.config.names import TrackerName
from pdfast.config.schema import Config
from pdfast.config.serialization import nearest
from pdfast.errors import UsageError

COUNTS = ("round", "steps", "update")  # that say which line it is
LEFT_OUT = {*COUNTS, "class_shares"}  # the last says how the samples of a distance were drawn


class Point(NamedTuple):
    """A line of metrics.jsonl."""

    step: int
    """Updates of all phases up to it."""
    values: dict[str, float]
    """By name: updates/loss, updates/round, rounds/distance and so on."""


class Tracker(Protocol):
    """What becomes of a run's files. Any exception ends the tracker, never the run."""

    where: str
    """For the user: where it is to be seen."""

    def begin(self) -> None:
        """Everything is given from its start, in place of what was given before.

        Called first, and again where a run that resumes from a state has dropped lines.
        """

    def add(self, point: Point) -> None:
        """A line, not before the last one."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG that is new; pictures of one name are one series over the steps."""

    def report(self, run: Path, step: int) -> None:
        """The run's report (report.md, .png, .html, .json) is new."""

    def flush(self) -> None:
        """Everything new has been given for now."""

    def close(self, code: int) -> None:
        """The run has ended, with this exit status."""


def check(names: object) -> None:
    """Raise UsageError for what is no list of trackers, or where the package of one is missing."""
    known = get_args(TrackerName)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UsageError(f"track must be a list of trackers ({', '.join(known)}), not {names!r}")
    for name in names:
        if name not in known:
            raise UsageError(f"no tracker {name!r}{nearest(str(name), known)} ({', '.join(known)})")
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"tracking by {name} needs the package {name}: pip install 'pdfast[{name}]'"
            )


def tracker(name: str, run: Path, config: Config) -> Tracker:
    """The tracker of this name, for a run directory."""
    made: Tracker = importlib.import_module(f"pdfast.trackers.{name}").start(run, config)
    return made


class Axis:
    """One count of updates over all phases of a run."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._trains = False  # whether the teacher is the run's own: then it has losses

    def point(self, line: dict[str, Any]) -> Point:
        """Where a line of metrics.jsonl lies, and its numbers."""
        round_ = line["round"]
        self._trains |= round_ == 0 and "update" in line
        # What a phase ends with, and the distance of its model, come after its last update.
        update = line.get("update", self._updates(round_))
        group, left_out = ("updates", {"update"}) if "lr" in line else ("rounds", LEFT_OUT)
        values = {
            f"{group}/{key}": float(value)
            for key, value in line.items()
            if value is not None and key not in left_out
        }
        return Point(sum(map(self._updates, range(round_))) + update, values)

    def _updates(self, round_: int) -> int:
        """Of a phase; 0 is the teacher's training."""
        distill = self._config.distill
        if round_:
            return distill.updates_of(distill.steps_after(round_))
        return self._config.train.updates if self._trains else 0
