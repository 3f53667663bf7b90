"""Shared parts of the tests of group_norm_silu: inputs, and the rule of acceptance.

The L2 error of y and of each gradient against float64 stays within two limits.

1. Twice the error of PyTorch's own ops in the same dtype, plus one unit in the last place (half a
   unit for 16-bit outputs), plus one float32 unit of the terms whose sum the output is; this
   decides where few terms cancel. PyTorch gets contiguous tensors: for a channels-last one, its
   CPU op computes the variance as mean(x^2) - mean(x)^2 in float32, which would allow any error
   where the mean is far above the spread.
2. The bound of `Exact`, because even the contiguous call loses digits with the mean: its affine map
   is a x + b, two large numbers that cancel, and its 16-bit gradients use 16-bit statistics.
"""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from pdfast.kernels.group_norm_silu import eager, group_norm_silu

NAMES = ("y", "dx", "dweight", "dbias", "dfilm")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The norms of the paper's CIFAR-10 network: channels, size, FiLM, SiLU.
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
# Means and spreads; with the second and third, 16-bit dtypes have only one or a few values left.
EXTREMES = [
    (1000.0, 1.0),
    (1e4, 1.0),
    (1e4, 1e-2),
    (-1e4, 1e-2),
    (1e-4, 1e-4),
    (0.0, 1e-8),
    (50.0, 1e3),
]
OUTLIERS = ("border", "pivots")
ROUNDOFF = 2.0**-24  # of float32: the largest relative change by rounding
ROUNDINGS = 4  # see Exact


def shapes(*most):
    """Strategy for (images, groups, channels of a group, height, width), each from 1 up.

    Groups have 8 values or more: if fewer happen to lie close together, the rounding of their mean
    decides the error, PyTorch's as well as ours. (float64 and fixed cases may have fewer.)
    """
    tuples = st.tuples(*[st.integers(1, top) for top in most])
    return tuples.filter(lambda shape: shape[2] * shape[3] * shape[4] >= 8)


def make(shape, dtype, film=True, mean=0.0, std=1.0, param=None, seed=0):
    """Draw x, weight, bias, film (or None) and dy, with values representable in their dtypes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    n, c = shape[:2]
    x = (normal(*shape) * std + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    dy = normal(*shape).to(dtype).contiguous(memory_format=torch.channels_last)
    small = [(1 + 0.5 * normal(c)), normal(c), *([0.5 * normal(n, 2 * c)] if film else [])]
    weight, bias, *modulation = [t.to(param or dtype) for t in small]
    return x, weight, bias, (modulation or [None])[0], dy


def make_outliers(where, shape, dtype):
    """Like `make`, mean 1,000 and spread 1, but 0 in places where sums about a pivot may start.

    "border" is a frame of one pixel; "pivots" is only the first, middle and last pixel, from which
    the CUDA kernels take their pivots: a pivot is then as many spreads, of all pixels, away from
    the mean as possible.
    """
    tensors = make(shape, dtype, mean=1000.0)
    x, (height, width) = tensors[0], shape[2:]
    if where == "border":
        x[:, :, [0, -1]] = x[:, :, :, [0, -1]] = 0
    else:
        for pixel in (0, height * width // 2, height * width - 1):
            x[:, :, pixel // width, pixel % width] = 0
    return tensors


def outputs(function, x, weight, bias, film, dy, dtype=None, **options):
    """Return y and the gradients of <y, dy>, detached; `dtype` converts every tensor first."""
    tensors = [t if t is None else t.to(dtype or t.dtype) for t in (x, weight, bias, film)]
    leaves = [t if t is None else t.clone().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    wanted = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(y, wanted, dy.to(y.dtype))
    return [y.detach(), *grads]


class Exact(NamedTuple):
    """y and the gradients in float64, by their formulas, and the largest error of float32.

    The bound of an output is a sum of three parts:

    - `kept`: the change of the output if the mean in the backward is off by half a float32 ulp,
      because the forward keeps it in float32. Nothing else in the bound grows with the mean:
      x - mean is exact where they are close (Sterbenz), and the statistics are sums of such
      differences, whose own mean corrects the first mean.
    - ROUNDINGS float32 roundoffs of the `terms`: the magnitudes of the summands. From x to an
      output there are about eight roundings: the difference, mean and rstd, a coefficient, its
      product, the offset, and two or three of the sigmoid or of the last products. Each changes the
      output by at most a roundoff, 0.3 to 0.6 of one in root mean square, and they are independent:
      together below 2 roundoffs in L2. Twice that is allowed. Pixels are summed in blocks, whose
      roundings average out.
    - one rounding of the output itself, to a 16-bit dtype, including subnormal numbers.

    `summands` are those of the first limit: the terms whose sum the output itself is.
    """

    values: list[Tensor]
    summands: list[Tensor]
    terms: list[Tensor]
    kept: list[Tensor]

    def bounds(self, dtypes):
        """Return the largest L2 norm of each output's error, in its dtype."""
        parts = zip(self.values, self.terms, self.kept, dtypes, strict=True)
        return [
            kept.norm() + ROUNDINGS * ROUNDOFF * terms.norm() + last_rounding(value, dtype)
            for value, terms, kept, dtype in parts
        ]


def last_rounding(value, dtype):
    """Return the L2 norm of half an ulp of each value; for float32 it is one of `ROUNDINGS`."""
    kind = torch.finfo(dtype)
    if kind.bits > 16:
        return torch.zeros_like(value).norm()
    return kind.eps / 2 * value.abs().clamp(min=kind.tiny).norm()


def exact_of(x, weight, bias, film, dy, groups, silu, eps):
    """Return the Exact of these inputs, without PyTorch's group norm and autograd."""
    x, weight, bias, dy = (t.double().contiguous() for t in (x, weight, bias, dy))
    n, c, *pixels = x.shape
    modulation = x.new_zeros(n, 2 * c) if film is None else film.double()
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    scale, weight, bias = 1 + scale, weight.view(1, c, 1, 1), bias.view(1, c, 1, 1)
    gain = weight * scale

    def add(t):
        """Sum over the pixels, (n, c, 1, 1)."""
        return t.sum((2, 3), keepdim=True)

    def average(sums):
        """Average over each group, from sums over the pixels; (n, c, 1, 1)."""
        of_groups = sums.view(n, groups, -1).mean(2) / (pixels[0] * pixels[1])
        return of_groups.repeat_interleave(c // groups, 1)[:, :, None, None]

    mean = average(add(x))
    mean = mean + average(add(x - mean))
    variance = average(add((x - mean).square()))
    rstd = (variance + eps).rsqrt()

    def back(mean):
        """Return xhat, u, du/dy, dL/du, and the gradients, the parameters' by image."""
        xhat = (x - mean) * rstd
        u = xhat * gain + (bias * scale + shift)
        s = u.sigmoid()
        slope = s * (1 + u * (1 - s)) if silu else torch.ones_like(u)
        du = dy * slope
        of_1, of_xhat = add(du), add(du * xhat)
        dx = rstd * (gain * du - average(gain * of_1) - xhat * average(gain * of_xhat))
        dfilm = torch.cat([weight * of_xhat + bias * of_1, of_1], dim=1)
        return xhat, u, slope, du, [dx, scale * of_xhat, scale * of_1, dfilm]

    xhat, u, slope, du, grads = back(mean)
    moved = [(a - b).abs() for a, b in zip(back(mean * (1 + ROUNDOFF))[-1], grads, strict=True)]
    y = u * u.sigmoid() if silu else u

    # In roundoffs, xhat is off by |xhat| and, through the mean, by the spread; then u and the rest:
    size, spread, far = gain.abs(), variance.sqrt() * rstd, xhat.abs()
    of_u = size * far + (size * spread + (bias * scale).abs() + shift.abs())
    of_du = dy.abs() * (slope.abs() + of_u / 2) if silu else dy.abs()  # |SiLU''| is at most 1/2
    of_1, of_xhat = add(of_du), add(of_du * far) + spread * add(du.abs())
    tilt = spread * average(gain * add(du * xhat)).abs()
    of_dx = size * of_du + far * average(size * of_xhat) + (average(size * of_1) + tilt)
    dfilm = torch.cat([weight.abs() * of_xhat + bias.abs() * of_1, of_1], dim=1)
    terms = [of_u, rstd * of_dx, scale.abs() * of_xhat, scale.abs() * of_1, dfilm]

    # The terms of each gradient, in full, without the terms that they were made of.
    of_1, of_h = add(du.abs()), add((du * (xhat * weight + bias)).abs())
    dweight, dfilm = scale.abs() * add((du * xhat).abs()), torch.cat([of_h, of_1], dim=1)
    summands = [y, rstd * size * du.abs(), dweight, scale.abs() * of_1, dfilm]

    def shaped(values):
        dx, dweight, dbias, dfilm = values[-4:]
        last = [] if film is None else [dfilm[:, :, 0, 0]]
        return [*values[:-4], dx, dweight.sum(0).flatten(), dbias.sum(0).flatten(), *last]

    return Exact(
        shaped([y, *grads]), shaped(summands), shaped(terms), shaped([y.new_zeros(1), *moved])
    )


def pytorch(x, weight, bias, film=None, **options):
    """Run PyTorch's own ops on contiguous tensors, where they lose the fewest digits."""
    return eager(x.contiguous(), weight, bias, film, **options)


def op(tensors, **options):
    """Run the op itself, which is checked by default."""
    return outputs(group_norm_silu, *tensors, **options)


def check(draws, groups, silu, eps=1e-6, ours=(op,)):
    """Check y and all gradients by the rule of acceptance, over all draws of one shape.

    Each of `ours` maps (tensors, groups=, silu=, eps=) to the outputs.
    """
    options = {"groups": groups, "silu": silu, "eps": eps}
    totals = [0] * len(ours)
    for tensors in draws:
        exact = exact_of(*tensors, **options)
        peer = outputs(pytorch, *tensors, dtype=tensors[0].dtype, **options)  # needs one dtype
        sizes = [t.norm() for t in (*exact.values, *exact.summands)]
        peer_errors = errors(peer, exact)
        for k, function in enumerate(ours):
            found = function(tensors, **options)
            dtypes = [o.dtype for o in found]
            bounds = exact.bounds(dtypes)
            rows = torch.stack([*errors(found, exact), *peer_errors, *sizes, *bounds])
            totals[k] = totals[k] + rows.view(5, -1).square()
    for total in totals:
        for name, dtype, sums in zip(NAMES, dtypes, total.sqrt().T, strict=False):
            assert_accepted(name, dtype, *sums.tolist(), wide=tensors[0].dtype == torch.float64)


def errors(found, exact):
    """Return the L2 error of each output."""
    return [(o.double() - e).norm() for o, e in zip(found, exact.values, strict=True)]


def assert_accepted(name, dtype, error, peer_error, size, summands, bound, wide):
    """Check both limits for one output; arguments are L2 norms."""
    # The arithmetic is float32 or wider; 16-bit outputs are rounded once, at the end.
    ulp = torch.finfo(dtype).eps / (1 if dtype.itemsize > 2 else 2)
    by_peer = 2 * peer_error + ulp * size + torch.finfo(torch.float32).eps * summands
    if wide:  # the first limit would measure PyTorch's own error
        by_peer = bound = 1e-9 * (summands + 1)
    assert error <= by_peer, f"{name}: {error:.3g} > {by_peer:.3g}, by PyTorch's {peer_error:.3g}"
    assert error <= bound, f"{name}: {error:.3g} > {bound:.3g}, the bound of float32"
