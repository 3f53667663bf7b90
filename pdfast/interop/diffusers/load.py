"""Import of diffusers' pipelines: a `UNet2DModel` with a DDPM or DDIM scheduler.

The published network (as `pdfast export` writes it) and DDPM's, with the scheduler's own betas as
the model's schedule. Layers are named by the export, read backwards.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdfast.config import formats
from pdfast.config.schema import NetConfig
from pdfast.config.serialization import from_table
from pdfast.console.progress import Screen
from pdfast.diffusion import betas
from pdfast.diffusion.samplers import MAX_STEPS
from pdfast.diffusion.schedules import logsnr_of
from pdfast.distributed.settings import kept
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers import pipeline as parts
from pdfast.interop.diffusers import unet2d
from pdfast.interop.diffusers.export import (
    arguments,
    check_expressible,
    class_rows,
    module_names,
)
from pdfast.interop.diffusers.pipeline import Pipeline
from pdfast.interop.recipe import write_config
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.storage import files

TABLE, CLASSES = "time_proj.weight", "class_embedding.weight"
OLD = re.compile(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ALPHA_BAR = 1e-6  # largest difference of two schedules that are one
NULL_SHARE = 0.1  # label_dropout of an import with a class for none: it may be left out at all
SINUSOID = 1e-3  # and of two tables of sinusoids, whose angles reach 1000 and are float32


class Imported(NamedTuple):
    """A model and what is known of it."""

    model: Model
    pipeline: Pipeline
    clips: bool
    """Whether the pipeline's own sampler clips x-hat."""
    dtypes: frozenset[torch.dtype]
    """Dtypes of the weights as they are stored."""


@kept()
def import_diffusers(
    source: str,
    out: Path,
    steps: int | None = None,
    *,
    variant: str | None = None,
    scheduler: Path | None = None,
    null_class: int | None = None,
    force: bool = False,
) -> Model:
    """Write the model directory `out` from a pipeline, or a network alone; returns the model.

    `source` is a folder, or an id on the hub; `steps` is what the model was distilled to, 0 for a
    teacher, which it is unless it is our own export of a student. `variant`: diffusers' word in the
    names of the weights. `scheduler`: of a network alone, the file or folder of its scheduler.
    `null_class`: the label by which the network is told no class. Beside `out` goes a config to
    distil it by, `out`.toml. `force`: replace both where pdfast wrote them. Raises UsageError for
    what cannot be represented, naming the file and the field, PdfastError for a damaged file.
    """
    screen = Screen()
    config = out.parent / f"{out.name}.toml"
    for path in (out, config):
        files.check_new(path, force)
    found = load_diffusers(source, steps, variant, scheduler, null_class)
    model, pipeline = found.model, found.pipeline
    averaged = unet2d.averaged_over(pipeline)
    facts = {
        "from": "diffusers",
        "source": Path(source).resolve().name if Path(source).is_dir() else source,
        **pipeline.weights.facts(),
        "pipeline": pipeline.name,
        "scheduler": pipeline.scheduler.values["_class_name"],
        **({} if averaged is None else {"averaged_over": averaged}),
    }
    checkpoint.save_model(model, out, imported=facts)
    cfg, count = model.cfg, sum(p.numel() for p in model.parameters())
    kind = f"a student of {model.steps} steps" if model.steps else "a teacher"
    times = f" of {cfg.timesteps} timesteps" if cfg.timesteps else ""
    screen.say(
        f"{source}: {kind}; predicts {cfg.parameterization}, schedule {cfg.schedule}{times}, "
        f"{count:,} parameters: {out}"
    )
    if averaged is not None:
        screen.say(f"its weights are EMAModel's averages over {averaged:,} updates")
    if found.dtypes != {torch.float32}:
        kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in found.dtypes))
        screen.say(f"its weights are {kinds} in the file, and float32 in the model")
    if null_class is not None:
        last = model.num_classes
        moved = f"; labels above {null_class} are one less here" if null_class < last else ""
        screen.say(
            f"label {null_class} is no class: the model has classes 0 .. {last - 1}, and can be "
            f"guided (--guidance){moved}"
        )
    if not found.clips:
        screen.say(
            "its own sampler does not clip (clip_sample false); pdfast's clips x-hat to [-1, 1], "
            "the range of images, unless sample(clip=False) is called from Python"
        )
    write_config(config, model, out, screen)
    return model


# ------------------------------------------------------------------------------------------
# Reading


def load_diffusers(
    source: str,
    steps: int | None = None,
    variant: str | None = None,
    scheduler: Path | None = None,
    null_class: int | None = None,
) -> Imported:
    """Read a pipeline as a Model on the CPU, in float32 and evaluation mode; see above."""
    if steps is not None and not 0 <= steps <= MAX_STEPS:
        raise UsageError(f"--steps must be in 0 .. {MAX_STEPS}, 0 for a teacher")
    pipeline = parts.read(parts.find(source, variant), variant, scheduler)
    network = unet2d.network(pipeline)
    if null_class is not None:
        network |= _without(pipeline, null_class, network["num_classes"])
    time, flipped = unet2d.embedding(pipeline)
    weights, own_steps = pipeline.weights.read(), 0
    dtypes = frozenset(tensor.dtype for tensor in weights.values())
    names: tuple[str, ...] = ()
    with _names(pipeline):
        scheduled, clips = unet2d.schedule(pipeline)
        cfg = from_table(NetConfig, network | time | scheduled, "model.")
        if pipeline.own is not None:
            own = _own(pipeline, cfg, weights.pop(TABLE, None))
            cfg, own_steps, names = own.cfg, own.steps, own.class_names
        elif not time:
            cfg = _embedded(pipeline, cfg, weights.pop(TABLE, None))
        most = betas.schedule_of(cfg).most_steps
    model = _filled(pipeline, cfg, weights, flipped, null_class)
    model.steps = own_steps if steps is None else steps
    model.class_names = names
    if model.steps > most:
        raise UsageError(f"--steps {model.steps} is more than the {most} timesteps")
    return Imported(model, pipeline, clips, dtypes)


def _without(pipeline: Pipeline, null_class: int, rows: int) -> dict[str, Any]:
    """The fields of NetConfig of a table of classes of which one row is no class."""
    if pipeline.own is not None:
        raise UsageError(
            f"{pipeline.own.file} tells which label is no class: leave --null-class out"
        )
    if not 0 <= null_class < rows or rows < 2:
        has = f"labels 0 .. {rows - 1}" if rows > 1 else "no label beside it"
        raise UsageError(
            f"--null-class {null_class}: {pipeline.unet.file} has {has if rows else 'no classes'}"
        )
    return {"num_classes": rows - 1, "label_dropout": NULL_SHARE}


@contextlib.contextmanager
def _names(pipeline: Pipeline) -> Iterator[None]:
    """What is wrong with the config that a pipeline makes, by the names of its files."""
    try:
        yield
    except UsageError as error:
        if not str(error).startswith("model."):
            raise
        raise UsageError(
            f"{pipeline.unet.file} and {pipeline.scheduler.file.name} make no config of pdfast's: "
            f"{error}"
        ) from None


def _own(pipeline: Pipeline, found: NetConfig, table: Tensor | None) -> checkpoint.Described:
    """The configuration that our export left, once the pipeline is known to be that export."""
    assert pipeline.own is not None
    file, values = pipeline.own.file, dict(pipeline.own.values)
    try:
        by = formats.written(file, values.pop("format", None), values.pop("pdfast", None))
    except ValueError as error:
        raise PdfastError(f"{file} {error}") from None
    said = checkpoint.parse_config(file, values, by)
    cfg = said.cfg
    differs = (
        f"{file} does not belong to {{}}: if the pipeline was changed since, remove {file.name}"
    )
    try:
        check_expressible(cfg)
    except UsageError:
        raise UsageError(differs.format("any pipeline of ours")) from None
    for key, value in arguments(cfg, found.timesteps).items():
        here = pipeline.unet.values.get(key, unet2d.UNET.get(key))
        if here != (list(value) if isinstance(value, tuple) else value):
            raise UsageError(differs.format(f"{pipeline.unet.file}, whose {key} is another"))
    if cfg.parameterization != found.parameterization or not _is_schedule(cfg, found):
        raise UsageError(differs.format(f"{pipeline.scheduler.file}, which is of another model"))
    if not _is_table(cfg, found, table):
        raise UsageError(differs.format(f"{pipeline.weights.file}, whose {TABLE} is another"))
    return said


def _embedded(pipeline: Pipeline, found: NetConfig, table: Tensor | None) -> NetConfig:
    """The config of a learned table, which must be what this network embeds.

    Of the cosine schedule, if the scheduler's betas are that, so that what was exported comes back.
    """
    cosine = dataclasses.replace(found, schedule="cosine", timesteps=0, betas=())
    for cfg in (cosine, found):
        if _is_schedule(cfg, found) and _is_table(cfg, found, table):
            return cfg
    raise parts.refusal(
        pipeline.unet,
        "time_embedding_type",
        "learned",
        f"and the rows of {TABLE} are not what pdfast's network is given at the scheduler's logSNR",
    )


def _is_schedule(cfg: NetConfig, found: NetConfig) -> bool:
    """Whether a config's schedule has the alpha-bar of the scheduler, whose fields `found` has."""
    exact = _angles(cfg, found).cos().square()
    return bool((betas.alpha_bar(found).double() - exact).abs().max() <= ALPHA_BAR)


def _is_table(cfg: NetConfig, found: NetConfig, table: Tensor | None) -> bool:
    """Whether a learned table has what a config's network embeds at the scheduler's timesteps."""
    if table is None or table.shape != (found.timesteps, cfg.ch):
        return False
    with torch.device("meta"):
        net = Model(cfg).net
    rows = net.embedding(logsnr_of(_angles(cfg, found)))
    return bool((table.float() - rows).abs().max() <= SINUSOID)


def _angles(cfg: NetConfig, found: NetConfig) -> Tensor:
    """A config's angles at the scheduler's timesteps."""
    u = torch.arange(1, found.timesteps + 1, dtype=torch.float64) / found.timesteps
    return betas.schedule_of(cfg).phi(u)


def _filled(
    pipeline: Pipeline,
    cfg: NetConfig,
    given: dict[str, Tensor],
    flipped: bool,
    null_class: int | None,
) -> Model:
    """The model with the file's weights, once they are known to fit.

    `null_class`: the row of the table of classes that is no class, the last if left out.
    """
    with torch.device("meta"):
        model = Model(cfg)
    weights = {}
    for name, value in given.items():
        match = OLD.fullmatch(name)
        new = f"{match[1]}.{NEW[match[2]]}.{match[3]}" if match else name
        if new in weights:
            raise PdfastError(f"{pipeline.weights.file} holds {new} twice, by its old name too")
        weights[new] = value
    shapes = {name: value.shape for name, value in _named(model)}
    if cfg.num_classes:
        shapes[CLASSES] = torch.Size((class_rows(cfg), cfg.emb_ch))
    for name in sorted(weights.keys() | shapes.keys()):
        wrong = ""
        if name not in shapes:
            wrong = "which the network has not"
        elif name not in weights:
            wrong = "which is not there"
        elif weights[name].shape != shapes[name]:
            wrong = f"of shape {tuple(weights[name].shape)}, not {tuple(shapes[name])}"
        elif not weights[name].is_floating_point() or not weights[name].float().isfinite().all():
            wrong = "which must hold finite floats"
        if wrong:
            raise PdfastError(
                f"{pipeline.weights.file} does not fit {pipeline.unet.file}: tensor {name}, {wrong}"
            )
    net = model.net
    state = {name: torch.empty_like(v, device="cpu") for name, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    with torch.no_grad():
        for name, target in _named(model):
            target.copy_(weights[name])
        if flipped:  # their cosines come first: the columns change places
            net.emb0.weight.copy_(net.emb0.weight.roll(cfg.ch // 2, 1))
        if net.emb_class is not None:
            rows = weights[CLASSES].double()
            none = rows.new_zeros(cfg.emb_ch)
            if cfg.label_dropout:
                place = cfg.num_classes if null_class is None else null_class
                none, rows = rows[place], torch.cat([rows[:place], rows[place + 1 :]])
            net.emb_class.weight.copy_((rows - none).t())
            net.emb_class.bias.copy_(none)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()


def _named(model: Model) -> Iterator[tuple[str, Tensor]]:
    """diffusers' name of every parameter, and a view of ours."""
    for name, module in module_names(model):
        for leaf, value in module.state_dict().items():
            yield f"{name}.{leaf}", value
