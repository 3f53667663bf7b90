"""Shared arithmetic of the ops: coefficients of images, and sine and cosine of their angles.

alpha = cos(phi), sigma = sin(phi). Coefficients are computed in float64 and rounded once to the
dtype that they multiply. In the kernels each program computes its image's coefficients: a few dozen
float64 operations, without the slow path (and the stack) of library trigonometry.
"""

import torch
from torch import Tensor

from pdfast.kernels.runtime import tl, triton

# ------------------------------------------------------------------------------------------
# PyTorch


def per_image(coefficient: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, 1, ...), in the dtype and on the device of `like`."""
    return coefficient.to(like).reshape(-1, *[1] * (like.ndim - 1))


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum over the terms of coefficient (B,) times image (B, ...)."""
    total = per_image(terms[0][0], terms[0][1]) * terms[0][1]
    for coefficient, image in terms[1:]:
        total = torch.addcmul(total, per_image(coefficient, image), image)
    return total


def divide(a: Tensor, number: float | Tensor) -> Tensor:
    """Return a / number, rounded once, so that it has the same bits on every device.

    On CUDA, PyTorch divides by a Python number or by a 0-d CPU tensor by multiplying with the
    reciprocal, which may cost the last bit.

    Args:
        a: Floating-point tensor of any shape.
        number: Divisor; a tensor must be 0-d and on the device of `a`.
    """
    if isinstance(number, Tensor):
        return a / number.to(a.dtype)
    return a / torch.full((), number, dtype=a.dtype, device=a.device)


# ------------------------------------------------------------------------------------------
# Triton

# pi/2 = HIGH + LOW with 33 bits in HIGH: a few quarter turns times HIGH are exact (Cody and Waite).
QUARTER_HIGH = tl.constexpr(1.5707963267341256)
QUARTER_LOW = tl.constexpr(6.077100506506192e-11)
QUARTERS_PER_RADIAN = tl.constexpr(0.6366197723675814)


@triton.jit
def sincos(angle):
    """Return (sin, cos) of a float64 angle, to a few 1e-16 relative.

    The angle is reduced to |r| <= pi/4; Taylor polynomials of degrees 17 and 16 follow.

    Args:
        angle: Angles in radians, 0 <= angle < 100, float64 of any shape.
    """
    quarters = tl.floor(angle * QUARTERS_PER_RADIAN + 0.5)
    r = (angle - quarters * QUARTER_HIGH) - quarters * QUARTER_LOW
    s = r * r
    odd = s * (1.0 / 355687428096000.0) - 1.0 / 1307674368000.0
    odd = odd * s + 1.0 / 6227020800.0
    odd = odd * s - 1.0 / 39916800.0
    odd = odd * s + 1.0 / 362880.0
    odd = odd * s - 1.0 / 5040.0
    odd = odd * s + 1.0 / 120.0
    odd = odd * s - 1.0 / 6.0
    sin_r = r + r * (s * odd)
    even = s * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0
    even = even * s + 1.0 / 479001600.0
    even = even * s - 1.0 / 3628800.0
    even = even * s + 1.0 / 40320.0
    even = even * s - 1.0 / 720.0
    even = even * s + 1.0 / 24.0
    cos_r = 1.0 - (0.5 * s - s * s * even)
    turn = quarters.to(tl.int32)
    swapped = (turn & 1) != 0
    sin = tl.where(swapped, cos_r, sin_r)
    cos = tl.where(swapped, sin_r, cos_r)
    sin = tl.where((turn & 2) != 0, -sin, sin)
    cos = tl.where(((turn + 1) & 2) != 0, -cos, cos)
    return sin, cos
