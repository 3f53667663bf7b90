"""resample: average pooling 2x2 and nearest-neighbour doubling, each the other's gradient.

Fused: nothing. PyTorch's channels-last kernels take 4.96 ms for the 32 calls of a CIFAR-10 update,
for which a copy of the same bytes would take 0.40 (benchmarks/kernel_kinds.py, on an H200).
Doubling is the transpose of the sum of 2x2 pixels, so that one kernel with a divisor serves both
and both gradients: pooling divides the sum by 4, its gradient is doubled and divided by 4; the
gradient of doubling is the sum. Bytes per element of the larger tensor, of s bytes: 1.25 s. Bound:
memory. Nothing is kept for the backward. Loses: to a compiler that fuses the resampling into its
neighbours; and on a CPU, where PyTorch's own ops are as fast, and autograd in Python costs 60 us a
call, forward and backward (PyTorch 2.13.0, one core of a Xeon). Both get PyTorch's own ops, see
`avg_pool2x2`.

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
MOST = 2**31 - 1  # elements of an image of the larger one: within it offsets have 32 bits


def avg_pool2x2(x: Tensor) -> Tensor:
    """Means of 2x2 pixels: (B, C, H, W), any float -> (B, C, H / 2, W / 2), channels-last.

    H and W must be even. Sums are float32 (float64 where x is) and rounded once. Differentiable at
    any order. PyTorch's own op takes its place where Triton does not run, and where torch.compile
    or torch.export traces: the one fuses it with its neighbours, the other's graphs are read by
    programs that do not know pdfast. Raises ValueError or TypeError for other arguments.
    """
    return _resample(x, False, 4)


def upsample2x(x: Tensor) -> Tensor:
    """Each pixel four times: (B, C, H, W), any float -> (B, C, 2 H, 2 W), channels-last.

    The rest is as with `avg_pool2x2`.
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
    """x / divisor with each pixel four times, or sums of 2x2 pixels / divisor, by PyTorch's ops.

    16-bit types are summed in float32 and rounded once; differentiable.
    """
    if up:
        return F.interpolate(x if divisor == 1 else x / divisor, scale_factor=2.0, mode="nearest")
    # The mean without an override: the form that exporters know.
    return F.avg_pool2d(x, 2, divisor_override=None if divisor == 4 else divisor)


# ------------------------------------------------------------------------------------------
# Registered op


@define()
def resample_op(x: Tensor, up: bool, divisor: int) -> Tensor:
    """`resample_reference` of arguments known to be right; the result is channels-last."""
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
    """The other direction on the gradient."""
    return resample_op(grad, not ctx.up, ctx.divisor), None, None


torch.library.register_autograd(resample_op, _backward, setup_context=_save, lib=LIBRARY)


# ------------------------------------------------------------------------------------------
# Triton


@triton.jit(do_not_specialize=["width"])  # nothing is gained by code for each
def resample_kernel(
    x,
    out,
    size,
    channels,
    width,
    up: tl.constexpr,
    scale: tl.constexpr,
    block: tl.constexpr,
):
    """Each program: `block` elements, in (H, W, C) order, of an image of the smaller tensor.

    `size` and `width` are those of that image. Four pixels of the larger one belong to each of it.
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
    """A gradient that has gaps, such as the slice that `cat` gives back, is copied first."""
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
