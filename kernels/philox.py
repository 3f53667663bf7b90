"""Random numbers by counter: Philox4x32-10 (Salmon et al. 2011, Random123) and Box-Muller.

A draw is a function of (seed, stream, round, update, position in the global batch, element) and of
nothing else. Integers are the same on every device, in PyTorch and in Triton. Normals, Box-Muller
in float64 rounded once to float32, differ by at most one unit in the last place.
"""

import enum
import math

import torch
from torch import Tensor

from pdfast.kernels.angles import sincos
from pdfast.kernels.runtime import tl, triton

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(enum.IntEnum):
    """Purpose of a draw. Streams never share a counter."""

    BATCH = 0  # which image, flipped or not, which time
    NOISE = 1  # eps of an update
    FIXED = 2  # which images and times make the fixed batch, or the times of held-out images
    FIXED_NOISE = 7  # their eps
    SAMPLE = 3  # the sampler's noise
    BOOTSTRAP = 4  # resampling of a data set
    INIT = 5  # initial weights (through torch's generator)
    DROPOUT = 6  # dropout masks
    HOLDOUT = 8  # which images are held out of training


# ------------------------------------------------------------------------------------------
# PyTorch


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int | Tensor]) -> Tensor:
    """Return the four 32-bit words of each counter.

    Args:
        counter: Four int64 tensors that broadcast to one shape (...).
        key: Two numbers; the second may be an int64 tensor that broadcasts to that shape.

    Returns:
        Words, int64 (..., 4).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    # Two rows per tensor, in-place ops, and numbers as tensors (on the CPU for any device): they
    # save calls of PyTorch, which take most of a CPU's time on small batches.
    m0, m1, mask, half = torch.tensor([*_MULTIPLIERS, _MASK, 32], device="cpu").unbind()
    even, odd = torch.stack([c2, c0]), torch.stack([c3, c1])
    product = torch.empty_like(odd)
    c2, c0 = even.unbind()
    (c3, c1), (p0, p1), (k0, k1) = odd.unbind(), product.unbind(), key
    for _ in range(10):
        # The 64-bit product wraps, but its bit pattern is that of the unsigned product. Only the
        # low 32 bits of c1, c3 and the key matter; the masks keep those.
        torch.mul(c0, m0, out=p0)
        torch.mul(c2, m1, out=p1)
        torch.bitwise_right_shift(product, half, out=even).bitwise_xor_(odd)
        c0.bitwise_xor_(k0)
        c2.bitwise_xor_(k1)
        even.bitwise_and_(mask)
        odd, product, c3, c1, p0, p1 = product, odd, p0, p1, c3, c1
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    odd.bitwise_and_(mask)
    return torch.stack([c0, c1, c2, c3], dim=-1)


def key_of(seed: int, stream: Stream, round_: int) -> tuple[int, int]:
    """Return the key of a stream's draws in a round: (seed, 256 round_ + stream)."""
    return seed, (round_ << 8) | int(stream)


def words(
    key: tuple[int, int], update: Tensor, first: int, num: int, blocks: int = 1, skip: int = 0
) -> Tensor:
    """Return the 32-bit words of positions first .. first + num - 1 in an update's batch.

    Args:
        key: The stream's key, of `key_of`.
        update: Number of the update, int64 of one element.
        first: First position.
        num: Number of positions.
        blocks: Blocks of four words for each position.
        skip: Blocks to skip before the first.

    Returns:
        Words (num, 4 blocks), int64, on the device of `update`.
    """
    block = torch.arange(skip, skip + blocks, device=update.device)
    return words_of(key, update, first, num, block)


def words_of(
    key: tuple[int, int | Tensor], update: Tensor, first: int, num: int, block: Tensor
) -> Tensor:
    """Return the `words` of given blocks, an int64 tensor (n,).

    The key's second number may be an int64 tensor (n,) too.
    """
    update = update.reshape(())
    position = torch.arange(first, first + num, device=update.device)[:, None]
    return philox((block, position, update & _MASK, update >> 32), key).flatten(1)


def normal_of(words: Tensor) -> Tensor:
    """Turn words (B, 4 n) into standard normals, float32 (B, 4 n): two from each pair of words."""
    uniform = words.double().add_(0.5).div_(2**32)
    radius = uniform[:, 0::2].log().mul_(-2.0).sqrt_()
    angle = 2.0 * math.pi * uniform[:, 1::2]
    pair = torch.stack([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=-1)
    return pair.flatten(1).float()


def normal(
    key: tuple[int, int], update: Tensor, first: int, num: int, shape: tuple[int, int, int]
) -> Tensor:
    """Draw standard normal images, float32 (num, C, H, W), channels-last; `shape` is (C, H, W).

    Element e of an image, counted in (H, W, C) order, comes from block e // 4, lane e % 4. The
    other arguments are those of `words`.
    """
    return normal_images(words(key, update, first, num, blocks_of(shape)), shape)


def blocks_of(shape: tuple[int, int, int]) -> int:
    """Return the blocks of words that the normals of an image (C, H, W) take."""
    return -(-math.prod(shape) // 4)


def normal_images(words: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Turn words (num, 4 `blocks_of(shape)`) into the images of `normal`."""
    c, h, w = shape
    values = normal_of(words)[:, : c * h * w].contiguous()
    return values.view(-1, h, w, c).permute(0, 3, 1, 2)


def index_below(words: Tensor, n: int | Tensor) -> Tensor:
    """Turn 32-bit words into integers in 0 .. n - 1, int64, with a bias below n / 2^32."""
    return (words * n) >> 32


def uniform_of(high: Tensor, low: Tensor) -> Tensor:
    """Turn two 32-bit words into a float64 in (0, 1): the middle of one of 2^52 equal cells."""
    return (((high << 20) | (low >> 12)).double() + 0.5) / 2**52


# ------------------------------------------------------------------------------------------
# Triton

TWO_PI = tl.constexpr(2.0 * math.pi)


@triton.jit
def words_at(update, position, block, seed, key):
    """Return the four uint32 words of each block.

    Args:
        update: Number of the update, an integer.
        position: Position in the global batch, an integer.
        block: Blocks, integers of any shape.
        seed: First number of the key, an integer.
        key: Second number of the key, an integer.
    """
    zeros = block.to(tl.uint32) * 0
    low, high = zeros + update.to(tl.uint32), zeros + (update >> 32).to(tl.uint32)
    here = zeros + position.to(tl.uint32)
    return tl.philox_impl(
        block.to(tl.uint32), here, low, high, zeros + seed.to(tl.uint32), zeros + key.to(tl.uint32)
    )


@triton.jit
def normal_pair(word_0, word_1):
    """Return two float32 normals for two uint32 words, the same as `normal_of` up to rounding."""
    radius = tl.sqrt(-2.0 * tl.log((word_0.to(tl.float64) + 0.5) / 4294967296.0))
    # Rounded as PyTorch rounds it, so that sin and cos near their zeros are of the same angle.
    sin, cos = sincos((word_1.to(tl.float64) + 0.5) / 4294967296.0 * TWO_PI)
    return (radius * cos).to(tl.float32), (radius * sin).to(tl.float32)


@triton.jit
def scaled_word(word, n):
    """Turn a uint32 word into an int64 in 0 .. n - 1; see `index_below`."""
    return (word.to(tl.int64) * n) >> 32


@triton.jit
def uniform_from(high, low):
    """Turn two uint32 words into a float64 in (0, 1); see `uniform_of`."""
    cell = (high.to(tl.int64) << 20) | (low.to(tl.int64) >> 12)
    return (cell.to(tl.float64) + 0.5) / 4503599627370496.0
