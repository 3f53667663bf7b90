"""Progressive distillation: rounds that halve the sampling steps (Algorithm 2)."""

import copy
import dataclasses
from pathlib import Path

import torch

from pdfast import checkpoint, peers
from pdfast.config import Config, LossWeight, to_table
from pdfast.data import Dataset
from pdfast.engine import Batch, Problem, fit
from pdfast.errors import UsageError
from pdfast.frechet import EXTRACTORS, Judge
from pdfast.method import ddim_step, distill_loss
from pdfast.model import Model
from pdfast.plots import rows, sample_row
from pdfast.run import Run
from pdfast.signals import poll

MONITOR_STEPS, MONITOR_IMAGES = 16, 256  # of the cheap distance after each round
MONITOR_JUMP = 1.5  # a distance this many times the last round's is a jump


class Rollout:
    """The objective of one round: predict in one step where the teacher's two steps lead."""

    def __init__(self, teacher: Model, num_steps: int, weight: LossWeight) -> None:
        """`num_steps` is N, the student's; the teacher has 2N."""
        self.teacher, self.num_steps, self.weight = teacher, num_steps, weight

    def __call__(self, student: Model, batch: Batch) -> Problem:
        """Algorithm 2, from the draw of i ~ U{0 .. N-1} to the loss; see method.py."""
        teacher, N, head = self.teacher, self.num_steps, self.teacher.head  # noqa: N806
        draw, label = batch.noised(teacher.schedule, N)
        z_t, phi_t, phi_mid = draw.z_t, draw.phi_t, draw.phi_mid
        with torch.no_grad():  # two DDIM steps of the teacher, unclipped
            out_t = teacher.at(draw.z_in, phi_t, label)
            z_mid = ddim_step(z_t, out_t, phi_t, phi_mid, head, batch.dtype)
            out_mid = teacher.at(z_mid.z_in, phi_mid, label)
        out = student.at(draw.z_in, phi_t, label)
        args = (z_t, out_t, out_mid, phi_t, phi_mid, draw.last, head, self.weight)
        return Problem(out, distill_loss(out, *args))


def distill_rounds(run: Run, teacher: Model, data: Dataset) -> Model:
    """All rounds of the run's config; finished ones are loaded. Returns the last student."""
    config = run.config
    judge = Judge(
        data, min(MONITOR_IMAGES, len(data)), config.seed, EXTRACTORS[config.eval.features]
    )
    teacher_row = sample_row(teacher, config.eval.baseline_steps, config.seed)
    student = remove_dropout(teacher)
    before = _distance(run, 0, student, config.distill.start_steps, judge)
    for round_ in range(1, config.distill.rounds + 1):
        steps, path = config.distill.steps_after(round_), run.round_dir(round_)
        if run.has(path):
            run.clear_states(round_)
            student = peers.select(checkpoint.load_model(path, teacher.device), config.peers)
        else:
            student = _distill_round(run, student, data, round_, steps)
        if not run.has_picture(f"{path.name}.png"):
            row = sample_row(student, min(steps, MONITOR_STEPS), config.seed)
            run.save_picture(rows([teacher_row, row]), f"{path.name}.png")
        distance = _distance(run, round_, student, steps, judge)
        if distance > MONITOR_JUMP * before:
            run.screen.warn(
                f"round {round_}: the distance jumped from {before:.3g} to {distance:.3g}; to do "
                f"it again with more updates, remove {path} and later rounds, and raise "
                f"distill.round_updates for {steps} steps"
            )
        before = distance
    return student


def _distill_round(run: Run, teacher: Model, data: Dataset, round_: int, steps: int) -> Model:
    """One round: the student starts as the teacher and learns its two steps in one."""
    config = run.config
    cfg = dataclasses.replace(config.distill, updates=config.distill.updates_of(steps))
    student = copy.deepcopy(teacher)
    student.steps = steps
    title = f"round {round_}/{config.distill.rounds} ({steps} steps)"
    objective = Rollout(teacher, steps, cfg.loss_weight)
    result = fit(student, objective, cfg, data, run, round_, title)
    # Logged before the model is there: a run cut off in between does the round's end again.
    run.log(round=round_, steps=steps, **result.as_metrics())
    checkpoint.save_model(student, run.round_dir(round_), round=round_, seed=config.seed)
    run.clear_states(round_)
    run.screen.say(
        f"{title}: held loss {result.loss_start:.4g} -> {result.loss_end:.4g}, "
        f"{cfg.updates} updates in {result.seconds:.1f} s, saved to {run.round_dir(round_)}"
    )
    return student


def _distance(run: Run, round_: int, model: Model, steps: int, judge: Judge) -> float:
    """A cheap distance to watch the rounds by: few images, at most 16 steps; computed once."""
    logged = [m["distance"] for m in run.metrics() if m["round"] == round_ and "distance" in m]
    if logged:
        return float(logged[-1])
    distance = judge.judge(model, min(steps, MONITOR_STEPS), poll)
    run.log(round=round_, steps=steps, distance=distance)
    return distance


def load_teacher(path: Path, config: Config, device: torch.device) -> Model:
    """A teacher from elsewhere, once it is known to fit the config."""
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


def adopt_teacher(run: Run, path: Path, model: Model) -> None:
    """Copy a teacher from elsewhere into the run, unless the run has it already."""
    if not run.has(run.teacher_dir):
        checkpoint.save_model(model, run.teacher_dir, source=str(path))
    elif checkpoint.fingerprint(run.teacher_dir) != checkpoint.fingerprint(path):
        raise UsageError(f"{run.path} already has another teacher: choose another --out")


def remove_dropout(model: Model) -> Model:
    """The model itself, changed for distillation, which uses no dropout."""
    model.cfg = dataclasses.replace(model.cfg, dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
