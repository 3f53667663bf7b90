"""Trackers, which show a run in TensorBoard or Weights & Biases: `--track tensorboard wandb`.

A separate process (follow.py, started by tracking.py) reads the run's files as they grow:
metrics.jsonl, samples/ and the report. So no tracker's package is imported into the run, where it
could print, catch signals or change the exit status. No update waits for a tracker's disk or
network, and a tracker that fails does not affect the run. Nothing here imports torch.
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

COUNTS = ("round", "steps", "update")  # they identify a line
LEFT_OUT = {*COUNTS, "class_shares"}  # keys that are no measurements


class Point(NamedTuple):
    """A line of metrics.jsonl."""

    step: int
    """Number of updates up to it, over all phases."""
    values: dict[str, float]
    """Values by name: updates/loss, updates/round, rounds/distance and so on."""


class Tracker(Protocol):
    """A destination for a run's metrics and files. An exception ends the tracker, never the run."""

    where: str
    """For the user: the command or address that shows the run."""

    def begin(self) -> None:
        """Start over: all points follow from the first, and replace those given before.

        Called first, and again when a resumed run has dropped lines.
        """

    def add(self, point: Point) -> None:
        """Add a line, whose step is not before the last one's."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Add a new PNG. Pictures of one name are one series over the steps."""

    def report(self, run: Path, step: int) -> None:
        """Add the run's new report (report.md, .png, .html, .json)."""

    def flush(self) -> None:
        """Make everything added so far visible."""

    def close(self, code: int) -> None:
        """End the tracker with the exit status of the run."""


def check(names: object) -> None:
    """Raise UsageError unless `names` is a list of trackers whose packages are installed."""
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
    """Start the tracker of a name for a run directory."""
    made: Tracker = importlib.import_module(f"pdfast.trackers.{name}").start(run, config)
    return made


class Axis:
    """A count of updates over all phases of a run."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._trains = False  # whether the run trains its teacher, and so has losses of it

    def point(self, line: dict[str, Any]) -> Point:
        """Return a line of metrics.jsonl as a point."""
        round_ = line["round"]
        self._trains |= round_ == 0 and "update" in line
        # A phase's final line, and the distance of its model, come after its last update.
        update = line.get("update", self._updates(round_))
        group, left_out = ("updates", {"update"}) if "lr" in line else ("rounds", LEFT_OUT)
        values = {
            f"{group}/{key}": float(value)
            for key, value in line.items()
            if value is not None and key not in left_out
        }
        return Point(sum(map(self._updates, range(round_))) + update, values)

    def _updates(self, round_: int) -> int:
        """Return the updates of a phase; phase 0 is the teacher's training."""
        distill = self._config.distill
        if round_:
            return distill.updates_of(distill.steps_after(round_))
        return self._config.train.updates if self._trains else 0
