"""Every random number of pdfast, by counter: Philox4x32-10 (Salmon et al. 2011, Random123).

A draw is a function of (seed, stream, round, update, position in the global batch, element) and
of nothing else: there is no generator state to save, a resumed run draws what the undisturbed one
would have drawn, and so does any number of processes. Integers are the same on every device;
normals, Box-Muller in float64 rounded once to float32, differ by at most one unit in the last
place.
"""

import enum
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(enum.IntEnum):
    """What a draw is for; streams never share a counter."""

    BATCH = 0  # which image, flipped or not, which time
    NOISE = 1  # eps of an update
    HELD = 2  # which images and times make the held batch
    HELD_NOISE = 7  # its eps
    SAMPLE = 3  # the sampler's noise
    BOOTSTRAP = 4  # resampling of a data set
    INIT = 5  # initial weights (through torch's generator)
    DROPOUT = 6  # dropout masks (through torch's generator)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Four 32-bit words per counter: four broadcastable int64 tensors -> (..., 4) int64."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        # The 64-bit product wraps, but as a bit pattern it is the unsigned one.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


class Draws:
    """The draws of one (seed, stream, round): round 0 is the teacher's training."""

    def __init__(
        self, seed: int, stream: Stream, round_: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.key = (seed, (round_ << 8) | int(stream))
        self.device = torch.device(device)

    def _range(self, start: int, num: int) -> Tensor:
        return torch.arange(start, start + num, dtype=torch.int64, device=self.device)

    def words(self, update: int, first: int, num: int, blocks: int = 1) -> Tensor:
        """32-bit words (num, 4 blocks), int64, for positions first .. first + num - 1."""
        position = self._range(first, num)[:, None]
        block = self._range(0, blocks)[None, :]
        low, high = (torch.tensor(w, device=self.device) for w in (update & _MASK, update >> 32))
        return philox((block, position, low, high), self.key).reshape(num, 4 * blocks)

    def normal(self, update: int, first: int, num: int, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal float32 (num, C, H, W), channels-last; `shape` is (C, H, W).

        Element e of an image, counted in (H, W, C) order, comes from block e // 4, lane e % 4.
        """
        c, h, w = shape
        size = c * h * w
        words = self.words(update, first, num, -(-size // 4)).double()
        uniform = (words + 0.5) / 2**32
        radius = torch.sqrt(-2.0 * torch.log(uniform[:, 0::2]))
        angle = 2.0 * math.pi * uniform[:, 1::2]
        pair = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
        values = pair.flatten(1)[:, :size].float()
        return values.view(num, h, w, c).permute(0, 3, 1, 2)

    def torch_seed(self, update: int, position: int = 0) -> int:
        """A 63-bit seed for torch's own generator, where its draws cannot be by counter."""
        high, low = (int(word) for word in self.words(update, position, 1)[0, :2])
        return ((high << 32) | low) & (2**63 - 1)


def index_below(words: Tensor, n: int) -> Tensor:
    """32-bit words -> integers in 0 .. n - 1 (bias below n / 2^32), int64."""
    return (words * n) >> 32


def uniform_of(high: Tensor, low: Tensor) -> Tensor:
    """Two 32-bit words -> float64 in (0, 1), the middle of one of 2^52 equal cells."""
    return (((high << 20) | (low >> 12)).double() + 0.5) / 2**52
