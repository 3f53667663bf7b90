"""Opening a run for a call: the config to use or resume with, the teacher, and the data."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from pdfast.config.names import Resume
from pdfast.config.schema import Config, NetConfig, check_own_teacher, load_config
from pdfast.config.serialization import from_table, to_table
from pdfast.console.progress import Screen
from pdfast.data import digest
from pdfast.data.classes import unused
from pdfast.data.dataset import Dataset, described, load_dataset
from pdfast.distillation import custom
from pdfast.distillation.rounds import check_network, load_teacher, with_fit
from pdfast.distributed import collectives
from pdfast.errors import UsageError
from pdfast.evaluation import same_classes
from pdfast.evaluation.evaluator import Evaluator
from pdfast.kernels import group_norm_silu, runtime
from pdfast.models import captured
from pdfast.models.checkpoint import network_of
from pdfast.models.model import Model
from pdfast.runs.run import Run
from pdfast.training.call_config import run_dir
from pdfast.training.holdout import hold_out
from pdfast.training.image_stream import place, read_by_all
from pdfast.training.loop import check
from pdfast.training.model_run import BUILT_IN, ModelRun, Networks
from pdfast.training.precision import PRECISION_NAMES, set_precision
from pdfast.version import __version__


def as_begun(config: Config, out: str | Path | None, screen: Screen, resume: Resume) -> Config:
    """Return the config, adapted to a run that an older version began; see `Run.as_begun`."""
    if resume == "never":
        return config
    return Run(run_dir(config, out), config, screen).as_begun()


def has_teacher(config: Config, out: str | Path | None) -> bool:
    """Whether the run already has its teacher, so that [train] is not used."""
    return collectives.from_first((run_dir(config, out) / "teacher").is_dir)


def teacher_for(
    config: Config, out: str | Path | None, where: torch.device
) -> tuple[Config, Model | None]:
    """Load the teacher that the config names, if the run has none, and add a first fit.

    Args:
        config: The config of the call.
        out: The run directory; None for the default.
        where: Device of the teacher.

    Returns:
        The config, with a first fit if the students need one, and the teacher or None.

    Raises:
        UsageError: The teacher does not suit the config.
    """
    given, had = None, has_teacher(config, out)
    if config.distill.teacher and not had:
        given = collectives.together(lambda: load_teacher(config, where))
    trains = given is None and not had
    if trains:
        check_own_teacher(config)
    network = given.cfg if given else _network_in(config, out)
    if trains:
        network = config.model.unguided()
    begun, other_network = collectives.from_first(lambda: _begun(config, out))
    if network is not None:
        if had:
            run = run_dir(config, out)
            check_network(config, network, run / "teacher", run if other_network else None)
        config = with_fit(config, network, begun=begun)
    elif begun:  # a damaged teacher is trained again, with the fit that the run began with
        config = dataclasses.replace(config, distill=config.distill.with_fit(begun))
    collectives.check_batch(config, "distill", *(["train"] if trains else []))
    return config, given


def _begun(config: Config, out: str | Path | None) -> tuple[int, bool]:
    """Return the updates of an existing run's first fit, and whether its network is another one.

    The number is 0 without a run or a fit.
    """
    try:
        saved = load_config(run_dir(config, out) / "config.toml")
    except UsageError:
        return 0, False
    return saved.distill.fit_updates, saved.model != config.model


def _network_in(config: Config, out: str | Path | None) -> NetConfig | None:
    """Return the network of the run's teacher, or None."""

    def found() -> dict[str, Any] | None:
        network = network_of(run_dir(config, out) / "teacher")
        return None if network is None else to_table(network)

    table = collectives.from_first(found)
    return None if table is None else from_table(NetConfig, table, "model.")


@contextlib.contextmanager
def opened_run(
    config: Config,
    out: str | Path | None,
    screen: Screen,
    resume: Resume,
    device: torch.device,
    networks: Networks = BUILT_IN,
    data: Any = None,
    given: Model | None = None,
) -> Iterator[tuple[ModelRun, Dataset]]:
    """Open the run directory for the block, locked, after reading the data.

    Nothing is written before the data are read and the settings checked.

    Args:
        config: The run's config.
        out: The run directory; None for the default.
        screen: Where progress is reported.
        resume: Whether to resume a run in the directory.
        device: Where the networks run.
        networks: Custom networks of the call, or `BUILT_IN`.
        data: The call's data, for custom networks.
        given: The teacher that the config names, loaded, if the run has none.

    Yields:
        The run, and the data on the device.

    Raises:
        UsageError: `resume`, the config, the data or the directory is not usable.
    """
    if resume not in get_args(Resume):
        raise UsageError(f"resume must be auto, strict or never, not {resume!r}")
    precision = set_precision(config.precision, device, config.deterministic)
    config = dataclasses.replace(config, precision=precision)  # "auto" is resolved
    check(config, device)
    own_network = networks.teacher

    def read() -> Dataset:
        if own_network is None:
            images = load_dataset(config.data, config.model, screen)
        else:
            images = custom.dataset(config, own_network, data, screen)
        return hold_out(images, config.data.holdout, config.seed)

    placed = place(digest.known(read_by_all(config.data.source, read)), config, device)
    Evaluator.of(
        placed, config, device
    )  # the report needs it: fail now rather than after the training
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    processes = collectives.size()
    on = f"{processes} processes, each on {device.type}" if processes > 1 else f"on {device}"
    path = run_dir(config, out)
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
        for line in same_classes.unnamed(given, placed):
            run.screen.say(line)
        for line in same_classes.missing(placed, num_classes, names):
            run.screen.warn(f"{line}, and this run does not train them")
        fix = (
            f"pass --model.num-classes {len(placed.unused)} and a new --out for a model with these "
            "classes"
        )
        if own_network is None and given is None and (said := unused(placed.unused, fix)):
            run.screen.say(said)
        with captured.permitted(config.engine.graph):
            yield run, placed
