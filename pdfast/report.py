"""The report of a run or of one model: distances against sampling steps, tables, plot and page."""

import io
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdfast import distributed, numerics
from pdfast.config import Config, dump_config
from pdfast.data import Dataset
from pdfast.frechet import Judge
from pdfast.model import Model
from pdfast.page import Table, View, page
from pdfast.plots import (
    NUM_SHOWN,
    Row,
    counted,
    drawable,
    gallery,
    picture,
    plot_distances,
)
from pdfast.progress import Screen
from pdfast.run import Run
from pdfast.signals import poll
from pdfast.version import __version__

NO_PICTURES = "no pictures: the samples are neither images of 1 or 3 channels nor signals"
NUM_KEPT = 64  # samples for the page
QUICK = (
    "Round 0 is the teacher's training; the distance is a quick one, 256 images in at most 16 "
    "steps, for comparing rounds only. Signal / rounding: how far the target is from the student "
    "when a round begins, in v, over what the networks' rounding changes in that (medians over a "
    "held batch). A round where it is not well above 1 teaches little at this precision."
)


@dataclass(frozen=True)
class Measured:
    """A model at one number of sampling steps."""

    distance: float
    seconds: float
    """Per image, the distance's own time included."""
    samples: Tensor
    """The first of them, as they are stored, (N, H, W, C) on the CPU."""


class Meter:
    """Judges models."""

    def __init__(self, judge: Judge, screen: Screen) -> None:
        self.judge, self.screen = judge, screen
        self.floor, self.floor_std = distributed.from_first(judge.floor)
        screen.say(
            f"{judge.metric} {self.floor:8.4f}  resampled data (floor, +- {self.floor_std:.4f})"
        )

    def __call__(self, name: str, model: Model, steps: int) -> Measured:
        """A model at `steps` sampling steps, with a progress bar."""
        start = time.perf_counter()
        calls = steps * model.calls_for(self.judge.num)
        with self.screen.task(f"sampling {name}, {counted(steps)}", calls) as task:

            def on_step() -> None:
                poll()
                task.advance()

            distance, samples = self.judge.judge(model, steps, on_step)
        seconds = (time.perf_counter() - start) / self.judge.num
        self.screen.say(f"{self.judge.metric} {distance:8.4f}  {name}, {counted(steps)}")
        return Measured(distance, seconds, samples[:NUM_KEPT].cpu())

    def table(self, **curves: dict[int, Measured]) -> dict[str, Any]:
        """What report.json holds: metric, floor, and {steps: distance} by name."""
        found = {
            name: {str(k): m.distance for k, m in sorted(c.items())} for name, c in curves.items()
        }
        return {
            "metric": self.judge.metric,
            "floor": self.floor,
            "floor_std": self.floor_std,
            "images": self.judge.num,
            **found,
        }


@dataclass(frozen=True)
class Report:
    """What was measured of a run."""

    run: Run
    meter: Meter
    model: Model
    """The teacher, for the kind of its samples."""
    data: Tensor
    """The first of the set."""
    teacher: dict[int, Measured] = field(default_factory=dict)
    student: dict[int, Measured] = field(default_factory=dict)
    """Each at its own number of steps."""

    @property
    def summary(self) -> str:
        """What the distances are of."""
        meter, judge = self.meter, self.meter.judge
        of = "the data" if judge.metric == "FD-raw" else "all images"
        clipped = "clipped " if self.model.clip else ""
        return (
            f"{judge.num} samples (seed {judge.seed}, {clipped}DDIM) against {of}. Resampled data "
            f"scores {meter.floor:.3f} +- {meter.floor_std:.3f}, the floor."
        )

    def distances(self) -> Table:
        """Distance and cost at each number of steps."""
        header = ["steps = network calls", "teacher", "student", "ms/image, teacher", "student"]

        def cells(found: Measured | None) -> tuple[str, str]:
            if found is None:
                return "", ""
            return f"{found.distance:.3f}", f"{1000 * found.seconds:.2g}"

        lines = []
        for k, of_teacher in self.teacher.items():
            pairs = zip(cells(of_teacher), cells(self.student.get(k)), strict=True)
            lines.append([str(k), *(cell for pair in pairs for cell in pair)])
        return header, lines

    def rounds(self) -> Table:
        """What each phase took and did, by the metrics."""
        logged, config = self.run.metrics(), self.run.config
        quick = {m["round"]: m["distance"] for m in logged if "distance" in m}
        header = ["round", "steps", "updates", "held loss, start", "end", "distance"]
        header += ["updates/s", "signal / rounding"]
        lines = []
        for m in logged:
            if "held_loss_end" not in m:
                continue
            r, steps = m["round"], m.get("steps", 0)
            updates = config.distill.updates_of(steps) if steps else config.train.updates
            rate = updates / m["seconds"] if m["seconds"] else 0.0
            losses = [f"{m[f'held_loss_{at}']:.3g}" for at in ("start", "end")]
            distance = f"{quick[r]:.3f}" if r in quick else ""
            numbers = [str(r), str(steps or ""), str(updates), *losses, distance]
            lines.append([*numbers, f"{rate:.3g}", _learnable(m)])
        return header, lines

    def rows(self) -> list[Row]:
        """For samples/compare.png: the data, the teacher's best, and each student below it."""
        shown = [("data", self.data), self._row(self.run.config.eval.baseline_steps)]
        for k in self.student:
            shown += [self._row(k), self._row(k, student=True)]
        return [(caption, samples[:NUM_SHOWN]) for caption, samples in shown]

    def _row(self, k: int, student: bool = False) -> Row:
        found, name = (self.student, "student") if student else (self.teacher, "teacher")
        return f"{name}, {counted(k)}", found[k].samples

    def views(self) -> list[View]:
        """For the page: teacher and student at each number of steps."""
        metric, found = self.meter.judge.metric, []
        for k, of_teacher in self.teacher.items():
            pictures, captions = [], []
            for name, of in (("teacher", of_teacher), ("student", self.student.get(k))):
                said = "none has this number of steps" if of is None else (
                    f"{metric} {of.distance:.3f}, {1000 * of.seconds:.2g} ms/image"
                )  # fmt: skip
                captions.append(f"{name}, {counted(k)}: {said}")
                picture = None if of is None else gallery(self.model, of.samples, self.data)
                pictures.append(picture)
            found.append(View(k, pictures[0], pictures[1], (captions[0], captions[1])))
        return found


def report_run(run: Run, data: Dataset, steps: Sequence[int], device: torch.device) -> None:
    """Evaluate a run's saved models; write report.json, .md, .png and .html, and pictures.

    The teacher is sampled at each of `steps` and at the baseline's, each student whose own step
    count is among `steps`, and the last student, at that count. The numbers depend on the saved
    models, the data and the config alone.
    """
    config, students = run.config, run.students()
    baseline = config.eval.baseline_steps
    wanted = set(steps)
    if students:
        newest = min(students)
        if newest <= baseline:
            wanted |= {newest}
        elif newest not in wanted:
            run.screen.say(
                f"the student of {newest} steps is not sampled at its own steps, which takes long: "
                f"pdfast eval {run.path} --steps {newest} does it"
            )
    precision = numerics.precision_of(config.precision, device)

    def load(path: Path) -> Model:
        return numerics.lowered(run.load(path, device), precision)

    meter, teacher = Meter(Judge.of(data, config), run.screen), load(run.teacher_dir)
    report = Report(run, meter, teacher, data.images[:NUM_KEPT].cpu())
    for k in sorted({*wanted, baseline}):
        report.teacher[k] = meter("teacher", teacher, k)
    for k, path in students.items():
        if k in wanted:
            report.student[k] = meter("student", load(path), k)
    distributed.from_first(lambda: _write(report))
    shown = run.path / "samples" / "compare.png"
    seen = f", {shown}" if drawable(teacher) else f"; {NO_PICTURES}"
    run.screen.say(f"report: {run.path / 'report.html'}, {run.path / 'report.md'}{seen}")


def report_model(name: str, model: Model, config: Config, data: Dataset, out: Run) -> None:
    """Evaluate one model at `config.eval.steps`: eval.json and eval.png in `out`."""
    meter = Meter(Judge.of(data, config), out.screen)
    found = {k: meter(name, model, k) for k in sorted(set(config.eval.steps))}

    def write() -> None:
        figure = plot_distances(meter.judge.metric, meter.floor, [(name, _curve(found))])
        out.write("eval.png", figure.savefig)
        out.write_text("eval.json", json.dumps(meter.table(model=found), indent=1) + "\n")

    distributed.from_first(write)
    out.screen.say(f"report: {out.path / 'eval.json'}, {out.path / 'eval.png'}")


def _curve(found: dict[int, Measured]) -> dict[int, float]:
    return {k: m.distance for k, m in found.items()}


def _write(report: Report) -> None:
    """All files, report.json last: where it is, the others are."""
    run, metric = report.run, report.meter.judge.metric
    curves = [
        ("teacher", _curve(report.teacher)),
        ("students, each at its own steps", _curve(report.student)),
    ]
    file = io.BytesIO()
    plot_distances(metric, report.meter.floor, curves).savefig(file)
    curve = file.getvalue()
    drawn = drawable(report.model)
    newest = min(report.student, default=run.config.eval.baseline_steps)
    run.write_text("report.md", _markdown(report))
    if drawn:
        run.save_picture(picture(report.model, report.rows()), "compare.png")
    run.write("report.png", lambda stage: stage.write_bytes(curve))
    text = page(
        title=_title(report),
        summary=report.summary,
        views=report.views() if drawn else [],
        first=newest,
        distances=report.distances(),
        curve=curve,
        rounds=report.rounds(),
        note=QUICK,
        versions=_versions(report.model.device),
        config=dump_config(run.config),
    )
    run.write_text("report.html", text)
    table = report.meter.table(teacher=report.teacher, student=report.student)
    run.write_text("report.json", json.dumps(table, indent=1) + "\n")


def _versions(device: torch.device) -> dict[str, str]:
    """What the report was written with."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "pdfast": __version__,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "device": f"{device.type}, {on}",
        "threads": str(torch.get_num_threads()),
    }


def _title(report: Report) -> str:
    return f"{report.run.config.name}: {report.meter.judge.metric} against sampling steps"


def _markdown(report: Report) -> str:
    """report.md: the distances, what an image costs, and the rounds."""
    samples = f"There are {NO_PICTURES}."
    if drawable(report.model):
        samples = "![samples](samples/compare.png)"
    parts = [
        f"# {_title(report)}",
        report.summary,
        _lines(report.distances()),
        "![distances](report.png)",
        samples,
        _lines(report.rounds()),
        QUICK,
    ]
    return "\n\n".join(parts) + "\n"


def _lines(table: Table) -> str:
    """A table as Markdown."""
    header, rows = table
    lines = [header, ["--:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _learnable(m: dict[str, Any]) -> str:
    """A round's signal, its rounding, and their ratio."""
    if "signal" not in m:
        return ""
    if m["rounding"] is None:
        return f"{m['signal']:.2g}"
    ratio = f"{m['signal'] / m['rounding']:.3g}" if m["rounding"] else "exact"
    return f"{m['signal']:.2g} / {m['rounding']:.2g} = {ratio}"
