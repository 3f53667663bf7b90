"""GroupNorm, FiLM and SiLU of a sum in PyTorch's own ops: the reference of group_norm_silu.

It runs where nothing is compiled, and where another library's norm replaces the op.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor

Norm = Callable[..., Tensor]
"""A norm of one tensor, with the arguments of `eager`."""


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> Tensor:
    """Compute `group_norm_silu` with PyTorch's own ops, in x's dtype; same arguments.

    The benchmarks compare with it, and exported networks contain it. It loses digits where the mean
    is far above the spread: on a CPU, PyTorch computes the variance of a channels-last tensor as
    mean(x^2) - mean(x)^2 in float32, and its affine map is a x + b in any layout.
    """
    h = torch.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if film is not None:
        scale, shift = film.to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
    h = F.silu(h) if silu else h
    return h.contiguous(memory_format=torch.channels_last)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> Tensor:
    """Compute `group_norm_silu` where nothing is compiled, with PyTorch's ops on x less its means.

    The arguments are those of `group_norm_silu`. Neither a group norm nor its backward changes when
    a constant is subtracted from a group, so the means need no gradient and no great accuracy. The
    remainder has a mean near 0, where PyTorch's ops lose no digits, forward or backward, in any
    layout. 16-bit dtypes are computed in float32 and rounded once, as in the compiled op.
    """
    n, c = x.shape[:2]
    wide = torch.promote_types(x.dtype, torch.float32)
    of_channels = x.detach().mean((2, 3), dtype=wide).view(n, groups, c // groups)
    means = of_channels.mean(2, keepdim=True).expand_as(of_channels).reshape(n, c, 1, 1)
    y = eager(x.to(wide) - means, weight, bias, film, groups=groups, eps=eps, silu=silu)
    return y.to(x.dtype)


def composed(
    norm: Norm,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    addend: Tensor | None = None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    keep_sum: bool = False,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Compute `sum_group_norm_silu` with separate ops for the sum and for joining the channels.

    The arguments are those of `sum_group_norm_silu`, after `norm`: `reference`, `eager`, or another
    function with their arguments.
    """
    s = sum_of(x, addend, residual, rounded=keep_sum or residual is not None)
    whole = s if skip is None else torch.cat([s, skip.to(s.dtype)], dim=1)
    y = norm(whole, weight, bias, film, groups=groups, eps=eps, silu=silu)
    return y.to(x.dtype), s if keep_sum else None


def sum_of(
    x: Tensor, addend: Tensor | None, residual: Tensor | None = None, *, rounded: bool = True
) -> Tensor:
    """Return x + addend + residual, of x's dtype if `rounded`; x itself if both are None.

    Args:
        x: Activations (N, C, H, W), of any floating dtype.
        addend: Bias (C,) or (N, C); or None.
        residual: Second activations, like x; or None.
        rounded: Whether to round the sum to x's dtype, once; else it is float32 or wider.
    """
    if addend is None and residual is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    s = x.to(wide)
    if addend is not None:
        s = s + addend.to(wide)[..., None, None]
    if residual is not None:
        s = s + residual.to(wide)
    return s.to(x.dtype) if rounded else s
