"""dropout: inverted dropout whose mask is a function of the counter, with no generator.

Fused: the mask's draw (Philox), the choice, the scale. The mask depends on (seed, round, update,
position in the global batch, layer, element) alone: a resumed run, a recomputed (checkpointed)
activation, micro-batches and any number of processes draw the same, and a CUDA graph's replay reads
the update where it lies. The backward draws it again, so nothing is kept but the update's tensor.
Bytes per element of s bytes: 2 s forward, 2 s backward; PyTorch's CUDA op moves 2 s + 1 each way
and keeps the byte. Bound: memory; one Philox call makes eight elements. Loses: on a CPU, where
Philox is a hundred ops of PyTorch and takes twice as long as its generator, and so again in the
backward (2 to 4 times PyTorch's both ways); on a GPU, to a compiler that fuses the dropout into its
neighbours.

Float streams go in 16-byte accesses when H W C divides by 16.
"""

from typing import Any

import torch
from torch import Tensor

from pdfast.kernels import calls, philox, runtime
from pdfast.kernels.library import LIBRARY, define
from pdfast.kernels.philox import Stream, words_at
from pdfast.kernels.registry import Op, Stage, register
from pdfast.kernels.runtime import tl, triton

BLOCK = 1024
ONE = 2**16  # p is a multiple of 1 / ONE
MOST = 2**27  # elements of an image: the counter has 24 bits for their blocks of eight


def dropout(
    x: Tensor,
    p: float,
    *,
    seed: int,
    round_: int,
    update: int | Tensor,
    layer: int,
    first: int = 0,
) -> Tensor:
    """x / (1 - p) where a draw keeps the element, 0 elsewhere, also for NaN; channels-last.

    x (B, C, H, W), any float. p is rounded to a multiple of 1/65536, and the scale is that one's;
    for 0 x itself is returned. The draws are those of positions first .. first + B - 1 in the
    batch of `update`, an int or an int64 tensor of one element on the device of x; `layer`
    0 .. 255 numbers the network's dropouts. Differentiable in x, at any order. The backward reads
    `update` again, which must not change before it (PyTorch raises RuntimeError where it did).
    Raises ValueError or TypeError for other arguments.
    """
    runtime.check_tensor("x", x, runtime.FLOATS)
    if isinstance(update, int):
        update = torch.tensor([update], device=x.device)
    runtime.check_tensor("update", update, (torch.int64,), (1,), x)
    threshold = round(p * ONE) if 0 <= p < 1 else ONE
    if threshold == ONE:
        raise ValueError(f"p must be in [0, 1), and below 1 to the nearest 1/{ONE}, not {p}")
    limits = {"seed": (seed, 2**32), "round_": (round_, 2**24), "layer": (layer, 2**8)}
    for name, (value, end) in (limits | {"first": (first, 2**31)}).items():
        if not 0 <= value < end:
            raise ValueError(f"{name} must be in 0 .. {end - 1}, not {value}")
    _, c, h, w = x.shape
    if c * h * w > MOST:
        raise ValueError(f"an image of x must have at most {MOST} elements, not {c * h * w}")
    if threshold == 0:
        return x
    result: Tensor = dropout_op(x, update, threshold, seed, round_, layer, first)
    return result


# ------------------------------------------------------------------------------------------
# Reference


def keep_mask(
    shape: tuple[int, int, int, int],
    update: Tensor,
    threshold: int,
    seed: int,
    round_: int,
    layer: int,
    first: int,
) -> Tensor:
    """Which elements stay, bool (B, C, H, W).

    Element e of an image, counted in (H, W, C) order, stays if half e % 8 of the words of block
    (layer, e // 8), low halves first, is at least `threshold`.
    """
    b, c, h, w = shape
    size = c * h * w
    key = philox.key_of(seed, Stream.DROPOUT, round_)
    words = philox.words(key, update, first, b, -(-size // 8), layer << 24)
    halves = torch.stack([(words & (ONE - 1)) >= threshold, words >= threshold * ONE], dim=-1)
    return halves.flatten(1)[:, :size].reshape(b, h, w, c).permute(0, 3, 1, 2)


def dropout_reference(
    x: Tensor, update: Tensor, threshold: int, seed: int, round_: int, layer: int, first: int
) -> Tensor:
    """Dropout in plain PyTorch, in float32, or float64 where x is; differentiable."""
    b, c, h, w = x.shape
    keep = keep_mask((b, c, h, w), update, threshold, seed, round_, layer, first)
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    scaled = x.to(state) * (ONE / (ONE - threshold))
    return torch.where(keep, scaled, 0.0).to(x.dtype)


# ------------------------------------------------------------------------------------------
# Registered op


@define()
def dropout_op(
    x: Tensor, update: Tensor, threshold: int, seed: int, round_: int, layer: int, first: int
) -> Tensor:
    """`dropout` of arguments known to be right, at p = threshold / 65536."""
    out = runtime.empty_images(x, x.dtype)
    if not runtime.uses_triton(x.device, x.dtype):
        return out.copy_(dropout_reference(x, update, threshold, seed, round_, layer, first))
    size = x[0].numel()
    runtime.launch(
        dropout_kernel,
        (len(x) * runtime.cdiv(size, BLOCK),),
        x.device,
        runtime.channels_last(x),
        update,
        out,
        size,
        first,
        layer,
        *philox.key_of(seed, Stream.DROPOUT, round_),
        threshold=threshold,
        scale=ONE / (ONE - threshold),
        block=BLOCK,
    )
    return out


@torch.library.register_fake(dropout_op, lib=LIBRARY)
def _fake_output(
    x: Tensor, update: Tensor, threshold: int, seed: int, round_: int, layer: int, first: int
) -> Tensor:
    return runtime.empty_images(x, x.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, update, *ctx.draw = inputs
    ctx.save_for_backward(update)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same op on the gradient."""
    (update,) = ctx.saved_tensors
    return dropout_op(grad, update, *ctx.draw), *[None] * 6


torch.library.register_autograd(dropout_op, _backward, setup_context=_save, lib=LIBRARY)


# ------------------------------------------------------------------------------------------
# Triton

DRAWN_BY = ["first", "layer", "seed", "key"]


@triton.jit(do_not_specialize=DRAWN_BY)  # their values change, the code does not
def dropout_kernel(
    x,
    update,
    out,
    size,
    first,
    layer,
    seed,
    key,
    threshold: tl.constexpr,
    scale: tl.constexpr,
    block: tl.constexpr,
):
    """Each program: `block` elements, in (H, W, C) order, of an image; see `dropout`."""
    tiles = tl.cdiv(size, block)
    n, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    eighth: tl.constexpr = block // 8
    eights = (tile * eighth + tl.arange(0, eighth)).to(tl.uint32) | (layer.to(tl.uint32) << 24)
    w_0, w_1, w_2, w_3 = words_at(tl.load(update), n + first, eights, seed, key)
    low = tl.interleave(tl.interleave(w_0, w_2), tl.interleave(w_1, w_3))
    keep = tl.interleave((low & 0xFFFF) >= threshold, (low >> 16) >= threshold)

    element = tile * block + tl.arange(0, block)
    mask = element < size
    here = n.to(tl.int64) * size + element
    scaled = tl.load(x + here, mask=mask, other=0.0).to(tl.float32) * scale
    tl.store(out + here, tl.where(keep, scaled, 0.0).to(out.dtype.element_ty), mask=mask)


register(
    Op(
        name="dropout",
        stage=Stage.STUDENT,
        op=dropout_op,
        kernels=(dropout_kernel,),
        kind=calls.DROPOUT,
    )
)
