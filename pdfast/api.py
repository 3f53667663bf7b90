"""The Python interface: `pdfast.train`, `pdfast.distill` and `pdfast.evaluate`.

Each does what the command of its name does. In the main thread, a call handles signals while it
runs: SIGINT (Ctrl-C) saves the state and raises KeyboardInterrupt; SIGTERM, SIGUSR1 and SIGHUP save
the state and raise `Stopped`. The caller's signal handlers are restored when the call ends. In any
thread, `stop`, a function without arguments that is polled at every update and every sampling step,
ends the call as SIGTERM does when it returns true.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdfast import trackers
from pdfast.config.names import Resume
from pdfast.config.schema import Config, check_distillable, check_trainable
from pdfast.console.progress import Screen
from pdfast.distillation import custom
from pdfast.distillation.opening import as_begun, has_teacher, opened_run, teacher_for
from pdfast.distillation.rounds import adopt_teacher, distill_rounds
from pdfast.distillation.teacher import train_teacher
from pdfast.distributed import collectives
from pdfast.distributed.settings import kept
from pdfast.distributed.signals import caught, poll
from pdfast.evaluation.evaluate import evaluate_path
from pdfast.evaluation.report.write import report_run
from pdfast.launch import TIMEOUT
from pdfast.models import backends
from pdfast.models.model import Model
from pdfast.runs.run import Run
from pdfast.trackers.tracking import Tracking
from pdfast.training.call_config import absolute_config, changed_config
from pdfast.training.model_run import BUILT_IN, Networks


@contextlib.contextmanager
def _call(
    device: str, threads: int, stop: Callable[[], object] | None, timeout: float
) -> Iterator[torch.device]:
    """Enter the context that every call runs in, and yield the device.

    On exit, signal handlers and torch's global settings are the caller's again.
    """
    with caught(stop), kept(), collectives.session(device, threads, poll, timeout) as where:
        yield where


def train(
    config: Config | str | Path | None = None,
    *,
    network: nn.Module | None = None,
    data: Any = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
    resume: Resume = "auto",
    track: Sequence[str] = (),
    stop: Callable[[], object] | None = None,
    timeout: float = TIMEOUT,
) -> Model:
    """Train a teacher in continuous time and report its Frechet distances.

    The same call resumes a run that was interrupted. Ctrl-C saves the state and raises
    KeyboardInterrupt; SIGTERM, SIGUSR1 and SIGHUP save it and raise `pdfast.Stopped`. A second
    Ctrl-C ends the call at once. The caller's signal handlers are restored afterwards.

    Example:
        ```python
        teacher = pdfast.train("digits", out="runs/digits")
        images = teacher.sample(16, steps=64)  # (16, 1, 8, 8) in [-1, 1]
        ```

    Args:
        config: A `Config`, the name of a config that comes with pdfast, or the path of a TOML file.
            By default "digits"; with `network`, pdfast's defaults for custom networks.
        network: A custom network to train: a `pdfast.Network`, or an `nn.Module` that predicts v in
            the shape of `data`. It must be on the cosine schedule. A copy of it is trained; the
            module itself is not changed. The config's [model] is then ignored.
        data: The path of images, which replaces the config's `data.source`; or, for `network`,
            samples: a tensor or array (M, *shape) of floats, M at least 2, of about the scale of
            the noise (pictures: -1 to 1); or a tuple (samples, labels) with whole numbers (M,). By
            default images are read as the config says.
        out: The run directory; by default `runs/<name of the config>`.
        device: "auto" (the first GPU, else the CPU; under torchrun, each process's own GPU), "cpu"
            or "cuda:k".
        threads: Number of CPU threads; 0 keeps torch's choice.
        quiet: Print warnings only, on stderr.
        resume: How to treat a run that `out` already holds. "auto" continues it: a damaged student
            or state is set aside and made again from what was before it, and a damaged teacher is
            refused; "strict" refuses any damage; "never" refuses the run.
        track: Trackers that follow the run: "tensorboard", "wandb". Each needs the extra of its
            name.
        stop: A function without arguments that is polled at every update and every sampling step.
            When it returns true, the state is saved and `pdfast.Stopped` is raised. It is the only
            way to stop a call outside the main thread.
        timeout: Seconds, 1 to 10^6. In a run of several processes, a process that does not answer
            for so long ends the run; see `pdfast/distributed/heartbeat.py`.

    Returns:
        The trained teacher, also saved as the model directory `teacher` in the run directory.

    Raises:
        UsageError: An argument or a config field is wrong, or `out` holds another run.
        PdfastError: A file, the machine or another process failed. The message names the fix.
        Stopped: A signal or `stop` ended the run, whose state is saved.
        KeyboardInterrupt: Ctrl-C ended the run, whose state is saved.
    """
    changes, data = _named(data)
    if network is not None or data is not None:
        settings, given = custom.asked_to_train(_custom_config(config, changes), network, data)
    else:
        settings, given = _own_config(config, changes), None
    trackers.check(track)
    with _call(device, threads, stop, timeout) as where:
        screen = Screen(quiet)
        settings = as_begun(settings, out, screen, resume)
        backends.check(settings, where)
        if not has_teacher(settings, out):
            check_trainable(settings)
            collectives.check_batch(settings, "train")
        networks = Networks(given)
        if given is not None:
            networks = collectives.together(lambda: custom.tried(networks, where, learns=True))
        opened = opened_run(settings, out, screen, resume, where, networks, data, given=given)
        with opened as (run, images):
            _track(run, track)
            if given is None and settings.model.guidance:
                run.screen.say(
                    "model.guidance is for students: the teacher, which is guided by its "
                    "predictions with the class and without, is trained without such an input"
                )
            model = train_teacher(run, images, where)
            if given is None or not run.students():  # which only the call that made them can load
                report_run(run, images, settings.eval.steps, where)
    return model


def distill(
    config: Config | str | Path | None = None,
    *,
    teacher: str | Path | nn.Module | None = None,
    student: nn.Module | None = None,
    data: Any = None,
    rounds: int | str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
    resume: Resume = "auto",
    track: Sequence[str] = (),
    stop: Callable[[], object] | None = None,
    timeout: float = TIMEOUT,
) -> Model:
    """Distil a teacher into a student of few sampling steps, round by round.

    Progressive distillation (Salimans & Ho 2022, Algorithm 2): in each round a student learns to
    make one sampling step where its teacher makes two, and is the teacher of the next round.

    Finished rounds are kept. The same call resumes an interrupted run, and a call with more
    `rounds` continues a finished one. Signals are handled as in `pdfast.train`.

    Example:
        ```python
        student = pdfast.distill("digits", rounds=11)  # trains the teacher first: 8192 -> 4 steps
        images = student.sample(16, steps=4)  # (16, 1, 8, 8) in [-1, 1]
        ```

        An imported teacher, distilled on pictures:

        ```python
        student = pdfast.distill("ddpm.toml", teacher="ddpm", data="cifar10.npz")
        ```

        A custom network, distilled on tensors:

        ```python
        teacher = pdfast.Network(module, shape=(1, 64))
        student = pdfast.distill(teacher=teacher, data=signals, rounds=8)  # 1024 -> 4 steps
        ```

    Args:
        config: A `Config`, the name of a config that comes with pdfast, or the path of a TOML file.
            By default "digits"; with a custom network, 8 rounds from 1024 steps.
        teacher: The teacher of the first round: the path of a model directory (not a loaded
            model), a `pdfast.Network`, or an `nn.Module` that predicts v in the shape of `data`. By
            default it is the teacher in the run directory or, if that has no teacher yet, the
            config's own, which is trained first. With a custom network, the config's [model] and
            [train] are ignored, and the module is not changed.
        student: A network of another architecture, for a custom `teacher`: a `pdfast.Network` or an
            `nn.Module`. An additional first round fits it to the teacher (`distill.fit_updates`).
            By default the student starts as a copy of the teacher.
        data: The path of images, which replaces the config's `data.source`; or, for a custom
            network, samples, as in `pdfast.train`. By default images are read as the config says.
        rounds: The config's `distill.rounds`: the number of halvings, or the steps of each round's
            student, such as "64,16,4,1".
        out: The run directory; by default `runs/<name of the config>`.
        device: As in `pdfast.train`.
        threads: As in `pdfast.train`.
        quiet: As in `pdfast.train`.
        resume: As in `pdfast.train`.
        track: As in `pdfast.train`.
        stop: As in `pdfast.train`.
        timeout: As in `pdfast.train`.

    Returns:
        The student of the last round. The run directory has every round's as a model directory.

    Raises:
        UsageError: An argument or a config field is wrong, or `out` holds another run.
        PdfastError: A file, the machine or another process failed. The message names the fix.
        Stopped: A signal or `stop` ended the run, whose state is saved.
        KeyboardInterrupt: Ctrl-C ended the run, whose state is saved.
    """
    changes, data = _named(data)
    loop: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if isinstance(teacher, nn.Module) or student is not None or data is not None:
        settings = _custom_config(config, changes | {"distill": loop})
        settings, networks = custom.asked_to_distill(settings, teacher, student, data)
    else:
        loop |= {} if teacher is None else {"teacher": str(teacher)}
        settings = _own_config(config, changes | {"distill": loop})
        check_distillable(settings)
        networks = BUILT_IN
    trackers.check(track)
    with _call(device, threads, stop, timeout) as where:
        screen = Screen(quiet)
        settings = as_begun(settings, out, screen, resume)
        backends.check(settings, where)
        if networks.teacher is None:
            settings, given = teacher_for(settings, out, where)
        else:
            networks = collectives.together(lambda: custom.tried(networks, where))
            given = networks.teacher
            collectives.check_batch(settings, "distill")
        opened = opened_run(settings, out, screen, resume, where, networks, data, given=given)
        with opened as (run, images):
            _track(run, track)
            adopt_teacher(run, given)
            made = distill_rounds(run, images, where)
            report_run(run, images, settings.eval.steps, where)
    return made


def _track(run: Run, names: Sequence[str]) -> None:
    if names:
        run.track(lambda: Tracking(run.path, names, run.screen))


def _named(data: Any) -> tuple[dict[str, Any], Any]:
    """Return the changes of the config by a call's `data`, and its samples or None."""
    if isinstance(data, str | Path):
        return {"data": {"source": str(data)}}, None
    return {}, data


def _own_config(config: Config | str | Path | None, changes: dict[str, Any]) -> Config:
    """Return the config of a run of pdfast's own network."""
    return absolute_config(changed_config("digits" if config is None else config, changes))


def _custom_config(config: Config | str | Path | None, changes: dict[str, Any]) -> Config:
    """Return the config of a run of a custom network."""
    return absolute_config(changed_config(custom.DEFAULT if config is None else config, changes))


def evaluate(
    model: str | Path,
    *,
    config: Config | str | Path | None = None,
    data: str | Path | None = None,
    steps: tuple[int, ...] | None = None,
    num: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
    precision: str | None = None,
    detector: str | None = None,
    classes: str | None = None,
    guidance: float | None = None,
    other_data: bool = False,
    stop: Callable[[], object] | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Measure the Frechet distance of a model, or of every model of a run.

    Of a run directory, report.json, report.md, report.png and report.html are written anew, unless
    nothing that they depend on has changed. The numbers of a single model go to `out`.

    An interrupted evaluation keeps its samples in eval-state/ in the folder that it writes to, and
    the same call resumes it. Measured distances stay there and are not measured twice. Signals are
    handled as in `pdfast.train`.

    Example:
        ```python
        pdfast.evaluate("runs/digits")  # writes the run's report anew
        pdfast.evaluate("runs/digits/teacher", steps=(4, 64), num=1000)
        pdfast.evaluate("ddpm", data="cifar10.npz", steps=(64,))  # a model outside a run
        ```

    Args:
        model: A model directory or a run directory.
        config: The config with the data and the settings: a `Config`, a name or the path of a TOML
            file. By default it is the config of the run directory, or, for a model outside a run
            directory whose `data` are given, pdfast's defaults.
        data: The path of the images to compare with; it replaces the config's `data.source`. A
            model outside a run directory needs `data` or `config`.
        steps: Sampling steps to measure at. This argument and `num`, `precision`, `detector`,
            `classes` and `guidance` replace the config's values.
        num: Number of samples per distance; 0 for as many as the data set has images.
        out: Folder for the numbers of a single model; by default eval-<name of the model> beside
            it. Not for a run directory.
        device: As in `pdfast.train`.
        threads: As in `pdfast.train`.
        quiet: As in `pdfast.train`.
        precision: "auto", "bf16", "tf32" or "fp32", for the convolutions and linear layers.
        detector: What the distance compares: "pixel", "inception", "inception:PATH" or "lite0"; see
            `eval.detector`.
        classes: How a class-conditional model's samples are spread over the classes: "data" (in the
            proportions of the data set) or "even".
        guidance: Weight w of classifier-free guidance; 0 for none.
        other_data: Allow data other than the run was begun with, or data whose classes have other
            names than the model's; otherwise both are refused.
        stop: As in `pdfast.train`, polled at every sampling step.
        timeout: As in `pdfast.train`.

    Raises:
        UsageError: An argument or a config field is wrong, `model` is neither a model nor a run
            directory, or the data are not those of the run.
        PdfastError: A file, the machine or another process failed. The message names the fix.
        Stopped: A signal or `stop` ended the evaluation.
        KeyboardInterrupt: Ctrl-C ended the evaluation.
    """
    judged: dict[str, Any] = {"steps": steps} if steps else {}
    judged |= {"num": num} if num is not None else {}
    judged |= {"detector": detector} if detector is not None else {}
    judged |= {"classes": classes} if classes is not None else {}
    judged |= {"guidance": guidance} if guidance is not None else {}
    asked: dict[str, Any] = {"eval": judged}
    asked |= {"data": {"source": str(data)}} if data is not None else {}
    asked |= {"precision": precision} if precision else {}
    with _call(device, threads, stop, timeout) as where:
        collectives.together(lambda: custom.refuse_run(Path(model).resolve()))
        evaluate_path(model, config, asked, out, where, Screen(quiet), other_data)
