"""Counter-based random numbers, the only ones in pdfast; kernels/philox.py has the arithmetic.

There is no generator state to save: a resumed run draws the same numbers as an uninterrupted one,
on any number of processes.
"""

import torch
from torch import Tensor

from pdfast.kernels import philox
from pdfast.kernels.philox import Stream as Stream
from pdfast.kernels.philox import index_below as index_below

CLASS = 2**40  # a step number that no sampler reaches: the counter of the class draws


class Draws:
    """The draws of one (seed, stream, round); round 0 is the training of the teacher."""

    def __init__(
        self, seed: int, stream: Stream, round_: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.key = philox.key_of(seed, stream, round_)
        self.device = torch.device(device)

    def words(self, update: int, first: int, num: int, blocks: int = 1) -> Tensor:
        """Return 32-bit words for positions first .. first + num - 1 of the global batch.

        Args:
            update: Number of the update, or of the sampler's step.
            first: Position of the first image.
            num: Number of images.
            blocks: Blocks of 4 words for each image.

        Returns:
            Words (num, 4 blocks), int64.
        """
        return philox.words(self.key, self._tensor(update), first, num, blocks)

    def class_words(self, first: int, num: int) -> Tensor:
        """Return the 32-bit word that determines each sample's class: int64 (num,)."""
        return self.words(CLASS, first, num)[:, 0]

    def normal(self, update: int, first: int, num: int, shape: tuple[int, int, int]) -> Tensor:
        """Return standard normal numbers for positions first .. first + num - 1.

        Args:
            update: Number of the update, or of the sampler's step.
            first: Position of the first image in the global batch.
            num: Number of images.
            shape: (C, H, W) of an image.

        Returns:
            Noise (num, C, H, W), float32, channels-last.
        """
        return philox.normal(self.key, self._tensor(update), first, num, shape)

    def torch_seed(self, update: int) -> int:
        """Return a 63-bit seed for torch's generator, for draws that cannot be counter-based."""
        high, low = (int(word) for word in self.words(update, 0, 1)[0, :2])
        return ((high << 32) | low) & (2**63 - 1)

    def _tensor(self, update: int) -> Tensor:
        return torch.tensor(update, device=self.device)
