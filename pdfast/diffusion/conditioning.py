"""Conditioning: all inputs of a network beside z and its noise level, in one object.

A batch creates it, an objective passes it through, and the network reads the inputs it uses.
Callers outside the package pass only a label, model(z, logsnr, label); a custom network gets the
same arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

NO_CLASS = -1  # label of an image whose class is withheld from the network


class DropoutRng(NamedTuple):
    """Counters from which the dropout masks of a batch are drawn; see kernels/dropout.py."""

    seed: int
    round_: int
    update: Tensor
    """Number of the update: int64, one element, on the device."""
    first: int
    """Position of the first image in the global batch."""


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class Conditioning:
    """Network inputs for a batch of B images; None for each input that is not given."""

    label: Tensor | None = None
    """Classes, int64 (B,); NO_CLASS where the class is withheld."""
    guidance: Tensor | None = None
    """Guidance weights of a guided student, floating-point (B,)."""
    dropout_rng: DropoutRng | None = None
    """Counters of the dropout masks; None for no dropout."""
    films: Tensor | None = None
    """FiLM parameters of all residual blocks, from `UNet.films`: rows of a table. They replace the
    parameters computed from the noise level, the label and the guidance weight."""

    def tensors(self) -> list[Tensor]:
        """Return the labels and the guidance weights, in this order, where they are not None."""
        return [tensor for tensor in (self.label, self.guidance) if tensor is not None]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Conditioning":
        """Return a copy with `tensors`, ordered as in `tensors()`, in place of the old ones."""
        left = iter(tensors)
        label = None if self.label is None else next(left)
        return replace(self, label=label, guidance=None if self.guidance is None else next(left))

    def joined(self, other: "Conditioning") -> "Conditioning":
        """Concatenate the labels and guidance weights of two batches."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return self.with_tensors([torch.cat(pair) for pair in pairs])


UNCONDITIONAL = Conditioning()
