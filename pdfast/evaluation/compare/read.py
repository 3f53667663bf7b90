"""Reading what `pdfast compare` compares: reports and metrics of runs, and reports of models."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdfast.config.serialization import to_table
from pdfast.errors import UsageError
from pdfast.runs import record
from pdfast.runs.metrics_log import Metrics
from pdfast.runs.spent import UNKNOWN, Account, Spent
from pdfast.storage import files

SETTINGS = ("distill", "model")  # tables of the config that are compared
OF_RUN, OF_MODEL = "report.json", "eval.json"
NEEDED = {"metric": str, "floor": float, "facts": dict}
# Facts that must be equal for figures to be comparable, with their names.
ALIKE = {
    "metric": "figure",
    "samples": "number of samples",
    "seed": "seed",
    "sampler": "sampler or guidance",
    "reference_sha256": "reference set",
    "classes": "classes of the samples",
    "detector": "detector",
    "detector_sha256": "detector's weights",
}

Distances = dict[int, float]  # by sampling steps


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A run, or one model, with its figures."""

    path: Path
    name: str
    metric: str
    floor: float
    facts: dict[str, Any]
    teacher: Distances
    student: Distances
    """Distances of the students, each at its own steps; of one model, at all its sampling steps."""
    teacher_spent: Spent = UNKNOWN
    student_spent: dict[int, Spent] = field(default_factory=dict)
    settings: dict[str, Any] | None = None
    """Settings of [distill] and [model] by names such as "distill.lr"; None for one model."""
    samples: Path | None = None
    """Picture of samples, or None."""


def read(paths: Sequence[str | Path]) -> list[Compared]:
    """Read run directories with a report, and folders that `pdfast eval` wrote for a model.

    Args:
        paths: The folders, at least two.

    Raises:
        UsageError: A folder is neither, or is named twice.
    """
    places = [Path(os.path.abspath(path)) for path in paths]
    if len(places) < 2:
        raise UsageError("there is nothing to compare with: name two runs or more")
    for k, place in enumerate(places):
        if place.resolve() in [other.resolve() for other in places[:k]]:
            raise UsageError(f"{place} is named twice: name each run once")
    return [_read(place, name) for place, name in zip(places, _names(places), strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """Return names for the paths: as many of their last parts as tell them apart."""
    count = 1
    while True:
        names = ["/".join(place.parts[-count:]).lstrip("/") for place in places]
        if len(set(names)) == len(names):
            return names
        count += 1


def _read(place: Path, name: str) -> Compared:
    if not place.is_dir():
        raise UsageError(f"there is no run directory {place}")
    if (place / "config.toml").is_file():
        return _of_run(place, name)
    if (place / OF_MODEL).is_file():
        _refuse_samples(place / OF_MODEL)
        table = _table(place / OF_MODEL, ("model",))
        return Compared(
            path=place,
            name=name,
            metric=table["metric"],
            floor=table["floor"],
            facts=table["facts"],
            teacher={},
            student=_by_steps(table["model"]),
        )
    raise UsageError(
        f"{place} is neither a run directory nor a folder that pdfast eval wrote for a model"
    )


def _refuse_samples(path: Path) -> None:
    """Refuse a report on samples, which has a single distance without sampling steps."""
    with contextlib.suppress(files.Damaged):
        if "distance" in files.read_json(path):
            raise UsageError(
                f"{path} is of samples that pdfast eval --against judged, which have no sampling "
                "steps to compare by: name runs, or folders that pdfast eval wrote of models"
            )


def _of_run(place: Path, name: str) -> Compared:
    config, _ = record.read(place / "config.toml")
    if not (place / OF_RUN).is_file():
        raise UsageError(f"{place} has no report yet: pdfast eval {place} writes it")
    table = _table(place / OF_RUN, ("teacher", "student"))
    account = Account(Metrics(place / "metrics.jsonl").read())
    student, tables = _by_steps(table["student"]), to_table(config)
    picture = place / "samples" / "compare.png"
    return Compared(
        path=place,
        name=name,
        metric=table["metric"],
        floor=table["floor"],
        facts=table["facts"],
        teacher=_by_steps(table["teacher"]),
        student=student,
        teacher_spent=account.teacher,
        student_spent={k: account.student(k) for k in student},
        settings={f"{part}.{key}": v for part in SETTINGS for key, v in tables[part].items()},
        samples=picture if picture.is_file() else None,
    )


def _table(path: Path, curves: Sequence[str]) -> dict[str, Any]:
    """Read a report's JSON, with the required keys and curves."""
    kinds = NEEDED | dict.fromkeys(curves, dict)
    with contextlib.suppress(files.Damaged):
        table = files.read_json(path)
        whole = all(isinstance(table.get(key), kind) for key, kind in kinds.items())
        if whole and all(_is_curve(table[key]) for key in curves):
            return table
    raise UsageError(
        f"{path} is damaged, or not a report that this version reads: pdfast eval writes it again"
    )


def _is_curve(table: dict[str, Any]) -> bool:
    return all(key.isdecimal() and type(value) is float for key, value in table.items())


def _by_steps(table: dict[str, float]) -> Distances:
    return {int(steps): distance for steps, distance in table.items()}


def unlike(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Return the facts that keep figures from being comparable: name -> value for each run."""
    found = {}
    for key, name in ALIKE.items():
        values = [run.metric if key == "metric" else run.facts.get(key) for run in runs]
        if any(value != values[0] for value in values):
            found[name] = values
    return found


def differing(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Return the settings that differ: name -> value for each run, None for a single model."""
    known = [run.settings for run in runs if run.settings is not None]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return {
        key: [None if run.settings is None else run.settings.get(key) for run in runs]
        for key in keys
        if any(settings.get(key) != known[0].get(key) for settings in known)
    }
