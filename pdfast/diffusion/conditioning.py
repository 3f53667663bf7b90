"""Conditioning: what a network is told beside z and its noise level, as one object.

A batch makes it, an objective passes it on, and the network reads from it what it takes. From
outside, a model is called with a label, (z, logsnr, label), and so is a custom network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

NO_CLASS = -1  # the label of an image whose class the network is not told


class DropoutRng(NamedTuple):
    """The counters that the dropout masks of a batch are drawn by; see kernels/dropout.py."""

    seed: int
    round_: int
    update: Tensor
    """int64, one element, on the device."""
    first: int
    """Position of the first image in the global batch."""


@dataclass(frozen=True, eq=False)  # tensors have no one truth of being equal
class Conditioning:
    """What a network is told of a batch of B images; None where it is told nothing."""

    label: Tensor | None = None
    """int64 (B,); NO_CLASS where the class is not told."""
    guidance: Tensor | None = None
    """Guidance weights (B,), floating, of a guided student."""
    dropout_rng: DropoutRng | None = None
    """With dropout, by these draws; None: without."""
    films: Tensor | None = None
    """FiLM parameters of all residual blocks, of `UNet.films`, in place of those that the noise
    level, the label and the guidance weight give: rows of a table."""

    def tensors(self) -> list[Tensor]:
        """The label and the guidance weights, as far as they are told."""
        return [tensor for tensor in (self.label, self.guidance) if tensor is not None]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Conditioning":
        """The same with other tensors in place of those that `tensors` gives."""
        left = iter(tensors)
        label = None if self.label is None else next(left)
        return replace(self, label=label, guidance=None if self.guidance is None else next(left))

    def joined(self, other: "Conditioning") -> "Conditioning":
        """Labels and guidance weights of both batches, one after the other."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return self.with_tensors([torch.cat(pair) for pair in pairs])


UNCONDITIONAL = Conditioning()
