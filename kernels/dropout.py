"""dropout: inverted dropout whose mask is a function of the counter, without a generator.

Fused: the mask's draw (Philox), the choice, the scale. The mask depends only on (seed, round,
update, position in the global batch, layer, element). So a resumed run, a recomputed (checkpointed)
activation, micro-batches and any number of processes draw the same mask, and a CUDA graph's replay
reads the update from its tensor. The backward draws the mask again, so nothing is kept but the
update's tensor. Bytes per element of s bytes: 2 s forward, 2 s backward; PyTorch's CUDA op moves
2 s + 1 each way and keeps the byte. Bound: memory; one Philox call makes eight elements. Loses: on
a CPU, where Philox takes a hundred ops of PyTorch and twice the time of its generator, once more in
the backward (2 to 4 times PyTorch's time in all); on a GPU, to a compiler that fuses the dropout
into its neighbours.

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
    """Return x / (1 - p) at the elements that are kept, and 0 elsewhere, even for NaN.

    Differentiable in x, at any order. The backward reads `update` again, so it must not change
    before then (PyTorch raises RuntimeError if it did).

    Args:
        x: Activations (B, C, H, W), of any floating dtype.
        p: Probability of a 0, in [0, 1). It is rounded to a multiple of 1/65536, also for the
            scale; for 0, x itself is returned.
        seed: Seed of the draws, 0 .. 2^32 - 1.
        round_: Round of the distillation, 0 .. 2^24 - 1.
        update: Update whose batch x is of; an int64 tensor (1,) must be on the device of x.
        layer: Number of the dropout in the network, 0 .. 255.
        first: Position of the first image in the global batch, 0 .. 2^31 - 1.

    Returns:
        A tensor like x, channels-last; x itself if p rounds to 0.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: A shape, a device or a number is wrong.
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
    """Return which elements are kept, bool (B, C, H, W).

    Element e of an image, counted in (H, W, C) order, is kept if half e % 8 of the words of block
    (layer, e // 8), low halves first, is at least `threshold`.

    Args:
        shape: (B, C, H, W).
        update: See `dropout`; int64 (1,).
        threshold: 65536 p.
        seed: See `dropout`.
        round_: See `dropout`.
        layer: See `dropout`.
        first: See `dropout`.
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
    """Apply dropout in plain PyTorch, in float32, or float64 where x is float64; differentiable."""
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
    """Run `dropout` on checked arguments, at p = threshold / 65536."""
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
    """Apply the same op to the gradient."""
    (update,) = ctx.saved_tensors
    return dropout_op(grad, update, *ctx.draw), *[None] * 6


torch.library.register_autograd(dropout_op, _backward, setup_context=_save, lib=LIBRARY)


# ------------------------------------------------------------------------------------------
# Triton

DRAWN_BY = ["first", "layer", "seed", "key"]


@triton.jit(do_not_specialize=DRAWN_BY)  # their values change, the code does not
def dropout_kernel(
    x,  # activations (B, H, W, C), of any floating dtype
    update,  # update whose batch x is of, int64 (1,)
    out,  # output: like x
    size,  # elements of an image, H W C
    first,  # position of the first image in the global batch
    layer,  # number of the dropout in the network
    seed,  # first number of the key
    key,  # second number of the key
    threshold: tl.constexpr,  # 65536 p
    scale: tl.constexpr,  # 1 / (1 - p)
    block: tl.constexpr,  # elements of a program
):
    """Drop out `block` elements of an image, in (H, W, C) order, in each program."""
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
