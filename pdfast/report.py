"""The report of a run or of one model: distances against sampling steps, tables, plot and page."""

import io
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from pdfast import distributed, numerics
from pdfast.config import check_guided_students, dump_config
from pdfast.data import Dataset
from pdfast.evaluation import NUM_KEPT, Meter
from pdfast.facts import averaging, facts_of
from pdfast.guidance import guided
from pdfast.judge import Judge
from pdfast.model import Model
from pdfast.page import Section, Table, page
from pdfast.plots import drawable, picture, plot_distances
from pdfast.report_tables import Curve, Report, as_json
from pdfast.run import Run
from pdfast.version import __version__

NO_PICTURES = "no pictures: the samples are neither images of 1 or 3 channels nor signals"


def report_run(run: Run, data: Dataset, steps: Sequence[int], device: torch.device) -> None:
    """Evaluate a run's saved models; write report.json, .md, .png and .html, and pictures.

    The teacher is sampled at each of `steps` and at the baseline's, each student whose own step
    count is among `steps`, and the last student, at that count. The numbers depend on the saved
    models, the data and the config alone. A killed evaluation goes on where it was.
    """
    config, students = run.config, run.students()
    if students:
        check_guided_students(config)
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
        return guided(numerics.lowered(run.load(path, device), precision), config.eval.guidance)

    teacher = load(run.teacher_dir)
    judge = Judge.of(data, config, device, run.screen, teacher)
    meter = Meter(judge, run)
    of_teacher = meter("teacher", teacher, {*wanted, baseline})
    of_students: Curve = {}
    for k, path in students.items():
        if k in wanted:
            of_students |= meter("student", load(path), [k])

    def write() -> str:
        weights = {"teacher": averaging(run.teacher_dir, config, student=False)}
        for path in students.values():  # all are made alike
            weights["student"] = averaging(path, config, student=True)
        facts = facts_of(judge, config, teacher, weights)
        shown = data.images[:NUM_KEPT].cpu()
        _write(Report(run, meter, teacher, shown, facts, of_teacher, of_students))
        return facts.text()

    line = distributed.from_first(write)
    meter.clear()
    shown = run.path / "samples" / "compare.png"
    seen = f", {shown}" if drawable(teacher) else f"; {NO_PICTURES}"
    run.screen.say(f"report: {run.path / 'report.html'}, {run.path / 'report.md'}{seen}")
    run.screen.say(line)


def report_model(name: str, model: Model, out: Run, judge: Judge, averaged: dict[str, str]) -> None:
    """Evaluate one model at the config's `eval.steps`: eval.json and eval.png in `out`.

    `averaged` says under "model" what its weights are; see `Facts`.
    """
    meter = Meter(judge, out)
    found = meter(name, model, out.config.eval.steps)

    def write() -> str:
        facts = facts_of(judge, out.config, model, averaged)
        figure = plot_distances(judge.metric, meter.floor, [(name, _distances(found))])
        out.write("eval.png", figure.savefig)
        table = as_json(meter, facts, {"model": found})
        out.write_text("eval.json", json.dumps(table, indent=1) + "\n")
        return facts.text()

    line = distributed.from_first(write)
    meter.clear()
    out.screen.say(f"report: {out.path / 'eval.json'}, {out.path / 'eval.png'}")
    out.screen.say(line)


def _distances(found: Curve) -> dict[int, float]:
    return {k: m.distance for k, m in found.items()}


def _write(report: Report) -> None:
    """All files, report.json last: where it is, the others are."""
    run, metric = report.run, report.meter.judge.metric
    curves = [
        ("teacher", _distances(report.teacher)),
        ("students, each at its own steps", _distances(report.student)),
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
        title=report.title,
        summary=report.summary,
        views=report.views() if drawn else [],
        first=newest,
        distances=report.distances(),
        curve=curve,
        more=_more(report),
        rounds=report.rounds(),
        note=report.rounds_note,
        versions=_versions(report.model.device),
        config=dump_config(run.config),
    )
    run.write_text("report.html", text)
    table = as_json(report.meter, report.facts, report.curves)
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


def _more(report: Report) -> list[Section]:
    """What stands between the distances and the rounds."""
    tables = [
        Section("Inception score, precision and recall", report.scores(), ""),
        Section("Distance by class", report.classes(), report.classes_note),
        Section("How the figures were measured", report.measured(), ""),
    ]
    return [section for section in tables if section.table or section.note]


def _markdown(report: Report) -> str:
    """report.md: the tables of the page, its curve and pictures."""
    samples = f"There are {NO_PICTURES}."
    if drawable(report.model):
        samples = "![samples](samples/compare.png)"
    parts = [
        f"# {report.title}",
        report.summary,
        _lines(report.distances()),
        "![distances](report.png)",
        samples,
    ]
    for heading, table, note in _more(report):
        parts += [f"## {heading}", *([_lines(table)] if table else []), *([note] if note else [])]
    parts += ["## Rounds", _lines(report.rounds()), report.rounds_note]
    return "\n\n".join(parts) + "\n"


def _lines(table: Table) -> str:
    """A table as Markdown."""
    header, rows = table
    lines = [header, ["--:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
