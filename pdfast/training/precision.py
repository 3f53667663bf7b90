"""The precision of the networks.

Under "bf16" the convolutions and linear layers compute in bfloat16. Their master weights and
moments stay in float32, and so do the norms' parameters and statistics, the embedding of time and
class, and everything outside the networks: z_t, target, loss. "tf32" lets the same products, of
float32, round their factors to TF32's 10 bits; "fp32" does not.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pdfast.config.names import Precision
from pdfast.distributed import settings
from pdfast.errors import UsageError
from pdfast.models.model import Model

PRECISION_NAMES = {"bf16": "bfloat16", "tf32": "TF32", "fp32": "float32"}


def precision_of(name: str, device: torch.device) -> Precision:
    """Return the precision that a config's name means on a device.

    Raises:
        UsageError: tf32 on a CPU.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise UsageError("precision tf32 needs a GPU: use fp32 (or bf16) on a CPU")
    return name  # type: ignore[return-value]  # the schema checked it


def set_precision(name: str, device: torch.device, deterministic: bool = False) -> Precision:
    """Make torch compute in a config's precision from now on; return what the name means here.

    The changed settings hold for the whole process; see `settings.kept`.

    Args:
        name: The config's name of the precision.
        device: Device of the networks.
        deterministic: Whether to use the same algorithms in every run, even if slower.

    Raises:
        UsageError: tf32 on a CPU.
    """
    precision = precision_of(name, device)
    if device.type == "cuda":
        settings.allow_tf32(precision == "tf32")
    settings.be_exact_on_cpu()
    settings.set_algorithms(deterministic)
    return precision


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products exactly inside the block."""
    with settings.kept_precision():
        settings.allow_tf32(False)
        yield


def rounds_to_tf32(model: Model) -> bool:
    """Return whether a model's products may be rounded to TF32 at present."""
    return model.device.type == "cuda" and settings.tf32_is_allowed()


def net_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of convolutions and linear layers."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cast_to_precision(model: Model, precision: Precision) -> Model:
    """Return a copy that computes in this precision, for evaluation; or the model if it does."""
    dtype = net_dtype(precision)
    if dtype == torch.float32 or model.dtype == torch.float64:
        return model
    model = copy.deepcopy(model)
    for p in low_parameters(model).values():
        p.data = p.data.to(dtype)
    return model


@torch.no_grad()
def recast(low: Model, model: Model) -> Model:
    """Write a model into `low`, which `cast_to_precision` made from an earlier one, and return it.

    The tensors of `low` stay in place, in their dtypes. Both models are of the same network, which
    is pdfast's own.
    """
    low.cfg, low.steps, low.class_names = model.cfg, model.steps, model.class_names
    low.train(model.training)
    new = model.net.state_dict()
    for name, tensor in low.net.state_dict().items():
        tensor.copy_(new[name])
    return low


def low_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Return the parameters of the network that bf16 rounds, by name."""
    kept = {id(p) for module in model.net.precise() for p in module.parameters()}
    return {name: p for name, p in model.net.named_parameters() if id(p) not in kept}
