"""The Python interface: `pdfast.train`, `pdfast.distill`, `pdfast.evaluate`, as the commands.

Ctrl-C in one of them, from the main thread, saves the state and raises KeyboardInterrupt, SIGTERM
does and raises `Stopped`; the caller's handlers are back when the call ends, however it does. In
any thread `stop`, a function without arguments that is asked at every update and every sampling
step, does the same as SIGTERM by returning true.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from pdfast import trackers
from pdfast.config import detectors
from pdfast.config.schema import (
    Config,
    NetConfig,
    check_distillable,
    check_own_teacher,
    check_trainable,
    load_config,
)
from pdfast.config.serialization import from_table, to_table
from pdfast.console.progress import Screen
from pdfast.data import digest, readers
from pdfast.data.dataset import Dataset, described, load_dataset
from pdfast.distillation import custom
from pdfast.distillation.rounds import (
    adopt_teacher,
    check_network,
    distill_rounds,
    load_teacher,
    with_fit,
)
from pdfast.distillation.teacher import train_teacher
from pdfast.distributed import collectives
from pdfast.distributed.settings import kept
from pdfast.distributed.signals import caught, poll
from pdfast.errors import UsageError
from pdfast.evaluation import same_classes
from pdfast.evaluation.evaluator import Judge
from pdfast.evaluation.provenance import averaging
from pdfast.evaluation.report.write import check_out, report_model, report_run
from pdfast.kernels import group_norm_silu, runtime
from pdfast.launch import TIMEOUT
from pdfast.models import backends
from pdfast.models.checkpoint import class_names_of, load_model, network_of
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.runs import record
from pdfast.runs.record import Record
from pdfast.runs.run import Resume, Run
from pdfast.storage.digests import Digest
from pdfast.storage.files import cannot_write
from pdfast.trackers.tracking import Tracking
from pdfast.training.holdout import hold_out
from pdfast.training.image_stream import is_streamed
from pdfast.training.loop import check
from pdfast.training.model_run import BUILT_IN, ModelRun, Networks
from pdfast.training.precision import PRECISION_NAMES, cast_to_precision, set_precision
from pdfast.version import __version__


def _loaded(config: Config | str | Path, changes: dict[str, Any] | None = None) -> Config:
    """A Config with some values replaced, as TOML has them, and of the types that it must have."""
    table = to_table(config if isinstance(config, Config) else load_config(config))
    for key, value in (changes or {}).items():
        table[key] = table[key] | value if isinstance(value, dict) else value
    return from_table(Config, table)


def _config(config: Config | str | Path) -> Config:
    """A Config of the right types whose data and teacher are found from any folder."""
    loaded = _loaded(config)
    data, distill = loaded.data, loaded.distill
    data = dataclasses.replace(data, source=readers.absolute(data.source))
    judged = dataclasses.replace(loaded.eval, detector=detectors.absolute(loaded.eval.detector))
    if distill.teacher:
        distill = dataclasses.replace(distill, teacher=str(Path(distill.teacher).absolute()))
    return dataclasses.replace(loaded, data=data, distill=distill, eval=judged)


@contextlib.contextmanager
def _call(
    device: str, threads: int, stop: Callable[[], object] | None, timeout: float
) -> Iterator[torch.device]:
    """What every call works in; gives the device. Signals and settings are the caller's after."""
    with caught(stop), kept(), collectives.session(device, threads, poll, timeout) as where:
        yield where


@contextlib.contextmanager
def _opened(
    config: Config,
    out: str | Path | None,
    screen: Screen,
    resume: Resume,
    device: torch.device,
    track: Sequence[str],
    networks: Networks = BUILT_IN,
    data: Any = None,
    given: Model | None = None,
) -> Iterator[tuple[ModelRun, Dataset]]:
    """The run directory, ours for the block, and the data, read before anything is written.

    `data` come with the call, for networks of one's own. `given` is the teacher from elsewhere.
    """
    if resume not in get_args(Resume):
        raise UsageError(f"resume must be auto, strict or never, not {resume!r}")
    trackers.check(track)
    precision = set_precision(config.precision, device, config.deterministic)
    config = dataclasses.replace(config, precision=precision)  # what "auto" means here
    check(config, device)
    own_network = networks.teacher

    def read() -> Dataset:
        if own_network is None:
            images = load_dataset(config.data, config.model, screen)
        else:
            images = custom.dataset(config, own_network, data, screen)
        return hold_out(images, config.data.holdout, config.seed)

    placed = _place(digest.known(_read(config.data.source, read)), config, device)
    Judge.of(placed, config, device)  # which the report will need, refused before anything is made
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    processes = collectives.size()
    on = f"{processes} processes, each on {device.type}" if processes > 1 else f"on {device}"
    path = _path(config, out)
    names = same_classes.check_run(path, given, config.distill.teacher, placed)
    made = ModelRun(path, config, screen, placed.digest, networks, placed.names)
    with made.start(resume) as run:
        run.screen.say(
            f"pdfast {__version__}: {run.path} {on}{threads}, networks in "
            f"{PRECISION_NAMES[precision]}, PyTorch {torch.__version__}; "
            f"group_norm_silu: {group_norm_silu.implementation(device)}; "
            f"other ops: {runtime.implementation(device)}"
        )
        if own_network is None:
            run.screen.say(f"data: {described(placed, config.data)}")
        num_classes = config.model.num_classes if own_network is None else own_network.num_classes
        for line in same_classes.described(placed, num_classes, names):
            run.screen.say(line)
        if track:
            run.track(lambda: Tracking(run.path, track, screen))
        yield run, placed


def _read(source: str, function: Callable[[], Dataset]) -> Dataset:
    """Read the set by `function` on all processes; the first alone prepares pictures."""

    def prepare() -> None:
        function()

    several = collectives.size() > 1  # which from_first hides from what it calls
    if several and collectives.from_first(lambda: readers.resizes(source)):
        collectives.from_first(prepare)
    return collectives.together(function)


def _place(data: Dataset, config: Config, device: torch.device) -> Dataset:
    """The set on the device, or left in host memory to be streamed; see EngineConfig.data."""
    shape, labels = tuple(data.images.shape), "no labels" if data.labels is None else "labels"
    collectives.check_alike("data of", f"shape {shape}, {data.images.dtype}, {labels}")
    streamed = is_streamed(config.engine.data, data.images.nbytes, device)
    return data if streamed else data.to(device)


def _as_begun(config: Config, out: str | Path | None, screen: Screen, resume: Resume) -> Config:
    """The config, as it holds for a run that an older version began; see `Run.as_begun`."""
    if resume == "never":
        return config
    return Run(_path(config, out), config, screen).as_begun()


def _path(config: Config, out: str | Path | None) -> Path:
    """The run directory."""
    if not isinstance(out, str | Path | None) or out == "" or "\0" in str(out):
        raise UsageError(f"out {out!r} is no path: name a folder, or leave it away")
    return Path(out) if out is not None else Path("runs") / config.name


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
        settings, given = custom.asked_to_train(_own_config(config, {}), network, data)
    else:
        settings, given = _config("digits" if config is None else config), None
    with _call(device, threads, stop, timeout) as where:
        screen = Screen(quiet)
        settings = _as_begun(settings, out, screen, resume)
        backends.check(settings, where)
        if not _has_teacher(settings, out):
            check_trainable(settings)
            collectives.check_batch(settings, "train")
        networks = Networks(given)
        if given is not None:
            networks = collectives.together(lambda: custom.tried(networks, where, learns=True))
        opened = _opened(settings, out, screen, resume, where, track, networks, data, given=given)
        with opened as (run, images):
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
    rounds: int | None = None,
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
        settings = _own_config(config, {"distill": changes})
        settings, networks = custom.asked_to_distill(settings, teacher, student, data)
    else:
        changes |= {} if teacher is None else {"teacher": str(teacher)}
        settings = _config(_loaded("digits" if config is None else config, {"distill": changes}))
        check_distillable(settings)
        networks = BUILT_IN
    with _call(device, threads, stop, timeout) as where:
        screen = Screen(quiet)
        settings = _as_begun(settings, out, screen, resume)
        backends.check(settings, where)
        if networks.teacher is None:
            settings, given = _teacher_for(settings, out, where)
        else:
            networks = collectives.together(lambda: custom.tried(networks, where))
            given = networks.teacher
            collectives.check_batch(settings, "distill")
        opened = _opened(settings, out, screen, resume, where, track, networks, data, given=given)
        with opened as (run, images):
            adopt_teacher(run, given)
            made = distill_rounds(run, images, where)
            report_run(run, images, settings.eval.steps, where)
    return made


def _own_config(config: Config | str | Path | None, changes: dict[str, Any]) -> Config:
    """The config of a run of one's own network."""
    return _config(_loaded(custom.DEFAULT if config is None else config, changes))


def _teacher_for(
    config: Config, out: str | Path | None, where: torch.device
) -> tuple[Config, Model | None]:
    """The teacher from elsewhere, if there is one to be taken, and the config with its fit."""
    given, had = None, _has_teacher(config, out)
    if config.distill.teacher and not had:
        given = collectives.together(lambda: load_teacher(config, where))
    trains = given is None and not had
    if trains:
        check_own_teacher(config)
    network = given.cfg if given else _network_in(config, out)
    if trains:
        network = config.model.unguided()
    begun = collectives.from_first(lambda: _fit_of(config, out))
    if network is not None:
        if had:
            check_network(config, network, _path(config, out) / "teacher")
        config = with_fit(config, network, begun=begun)
    elif begun:  # a damaged teacher is made again, and the run is what it was
        config = dataclasses.replace(config, distill=config.distill.with_fit(begun))
    collectives.check_batch(config, "distill", *(["train"] if trains else []))
    return config, given


def _has_teacher(config: Config, out: str | Path | None) -> bool:
    """Whether the run has its teacher already, so that [train] is not used."""
    return collectives.from_first((_path(config, out) / "teacher").is_dir)


def _fit_of(config: Config, out: str | Path | None) -> int:
    """The updates of the first fit of the run that is there; 0 if there is none."""
    try:
        return load_config(_path(config, out) / "config.toml").distill.fit_updates
    except UsageError:
        return 0


def _network_in(config: Config, out: str | Path | None) -> NetConfig | None:
    """The network of the run's teacher, if it has one."""

    def found() -> dict[str, Any] | None:
        network = network_of(_path(config, out) / "teacher")
        return None if network is None else to_table(network)

    table = collectives.from_first(found)
    return None if table is None else from_table(NetConfig, table, "model.")


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
        _evaluate(model, config, asked, out, where, Screen(quiet), other_data)


def _evaluate(
    model: str | Path,
    config: Config | str | Path | None,
    asked: dict[str, Any],
    out: str | Path | None,
    where: torch.device,
    screen: Screen,
    other_data: bool,
) -> None:
    path = Path(model).resolve()
    is_dir, is_run, lies_in_run = collectives.from_first(
        lambda: [
            path.is_dir(),
            (path / "config.toml").is_file(),
            (path.parent / "config.toml").is_file(),
        ]
    )
    if not is_dir:
        raise UsageError(f"there is no model or run directory {model}")
    if config is None and not (is_run or lies_in_run):
        raise UsageError(
            f"{model} lies in no run directory: name the data to compare with, by --config"
        )
    collectives.together(lambda: custom.refuse_run(path))
    begun, resolved = collectives.together(lambda: _asked_of(path, is_run, config, asked))
    found = set_precision(resolved.precision, where, resolved.deterministic)
    source = resolved.data.source

    def placed(read: Dataset) -> Dataset:
        """The set on the device, once it is known to be the one that is meant."""
        data = digest.known(read)
        if begun is not None and not other_data:
            collectives.from_first(lambda: _check_data(path, begun, data.digest, screen))
        return _place(data, resolved, where)

    def classes_checked(data: Dataset, names: tuple[str, ...], num_classes: int) -> None:
        same_classes.check_judged(path, names, data, other_data, screen)
        for line in same_classes.missing(data, num_classes, names):
            screen.say(line)

    if is_run:
        if out is not None:
            raise UsageError(f"{model} is a run, whose report goes into it: leave --out away")
        data = placed(_read(source, lambda: load_dataset(resolved.data, resolved.model, screen)))
        names = tuple(collectives.from_first(lambda: list(class_names_of(path / "teacher"))))
        classes_checked(data, names, resolved.model.num_classes)
        with ModelRun(path, resolved, screen).open() as run:
            report_run(run, data, resolved.eval.steps, where)
        return
    loaded = cast_to_precision(collectives.together(lambda: load_model(path, where)), found)
    loaded = guided(loaded, resolved.eval.guidance)
    data = placed(_read(source, lambda: _seen_by(loaded, resolved, screen)))
    classes_checked(data, loaded.class_names, loaded.num_classes)
    judge = Judge.of(data, resolved, where, screen, loaded)
    folder = path.parent / f"eval-{path.name}" if out is None else _path(resolved, out)
    collectives.from_first(lambda: check_out(folder))
    collectives.from_first(lambda: _make(folder))
    inside = lies_in_run and config is None
    weights = "not known"
    if inside:
        weights = collectives.from_first(lambda: averaging(path, resolved, bool(loaded.steps)))
    report_model(path.name, loaded, Run(folder, resolved, screen), judge, {"model": weights})


def _asked_of(
    path: Path, is_run: bool, config: Config | str | Path | None, asked: dict[str, Any]
) -> tuple[Record | None, Config]:
    """What is known of the run whose data are to be compared with, if there is one; the config."""
    saved, begun = None, None
    if is_run:
        saved, begun = record.read(path / "config.toml")
    elif config is None:
        saved, begun = record.find(path.parent / "config.toml")
    named = saved if config is None else config
    assert named is not None
    return begun, _config(_loaded(named, asked))


def _check_data(path: Path, begun: Record, data: Digest, screen: Screen) -> None:
    """Raise UsageError if the data are not those that the run was begun with."""
    if not begun.data.known:
        screen.warn(
            f"{path} is of a run that pdfast {begun.begun_by} began, which kept no digest of the "
            "data: whether these are the same cannot be checked"
        )
    elif begun.data.differ(data):
        raise UsageError(
            f"{path} is of a run of other data ({begun.data}) than these ({data}): put those of "
            "the run back, or pass --other-data (in Python other_data=True) if these are meant"
        )


def _seen_by(model: Model, config: Config, screen: Screen) -> Dataset:
    """The data as a model sees them, with labels if it has classes and they are there."""
    if model.num_classes:
        try:
            return load_dataset(config.data, model.cfg, screen)
        except UsageError as error:
            screen.say(f"no distances by class: {error}")
    return load_dataset(config.data, dataclasses.replace(model.cfg, num_classes=0), screen)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
