"""GroupNorm, FiLM and SiLU of a sum in PyTorch's own ops: the reference of group_norm_silu.

It runs where nothing is compiled, and where another library's norm takes the op's place.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor

Norm = Callable[..., Tensor]
"""A norm of one tensor: its arguments are those of `eager`."""


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
    """Compute `group_norm_silu` by PyTorch's own ops, which want one type; same arguments.

    What the benchmarks compare with, and what is exported. It loses digits where the mean is far
    above the spread: on a CPU, PyTorch takes the variance of a channels-last tensor as
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
    """Compute `group_norm_silu` where nothing is compiled: PyTorch's ops on x less its means.

    Arguments as for `group_norm_silu`. A group norm does not change when a constant is taken from
    a group, and its backward neither, so the means need no gradient and no great accuracy. What is
    left has a mean near 0, where PyTorch's ops lose no digits, forward or backward, in any layout.
    16-bit types are computed in float32 and rounded once, as the compiled op does.
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
    """Compute `sum_group_norm_silu` by separate ops for the sum and for joining the channels.

    `norm` is `reference`, `eager`, or another with their arguments.
    """
    s = sum_of(x, addend, residual, rounded=keep_sum or residual is not None)
    whole = s if skip is None else torch.cat([s, skip.to(s.dtype)], dim=1)
    y = norm(whole, weight, bias, film, groups=groups, eps=eps, silu=silu)
    return y.to(x.dtype), s if keep_sum else None


def sum_of(
    x: Tensor, addend: Tensor | None, residual: Tensor | None = None, *, rounded: bool = True
) -> Tensor:
    """x (N, C, H, W) + addend (C,) or (N, C) + residual, like x; x itself with neither.

    It is added up in float32 at least and, if `rounded`, rounded to x's type once.
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
