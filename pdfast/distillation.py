"""Progressive distillation: rounds that halve the sampling steps (Algorithm 2)."""

import copy
import dataclasses
from contextlib import closing
from pathlib import Path

import torch

from pdfast import checkpoint, distributed, files, numerics, peers
from pdfast.config import Config, to_table
from pdfast.data import Dataset
from pdfast.engine import fit, open_batch
from pdfast.errors import UsageError
from pdfast.frechet import EXTRACTORS, Judge
from pdfast.model import Model
from pdfast.plots import rows, sample_row
from pdfast.rollout import rollout
from pdfast.rounding import Signal, measure
from pdfast.run import Run
from pdfast.signals import poll
from pdfast.training import train_teacher

MONITOR_STEPS, MONITOR_IMAGES = 16, 256  # of the cheap distance after each round
MEASURED_IMAGES = 64  # at most, for a round's signal and rounding
MONITOR_JUMP = 1.5  # a distance this many times the last round's is a jump


def distill_rounds(run: Run, data: Dataset, device: torch.device) -> Model:
    """All rounds of the run's config; finished ones are loaded. Returns the last student.

    The run's teacher is trained first, unless it is there.
    """
    config = run.config
    judge = Judge(
        data, min(MONITOR_IMAGES, len(data)), config.seed, EXTRACTORS[config.eval.features]
    )
    student = train_teacher(run, data, device)
    check_start(student, config)
    precision = numerics.precision_of(config.precision, device)
    student = remove_dropout(student)
    low = numerics.lowered(student, precision)  # cast once a round
    teacher_row = sample_row(low, config.eval.baseline_steps, config.seed)
    before = _distance(run, 0, low, config.distill.start_steps, judge)
    for round_ in range(1, config.distill.rounds + 1):
        steps, path = config.distill.steps_after(round_), run.round_dir(round_)
        if run.has(path):
            run.clear_states(round_)
            student = peers.select(checkpoint.load_model(path, device), config.peers)
        else:
            student = _distill_round(run, student, low, data, round_, steps)
        low = numerics.lowered(student, precision)
        if not run.has_picture(f"{path.name}.png"):
            row = sample_row(low, min(steps, MONITOR_STEPS), config.seed)
            run.save_picture(rows([teacher_row, row]), f"{path.name}.png")
        distance = _distance(run, round_, low, steps, judge)
        if distance > MONITOR_JUMP * before:
            run.screen.warn(
                f"round {round_}: the distance jumped from {before:.3g} to {distance:.3g}; to do "
                f"it again with more updates, remove {path} and later rounds, and raise "
                f"distill.round_updates for {steps} steps"
            )
        before = distance
    return student


def _distill_round(
    run: Run, teacher: Model, low: Model, data: Dataset, round_: int, steps: int
) -> Model:
    """One round: the student starts as the teacher and learns its two steps in one.

    `low` is the teacher in the networks' precision.
    """
    config = run.config
    cfg = dataclasses.replace(config.distill, updates=config.distill.updates_of(steps))
    title = f"round {round_}/{config.distill.rounds} ({steps} steps)"
    signal = _signal(run, teacher, low, data, round_, steps)
    # A rounded copy teaches while the original learns; where nothing is rounded, a copy learns.
    student = copy.deepcopy(teacher) if low is teacher else teacher
    student.steps = steps
    if config.engine.compile:
        low.net.compile(dynamic=False)
    objective = rollout(low, steps, cfg, config.engine)
    result = fit(student, objective, cfg, data, run, round_, title)
    # Logged before the model is there: a run cut off in between does the round's end again.
    run.log(round=round_, steps=steps, **result.as_metrics(), **signal)
    run.save_model(student, run.round_dir(round_), round=round_, seed=config.seed)
    run.clear_states(round_)
    run.screen.say(
        f"{title}: held loss {result.loss_start:.4g} -> {result.loss_end:.4g}, "
        f"{cfg.updates} updates in {result.seconds:.1f} s, saved to {run.round_dir(round_)}"
    )
    return student


def _signal(
    run: Run, teacher: Model, low: Model, data: Dataset, round_: int, steps: int
) -> dict[str, float]:
    """Signal and rounding of a round, for the metrics; warns where rounding is the larger."""
    config = run.config
    few = dataclasses.replace(
        config.distill, batch=min(MEASURED_IMAGES, config.distill.batch), accumulate=1
    )

    def by_the_first() -> list[float]:
        batch, source = open_batch(config, few, data, low, round_, held=True)
        with closing(source):
            source.load(0)
        return list(measure(teacher, low, steps, batch))

    found = Signal(*distributed.from_first(by_the_first))
    if found.ratio < 1:
        precision = numerics.precision_of(config.precision, teacher.device)
        finer = {"bf16": "tf32 or fp32", "tf32": "fp32"}.get(precision)
        better = f", or distil the first rounds with --precision {finer}" if finer else ""
        run.screen.warn(
            f"round {round_}: what there is to learn, {found.signal:.2g} in v, is less than the "
            f"rounding of {precision} networks, {found.rounding:.2g}: start from fewer steps "
            "(--distill.start-steps)" + better
        )
    return found._asdict()


def _distance(run: Run, round_: int, model: Model, steps: int, judge: Judge) -> float:
    """A cheap distance to watch the rounds by: few images, at most 16 steps; computed once."""
    logged = [m["distance"] for m in run.metrics() if m["round"] == round_ and "distance" in m]
    if logged:
        return float(logged[-1])
    distance = judge.judge(model, min(steps, MONITOR_STEPS), poll)
    run.log(round=round_, steps=steps, distance=distance)
    return distance


def load_teacher(config: Config, device: torch.device) -> Model:
    """The config's teacher from elsewhere, once it is known to fit."""
    path = Path(config.distill.teacher)
    model = checkpoint.load_model(path, device)
    asked, found = to_table(config.model), to_table(model.cfg)
    for key in asked:
        if key != "dropout" and asked[key] != found[key]:
            raise UsageError(
                f"the teacher {path} has model.{key} {found[key]!r}, but the config asks for "
                f"{asked[key]!r}: pass the config that the teacher was trained with"
            )
    check_start(model, config)
    return model


def check_start(model: Model, config: Config) -> None:
    """Refuse a teacher that was itself distilled to another number of steps."""
    if model.steps not in (0, config.distill.start_steps):
        raise UsageError(
            f"the teacher was distilled to {model.steps} steps: pass --distill.start-steps "
            f"{model.steps}, and as many rounds as that allows"
        )


def adopt_teacher(run: Run, given: Model | None) -> None:
    """Copy the teacher from elsewhere, if one is given, into the run that has none yet.

    Raises UsageError if the run has one, or something made by one, and the config names another.
    """
    path = Path(run.config.distill.teacher)
    if given is not None and not run.has(run.teacher_dir):
        if run.students() or run.begun():
            raise UsageError(
                f"{run.path} has rounds or saved states, but not of {path}: leave --teacher away, "
                f"having put back {run.teacher_dir} if it was there, or choose another --out"
            )
        run.save_model(given, run.teacher_dir, source=str(path))
        return

    def differs() -> bool:
        if not run.config.distill.teacher or not (path / files.MANIFEST).is_file():
            return False  # the run's own copy is what counts
        return checkpoint.fingerprint(run.teacher_dir) != checkpoint.fingerprint(path)

    if run.has(run.teacher_dir) and distributed.from_first(differs):
        raise UsageError(f"{run.path} already has another teacher: choose another --out")


def remove_dropout(model: Model) -> Model:
    """The model itself, its config changed for distillation, which uses no dropout."""
    model.cfg = dataclasses.replace(model.cfg, dropout=0.0)
    return model
