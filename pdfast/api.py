"""The Python interface: `pdfast.train`, `pdfast.distill`, `pdfast.evaluate`, as the commands.

Ctrl-C in one of them, from the main thread, saves the state and raises KeyboardInterrupt, SIGTERM
does and raises `Stopped`; the caller's handlers are back when the call ends, however it does. In
any thread `stop`, a function without arguments that is asked at every update and every sampling
step, does the same as SIGTERM by returning true.
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
    """What every call works in; gives the device. Signals and settings are the caller's after."""
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
    """Train a teacher, or go on with one, and report its distances. Returns it.

    `config` is a Config, the name of one that comes with pdfast ("digits" if left out), or a TOML
    file; `out` is the run directory, runs/<name> by default. `resume` says what becomes of a run
    that is there; see `Run.start`. `track` names trackers, "tensorboard" and "wandb", that show the
    run as it goes. Of several processes one that does not answer within `timeout` seconds ends the
    others; see distributed/heartbeat.py. Raises PdfastError with a sentence that names the fix.

    Ctrl-C saves the state and raises KeyboardInterrupt; SIGTERM, SIGUSR1 and SIGHUP raise
    `pdfast.Stopped`, and so does `stop`, asked at every update, when it returns true: the only way
    to stop a call in another thread than the main one. The same call goes on from there. A second
    Ctrl-C is not waited for. The handlers are the caller's again after the call.

    `network` is one's own, a `Network` or its module, and `data` its samples, a tensor (M, *shape)
    or (samples, labels); a copy of it learns, on the cosine schedule.
    """
    if network is not None or data is not None:
        settings, given = custom.asked_to_train(_custom_config(config, {}), network, data)
    else:
        settings, given = absolute_config("digits" if config is None else config), None
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
    """Distil a teacher by progressive distillation (Salimans & Ho 2022). Returns the last student.

    Without `teacher`, a model directory, the config's own is trained first, or taken from the run
    directory `out`. Finished rounds are kept: the same call resumes, and more `rounds` go on.
    Arguments, signals and errors otherwise as in `train`.

    `teacher` may be a network of one's own, a `Network` or its module, and `student` one of another
    architecture, which is first fitted to it (`distill.fit_updates`); `data` are samples, a tensor
    (M, *shape) or (samples, labels), without which images are read as the config says. The
    config's [model] and [train] then say nothing; without a config there are 8 rounds from 1024
    steps. The modules given are not changed.
    """
    changes: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if isinstance(teacher, nn.Module) or student is not None or data is not None:
        settings = _custom_config(config, {"distill": changes})
        settings, networks = custom.asked_to_distill(settings, teacher, student, data)
    else:
        changes |= {} if teacher is None else {"teacher": str(teacher)}
        settings = absolute_config(
            changed_config("digits" if config is None else config, {"distill": changes})
        )
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


def _custom_config(config: Config | str | Path | None, changes: dict[str, Any]) -> Config:
    """The config of a run of one's own network."""
    return absolute_config(changed_config(custom.DEFAULT if config is None else config, changes))


def evaluate(
    model: str | Path,
    *,
    config: Config | str | Path | None = None,
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
    """Measure the Frechet distance of a model directory, or of a whole run directory.

    A run directory gets its report.json, report.md, report.png and report.html written again,
    unless all that they depend on is as it was. A model's numbers go to `out` (eval-<model> beside
    it); its data come from `config`, or from the run directory that the model lies in. `steps`,
    `num`, `precision`, `detector`, `classes` and `guidance` replace the config's. `other_data`: a
    run, or a model in one, is meant to be compared with data other than it was begun with, or of
    classes of other names, which is refused otherwise. `timeout` as in `train`.
    A killed evaluation leaves its samples in eval-state/, and the same call goes on from there;
    figures stay there, and are not measured twice.
    Ctrl-C, other signals and `stop`, asked at every sampling step, end it as they end `train`.
    """
    judged: dict[str, Any] = {"steps": steps} if steps else {}
    judged |= {"num": num} if num is not None else {}
    judged |= {"detector": detector} if detector is not None else {}
    judged |= {"classes": classes} if classes is not None else {}
    judged |= {"guidance": guidance} if guidance is not None else {}
    asked: dict[str, Any] = {"eval": judged}
    asked |= {"precision": precision} if precision else {}
    with _call(device, threads, stop, timeout) as where:
        collectives.together(lambda: custom.refuse_run(Path(model).resolve()))
        evaluate_path(model, config, asked, out, where, Screen(quiet), other_data)
