"""Export of a model as diffusers' `UNet2DModel` and `DDIMScheduler`.

The network is the same, layer by layer. diffusers embeds whole timesteps, so the embedding becomes
a table with one row per timestep, holding this network's embedding at that time. The scheduler
holds the model's schedule as float32 products of 1 - beta. On a grid of T timesteps, diffusers
samples as pdfast does at every number of steps that divides T.

`pdfast.json`, which diffusers ignores, is the model's own configuration. With it, an import gives
back the model that was exported.
"""

import importlib
import importlib.metadata
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdfast.config.edm import EDMNetConfig
from pdfast.config.formats import FORMAT
from pdfast.config.schema import NetConfig
from pdfast.diffusion.conditioning import NO_CLASS
from pdfast.diffusion.schedules import logsnr_of
from pdfast.diffusion.timesteps import divisors
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.common import Prepared, agreed, probe
from pdfast.interop.diffusers.card import card
from pdfast.models.blocks import Attention, Downsample, ResBlock, Upsample
from pdfast.models.model import Model
from pdfast.version import __version__

MIN_GRID = 1024  # timesteps
PLAIN_BLOCKS = {  # diffusers' blocks without attention, by model.resample
    "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    "conv": ("DownBlock2D", "UpBlock2D"),
}
ALPHAS = 2**24  # 1 - beta in float32 is a multiple of 1 / ALPHAS
OWN = "pdfast.json"
PREDICTS = {"x": "sample", "eps": "epsilon", "v": "v_prediction"}


def prepare(model: Model, name: str) -> Prepared:
    """Build the pipeline and compare its network with the model.

    Args:
        model: The model, float32 on the CPU.
        name: Name of the folder to write.

    Returns:
        The export, ready to be written.

    Raises:
        UsageError: diffusers cannot express the model.
        PdfastError: diffusers' network or timesteps differ from the model's.
    """
    diffusers = importlib.import_module("diffusers")
    check_expressible(model.cfg)
    grid = grid_of(model)
    phi = angles(model, grid)
    scheduler = diffusers.DDIMScheduler(**scheduler_arguments(model, phi))
    if not scheduler.alphas_cumprod[0] < 1:  # the first timestep would divide by sigma = 0
        raise UsageError(
            f"the grid of {grid} timesteps that {model.steps} steps and model.logsnr_max "
            f"{model.cfg.logsnr_max:g} need is finer than the float32 of diffusers' schedule: "
            "export a student of fewer steps, or use --to onnx"
        )
    check_timesteps(scheduler, suggested_steps(model, grid))
    with torch.device("meta"):
        unet = diffusers.UNet2DModel(**arguments(model.cfg, grid))
    unet.load_state_dict(weights(model, phi), assign=True)
    unet.eval()
    difference = network_difference(model, unet, phi)
    error = schedule_error(scheduler.alphas_cumprod, phi)
    steps = suggested_steps(model, grid)
    text = card(model, name, steps, grid, error, difference)

    def write(folder: Path) -> None:
        diffusers.DDIMPipeline(unet, scheduler).save_pretrained(folder)
        (folder / "README.md").write_text(text, "utf-8")
        written = {"format": FORMAT, "pdfast": __version__}
        own = {**written, **model.describe()}
        (folder / OWN).write_text(json.dumps(own, indent=1, allow_nan=False) + "\n", "utf-8")

    line = f"DDIMPipeline on {grid} timesteps, its network equal to {difference:.0e}; "
    call = f"num_inference_steps={steps}, use_clipped_model_output=True"
    return Prepared(
        write,
        f"{line}sample it by the loop in its README.md, since pipe() takes no labels"
        if model.num_classes
        else f"{line}call it with {call} (README.md)",
    )


def check_expressible(cfg: NetConfig) -> None:
    """Raise UsageError, naming the field, for a network that diffusers' classes cannot express."""
    if cfg.edm != EDMNetConfig() or cfg.schedule == "edm":
        reason = (
            "model.schedule edm or model.edm: diffusers' UNet2DModel and DDIMScheduler cannot "
            "express networks of NVlabs/edm"
        )
    elif cfg.parameterization not in PREDICTS:
        reason = (
            f"model.parameterization {cfg.parameterization}: diffusers' DDIMScheduler takes x, eps "
            "or v"
        )
    elif cfg.ch_mult[0] != 1:
        reason = (
            f"model.ch_mult begins with {cfg.ch_mult[0]}: diffusers' UNet2DModel enters its first "
            "level at that level's width, so the first multiple must be 1"
        )
    elif cfg.num_heads > 1 and len(attended(cfg)) > 1:
        reason = (
            f"model.num_heads {cfg.num_heads}: diffusers' UNet2DModel has the same head width at "
            f"all levels, but here levels of {sorted(attended(cfg))} channels have attention"
        )
    else:
        return
    raise UsageError(f"{reason}; sample the model with pdfast sample, or export with --to onnx")


def attended(cfg: NetConfig) -> set[int]:
    """Return the widths with attention: of the chosen levels, and of the last, in the middle."""
    levels = [cfg.ch * mult for mult in cfg.ch_mult]
    return {w for n, w in enumerate(levels) if attends(cfg, n)} | {levels[-1]}


def attends(cfg: NetConfig, level: int) -> bool:
    """Return whether a level has attention after its residual blocks."""
    return cfg.image_size >> level in cfg.attn_resolutions


def grid_of(model: Model) -> int:
    """Return the number of timesteps T, at least 1024, that the model's own steps and 64 divide.

    T is the least common multiple of both, doubled until it is 1024 or more. At its own steps the
    model samples equally well on a shorter grid; but at numbers of steps that do not divide T, such
    as diffusers' default of 50, each step is off by up to one timestep, and a long grid keeps that
    small. A schedule by betas keeps its own timesteps where the model's steps divide them.
    """
    if model.cfg.timesteps and model.cfg.timesteps % (model.steps or 1) == 0:
        return model.cfg.timesteps
    grid = math.lcm(model.steps or 1, 64)
    while grid < MIN_GRID:
        grid *= 2
    return grid


def suggested_steps(model: Model, grid: int) -> int:
    """Return the sampling steps of the card's call: the model's own; for a teacher, at most 64."""
    return model.steps or max(n for n in divisors(grid) if n <= 64)


def check_timesteps(scheduler: Any, steps: int) -> None:
    """Raise PdfastError unless diffusers makes N = `steps` equal steps, down to T / N - 1."""
    scheduler.set_timesteps(steps)
    grid, found = scheduler.config.num_train_timesteps, scheduler.timesteps.tolist()
    if found != [grid * k // steps - 1 for k in range(steps, 0, -1)]:
        raise PdfastError(
            f"diffusers {importlib.metadata.version('diffusers')} does not make {steps} equal "
            f"steps of {grid} timesteps, and would sample the model otherwise than pdfast: sample "
            "it with pdfast sample, or export with --to onnx"
        )


def class_rows(cfg: NetConfig) -> int:
    """Return the rows of the class table: one per class, and one for no class where it is known."""
    return cfg.num_classes + bool(cfg.label_dropout)


def angles(model: Model, grid: int) -> Tensor:
    """Return the angle phi of every timestep k, at u = (k + 1) / T, as float64 (T,)."""
    return model.schedule.phi(torch.arange(1, grid + 1, dtype=torch.float64) / grid)


def compensated_betas(phi: Tensor) -> list[float]:
    """Return float32 betas whose cumulative products of 1 - beta, in float32, are cos(phi)^2.

    Each beta compensates the rounding of all betas before it, so that errors do not accumulate.
    torch.cumprod multiplies in float64 and rounds every product once.

    Args:
        phi: Angles of the timesteps, float64 (T,), in radians.
    """
    product, betas = 1.0, []
    for alpha_bar in phi.cos().square().tolist():
        nearest = min(round(alpha_bar / product * ALPHAS), ALPHAS - 1)  # no beta below 0
        products = [product * n / ALPHAS for n in (nearest - 1, nearest, nearest + 1)]
        errors = [(abs(np.float32(p) - alpha_bar), abs(p - alpha_bar)) for p in products]
        best = errors.index(min(errors))
        product = products[best]
        betas.append((ALPHAS - (nearest - 1 + best)) / ALPHAS)
    return betas


def schedule_error(alpha_bar: Tensor, phi: Tensor) -> float:
    """Return the largest error of diffusers' float32 alpha-bar (T,) against cos(phi)^2."""
    return float((alpha_bar.double() - phi.cos().square()).abs().max())


def scheduler_arguments(model: Model, phi: Tensor) -> dict[str, Any]:
    """Return the arguments of a `DDIMScheduler` with the model's schedule and sampler."""
    return {
        "num_train_timesteps": len(phi),
        "trained_betas": compensated_betas(phi),
        "prediction_type": PREDICTS[model.parameterization],
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }


def arguments(cfg: NetConfig, grid: int) -> dict[str, Any]:
    """Return the arguments of a `UNet2DModel` with the model's architecture."""
    plain = PLAIN_BLOCKS[cfg.resample]
    levels = range(len(cfg.ch_mult))
    down = ["AttnDownBlock2D" if attends(cfg, n) else plain[0] for n in levels]
    up = ["AttnUpBlock2D" if attends(cfg, n) else plain[1] for n in levels]
    head_dim = cfg.head_dim or max(attended(cfg)) // cfg.num_heads
    return {
        "sample_size": cfg.image_size,
        "in_channels": cfg.channels,
        "out_channels": cfg.out_channels,
        "time_embedding_type": "learned",
        "num_train_timesteps": grid,
        "time_embedding_dim": None if cfg.emb_ch == 4 * cfg.ch else cfg.emb_ch,
        "down_block_types": tuple(down),
        "up_block_types": tuple(reversed(up)),
        "downsample_type": cfg.resample,
        "upsample_type": cfg.resample,
        "downsample_padding": cfg.downsample_padding,
        "block_out_channels": tuple(cfg.ch * mult for mult in cfg.ch_mult),
        "layers_per_block": cfg.num_res_blocks,
        "resnet_time_scale_shift": "scale_shift" if cfg.film else "default",
        "norm_eps": cfg.norm_eps,
        "norm_num_groups": cfg.groups,
        "attn_norm_num_groups": cfg.groups,  # if omitted, the middle's attention has no norm
        "attention_head_dim": None if cfg.num_heads == 1 else head_dim,  # None: one head
        "num_class_embeds": class_rows(cfg) or None,
    }


# ------------------------------------------------------------------------------------------
# Weights


def weights(model: Model, phi: Tensor) -> dict[str, Tensor]:
    """Return the state_dict of the `UNet2DModel`, in float32."""
    net = model.net
    state = {"time_proj.weight": net.embedding(logsnr_of(phi))}
    if net.emb_class is not None:  # a dense layer of one-hot input is a table, the bias in each row
        rows = net.emb_class.weight.t() + net.emb_class.bias
        none = net.emb_class.bias[None]  # the embedding of no class
        state["class_embedding.weight"] = torch.cat([rows, none])[: class_rows(model.cfg)]
    for name, module in module_names(model):
        for leaf, value in module.state_dict().items():
            state[f"{name}.{leaf}"] = value
    return {name: value.detach().contiguous() for name, value in state.items()}


def module_names(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """Yield diffusers' name of every layer, with the model's layer."""
    net, blocks = model.net, model.cfg.num_res_blocks
    yield from (("conv_in", net.conv_in), ("conv_norm_out", net.norm_out))
    yield from (("conv_out", net.conv_out),)
    yield from (("time_embedding.linear_1", net.emb0), ("time_embedding.linear_2", net.emb1))
    for n, stage in enumerate(net.down):  # per level: `blocks` stages, and one that halves the size
        level, block = divmod(n, blocks + 1)
        yield from _stage(stage, f"down_blocks.{level}", block, "downsamplers")
    yield from _stage(net.mid[:2], "mid_block", 0, "")
    yield from _stage(net.mid[2:], "mid_block", 1, "")
    for n, stage in enumerate(net.up):
        level, block = divmod(n, blocks + 1)
        yield from _stage(stage, f"up_blocks.{level}", block, "upsamplers")


def _stage(
    stage: nn.Module, prefix: str, block: int, resampler: str
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a stage: a residual block, attention, a resampling layer."""
    for layer in stage.children():
        if isinstance(layer, Attention):
            yield from _attention(layer, f"{prefix}.attentions.{block}")
        elif isinstance(layer, ResBlock):
            resamples = layer.resample != "none"
            place = f"{resampler}.0" if resamples else f"resnets.{block}"
            names = {"norm1": layer.norm1, "conv1": layer.conv1, "time_emb_proj": layer.film}
            names |= {"norm2": layer.norm2, "conv2": layer.conv2, "conv_shortcut": layer.shortcut}
            for name, module in names.items():
                yield f"{prefix}.{place}.{name}", module
        elif isinstance(layer, Downsample | Upsample):
            yield f"{prefix}.{resampler}.0.conv", layer.conv


def _attention(layer: Attention, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    yield from ((f"{prefix}.group_norm", layer.norm), (f"{prefix}.to_out.0", layer.proj))
    parts = zip("qkv", layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
    for name, weight, bias in parts:
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        yield f"{prefix}.to_{name}", linear


@torch.no_grad()
def network_difference(model: Model, unet: Any, phi: Tensor) -> float:
    """Return the difference of the two networks' outputs at both ends of the grid and its middle.

    It is relative, and an error above the tolerance; see `agreed`.
    """
    timesteps = torch.tensor([0, len(phi) // 2, len(phi) - 1])
    inputs = probe(model, logsnr_of(phi[timesteps]))
    labels = inputs.label
    if labels is not None and model.label_dropout:
        labels = torch.cat([labels[:-1], torch.tensor([model.num_classes])])
        inputs = inputs._replace(label=torch.cat([labels[:-1], torch.tensor([NO_CLASS])]))
    theirs = unet(inputs.z, timesteps, class_labels=labels).sample
    return agreed("diffusers", theirs, model(*inputs))
