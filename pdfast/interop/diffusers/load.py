"""Import of diffusers' pipelines: a `UNet2DModel` with a DDPM or DDIM scheduler.

The network may be the published one (as `pdfast export` writes it) or DDPM's. The scheduler's betas
become the model's schedule. The names of the layers come from the export's table.
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
ALPHA_BAR = 1e-6  # largest difference of alpha-bar between equal schedules
NULL_SHARE = 0.1  # label_dropout of an import with a label for no class; the true one is not known
SINUSOID = 1e-3  # largest difference of equal tables of sinusoids, whose float32 angles reach 1000


class Imported(NamedTuple):
    """An imported model, with what its files say about it."""

    model: Model
    pipeline: Pipeline
    clips: bool
    """Whether the pipeline's own sampler clips x-hat."""
    dtypes: frozenset[torch.dtype]
    """Dtypes of the stored weights."""


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
    quiet: bool = False,
) -> Model:
    """Import a diffusers pipeline, or a network alone, as a model directory.

    A config to distil the model with is written beside it, as `out`.toml.

    Args:
        source: A folder, or an id on the hub.
        out: The model directory to write.
        steps: Sampling steps that the model was distilled to; 0 for a teacher. By default 0, or the
            model's own where pdfast exported it.
        variant: diffusers' variant of the weights' files, such as "fp16".
        scheduler: For a network alone, its scheduler_config.json or the folder that holds it.
        null_class: Label that stands for no class, where the network was trained with one.
        force: Replace `out` and `out`.toml if pdfast wrote them and nothing was changed since.
        quiet: Print nothing.

    Returns:
        The model, on the CPU, in float32 and evaluation mode.

    Raises:
        UsageError: An argument is wrong, or pdfast cannot represent the model; the message names
            the file and the field.
        PdfastError: A file is damaged, or the download failed.
    """
    screen = Screen(quiet)
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
    classes = f"{_classes(model.num_classes)}, " if model.num_classes else ""
    screen.say(
        f"{source}: {kind}; predicts {cfg.parameterization}, schedule {cfg.schedule}{times}, "
        f"{classes}{count:,} parameters: {out}"
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
    elif model.num_classes and pipeline.own is None:
        screen.say(
            f"if one of its {model.num_classes} labels means 'no class', import it again with "
            "--null-class LABEL, so that it can be guided (--guidance)"
        )
    if not found.clips:
        screen.say(
            "its own sampler does not clip (clip_sample false); pdfast's clips x-hat to [-1, 1], "
            "the range of images, unless sample(clip=False) is called from Python"
        )
    write_config(config, model, out, screen)
    return model


def _classes(number: int) -> str:
    return f"{number} class{'es' * (number > 1)}"


# ------------------------------------------------------------------------------------------
# Reading


def load_diffusers(
    source: str,
    steps: int | None = None,
    variant: str | None = None,
    scheduler: Path | None = None,
    null_class: int | None = None,
) -> Imported:
    """Read a pipeline as a Model on the CPU, in float32 and evaluation mode.

    Args and errors are those of `import_diffusers`.
    """
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
    """Return the fields of NetConfig for a class table with one row for no class."""
    if pipeline.own is not None:
        raise UsageError(f"{pipeline.own.file} says which label is no class: omit --null-class")
    if not 0 <= null_class < rows or rows < 2:
        has = f"labels 0 .. {rows - 1}" if rows > 1 else "no label beside it"
        raise UsageError(
            f"--null-class {null_class}: {pipeline.unet.file} has {has if rows else 'no classes'}: "
            f"{'pass one of these, or ' if rows > 1 else ''}omit --null-class"
        )
    return {"num_classes": rows - 1, "label_dropout": NULL_SHARE}


@contextlib.contextmanager
def _names(pipeline: Pipeline) -> Iterator[None]:
    """Name the pipeline's files in a `UsageError` about the config made of them."""
    try:
        yield
    except UsageError as error:
        if not str(error).startswith("model."):
            raise
        raise UsageError(
            f"{pipeline.unet.file} and {pipeline.scheduler.file.name} describe a network that "
            f"pdfast cannot represent: {error}"
        ) from None


def _own(pipeline: Pipeline, found: NetConfig, table: Tensor | None) -> checkpoint.Described:
    """Return the configuration in pdfast.json, once the pipeline is known to match it."""
    assert pipeline.own is not None
    file, values = pipeline.own.file, dict(pipeline.own.values)
    try:
        by = formats.written(file, values.pop("format", None), values.pop("pdfast", None))
    except ValueError as error:
        raise PdfastError(f"{file} {error}") from None
    said = checkpoint.parse_config(file, values, by)
    cfg = said.cfg
    differs = (
        f"{file} does not describe {{}}: if the pipeline was changed after its export, remove "
        f"{file.name}"
    )
    try:
        check_expressible(cfg)
    except UsageError:
        raise UsageError(differs.format("any pipeline that pdfast exports")) from None
    for key, value in arguments(cfg, found.timesteps).items():
        here = pipeline.unet.values.get(key, unet2d.UNET.get(key))
        if here != (list(value) if isinstance(value, tuple) else value):
            raise UsageError(differs.format(f"{pipeline.unet.file}, which has another {key}"))
    if cfg.parameterization != found.parameterization or not _is_schedule(cfg, found):
        raise UsageError(
            differs.format(
                f"{pipeline.scheduler.file}, which has another schedule or prediction type"
            )
        )
    if not _is_table(cfg, found, table):
        raise UsageError(differs.format(f"{pipeline.weights.file}, which has another {TABLE}"))
    return said


def _embedded(pipeline: Pipeline, found: NetConfig, table: Tensor | None) -> NetConfig:
    """Return the config of a learned table, which must be this network's own embedding.

    The schedule is the cosine schedule if the scheduler's betas match it, so that an export is
    imported as it was.
    """
    cosine = dataclasses.replace(found, schedule="cosine", timesteps=0, betas=())
    for cfg in (cosine, found):
        if _is_schedule(cfg, found) and _is_table(cfg, found, table):
            return cfg
    raise parts.refusal(
        pipeline.unet,
        "time_embedding_type",
        "learned",
        f"and the rows of {TABLE} are not pdfast's embedding of the scheduler's logSNR",
    )


def _is_schedule(cfg: NetConfig, found: NetConfig) -> bool:
    """Return whether a config's schedule has the alpha-bar of the scheduler's fields, `found`."""
    exact = _angles(cfg, found).cos().square()
    return bool((betas.alpha_bar(found).double() - exact).abs().max() <= ALPHA_BAR)


def _is_table(cfg: NetConfig, found: NetConfig, table: Tensor | None) -> bool:
    """Return whether a learned table is a config's embedding at the scheduler's timesteps."""
    if table is None or table.shape != (found.timesteps, cfg.ch):
        return False
    with torch.device("meta"):
        net = Model(cfg).net
    rows = net.embedding(logsnr_of(_angles(cfg, found)))
    return bool((table.float() - rows).abs().max() <= SINUSOID)


def _angles(cfg: NetConfig, found: NetConfig) -> Tensor:
    """Return a config's angles at the scheduler's timesteps, float64 (T,)."""
    u = torch.arange(1, found.timesteps + 1, dtype=torch.float64) / found.timesteps
    return betas.schedule_of(cfg).phi(u)


def _filled(
    pipeline: Pipeline,
    cfg: NetConfig,
    given: dict[str, Tensor],
    flipped: bool,
    null_class: int | None,
) -> Model:
    """Return the model with the file's weights, once they are known to fit.

    Args:
        pipeline: The pipeline.
        cfg: The network's config.
        given: The file's tensors by name.
        flipped: Whether cosines come first in the file's time embedding.
        null_class: Row of the class table that stands for no class; by default the last.
    """
    with torch.device("meta"):
        model = Model(cfg)
    weights = {}
    for name, value in given.items():
        match = OLD.fullmatch(name)
        new = f"{match[1]}.{NEW[match[2]]}.{match[3]}" if match else name
        if new in weights:
            raise PdfastError(
                f"{pipeline.weights.file} holds {new} twice, by its old name too: save the "
                "pipeline with the present diffusers"
            )
        weights[new] = value
    shapes = {name: value.shape for name, value in _named(model)}
    if cfg.num_classes:
        shapes[CLASSES] = torch.Size((class_rows(cfg), cfg.emb_ch))
    for name in sorted(weights.keys() | shapes.keys()):
        wrong = ""
        if name not in shapes:
            wrong = "which the network does not have"
        elif name not in weights:
            wrong = "which is missing"
        elif weights[name].shape != shapes[name]:
            wrong = f"of shape {tuple(weights[name].shape)}, not {tuple(shapes[name])}"
        elif not weights[name].is_floating_point() or not weights[name].float().isfinite().all():
            wrong = "which must hold finite floats"
        if wrong:
            raise PdfastError(
                f"{pipeline.weights.file} does not fit {pipeline.unet.file}: tensor {name}, "
                f"{wrong}; put a whole copy of the folder in its place"
            )
    net = model.net
    state = {name: torch.empty_like(v, device="cpu") for name, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    with torch.no_grad():
        for name, target in _named(model):
            target.copy_(weights[name])
        if flipped:  # cosines come first there, sines here: swap the halves of the columns
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
    """Yield diffusers' name of every parameter, with the model's own tensor."""
    for name, module in module_names(model):
        for leaf, value in module.state_dict().items():
            yield f"{name}.{leaf}", value
