"""Runs of a custom network: the arguments of `pdfast.distill` and `pdfast.train`, checked."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdfast.config.schema import Config, DataConfig, DistillConfig, NetConfig, load_config
from pdfast.config.serialization import check
from pdfast.console.progress import Screen
from pdfast.data.dataset import Dataset, load_dataset
from pdfast.diffusion.schedules import CosineSchedule
from pdfast.distillation.given_data import as_tensor, from_numbers
from pdfast.distillation.rounds import check_start
from pdfast.errors import UsageError
from pdfast.models import checkpoint
from pdfast.models.custom import Network
from pdfast.models.model import Model
from pdfast.models.trial import try_out
from pdfast.storage.digests import GIVEN
from pdfast.storage.model_dir import CONFIG
from pdfast.training.model_run import Networks

DEFAULT = Config(
    name="network",
    distill=DistillConfig(start_steps=1024, rounds=8, updates=10_000),
)
"""The config of a call that passes none: the paper's rounds, but shorter and from 1024 steps."""


def as_network(module: nn.Module, data: Any) -> Network:
    """Return the module as a Network: itself, or one that predicts v in the data's shape.

    Args:
        module: A `Network`, or any module.
        data: The call's samples (M, *shape), or (samples, labels), or None.

    Raises:
        UsageError: The module is a model of pdfast's own network, or the data do not give the
            shape or the number of classes.
    """
    if isinstance(module, Network):
        return module
    check(
        not isinstance(module, Model),
        "the model is one of pdfast's own network: pass the path of its directory, such as "
        "teacher='runs/digits/teacher', and pictures as data='FOLDER'",
    )
    samples, labels = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    shape = tuple(getattr(samples, "shape", ()))[1:]
    check(
        bool(shape),
        "the shape of a sample is not known: pass pdfast.Network(module, shape=...), or data=, a "
        "tensor (M, *shape)",
    )
    classes = 0
    if labels is not None:
        found = as_tensor("the labels of data", labels)
        check(
            found.numel() > 0 and not found.is_floating_point(),
            "the labels of data must be whole numbers, one for each sample",
        )
        classes = int(found.max()) + 1
    return Network(module, shape, num_classes=classes)


def as_student(module: nn.Module, teacher: Model) -> Network:
    """Return the module as a student of this teacher.

    Everything except the module itself must be as the teacher's; from a teacher that predicts eps,
    the student predicts v.

    Raises:
        UsageError: The module is a Network that differs, or a model of pdfast's own network.
    """
    parameterization = "v" if teacher.parameterization == "eps" else teacher.parameterization
    check(
        isinstance(module, Network) or not isinstance(module, Model),
        "student is a model of pdfast's own network: give its [model] in the config instead",
    )
    if not isinstance(module, Network):
        module = Network(
            module,
            teacher.shape,
            parameterization=parameterization,
            schedule=teacher.schedule,
            num_classes=teacher.num_classes,
            clip=teacher.clip,
            class_names=teacher.class_names,
        )
    pairs = {
        "shape": (module.shape, teacher.shape),
        "parameterization": (module.parameterization, parameterization),
        "num_classes": (module.num_classes, teacher.num_classes),
        "schedule": (module.schedule.describe(), teacher.schedule.describe()),
        "clip": (module.clip, teacher.clip),
        "dtype": (module.dtype, teacher.dtype),
    }
    for name, (its, needed) in pairs.items():
        check(
            its == needed,
            f"the student has {name} {its}, but must have {needed}, as the teacher's students do",
        )
    return module


def asked_to_distill(
    config: Config, teacher: object, student: nn.Module | None, data: Any
) -> tuple[Config, Networks]:
    """Return the config and the networks of a call of `pdfast.distill`.

    Args:
        config: The config that was passed, or `DEFAULT`.
        teacher: The network to distill.
        student: The network to fit and distill into; None to start from the teacher.
        data: The call's samples, or (samples, labels), or None for the config's data.

    Raises:
        UsageError: An argument is wrong, or conflicts with the config.
    """
    if not isinstance(teacher, nn.Module):
        raise UsageError(
            "a student, and samples as data, need a custom network as teacher: pass "
            "teacher=pdfast.Network(module, shape=...); for a teacher of pdfast's own network, "
            "data is the path of pictures"
        )
    check(
        not config.distill.teacher,
        "teacher is a network, but the config names another in distill.teacher: omit that",
    )
    network, fit = as_network(teacher, data), config.distill.fit_updates
    if student is None and network.parameterization != "eps":
        check(
            not fit,
            "distill.fit_updates is for students that cannot start as their teacher: leave it at "
            "0, or pass student",
        )
        networks = Networks(network, network)
    else:  # a student of a teacher of eps may start from its weights, and learns v
        module = network.net if student is None else student
        networks = Networks(network, as_student(module, network))
        config = dataclasses.replace(config, distill=config.distill.with_fit())
    config = settled(config, data)
    check_start(network, config)
    start = config.distill.start_steps
    network.check_steps(max(start, *config.eval.steps, config.eval.baseline_steps))
    if networks.student is not None:
        networks.student.check_steps(start)
    return config, networks


def asked_to_train(config: Config, network: nn.Module | None, data: Any) -> tuple[Config, Network]:
    """Return the config and the network of a call of `pdfast.train`.

    Args:
        config: The config that was passed, or `DEFAULT`.
        network: The network to train.
        data: The call's samples, or (samples, labels), or None for the config's data.

    Raises:
        UsageError: An argument is wrong, or conflicts with the config.
    """
    if network is None:
        raise UsageError(
            "samples as data need a custom network: pass network, or, for pdfast's own network, "
            "the path of pictures as data"
        )
    mine = as_network(network, data)
    check(
        isinstance(mine.schedule, CosineSchedule),
        "a network is trained in continuous time on the cosine schedule: give it no other schedule",
    )
    mine.check_levels(0.0)
    return settled(config, data), mine


def tried(networks: Networks, device: torch.device, learns: bool = False) -> Networks:
    """Copy the networks to the device and try each out.

    Args:
        networks: The networks of a call, with a teacher.
        device: Where the copies go.
        learns: Whether the teacher is trained, so that its gradients are tried too.

    Raises:
        UsageError: A network fails; see `try_out`.
    """
    assert networks.teacher is not None
    teacher, same = networks.teacher.copy().to(device), networks.teacher is networks.student
    try_out(teacher, learns or same)
    if same or networks.student is None:
        return Networks(teacher, teacher)
    student = networks.student.copy().to(device)
    try_out(student, learns=True)
    return Networks(teacher, student)


def settled(config: Config, data: Any) -> Config:
    """Return the config with the data and precision of a custom network's run.

    Args:
        config: The config of the call.
        data: The call's samples, or (samples, labels), or None for the config's data.

    Raises:
        UsageError: The config sets an option that custom networks or the call's data ignore.
    """
    loop = config.distill
    refused = {
        "precision bf16": config.precision == "bf16",
        "distill.checkpoint": loop.checkpoint,
        "train.checkpoint": config.train.checkpoint,
        "engine.tabulate_film": config.engine.tabulate_film,
        "backends.group_norm apex": config.backends.group_norm != "pdfast",
        "backends.attention xformers": config.backends.attention != "torch",
    }
    for name, asked in refused.items():
        check(
            not asked,
            f"{name} is for pdfast's own network: omit it, and let your module do so itself",
        )
    if data is not None:
        check(
            not config.data.horizontal_flip,
            "data.horizontal_flip is for pictures that pdfast reads: with data=, turn it off",
        )
        given = DataConfig(source=fingerprint(data), holdout=config.data.holdout)
        config = dataclasses.replace(config, data=given)
    precision = "fp32" if config.precision == "auto" else config.precision
    return dataclasses.replace(config, precision=precision)


def fingerprint(data: Any) -> str:
    """Return the data.source that config.toml records for a call's data.

    It has the SHA-256 of the values, so that a run cannot be resumed with other data.
    """
    digest = hashlib.sha256()
    for part in data if isinstance(data, tuple) else (data,):
        tensor = as_tensor("data", part).detach().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return f"{GIVEN}{digest.hexdigest()}"


def dataset(config: Config, network: Model, data: Any, screen: Screen | None = None) -> Dataset:
    """Return the data of the call, or, for pictures, of the config.

    Args:
        config: The run's config.
        network: The network that learns the data.
        data: The call's samples, or (samples, labels), or None for the config's data.
        screen: Where reading reports its progress.

    Raises:
        UsageError: The data do not fit the network, or leave its clip.
    """
    found = _dataset(config, network, data, screen)
    if network.clip is not None:
        _check_clip(found, *network.clip)
    return found


def _check_clip(data: Dataset, low: float, high: float) -> None:
    """Raise UsageError for data outside the interval that samplers clip to."""
    least, most = float(data.images.min()), float(data.images.max())
    if not data.images.is_floating_point():
        least, most = least / 127.5 - 1, most / 127.5 - 1  # pictures are learned in this range
    slack = 1e-5 * (high - low)
    check(
        low - slack <= least and most <= high + slack,
        f"the data range from {least:.4g} to {most:.4g}, but the network's samples are clipped to "
        f"({low:g}, {high:g}): scale the data into that interval (for pictures of 0 .. 255 and "
        "clip (-1, 1): x / 127.5 - 1), or pass a wider clip, or clip=None",
    )


def _dataset(config: Config, network: Model, data: Any, screen: Screen | None) -> Dataset:
    if data is not None:
        return from_numbers(data, network.shape, network.image_shape, network.num_classes)
    channels, height, width = network.image_shape
    if len(network.shape) != 3 or channels not in (1, 3) or height != width:
        raise UsageError(
            f"samples of shape {network.shape} are not pictures that pdfast reads: pass data=, a "
            f"tensor (M, {', '.join(map(str, network.shape))})"
        )
    # Readers use only the shape and classes of [model]; no network is made of the rest.
    pictures = NetConfig(
        image_size=height,
        channels=channels,
        num_classes=network.num_classes,
        ch_mult=(1,),
        attn_resolutions=(),
    )
    return load_dataset(config.data, pictures, screen)


def refuse_run(path: Path) -> None:
    """Raise UsageError if `path` is a run of a custom network, which no command can create."""
    models = (file.parent for file in path.glob(f"*/{CONFIG}"))
    if any(map(checkpoint.is_own, models)) or _source(path).startswith(GIVEN):
        raise UsageError(
            f"{path} is a run of a custom network, which only your code can create: the call of "
            "pdfast.distill that made the run writes its report again"
        )


def _source(path: Path) -> str:
    """Return the data.source of a run's config, or "" if that cannot be read."""
    try:
        return load_config(path / "config.toml").data.source
    except UsageError:
        return ""
