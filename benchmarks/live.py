"""Live numbers: networks whose weights and gradients are not zero when they are timed.

The published network begins with zeros in its last layers: those of every residual block, of
attention and of the whole network. Its output, its loss and nearly all its gradients are then zero
too, and a GPU multiplies zeros faster than data, since they take less power.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

STD = 0.02
LEAST = 1e-6  # relative to the norm of the largest gradient

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def enliven(model: M, seed: int = 0) -> M:
    """Draw every parameter that is all zero from N(0, STD^2), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if not p.any():
            p.copy_(STD * torch.randn(p.shape, generator=generator))
    return model


def check(gradients: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with their names, if some parameters have next to no gradient.

    Every parameter counts. One gradient is zero by mathematics, that of attention's key bias, which
    shifts all scores of a query alike; but it is only a third of `qkv.bias`. The bias of a
    convolution before a norm does matter, since a group has several channels.
    """
    norms = {name: float(gradient.float().norm()) for name, gradient in gradients.items()}
    least = LEAST * max(norms.values())
    dead = [name for name, norm in norms.items() if not norm > least]  # NaN counts as dead
    if dead:
        raise ValueError(
            f"{len(dead)} of {len(norms)} parameters have a gradient below {LEAST:g} of the "
            f"largest ({', '.join(dead[:3])}{', ...' if len(dead) > 3 else ''}): what is timed is "
            "not what users train; call live.enliven on the model first"
        )
