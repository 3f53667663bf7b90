"""Evaluating a run or a model, and writing its report."""

import contextlib
import io
import json
import platform
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pdfast.config.schema import check_guided_students, dump_config
from pdfast.console.messages import counted
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.evaluation import resume
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.provenance import averaging, facts_of
from pdfast.evaluation.report.html import Picture, Section, page
from pdfast.evaluation.report.made_of import Record, digest, digest_of
from pdfast.evaluation.report.markdown import lines, section_lines
from pdfast.evaluation.report.plots import drawable, picture, plot_distances
from pdfast.evaluation.report.price import PRICE, PRICE_NOTE, plot_price
from pdfast.evaluation.report.tables import Curve, Report, as_json
from pdfast.evaluation.sweep import NUM_KEPT, StepSweep
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.runs.run import Run
from pdfast.storage import files
from pdfast.storage.marked import METADATA
from pdfast.training.model_run import ModelRun
from pdfast.training.precision import cast_to_precision, precision_of
from pdfast.version import __version__

TABLE, PICTURE = "eval.json", "eval.png"  # the report of one model
FORMAT = "4"  # of the report's files; a report of another format is made again
NO_PICTURES = "no pictures: the samples are neither images of 1 or 3 channels nor signals"


class SampledAt(NamedTuple):
    """Numbers of steps that a report samples teacher and students at."""

    teacher: set[int]
    student: set[int]
    """Steps of the students, each of which is sampled at its own."""


def sampled_at(steps: Iterable[int], baseline: int, students: Iterable[int]) -> SampledAt:
    """Return the numbers of steps that a report samples at.

    The teacher is sampled at `steps`, at the baseline's steps, and at the last student's steps if
    they are not more than the baseline's. Each student among these steps is sampled too.

    Args:
        steps: The numbers of steps asked for.
        baseline: The teacher's number of steps for comparison.
        students: Steps of the existing students.
    """
    wanted, own = set(steps), set(students)
    wanted |= {newest for newest in own if newest == min(own) and newest <= baseline}
    return SampledAt({*wanted, baseline}, own & wanted)


def report_run(run: ModelRun, data: Dataset, steps: Sequence[int], device: torch.device) -> None:
    """Evaluate a run's saved models; write report.json, .md, .png and .html, and pictures.

    See `sampled_at` for the models and steps. The figures depend on the saved models, the data and
    the config alone. A killed evaluation resumes where it stopped. Nothing is done if the report
    exists and was made from the same models, data, metrics, config, device and versions.

    Args:
        run: The run.
        data: The data to compare with.
        steps: Numbers of sampling steps.
        device: Where the models are sampled.
    """
    config, students = run.config, run.students()
    if students:
        check_guided_students(config)
    wanted = sampled_at(steps, config.eval.baseline_steps, students)
    newest = min(students, default=0)
    if newest not in wanted.student and newest:
        run.screen.say(
            f"the student of {newest} steps is not sampled at its own steps, which takes long: "
            f"run pdfast eval {run.path} --steps {newest} for that"
        )
    precision = precision_of(config.precision, device)

    def load(path: Path) -> Model:
        return guided(cast_to_precision(run.load(path, device), precision), config.eval.guidance)

    evaluator, models = Evaluator.of(data, config, device), [run.teacher_dir, *students.values()]
    own = run.networks.teacher is not None
    computed = [resume.fingerprints(load(path))[0] for path in models] if own else []
    record = Record(
        run,
        partial(
            _made_of, run, evaluator, models, computed, wanted.teacher | wanted.student, device
        ),
    )
    if collectives.from_first(record.holds):
        run.screen.say(f"report: {run.path / 'report.html'}, {run.path / 'report.md'}: up to date")
        return
    teacher = load(run.teacher_dir)
    evaluator = Evaluator(
        data,
        config.eval.num,
        config.seed,
        evaluator.detector,
        run.screen,
        teacher,
        config.eval.classes,
    )
    sweep = StepSweep(evaluator, run)
    of_teacher = sweep("teacher", teacher, wanted.teacher)
    of_students: Curve = {}
    for k, path in students.items():
        if k in wanted.student:
            of_students |= sweep("student", load(path), [k])

    def write() -> list[str]:
        weights = {"teacher": averaging(run.teacher_dir, config, student=False)}
        of = {k: averaging(path, config, student=True) for k, path in students.items()}
        alike = len(set(of.values())) == 1
        for k, weight in of.items():
            weights["student" if alike else f"student, {counted(k)}"] = weight
        facts = facts_of(evaluator, config, teacher, weights)
        shown = data.images[:NUM_KEPT].cpu()
        record.forget()
        report = Report(run, sweep, teacher, shown, facts, of_teacher, of_students)
        record.keep(_write(report))
        return [facts.text(), report.far_above]

    line, warning = collectives.from_first(write)
    sweep.clear()
    shown = run.path / "samples" / "compare.png"
    seen = f", {shown}" if drawable(teacher) else f"; {NO_PICTURES}"
    run.screen.say(f"report: {run.path / 'report.html'}, {run.path / 'report.md'}{seen}")
    run.screen.say(line)
    if warning:
        run.screen.warn(warning)


def check_out(folder: Path) -> None:
    """Raise UsageError if `report_model` would replace files that no evaluation wrote."""
    table, picture, state = (folder / name for name in (TABLE, PICTURE, resume.FOLDER))
    earlier = False
    if table.is_file():
        with contextlib.suppress(files.Damaged):
            earlier = files.read_json(table).keys() >= {"metric", "floor", "facts", "model"}
    if not earlier:
        files.check_replaceable(table)
        files.check_replaceable(picture)
    if not resume.is_one(state):
        files.check_replaceable(state)


def _made_of(
    run: Run,
    evaluator: Evaluator,
    models: Sequence[Path],
    computed: Sequence[str],
    steps: set[int],
    device: torch.device,
) -> dict[str, str]:
    """Return everything that a run's report depends on; for the first process.

    `computed` are fingerprints of custom networks, whose code is in no file of the run.
    """
    manifests = {path.name: files.read_manifest(path)["manifest_sha256"] for path in models}
    return evaluator.key() | {
        "format": FORMAT,
        "models": json.dumps([manifests, computed]),
        "steps": json.dumps(sorted(steps)),
        "config": digest(dump_config(run.config)),
        "metrics": digest_of(run.path / "metrics.jsonl"),
        "class names": json.dumps(evaluator.data.names),
        "versions": json.dumps([files.versions(), _versions(device)]),
    }


def report_model(
    name: str, model: Model, out: Run, evaluator: Evaluator, averaged: dict[str, str]
) -> None:
    """Evaluate one model at the config's `eval.steps`; write eval.json and eval.png.

    Args:
        name: The curve's name in the plot.
        model: The model.
        out: The folder of the report.
        evaluator: The evaluator, with the data to compare with.
        averaged: How the weights of "model" were averaged; see `Facts.weights`.
    """
    sweep = StepSweep(evaluator, out)
    found = sweep(name, model, out.config.eval.steps)

    def write() -> str:
        facts = facts_of(evaluator, out.config, model, averaged)
        figure = plot_distances(evaluator.metric, sweep.floor, [(name, _distances(found))])
        out.write(PICTURE, lambda stage: figure.savefig(stage, metadata=METADATA))
        table = as_json(sweep, facts, {"model": found})
        out.write_text(TABLE, json.dumps(table, indent=1) + "\n")
        return facts.text()

    line = collectives.from_first(write)
    sweep.clear()
    out.screen.say(f"report: {out.path / TABLE}, {out.path / PICTURE}")
    out.screen.say(line)


def _distances(found: Curve) -> dict[int, float]:
    return {k: m.distance for k, m in found.items()}


def _write(report: Report) -> list[str]:
    """Write all files of a report, report.json last to mark it whole; return their names."""
    run, metric = report.run, report.sweep.evaluator.metric
    curves = [
        ("teacher", _distances(report.teacher)),
        ("students, each at its own steps", _distances(report.student)),
    ]
    file = io.BytesIO()
    plot_distances(metric, report.sweep.floor, curves).savefig(file)
    curve = file.getvalue()
    price = _price(report)
    drawn = drawable(report.model)
    newest = min(report.student, default=run.config.eval.baseline_steps)
    more = _more(report, price)
    run.write_text("report.md", _markdown(report, more))
    if drawn:
        run.save_picture(picture(report.model, report.rows()), "compare.png")
    run.write("report.png", lambda stage: stage.write_bytes(curve))
    if price:
        run.write(PRICE, lambda stage: stage.write_bytes(price))
    else:  # an earlier report's plot would be of other rounds
        (run.path / PRICE).unlink(missing_ok=True)
    text = page(
        title=report.title,
        summary=report.summary,
        views=report.views() if drawn else [],
        first=newest,
        distances=report.distances(),
        curve=curve,
        legend=report.distances_note,
        more=more,
        rounds=report.rounds(),
        note=report.rounds_note,
        versions=_versions(report.model.device),
        config=dump_config(run.config),
    )
    run.write_text("report.html", text)
    table = as_json(report.sweep, report.facts, report.curves)
    table["evaluations"] = report.evaluations()
    run.write_text("report.json", json.dumps(table, indent=1) + "\n")
    names = ["report.md", "report.png", "report.html", "report.json"]
    return names + ["samples/compare.png"] * drawn + [PRICE] * bool(price)


def _price(report: Report) -> bytes:
    """Return the plot of distance against evaluations, a PNG; b"" if none are known."""
    panels = report.price()
    if panels is None:
        return b""
    file = io.BytesIO()
    plot_price(panels).savefig(file)
    return file.getvalue()


def _versions(device: torch.device) -> dict[str, str]:
    """Return the versions and the device that a report was made with."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "pdfast": __version__,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "device": f"{device.type}, {on}",
        "threads": str(torch.get_num_threads()),
    }


def _more(report: Report, price: bytes) -> list[Section]:
    """Return the sections between the distances and the rounds; `price` is a PNG or b""."""
    picture = Picture(PRICE, "distance against evaluations", price) if price else None
    tables = [
        Section("Distance against evaluations", None, PRICE_NOTE if price else "", picture),
        Section("Inception score, precision and recall", report.scores(), ""),
        Section("Distance by class", report.classes(), report.classes_note),
        Section("How the figures were measured", report.measured(), ""),
    ]
    return [section for section in tables if section.table or section.note]


def _markdown(report: Report, more: Sequence[Section]) -> str:
    """Return the text of report.md, with the tables, curve and pictures of the page."""
    samples = f"There are {NO_PICTURES}."
    if drawable(report.model):
        samples = "![samples](samples/compare.png)"
    parts = [
        f"# {report.title}",
        report.summary,
        lines(report.distances()),
        report.distances_note,
        "![distances](report.png)",
        samples,
    ]
    for section in more:
        parts += section_lines(section)
    parts += ["## Rounds", lines(report.rounds()), report.rounds_note]
    return "\n\n".join(parts) + "\n"
