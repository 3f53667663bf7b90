"""Every random number of pdfast, by counter; the arithmetic is in kernels/philox.py.

There is no generator state to save: a resumed run draws what the undisturbed one would have drawn,
and so does any number of processes.
"""

import torch
from torch import Tensor

from pdfast.kernels import philox
from pdfast.kernels.philox import Stream as Stream
from pdfast.kernels.philox import index_below as index_below

CLASS = 2**40  # in the place of a sampler's step, of which there are never so many


class Draws:
    """The draws of one (seed, stream, round): round 0 is the teacher's training."""

    def __init__(
        self, seed: int, stream: Stream, round_: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.key = philox.key_of(seed, stream, round_)
        self.device = torch.device(device)

    def words(self, update: int, first: int, num: int, blocks: int = 1) -> Tensor:
        """32-bit words (num, 4 blocks), int64, for positions first .. first + num - 1."""
        return philox.words(self.key, self._tensor(update), first, num, blocks)

    def class_words(self, first: int, num: int) -> Tensor:
        """The word (num,) that each sample's class is drawn by."""
        return self.words(CLASS, first, num)[:, 0]

    def normal(self, update: int, first: int, num: int, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal float32 (num, C, H, W), channels-last; `shape` is (C, H, W)."""
        return philox.normal(self.key, self._tensor(update), first, num, shape)

    def torch_seed(self, update: int) -> int:
        """A 63-bit seed for torch's own generator, where its draws cannot be by counter."""
        high, low = (int(word) for word in self.words(update, 0, 1)[0, :2])
        return ((high << 32) | low) & (2**63 - 1)

    def _tensor(self, update: int) -> Tensor:
        return torch.tensor(update, device=self.device)
