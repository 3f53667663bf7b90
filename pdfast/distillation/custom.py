"""Runs of a network of one's own: what a call of `pdfast.distill` or `pdfast.train` asks for."""

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
"""Without a config: the paper's rounds from 1024 steps, shorter ones."""


def as_network(module: nn.Module, data: Any) -> Network:
    """The module as it is meant: a Network, or one that predicts v in the data's shape."""
    if isinstance(module, Network):
        return module
    check(
        not isinstance(module, Model),
        "the model is of pdfast's own network: pass its directory as teacher",
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
            "the labels of data must be whole numbers, one to each sample",
        )
        classes = int(found.max()) + 1
    return Network(module, shape, num_classes=classes)


def as_student(module: nn.Module, teacher: Model) -> Network:
    """A student of this teacher, with which it must share all but the module itself."""
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
        check(its == needed, f"the student has {name} {its}, where {needed} is needed")
    return module


def asked_to_distill(
    config: Config, teacher: object, student: nn.Module | None, data: Any
) -> tuple[Config, Networks]:
    """What a call of `pdfast.distill` comes to."""
    if not isinstance(teacher, nn.Module):
        raise UsageError(
            "student and data go with a network of your own as teacher: pass "
            "teacher=pdfast.Network(module, shape=...)"
        )
    check(
        not config.distill.teacher,
        "teacher is a network, and the config names another, distill.teacher: leave that away",
    )
    network, fit = as_network(teacher, data), config.distill.fit_updates
    if student is None and network.parameterization != "eps":
        check(
            not fit,
            "distill.fit_updates is for students that cannot start as their teacher: leave it 0, "
            "or pass student",
        )
        networks = Networks(network, network)
    else:  # where eps is predicted, the teacher's own weights may begin to learn v
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
    """What a call of `pdfast.train` comes to."""
    if network is None:
        raise UsageError("data goes with a network of your own: pass network")
    mine = as_network(network, data)
    check(
        isinstance(mine.schedule, CosineSchedule),
        "a network is trained in continuous time on the cosine schedule: give it no other one",
    )
    mine.check_levels(0.0)
    return settled(config, data), mine


def tried(networks: Networks, device: torch.device, learns: bool = False) -> Networks:
    """Copies on the device, each tried out."""
    assert networks.teacher is not None
    teacher, same = networks.teacher.copy().to(device), networks.teacher is networks.student
    try_out(teacher, learns or same)
    if same or networks.student is None:
        return Networks(teacher, teacher)
    student = networks.student.copy().to(device)
    try_out(student, learns=True)
    return Networks(teacher, student)


def settled(config: Config, data: Any) -> Config:
    """The config as it holds for such a network; UsageError for what it would pass over.

    `data` are those of the call, or None.
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
            f"{name} is for pdfast's own network: leave it away, and let your module do so itself",
        )
    if data is not None:
        check(
            not config.data.horizontal_flip,
            "data.horizontal_flip is for pictures that pdfast reads: with data=, leave it off",
        )
        given = DataConfig(source=fingerprint(data), holdout=config.data.holdout)
        config = dataclasses.replace(config, data=given)
    precision = "fp32" if config.precision == "auto" else config.precision
    return dataclasses.replace(config, precision=precision)


def fingerprint(data: Any) -> str:
    """What config.toml says of a call's data, so that no run goes on with others."""
    digest = hashlib.sha256()
    for part in data if isinstance(data, tuple) else (data,):
        tensor = as_tensor("data", part).detach().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return f"{GIVEN}{digest.hexdigest()}"


def dataset(config: Config, network: Model, data: Any, screen: Screen | None = None) -> Dataset:
    """The call's data, or, for images, the config's, all within the network's clip."""
    found = _dataset(config, network, data, screen)
    if network.clip is not None:
        _check_clip(found, *network.clip)
    return found


def _check_clip(data: Dataset, low: float, high: float) -> None:
    """Raise UsageError for data that samplers would cut."""
    least, most = float(data.images.min()), float(data.images.max())
    if not data.images.is_floating_point():
        least, most = least / 127.5 - 1, most / 127.5 - 1  # as pictures are learned
    slack = 1e-5 * (high - low)
    check(
        low - slack <= least and most <= high + slack,
        f"the data go from {least:.4g} to {most:.4g}, outside the network's clip ({low:g}, "
        f"{high:g}), at which samples are cut: scale them into it (x / 127.5 - 1, of pictures of "
        "0 .. 255 and clip (-1, 1)), or pass another clip, or None",
    )


def _dataset(config: Config, network: Model, data: Any, screen: Screen | None) -> Dataset:
    if data is not None:
        return from_numbers(data, network.shape, network.image_shape, network.num_classes)
    channels, height, width = network.image_shape
    if len(network.shape) != 3 or channels not in (1, 3) or height != width:
        raise UsageError(
            f"samples of shape {network.shape} are no pictures that pdfast reads: pass data=, a "
            f"tensor (M, {', '.join(map(str, network.shape))})"
        )
    # What readers ask of [model]; the rest is of a network that is not made.
    pictures = NetConfig(
        image_size=height,
        channels=channels,
        num_classes=network.num_classes,
        ch_mult=(1,),
        attn_resolutions=(),
    )
    return load_dataset(config.data, pictures, screen)


def refuse_run(path: Path) -> None:
    """Raise UsageError if `path` is a run of a network of one's own, which no command can make."""
    models = (file.parent for file in path.glob(f"*/{CONFIG}"))
    if any(map(checkpoint.is_own, models)) or _source(path).startswith(GIVEN):
        raise UsageError(
            f"{path} is a run of a network of your own, which only your code can make: the call of "
            "pdfast.distill that made it writes its report again"
        )


def _source(path: Path) -> str:
    """The data.source of a run's config; "" where that cannot be read."""
    try:
        return load_config(path / "config.toml").data.source
    except UsageError:
        return ""
