"""The report of a run or of one model: distances against sampling steps, table and plot."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pdfast import checkpoint
from pdfast.config import Config
from pdfast.data import Dataset
from pdfast.frechet import EXTRACTORS, Judge
from pdfast.model import Model
from pdfast.plots import NUM_SHOWN, counted, plot_distances, rows, sample_row
from pdfast.progress import Screen
from pdfast.run import Run, students
from pdfast.signals import poll


class Meter:
    """Judges models, and remembers what each image cost."""

    def __init__(self, judge: Judge, screen: Screen) -> None:
        self.judge, self.screen = judge, screen
        self.seconds_per_image: dict[int, float] = {}

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


def report_run(run: Run, data: Dataset, steps: Sequence[int], device: torch.device) -> None:
    """Evaluate a run's saved models and write report.json, report.md, report.png and pictures.

    The teacher is sampled at each of `steps` and at the baseline's, each student whose own step
    count is among them at that count. The numbers depend on the saved models, the data and the
    config alone.
    """
    config = run.config
    judge = Judge(data, config.eval.num, config.seed, EXTRACTORS[config.eval.features])
    meter = Meter(judge, run.screen)
    floor, spread = judge.floor()
    run.screen.say(f"{judge.metric} {floor:8.4f}  resampled data (floor, +- {spread:.4f})")
    teacher = checkpoint.load_model(run.teacher_dir, device)
    wanted = sorted({*steps, config.eval.baseline_steps})
    of_teacher = {k: meter("teacher", teacher, k) for k in wanted}
    of_student: dict[int, float] = {}
    shown = [("data", data.images[:NUM_SHOWN].cpu())]
    shown.append(sample_row(teacher, config.eval.baseline_steps, config.seed))
    for k, path in students(run.path).items():
        if k in steps:
            student = checkpoint.load_model(path, device)
            of_student[k] = meter("student", student, k)
            shown += [sample_row(teacher, k, config.seed), sample_row(student, k, config.seed)]
    table = {
        "metric": judge.metric,
        "floor": floor,
        "floor_std": spread,
        "images": judge.num,
        "teacher": {str(k): of_teacher[k] for k in sorted(of_teacher)},
        "student": {str(k): of_student[k] for k in sorted(of_student)},
    }
    run.write_text("report.json", json.dumps(table, indent=1) + "\n")
    run.write_text("report.md", _markdown(run, table, meter.seconds_per_image))
    run.save_picture(rows(shown), "compare.png")
    curves = [("teacher", of_teacher), ("students, each at its own steps", of_student)]
    plot_distances(run.path / "report.png", judge.metric, floor, curves)
    run.screen.say(f"report: {run.path / 'report.md'}, {run.path / 'samples' / 'compare.png'}")


def report_model(
    path: Path, config: Config, data: Dataset, device: torch.device, out: Path, screen: Screen
) -> None:
    """Evaluate one model directory at `config.eval.steps`: eval.json and eval.png in `out`."""
    model = checkpoint.load_model(path, device)
    judge = Judge(data, config.eval.num, config.seed, EXTRACTORS[config.eval.features])
    meter = Meter(judge, screen)
    floor, spread = judge.floor()
    distances = {k: meter(path.name, model, k) for k in sorted(set(config.eval.steps))}
    table = {
        "metric": judge.metric,
        "floor": floor,
        "floor_std": spread,
        "images": judge.num,
        "model": {str(k): d for k, d in distances.items()},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "eval.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
        plot_distances(out / "eval.png", judge.metric, floor, [(path.name, distances)])
    except OSError as error:
        raise checkpoint.cannot_write(out, error) from None
    screen.say(f"report: {out / 'eval.json'}, {out / 'eval.png'}")


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
        "| round | steps | updates | held loss, start | end | distance | updates/s |",
        "| --: | --: | --: | --: | --: | --: | --: |",
    ]
    for m in rounds:
        r, steps = m["round"], m.get("steps", "")
        updates = config.distill.updates_of(steps) if steps else config.train.updates
        rate = updates / m["seconds"] if m["seconds"] else 0.0
        lines.append(
            f"| {r} | {steps} | {updates} | {m['held_loss_start']:.3g} | {m['held_loss_end']:.3g} "
            f"| {distances.get(r, float('nan')):.3f} | {rate:.3g} |"
        )
    return "\n".join(lines) + "\n"
