"""The tables and the plot of a comparison."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pdfast.console.progress import short
from pdfast.errors import printable
from pdfast.evaluation.compare.read import Compared, differing, unlike
from pdfast.evaluation.report.html import Table
from pdfast.evaluation.report.price import Line, Panel
from pdfast.evaluation.report.tables import NOT_RECORDED, spent_cells
from pdfast.runs.spent import UNKNOWN

SHOWN = 16  # digits of a SHA-256 to show


def students(runs: Sequence[Compared]) -> Table:
    """Return the students' distance, evaluations and seconds at each number of steps."""

    def cells(run: Compared, k: int) -> tuple[str, str, str]:
        if k not in run.student:
            return "", "", ""
        return f"{run.student[k]:.3f}", *spent_cells(run.student_spent.get(k, UNKNOWN))

    header = ["steps", *(f"{run.name}: {run.metric}" for run in runs)]
    header += [f"{run.name}: {what}" for what in ("evaluations", "seconds") for run in runs]
    rows = []
    for k in sorted({k for run in runs for k in run.student}):
        columns = zip(*(cells(run, k) for run in runs), strict=True)
        rows.append([str(k), *(cell for column in columns for cell in column)])
    return header, rows


def teachers(runs: Sequence[Compared]) -> Table | None:
    """Return the teachers' distances, evaluations and seconds; None without teachers."""
    shown = [run for run in runs if run.teacher]
    if not shown:
        return None
    header = ["steps", *(f"{run.name}: {run.metric}" for run in shown)]
    rows = [
        [str(k), *(f"{run.teacher[k]:.3f}" if k in run.teacher else "" for run in shown)]
        for k in sorted({k for run in shown for k in run.teacher})
    ]
    evaluations, seconds = zip(*(spent_cells(run.teacher_spent) for run in shown), strict=True)
    return header, [*rows, ["evaluations", *evaluations], ["seconds", *seconds]]


def settings(runs: Sequence[Compared]) -> Table | None:
    """Return the settings of [distill] and [model] that differ; None if none do."""
    rows = [[key, *map(_value, values)] for key, values in differing(runs).items()]
    return (["what", *(run.name for run in runs)], rows) if rows else None


def facts(runs: Sequence[Compared]) -> Table:
    """Return a table of how the figures were measured."""
    told: dict[str, Callable[[Compared], Any]] = {
        "folder": lambda run: printable(str(run.path)),
        "figure": lambda run: run.metric,
        "floor": lambda run: f"{run.floor:.3f}",
        "samples": lambda run: f"{run.facts.get('samples', 0):,}, seed {run.facts.get('seed')}",
        "sampler": lambda run: run.facts.get("sampler"),
        "reference set": lambda run: printable(str(run.facts.get("reference"))),
        "its SHA-256": lambda run: str(run.facts.get("reference_sha256"))[:SHOWN],
        "detector": lambda run: run.facts.get("detector"),
        "precision": lambda run: f"{run.facts.get('precision')}, PyTorch {run.facts.get('torch')}",
    }
    header = ["what", *(run.name for run in runs)]
    return header, [[what, *(str(tell(run)) for run in runs)] for what, tell in told.items()]


def warning(runs: Sequence[Compared]) -> str:
    """Return a warning that figures are not comparable; "" if they are."""
    parts = []
    for what, values in unlike(runs).items():
        said = (f"{run.name} {_fact(value)}" for run, value in zip(runs, values, strict=True))
        parts.append(f"{what} ({', '.join(said)})")
    return f"The distances are not comparable: they differ in {'; '.join(parts)}." if parts else ""


def panels(runs: Sequence[Compared]) -> list[Panel]:
    """Return the plot's panels: one per metric, with a line per run that has evaluations."""
    found = []
    for metric in dict.fromkeys(run.metric for run in runs):
        alike = [run for run in runs if run.metric == metric]
        lines = [line for run in alike if (line := _line(run)).points]
        floors = {run.floor for run in alike}
        levels = [("resampled data (floor)", floor) for floor in floors if len(floors) == 1]
        if lines:
            found.append(Panel(metric, lines, levels))
    return found


def _line(run: Compared) -> Line:
    points = [
        (spent.evaluations, run.student[k], k)
        for k, spent in run.student_spent.items()
        if spent.evaluations is not None
    ]
    return Line(run.name, sorted(points))


def as_json(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return the contents of compare.json; see docs/formats.md."""
    return {
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "metric": run.metric,
                "floor": run.floor,
                "facts": run.facts,
                "teacher": _texts(run.teacher),
                "student": _texts(run.student),
                "teacher_spent": asdict(run.teacher_spent),
                "student_spent": {str(k): asdict(v) for k, v in run.student_spent.items()},
            }
            for run in runs
        ],
        "not_comparable": unlike(runs),
        "settings": differing(runs),
    }


def _texts(distances: dict[int, float]) -> dict[str, float]:
    return {str(k): distance for k, distance in sorted(distances.items())}


def _fact(value: Any) -> str:
    """Return a fact for a sentence; digests are shortened."""
    text = "none" if value in (None, "") else str(value)
    return text[:SHOWN] if len(text) == 64 else text


def _value(value: Any) -> str:
    """Return a setting for a table."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return short(value, 6) if abs(value) >= 1e-3 else f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else printable(str(value)) or "none"
