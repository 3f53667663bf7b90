"""The rounds of a distillation, each of which merges sampling steps of the last student.

Rounds that halve the steps are progressive distillation (Salimans & Ho 2022).
"""

import copy
import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pdfast.config.loops import halvings
from pdfast.config.names import Precision
from pdfast.config.schema import Config, DistillConfig, EngineConfig, NetConfig
from pdfast.config.serialization import to_table
from pdfast.data.dataset import Dataset
from pdfast.diffusion.timesteps import between, fits_in, start_for
from pdfast.distillation.choice import Choice, choose
from pdfast.distillation.objectives import Fit, Rollout
from pdfast.distillation.pipelined_teacher import rollout
from pdfast.distillation.signal_check import Signal, measure
from pdfast.distillation.teacher import new_model, train_teacher
from pdfast.distributed import collectives
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError
from pdfast.evaluation.detectors.opening import without_network
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.floor import far_above
from pdfast.evaluation.report.plots import drawable, picture, sample_row
from pdfast.models import backends, checkpoint
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.models.unet import UNet
from pdfast.storage import files, model_dir
from pdfast.training import warmup
from pdfast.training.batch import open_batch
from pdfast.training.loop import Kept, fit
from pdfast.training.model_run import ModelRun
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision, precision_of, recast
from pdfast.training.update import Objective

MONITOR_STEPS, MONITOR_IMAGES = 16, 256  # most of the quick distance after each round
MEASURED_IMAGES = 64  # most images for a round's signal and rounding
# Fields of [model] that even a student with another network shares with its teacher.
KEPT = {"image_size", "channels", "num_classes", "parameterization"}
KEPT |= {"schedule", "logsnr_min", "logsnr_max", "timesteps", "betas", "sigmas"}
SAMPLED_AS = ("guidance", "class_shares")  # metrics that describe the samples of a distance
MONITOR_JUMP = 1.5  # warn of a distance this many times the last round's


def distill_rounds(run: ModelRun, data: Dataset, device: torch.device) -> Model:
    """Run all rounds of the run's config, loading those that are finished.

    The run's teacher is trained first if it does not exist.

    Args:
        run: The run.
        data: The training data.
        device: Where the networks are trained.

    Returns:
        The last student.

    Raises:
        UsageError: The teacher does not have the steps that the config asks for.
    """
    config = run.config
    for note in warmup.distill_notes(config):
        run.screen.warn(note)
    student = train_teacher(run, data, device)
    check_start(student, config)
    start, timesteps = config.distill.start_steps, student.schedule.most_steps
    if not student.steps and (said := between(start, timesteps)):
        run.screen.say(f"distill.start_steps: {said}")
    evaluator = _monitor(data, config, student)
    trained = not config.distill.teacher and run.networks.teacher is None
    if student.parameterization != run.student_parameterization:
        alpha = float(student.schedule.phi(torch.ones(())).cos())
        run.screen.say(
            "the teacher predicts eps, and at low SNR its x-hat divides by alpha, "
            f"{alpha:.1e} at u = 1, so it cannot be distilled as it is: round 1 moves it to "
            f"{run.student_parameterization} at the same {start} steps"
        )
    made = _rounds_made(run, evaluator, drawable(student))
    for round_ in range(1, made + 1):
        run.clear_states(round_)
    if made == config.distill.num_rounds:
        return backends.select(run.load(run.round_dir(made), device), config.backends)
    precision = precision_of(config.precision, device)
    low = cast_to_precision(student, precision)  # cast once per round
    guidance = config.eval.guidance
    if drawable(low):
        teacher_row = sample_row(
            guided(low, guidance), config.eval.baseline_steps, config.seed, evaluator.draw
        )
    if made:
        student = backends.select(run.load(run.round_dir(made), device), config.backends)
        low = cast_to_precision(student, precision)
    steps = config.distill.steps_after(made) if made else config.distill.start_steps
    known = _logged(run, made, evaluator) is not None
    before = _distance(run, made, guided(low, guidance), steps, evaluator)
    if trained and not (made or known or guidance):
        _judge_teacher(run, before, min(steps, MONITOR_STEPS), evaluator)
    with closing(Kept()) as kept:
        for round_ in range(made + 1, config.distill.num_rounds + 1):
            steps, path = config.distill.steps_after(round_), run.round_dir(round_)
            if run.has(path):
                run.clear_states(round_)
                student = backends.select(run.load(path, device), config.backends)
            else:
                student = _distill_round(run, student, low, data, round_, steps, kept)
            low = _next_teacher(student, precision, kept)
            shown, name = guided(low, guidance), f"{path.name}.png"
            seen = run.has_picture(name) and _logged(run, round_, evaluator) is not None
            if drawable(shown) and not seen:
                row = sample_row(shown, min(steps, MONITOR_STEPS), config.seed, evaluator.draw)
                run.save_picture(picture(shown, [teacher_row, row]), name)
            distance = _distance(run, round_, shown, steps, evaluator)
            if distance > MONITOR_JUMP * before:
                run.screen.warn(
                    f"round {round_}: the distance jumped from {before:.3g} to {distance:.3g}; to "
                    f"repeat it with more updates, remove {path} and later rounds, and raise "
                    f"distill.round_updates for {steps} steps"
                )
            before = distance
    return student


def _next_teacher(student: Model, precision: Precision, kept: Kept) -> Model:
    """Return the student in the networks' precision, in the last teacher's memory if kept."""
    engine = kept.engine
    if engine is None or engine.model is not student or engine.objective.teacher is None:
        kept.close()
        return cast_to_precision(student, precision)
    return recast(engine.objective.teacher, student)


def _monitor(data: Dataset, config: Config, teacher: Model) -> Evaluator:
    """Return the evaluator of the quick distance after each round: pixels of few samples."""
    num, detector = min(MONITOR_IMAGES, len(data)), without_network(data)
    shares = config.eval.classes
    return Evaluator(data, num, config.seed, detector, model=teacher, shares=shares)


def _rounds_made(run: ModelRun, evaluator: Evaluator, drawn: bool) -> int:
    """Return how many rounds, counted from the first, are complete.

    `drawn` says that a complete round has a picture.
    """
    made = 0
    while made < run.config.distill.num_rounds and _logged(run, made, evaluator) is not None:
        path = run.round_dir(made + 1)
        whole = run.has(path) and (not drawn or run.has_picture(f"{path.name}.png"))
        if not whole or _logged(run, made + 1, evaluator) is None:
            break
        made += 1
    return made


def _distill_round(
    run: ModelRun,
    teacher: Model,
    low: Model,
    data: Dataset,
    round_: int,
    steps: int,
    kept: Kept,
) -> Model:
    """Run one round: the student starts as the teacher and learns to take fewer steps.

    A first fit has as many steps as the teacher. `low` is the teacher in the networks' precision.
    `kept` holds what the last round left for reuse; this round leaves its own for the next one if
    that can reuse it.
    """
    config = run.config
    cfg = config.distill.loop_of(steps)
    title = f"round {round_}/{config.distill.num_rounds} ({steps} steps)"
    objective: Objective
    keep, rate = False, "distill.lr"
    if steps == config.distill.start_steps:
        title, rate = f"{title[:-1]}, the first fit)", "distill.fit_lr"
        signal = {}
        student = first_student(run, teacher)
        guides = bool(student.guidance) and not low.guidance
        objective = Fit(low, steps, cfg.loss_weight, cfg.c_of_huber, guides=guides)
    else:
        halves = (cfg.first, cfg.second) == ("teacher", "teacher")
        signal = _signal(run, teacher, low, data, round_, steps) if halves else {}
        # A rounded copy teaches while the original learns; where nothing is rounded, a copy learns.
        student = remove_dropout(copy.deepcopy(teacher) if low is teacher else teacher)
        objective = next_round = _rollout(low, steps, cfg, config.engine, kept)
        last = round_ == config.distill.num_rounds
        keep = not last and next_round.serves_later_rounds and of_one_network(student, low)
    student.steps = steps

    def best(optimizer: Optimizer) -> Choice:
        return choose(optimizer, student, low, data, config, round_)

    give = best if cfg.ema_decays else Optimizer.average
    result = fit(student, objective, cfg, data, run, round_, title, kept, keep, give)
    average, chosen, said = cfg.ema_decay, {}, ""
    if isinstance(choice := result.choice, Choice):
        average, chosen, said = choice.chosen, choice.as_metrics(), f"{choice.text()}, "
        spent = result.evaluations + choice.evaluations
        result = dataclasses.replace(result, evaluations=spent)
    facts = {} if average == config.distill.ema_decay else {"average": average}
    # Logged before the model is saved: a run killed in between repeats the end of the round.
    run.log(round=round_, steps=steps, **result.as_metrics(), **signal, **chosen)
    path = run.round_dir(round_)
    run.save_model(student, path, round=round_, seed=config.seed, **facts)
    run.clear_states(round_)
    run.screen.say(
        f"{title}: {result.text(rate)}, {cfg.updates} updates in {result.seconds:.1f} s, "
        f"{said}saved to {path}"
    )
    return student


def _rollout(
    low: Model, steps: int, cfg: DistillConfig, engine: EngineConfig, kept: Kept
) -> Rollout:
    """Return the round's objective: the last round's, rearmed, if it and its teacher are kept."""
    last = kept.engine.objective if kept.engine else None
    if isinstance(last, Rollout) and last.teacher is low:
        last.rearm(steps, cfg.merged(steps))
        return last
    return rollout(low, steps, cfg, engine)


def of_one_network(student: Model, teacher: Model) -> bool:
    """Whether the student's weights can be written over the teacher's.

    They can if both are of pdfast's own network and of one config. A custom network may have state
    outside its tensors.
    """
    own = all(type(model.net) is UNet for model in (student, teacher))
    return own and student.net.cfg == teacher.net.cfg


def _signal(
    run: ModelRun, teacher: Model, low: Model, data: Dataset, round_: int, steps: int
) -> dict[str, float | None]:
    """Return a round's signal and rounding as metrics; warn if the rounding is larger."""
    config = run.config
    few = dataclasses.replace(
        config.distill, batch=min(MEASURED_IMAGES, config.distill.batch), accumulate=1
    )

    def by_the_first() -> list[float | None]:
        batch, source = open_batch(config, few, data, low, round_, fixed=True)
        with closing(source):
            source.load(0)
        return list(measure(teacher, low, steps, batch))

    found = Signal(*collectives.from_first(by_the_first))  # type: ignore[arg-type]  # of two
    if found.ratio < 1:
        precision = precision_of(config.precision, teacher.device)
        finer = {"bf16": "tf32 or fp32", "tf32": "fp32"}.get(precision)
        better = f", or distil the first rounds with --precision {finer}" if finer else ""
        run.screen.warn(
            f"round {round_}: the signal to learn, {found.signal:.2g} in v, is less than the "
            f"rounding of {precision} networks, {found.rounding:.2g}: start from fewer steps "
            "(--distill.start-steps)" + better
        )
    return found._asdict()


def _distance(run: ModelRun, round_: int, model: Model, steps: int, evaluator: Evaluator) -> float:
    """Return the quick distance after a round: few images, at most 16 steps, computed once."""
    found = _logged(run, round_, evaluator)
    if found is not None:
        return found
    distance, _ = evaluator.evaluate(model, min(steps, MONITOR_STEPS), poll)
    run.log(round=round_, steps=steps, distance=distance, **_sampled_as(run, evaluator))
    return distance


def _judge_teacher(run: ModelRun, distance: float, steps: int, evaluator: Evaluator) -> None:
    """Warn of a teacher that the run trained, and whose quick distance is far above the floor."""
    floor = collectives.from_first(evaluator.resampled)
    if said := far_above(distance, floor, "quick distance", steps):
        run.screen.warn(said)


def _logged(run: ModelRun, round_: int, evaluator: Evaluator) -> float | None:
    """Return a round's logged distance, if its samples had this guidance and these class shares."""
    asked = _sampled_as(run, evaluator)
    for m in reversed(run.metrics()):
        same = {key: m[key] for key in SAMPLED_AS if key in m} == asked
        if m["round"] == round_ and "distance" in m and same:
            return float(m["distance"])
    return None


def _sampled_as(run: ModelRun, evaluator: Evaluator) -> dict[str, Any]:
    """Return the metrics that describe the samples; none for no guidance and even classes."""
    weight, draw = run.config.eval.guidance, evaluator.draw
    said: dict[str, Any] = {"guidance": weight} if weight else {}
    return said | ({"class_shares": 1} if draw is not None and draw.how == "data" else {})


def load_teacher(config: Config, device: torch.device) -> Model:
    """Load the teacher that `distill.teacher` names, and check that it suits the config.

    Raises:
        UsageError: There is no such model, or it does not suit the config.
        PdfastError: The model directory is damaged.
    """
    path = Path(config.distill.teacher)
    model = checkpoint.load_model(path, device)
    check_network(config, model.cfg, path)
    check_start(model, config)
    return model


def check_network(config: Config, teacher: NetConfig, path: Path, run: Path | None = None) -> None:
    """Check that the config's students can start as the teacher, or be fitted to it.

    Args:
        config: The run's config.
        teacher: The teacher's network.
        path: The teacher's model directory, for messages.
        run: The run directory, if the teacher is in a run that was begun with another network.

    Raises:
        UsageError: They can do neither.
    """
    asked, found = (to_table(net.without_dropout()) for net in (config.model, teacher))
    same = asked == found
    if same and config.distill.fit_updates:
        raise UsageError(
            f"distill.fit_updates is for students that cannot start as their teacher, but {path} "
            "has the config's own network: leave it at 0"
        )
    guides = bool(config.model.guidance) and not teacher.guidance
    if guides and (not teacher.label_dropout or teacher.parameterization == "eps"):
        raise UsageError(
            f"the teacher {path} cannot be guided, since "
            + (
                "it predicts eps: train one of x, v or x_eps"
                if teacher.label_dropout
                else "it was always given the class: train one with model.label_dropout 0.1, "
                "import it again with --null-class"
            )
            + ", or omit model.guidance"
        )
    for key in asked:
        moved = key == "parameterization" and (found[key], asked[key]) == ("eps", "v")
        moved |= key == "guidance" and guides
        if asked[key] == found[key] or moved:
            continue
        kept = key in KEPT or (key == "guidance" and bool(teacher.guidance))
        if kept or not config.distill.fit_updates:
            raise UsageError(
                f"the teacher {path} has model.{key} {found[key]!r}, but the config asks for "
                f"{asked[key]!r}: {_other_config(path, run, fits=not kept)}"
            )


def _other_config(teacher: Path, run: Path | None, fits: bool) -> str:
    """Return what to do about a teacher that the config does not suit.

    Args:
        teacher: The teacher's model directory.
        run: The run directory, if the teacher is in a run that was begun with another network.
        fits: Whether a student of the config could be fitted to it.
    """
    if run is not None:
        return f"pass --config {run / 'config.toml'} to resume the run, or choose another --out"
    beside = Path(f"{teacher}.toml")  # where an import writes it
    fix = "pass the config that the teacher was trained with"
    if beside.is_file():
        fix = f"pass {beside}, which was made for it"
    if fits:
        fix += (
            ", or --distill.fit-updates 20000 to fit a student of the config's network to it first"
        )
    return fix


def with_fit(config: Config, teacher: NetConfig, begun: int = 0) -> Config:
    """Return the config, with a first fit if the students cannot start as the teacher.

    That is if the teacher predicts eps and the students v, or if only the students take a guidance
    weight.

    Args:
        config: The run's config.
        teacher: The teacher's network.
        begun: Updates of the first fit that the run began with; 0 for a run without one.
    """
    asked = config.model
    if teacher.parameterization == asked.parameterization and bool(teacher.guidance) == bool(
        asked.guidance
    ):
        return config
    return dataclasses.replace(config, distill=config.distill.with_fit(begun))


def first_student(run: ModelRun, teacher: Model) -> Model:
    """Return the student of a first fit, with the teacher's weights if they fit, or new ones."""
    if run.networks.student is not None:
        return run.networks.student.copy().to(teacher.device)
    student = remove_dropout(new_model(run.config, teacher.device))
    own = teacher.cfg.without_dropout()
    if (
        dataclasses.replace(
            own, parameterization=student.parameterization, guidance=student.guidance
        )
        == student.cfg
    ):
        mine = student.net.state_dict()  # the teacher may lack the guidance weight's embedding
        student.net.load_state_dict(mine | teacher.net.state_dict())
    return backends.select(student, run.config.backends)


def check_start(model: Model, config: Config) -> None:
    """Check that the teacher has the steps that the config starts from and evaluates at.

    Raises:
        UsageError: It does not.
    """
    start, most = config.distill.start_steps, model.schedule.most_steps
    if start > most:
        fits = start_for(most)
        raise UsageError(
            f"distill.start_steps {start} is more than the {most} timesteps that the teacher was "
            f"trained on: pass --distill.start-steps {fits} and at most --rounds "
            f"{halvings(fits)}"
        )
    shown = max(*config.eval.steps, config.eval.baseline_steps)
    if shown > most:
        raise UsageError(
            f"eval.steps or eval.baseline_steps {shown} is more than the {most} timesteps that the "
            f"teacher was trained on: pass --eval.baseline-steps {min(64, fits_in(most))}, and no "
            "larger --eval.steps"
        )
    if model.steps not in (0, config.distill.start_steps):
        raise UsageError(
            f"the teacher was distilled to {model.steps} steps: pass --distill.start-steps "
            f"{model.steps}, and rounds that begin there"
        )


def adopt_teacher(run: ModelRun, given: Model | None) -> None:
    """Copy a teacher that was given into the run, if the run has none.

    Args:
        run: The run.
        given: The loaded teacher, or None.

    Raises:
        UsageError: The run already has another teacher, or has rounds or saved states without
            their teacher.
    """
    named, own = run.config.distill.teacher, run.networks.teacher is not None
    path = Path(named)
    if given is not None and not run.has(run.teacher_dir):
        if run.students() or run.begun():
            leave = "" if own else "omit --teacher and "
            raise UsageError(
                f"{run.path} has rounds or saved states, but not of "
                f"{'the teacher given' if own else path}: {leave}put back {run.teacher_dir} if it "
                "was there, or choose another --out"
            )
        run.save_model(given, run.teacher_dir, source="a call" if own else named)
        return

    def differs() -> bool:
        if given is not None and own:
            return not same_weights(run.load(run.teacher_dir, given.device), given)
        if not named or not (path / files.MANIFEST).is_file():
            return False  # the run uses its own copy
        if model_dir.fingerprint(run.teacher_dir) == model_dir.fingerprint(path):
            return False
        kept, other = run.load(run.teacher_dir, torch.device("cpu")), checkpoint.load_model(path)
        # The fingerprint depends on the dtype of the weights, which may be equal all the same.
        return kept.cfg != other.cfg or not same_weights(kept, other)

    if run.has(run.teacher_dir) and collectives.from_first(differs):
        raise UsageError(f"{run.path} already has another teacher: choose another --out")


def same_weights(a: Model, b: Model) -> bool:
    """Whether two models of the same network have equal weights."""
    others = b.weights()
    return all(torch.equal(tensor, others[name]) for name, tensor in a.weights().items())


def remove_dropout(model: Model) -> Model:
    """Remove dropout from a model, in place, as distillation uses none; return the model."""
    model.remove_dropout()
    return model
