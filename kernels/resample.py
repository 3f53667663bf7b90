"""resample: average pooling 2x2 and nearest-neighbour doubling, each the other's gradient.

Fused: nothing. PyTorch's channels-last kernels take 4.96 ms for the 32 calls of a CIFAR-10 update,
where copies of the same bytes would take 0.40 ms (benchmarks/kernel_kinds.py, on an H200). Doubling
is the transpose of the sum of 2x2 pixels, so one kernel with a divisor serves both ops and both
gradients. Pooling is the sum divided by 4, and its gradient is doubled and divided by 4; the
gradient of doubling is the sum. Bytes per element of the larger tensor, of s bytes: 1.25 s. Bound:
memory. Nothing is kept for the backward. Loses: to a compiler that fuses the resampling into its
neighbours; and on a CPU, where PyTorch's own ops are as fast, and autograd in Python costs 60 us a
call, forward and backward (PyTorch 2.13.0, one core of a Xeon). In both cases PyTorch's own ops
run, see `avg_pool2x2`.

Float streams go in 16-byte accesses when C divides by 16.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor

from pdfast.kernels import runtime
from pdfast.kernels.calls import RESAMPLING, Call, Launch, made_dense
from pdfast.kernels.library import LIBRARY, define
from pdfast.kernels.registry import Op, Stage, register
from pdfast.kernels.runtime import tl, triton

BLOCK = 1024  # elements of the smaller tensor
MOST = 2**31 - 1  # elements of an image of the larger tensor, so that offsets fit 32 bits


def avg_pool2x2(x: Tensor) -> Tensor:
    """Average 2x2 pixels: (B, C, H, W) -> (B, C, H / 2, W / 2).

    Sums are float32 (float64 where x is float64) and rounded once. Differentiable at any order.
    PyTorch's own op runs where Triton does not, and where torch.compile or torch.export traces:
    torch.compile fuses it with its neighbours, and the programs that read exported graphs do not
    know pdfast. Where they trace, nothing is checked.

    Args:
        x: Images (B, C, H, W), of any floating dtype; H and W are even.

    Returns:
        Images of x's dtype, channels-last.

    Raises:
        TypeError: x has the wrong type or dtype.
        ValueError: x has the wrong shape or too many elements.
    """
    return _resample(x, False, 4)


def upsample2x(x: Tensor) -> Tensor:
    """Repeat each pixel in 2x2 pixels: (B, C, H, W) -> (B, C, 2 H, 2 W); see `avg_pool2x2`.

    Args:
        x: Images (B, C, H, W), of any floating dtype.

    Returns:
        Images of x's dtype, channels-last.

    Raises:
        TypeError: x has the wrong type or dtype.
        ValueError: x has the wrong shape or too many elements.
    """
    return _resample(x, True, 1)


def _resample(x: Tensor, up: bool, divisor: int) -> Tensor:
    if torch.compiler.is_compiling():
        return resample_reference(x, up, divisor)
    runtime.check_tensor("x", x, runtime.FLOATS)
    _, c, h, w = x.shape
    if not up and (h % 2 or w % 2):
        raise ValueError(f"x must have an even height and width, not {h}x{w}")
    larger = c * h * w * (4 if up else 1)
    if larger > MOST:
        raise ValueError(f"an image must have at most {MOST} elements, not {larger}")
    if not runtime.uses_triton(x.device, x.dtype):
        return runtime.channels_last(resample_reference(x, up, divisor))
    result: Tensor = resample_op(x, up, divisor)
    return result


def resample_reference(x: Tensor, up: bool, divisor: int) -> Tensor:
    """Compute `resample_op` with PyTorch's ops; differentiable.

    Args:
        x: Images (B, C, H, W), of any floating dtype. 16-bit dtypes are summed in float32 and
            rounded once.
        up: Whether each pixel is repeated in 2x2 pixels; else 2x2 pixels are summed.
        divisor: Divisor of the result.
    """
    if up:
        return F.interpolate(x if divisor == 1 else x / divisor, scale_factor=2.0, mode="nearest")
    # The mean without an override, which is the form that exporters know.
    return F.avg_pool2d(x, 2, divisor_override=None if divisor == 4 else divisor)


# ------------------------------------------------------------------------------------------
# Registered op


@define()
def resample_op(x: Tensor, up: bool, divisor: int) -> Tensor:
    """Run `resample_reference` on checked arguments; the result is channels-last."""
    if not runtime.uses_triton(x.device, x.dtype):
        return runtime.channels_last(resample_reference(x, up, divisor))
    out = _output(x, up)
    smaller = x if up else out
    size = smaller[0].numel()
    runtime.launch(
        resample_kernel,
        (len(x) * runtime.cdiv(size, BLOCK),),
        x.device,
        runtime.channels_last(x),
        out,
        size,
        x.shape[1],
        smaller.shape[3],
        up=up,
        scale=1 / divisor,
        block=BLOCK,
    )
    return out


@torch.library.register_fake(resample_op, lib=LIBRARY)
def _fake_output(x: Tensor, up: bool, divisor: int) -> Tensor:
    return _output(x, up)


def _output(x: Tensor, up: bool) -> Tensor:
    b, c, h, w = x.shape
    shape = (b, c, 2 * h, 2 * w) if up else (b, c, h // 2, w // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.up, ctx.divisor = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Resample the gradient in the other direction."""
    return resample_op(grad, not ctx.up, ctx.divisor), None, None


torch.library.register_autograd(resample_op, _backward, setup_context=_save, lib=LIBRARY)


# ------------------------------------------------------------------------------------------
# Triton


@triton.jit(do_not_specialize=["width"])  # code for each width would be no faster
def resample_kernel(
    x,  # images (B, H, W, C), of any floating dtype
    out,  # output: images of x's dtype, twice or half as high and wide
    size,  # elements of an image of the smaller tensor
    channels,  # C
    width,  # width of the smaller tensor
    up: tl.constexpr,  # whether each pixel is repeated; else 2x2 pixels are summed
    scale: tl.constexpr,  # factor of the result
    block: tl.constexpr,  # elements of a program
):
    """Resample `block` elements of an image of the smaller tensor, in (H, W, C) order.

    Each of them belongs to four pixels of the larger tensor.
    """
    tiles = tl.cdiv(size, block)
    n, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    small = tile * block + tl.arange(0, block)
    mask = small < size
    pixel, channel = small // channels, small % channels
    row, column = pixel // width, pixel % width
    large = (4 * row * width + 2 * column) * channels + channel
    right, below = channels, 2 * width * channels
    if up:
        value = tl.load(x + n * size + small, mask=mask, other=0.0).to(tl.float32) * scale
        value = value.to(out.dtype.element_ty)
        target = out + 4 * n * size + large
        tl.store(target, value, mask=mask)
        tl.store(target + right, value, mask=mask)
        tl.store(target + below, value, mask=mask)
        tl.store(target + below + right, value, mask=mask)
    else:
        source = x + 4 * n * size + large
        a = tl.load(source, mask=mask, other=0.0)
        b = tl.load(source + right, mask=mask, other=0.0)
        c = tl.load(source + below, mask=mask, other=0.0)
        d = tl.load(source + below + right, mask=mask, other=0.0)
        total = a.to(tl.float32) + b.to(tl.float32) + c.to(tl.float32) + d.to(tl.float32)
        tl.store(out + n * size + small, (total * scale).to(out.dtype.element_ty), mask=mask)


def _launches(call: Call) -> list[Launch]:
    """Count a copy where a gradient has gaps, such as the slice that `cat`'s backward returns."""
    return [*made_dense(torch.channels_last, call["x"]), Launch(RESAMPLING, call.moved())]


register(
    Op(
        name="resample",
        stage=Stage.NETWORK,
        op=resample_op,
        kernels=(resample_kernel,),
        kind=RESAMPLING,
        rule=_launches,
    )
)
