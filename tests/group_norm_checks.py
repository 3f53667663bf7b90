"""What the tests of group_norm_silu share: inputs, and the rule of acceptance.

The L2 error of each output is at most twice that of PyTorch's own ops in the same type, plus one
unit in the last place (half of one for 16-bit outputs), plus one of float32 of the terms that it is
a sum of, which decides where few terms cancel.
"""

import torch
from hypothesis import strategies as st

from pdfast.kernels.group_norm_silu import group_norm_silu, reference

NAMES = ("y", "dx", "dweight", "dbias", "dfilm")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The norms of the paper's CIFAR-10 net: channels, size, FiLM, SiLU.
CENSUS = [
    (256, 32, False, True),
    (512, 32, False, True),
    (256, 32, True, True),
    (256, 16, False, True),
    (512, 16, False, True),
    (256, 16, True, True),
    (256, 16, False, False),
    (256, 8, False, True),
    (512, 8, False, True),
    (256, 8, True, True),
    (256, 8, False, False),
]


def shapes(*most):
    """Strategy for (images, groups, channels of a group, height, width), each from 1 up.

    Groups have 8 values or more: of fewer that happen to lie close, the rounding of their mean
    decides the error, PyTorch's as well as ours. (float64 and fixed cases take fewer.)
    """
    tuples = st.tuples(*[st.integers(1, top) for top in most])
    return tuples.filter(lambda shape: shape[2] * shape[3] * shape[4] >= 8)


def make(shape, dtype, film=True, mean=0.0, std=1.0, param=None, seed=0):
    """x, weight, bias, film (or None) and dy; values representable in their types."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    n, c = shape[:2]
    x = (normal(*shape) * std + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    dy = normal(*shape).to(dtype).contiguous(memory_format=torch.channels_last)
    small = [(1 + 0.5 * normal(c)), normal(c), *([0.5 * normal(n, 2 * c)] if film else [])]
    weight, bias, *modulation = [t.to(param or dtype) for t in small]
    return x, weight, bias, (modulation or [None])[0], dy


def outputs(function, x, weight, bias, film, dy, dtype=None, **options):
    """y and the gradients of <y, dy>, all detached; `dtype` converts every tensor first."""
    tensors = [t if t is None else t.to(dtype or t.dtype) for t in (x, weight, bias, film)]
    leaves = [t if t is None else t.clone().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    wanted = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(y, wanted, dy.to(y.dtype))
    return [y.detach(), *grads]


def largest_terms(x, weight, bias, film, dy, groups, silu, eps):
    """For y and each gradient, the norm of the sum of its terms' magnitudes, in float64.

    The gradients are sums that may cancel; no arithmetic can round them better than their terms.
    """
    x, weight, bias, dy = (t.double() for t in (x, weight, bias, dy))
    n, c = x.shape[:2]
    modulation = x.new_zeros(n, 2 * c) if film is None else film.double()
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    xhat = torch.group_norm(x, groups, None, None, eps)
    h = xhat * weight.view(1, c, 1, 1) + bias.view(1, c, 1, 1)
    u = (h * (1 + scale) + shift).requires_grad_()
    y = torch.nn.functional.silu(u) if silu else u * 1
    (du,) = torch.autograd.grad(y, u, dy)
    du = du.abs()
    rstd = (x.reshape(n, groups, -1).var(2, unbiased=False) + eps).rsqrt()
    rstd = rstd.repeat_interleave(c // groups, 1)[:, :, None, None]
    gain = (1 + scale).abs()
    dfilm = torch.cat([(du * h.abs()).sum((2, 3)), du.sum((2, 3))], dim=1)
    dweight = (du * xhat.abs() * gain).sum((0, 2, 3))
    dbias = (du * gain).sum((0, 2, 3))
    dx = du * gain * weight.view(1, c, 1, 1).abs() * rstd
    return [t.norm() for t in (y.detach(), dx, dweight, dbias, dfilm)]


def check(draws, groups, silu, eps=1e-6, ours=None):
    """The acceptance rule for y and all gradients, errors taken over all draws of one shape.

    `ours` maps (tensors, groups, silu, eps) to the outputs; by default the op itself.
    """
    options = {"groups": groups, "silu": silu, "eps": eps}
    sums = {}
    for tensors in draws:
        dtype = tensors[0].dtype
        exact = outputs(reference, *tensors, dtype=torch.float64, **options)
        eager = outputs(reference, *tensors, dtype=dtype, **options)  # eager wants one type
        found = ours(tensors, **options) if ours else outputs(group_norm_silu, *tensors, **options)
        largest = largest_terms(*tensors, groups, silu, eps)
        for name, e, p, o, terms in zip(NAMES, exact, eager, found, largest, strict=False):
            errors = (o.double() - e).square().sum(), (p.double() - e).square().sum()
            sums[name] = sums.get(name, 0) + torch.stack([*errors, e.square().sum(), terms**2])
            sums[name, "dtype"] = o.dtype
    for name in NAMES[: len(exact)]:
        error, eager_error, size, terms = sums[name].sqrt()
        # The arithmetic is float32 at least; 16-bit outputs are rounded once, at the end.
        ulp = torch.finfo(sums[name, "dtype"]).eps / (1 if sums[name, "dtype"].itemsize > 2 else 2)
        allowed = 2 * eager_error + ulp * size + torch.finfo(torch.float32).eps * terms
        if dtype == torch.float64:  # PyTorch's own error is what would be measured
            allowed = 1e-9 * (terms + 1)
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"
