"""The report of a run or of one model: distances against sampling steps, table and plot."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pdfast import checkpoint, distributed, numerics
from pdfast.config import Config
from pdfast.data import Dataset
from pdfast.frechet import Judge
from pdfast.model import Model
from pdfast.plots import NUM_SHOWN, counted, plot_distances, rows, sample_row
from pdfast.progress import Screen
from pdfast.run import Run
from pdfast.signals import poll


class Meter:
    """Judges models, and remembers what each image cost."""

    def __init__(self, judge: Judge, screen: Screen) -> None:
        self.judge, self.screen = judge, screen
        self.seconds_per_image: dict[int, float] = {}
        self.floor, self.floor_std = distributed.from_first(judge.floor)
        screen.say(
            f"{judge.metric} {self.floor:8.4f}  resampled data (floor, +- {self.floor_std:.4f})"
        )

    def __call__(self, name: str, model: Model, steps: int) -> float:
        """Distance of a model at `steps` sampling steps, with a progress bar."""
        start = time.perf_counter()
        calls = steps * model.calls_for(self.judge.num)
        with self.screen.task(f"sampling {name}, {counted(steps)}", calls) as task:

            def on_step() -> None:
                poll()
                task.advance()

            distance = self.judge.judge(model, steps, on_step)
        self.seconds_per_image[steps] = (time.perf_counter() - start) / self.judge.num
        self.screen.say(f"{self.judge.metric} {distance:8.4f}  {name}, {counted(steps)}")
        return distance

    def table(self, **curves: dict[int, float]) -> dict[str, Any]:
        """What report.json holds: metric, floor, and {steps: distance} by name."""
        return {
            "metric": self.judge.metric,
            "floor": self.floor,
            "floor_std": self.floor_std,
            "images": self.judge.num,
            **{name: {str(k): d for k, d in sorted(c.items())} for name, c in curves.items()},
        }


def report_run(run: Run, data: Dataset, steps: Sequence[int], device: torch.device) -> None:
    """Evaluate a run's saved models and write report.json, report.md, report.png and pictures.

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
        return numerics.lowered(checkpoint.load_model(path, device), precision)

    meter = Meter(Judge.of(data, config), run.screen)
    teacher = load(run.teacher_dir)
    of_teacher = {k: meter("teacher", teacher, k) for k in sorted({*wanted, baseline})}
    of_student: dict[int, float] = {}
    shown = [("data", data.images[:NUM_SHOWN].cpu()), sample_row(teacher, baseline, config.seed)]
    for k, path in students.items():
        if k in wanted:
            student = load(path)
            of_student[k] = meter("student", student, k)
            shown += [sample_row(teacher, k, config.seed), sample_row(student, k, config.seed)]

    def write() -> None:
        table = meter.table(teacher=of_teacher, student=of_student)
        curves = [("teacher", of_teacher), ("students, each at its own steps", of_student)]
        figure = plot_distances(meter.judge.metric, meter.floor, curves)
        run.write_text("report.md", _markdown(run, table, meter.seconds_per_image))
        run.save_picture(rows(shown), "compare.png")
        run.write("report.png", figure.savefig)
        run.write_text("report.json", json.dumps(table, indent=1) + "\n")

    distributed.from_first(write)
    run.screen.say(f"report: {run.path / 'report.md'}, {run.path / 'samples' / 'compare.png'}")


def report_model(name: str, model: Model, config: Config, data: Dataset, out: Run) -> None:
    """Evaluate one model at `config.eval.steps`: eval.json and eval.png in `out`."""
    meter = Meter(Judge.of(data, config), out.screen)
    distances = {k: meter(name, model, k) for k in sorted(set(config.eval.steps))}

    def write() -> None:
        figure = plot_distances(meter.judge.metric, meter.floor, [(name, distances)])
        out.write("eval.png", figure.savefig)
        out.write_text("eval.json", json.dumps(meter.table(model=distances), indent=1) + "\n")

    distributed.from_first(write)
    out.screen.say(f"report: {out.path / 'eval.json'}, {out.path / 'eval.png'}")


def _markdown(run: Run, table: dict[str, Any], seconds: dict[int, float]) -> str:
    """report.md: the distances, what an image costs, and the rounds."""
    config, metric = run.config, table["metric"]
    lines = [
        f"# {config.name}: {metric} against sampling steps",
        "",
        f"{table['images']} samples (seed {config.seed}, clipped DDIM) against all images. "
        f"Resampled data scores {table['floor']:.3f} +- {table['floor_std']:.3f}, the floor.",
        "",
        "| sampling steps = network calls | teacher | student | seconds per image |",
        "| --: | --: | --: | --: |",
    ]
    for k, distance in table["teacher"].items():
        student = table["student"].get(k)
        own = "" if student is None else f"{student:.3f}"
        lines.append(f"| {k} | {distance:.3f} | {own} | {seconds[int(k)]:.2g} |")
    lines += ["", "![distances](report.png)", "", "![samples](samples/compare.png)", ""]
    rounds = [m for m in run.metrics() if "held_loss_end" in m]
    distances = {m["round"]: m["distance"] for m in run.metrics() if "distance" in m}
    lines += [
        "Rounds (round 0 is the teacher's training); the distance is a quick one, 256 images in "
        "at most 16 steps, for comparing rounds only.",
        "",
        "| round | steps | updates | held loss, start | end | distance | updates/s "
        "| signal / rounding |",
        "| --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for m in rounds:
        r, steps = m["round"], m.get("steps", "")
        updates = config.distill.updates_of(steps) if steps else config.train.updates
        rate = updates / m["seconds"] if m["seconds"] else 0.0
        lines.append(
            f"| {r} | {steps} | {updates} | {m['held_loss_start']:.3g} | {m['held_loss_end']:.3g} "
            f"| {distances.get(r, float('nan')):.3f} | {rate:.3g} | {_learnable(m)} |"
        )
    lines += [
        "",
        "Signal / rounding: how far the target is from the student when a round begins, in v, over "
        "what the networks' rounding changes in that (medians over a held batch). A round where it "
        "is not well above 1 teaches little at this precision.",
    ]
    return "\n".join(lines) + "\n"


def _learnable(m: dict[str, Any]) -> str:
    """A round's signal, its rounding, and their ratio."""
    if "signal" not in m:
        return ""
    ratio = f"{m['signal'] / m['rounding']:.3g}" if m["rounding"] else "exact"
    return f"{m['signal']:.2g} / {m['rounding']:.2g} = {ratio}"
