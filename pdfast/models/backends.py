"""Other libraries' kernels in place of pdfast's own, if installed and chosen under [backends].

They are NVIDIA's apex (contrib.group_norm and FusedAdam's kernel; the `apex` of the package index
is another project) and xformers' attention. They are optional, as a baseline for comparisons:
pdfast's own ops do more in one pass.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pdfast.config.schema import BackendsConfig, Config
from pdfast.errors import UsageError
from pdfast.kernels.adamw import AdamWHyperparameters, count_skipped, newest_share
from pdfast.models.blocks import Attention, GroupNormSiLU
from pdfast.models.model import Model

APEX_GROUPS = (16, 32)
APEX_CHANNELS = {128, 256, 320, 448, 512, 640, 768, 896, 960, 1024, 1280, 1344, 1536, 1792, 1920}
APEX_CHANNELS |= {2048, 2240, 2560, 2688, 3072, 3136, 3584, 4096}
APEX_ONE_PASS = 1024  # most pixels for which its one-pass kernel is meant, on sm_80 and up


def find(name: str) -> Any:
    """Import a module of another library; return None if it is not fully installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError, RuntimeError):  # the other `apex` raises any of these
        return None


def apex_group_norm() -> Any:
    """Return apex.contrib.group_norm, or None if it or its CUDA extension is not installed."""
    return find("apex.contrib.group_norm.group_norm") if find("group_norm_cuda") else None


def why_not(name: str) -> str:
    """Return which package a backend lacks here.

    Args:
        name: "group_norm", "optimizer" or "attention".

    Returns:
        A clause on what is not installed, or "" if the backend can be used.
    """
    if name == "group_norm" and apex_group_norm() is None:
        return "NVIDIA's apex with its group_norm extension (APEX_GROUP_NORM=1) is not installed"
    if name == "optimizer" and find("amp_C") is None:
        return "NVIDIA's apex with its CUDA extension (APEX_CUDA_EXT=1) is not installed"
    if name == "attention" and find("xformers.ops") is None:
        return "xformers is not installed"
    return ""


def check(config: Config, device: torch.device) -> None:
    """Raise UsageError if the config chooses a backend that cannot be used on the device."""
    for name, own in (("group_norm", "pdfast"), ("optimizer", "pdfast"), ("attention", "torch")):
        chosen = getattr(config.backends, name)
        if chosen == own:
            continue
        reason = why_not(name) or ("" if device.type == "cuda" else f"{chosen} needs a GPU")
        widths = config.model.norm_widths() - APEX_CHANNELS
        groups = {config.model.groups_of(width) for width in config.model.norm_widths()}
        if name == "group_norm" and not reason and not groups <= set(APEX_GROUPS):
            reason = f"apex normalises in {APEX_GROUPS[0]} or {APEX_GROUPS[1]} groups"
        if name == "group_norm" and not reason and widths:
            reason = f"apex has no kernel for {min(widths)} channels"
        if reason:
            raise UsageError(f"backends.{name} {chosen}: {reason}; leave backends.{name} at {own}")


def select(model: Model, chosen: BackendsConfig) -> Model:
    """Switch a model's norms and attention to the chosen backends, in place; return the model."""
    for module in model.modules():
        if isinstance(module, GroupNormSiLU) and chosen.group_norm == "apex":
            module.op = apex_group_norm_silu
        if isinstance(module, Attention) and chosen.attention == "xformers":
            module.attend = xformers_attention
    return model


def apex_group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """Compute `group_norm_silu` with apex, which fuses the norm and SiLU.

    FiLM lies between the two: with it, FiLM and SiLU are computed by PyTorch.

    Args:
        x: Feature map (B, C, H, W).
        weight: Scale of the norm (C,).
        bias: Shift of the norm (C,).
        film: FiLM's scale and shift (B, 2C), or None.
        groups: Number of groups, one that apex has.
        eps: Added to the variance.
        silu: Whether SiLU follows.

    Returns:
        The result (B, C, H, W), channels-last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    passes = 1 if x.shape[2] * x.shape[3] <= APEX_ONE_PASS else 2
    act = "silu" if silu and film is None else ""
    norm = apex_group_norm().group_norm_nhwc_fprop
    h: Tensor = norm(x, groups, weight, bias, eps, act, passes)[0]
    if film is None:
        return h
    scale, shift = film[:, :, None, None].chunk(2, dim=1)
    h = torch.addcmul(shift, h, 1 + scale)
    return F.silu(h) if silu else h


def xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute scaled_dot_product_attention with xformers.

    Args:
        q: Queries (B, heads, tokens, width).
        k: Keys, of the same shape.
        v: Values, of the same shape.

    Returns:
        Attended values, of the same shape.
    """
    attend = find("xformers.ops").memory_efficient_attention
    out: Tensor = attend(*(t.transpose(1, 2).contiguous() for t in (q, k, v)))
    return out.transpose(1, 2)


def apex_adamw(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ema: Tensor | None,
    copy: Tensor | None,
    lr: Tensor,
    step: Tensor,
    loss: Tensor,
    skipped: Tensor,
    hyperparameters: AdamWHyperparameters,
    earlier: Tensor | None = None,
) -> Tensor:
    """Compute `adamw` with FusedAdam's kernel on the flat buffers, and the rest in PyTorch.

    Arguments and result are those of `adamw`, but clipping scales `grads` in place. The kernel is
    the "capturable" one, which reads its hyperparameters on the device, so that it can be part of a
    CUDA graph.
    """
    h = hyperparameters
    norm: Tensor = torch.linalg.vector_norm(grads)
    made = count_skipped(norm, loss, skipped, h.max_skipped)
    if h.max_norm:
        grads.mul_((h.max_norm / (norm + 1e-6)).clamp(max=1.0))
    apply = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
    overflow = (~made).int().reshape(1)  # where 1, the kernel returns at once
    count = step - skipped[0]
    lists = [[grads], [params], [exp_avg], [exp_avg_sq]]
    adam = importlib.import_module("amp_C").multi_tensor_adam_capturable
    decoupled, corrected, inverse_scale = 1, 1, params.new_ones(1)
    steps = (count if earlier is None else count + earlier).int()
    rates = (lr.float(), h.beta1, h.beta2, h.eps, steps, decoupled, corrected, h.weight_decay)
    apply(adam, overflow, lists, *rates, inverse_scale)
    if ema is not None:
        for average, decay in zip(ema, h.ema_decays, strict=True):
            new = newest_share(count.double(), decay, h.ema_warmup).to(ema.dtype).reshape(())
            torch.where(made, average.lerp(params, new), average, out=average)
    if copy is not None:
        torch.where(made, params.to(copy.dtype), copy, out=copy)
    return norm
