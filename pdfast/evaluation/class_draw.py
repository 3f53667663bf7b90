"""The classes of samples in evaluations and pictures, from counter-based draws.

The class of image k depends on the seed and k alone, so that it is the same for every model and any
number of processes.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from pdfast.config.schema import ClassShares
from pdfast.data.classes import Classes
from pdfast.diffusion.rng import Draws, Stream, index_below


@dataclass(frozen=True)
class ClassDraw:
    """The distribution that classes of samples are drawn from."""

    how: ClassShares
    weights: tuple[int, ...]
    """Weight of each class, by number; weight 2 is drawn twice as often as weight 1."""
    key: str
    """Key of the draw in the fingerprint of saved samples; "" for an even draw of all classes."""

    @classmethod
    def of(cls, classes: Classes, how: ClassShares) -> "ClassDraw":
        """Return a draw by the set's class shares ("data"), or even among its classes ("even")."""
        counts = classes.counts
        weights = counts if how == "data" else tuple(int(count > 0) for count in counts)
        if how == "even" and not classes.absent:
            return evenly(len(counts))
        found = hashlib.sha256(json.dumps(weights).encode()).hexdigest()
        return cls(how, weights, f"{how} {found}")

    def labels(self, seed: int, num: int, first: int = 0) -> Tensor:
        """Return the classes of images first .. first + num - 1, int64 (num,), on the CPU.

        Each class has its exact share of the 2^32 words, to within one word.
        """
        words = Draws(seed, Stream.SAMPLE).class_words(first, num)
        ends = torch.tensor(self.weights).cumsum(0)
        return torch.searchsorted(ends, index_below(words, int(ends[-1])), right=True)


def evenly(num_classes: int) -> ClassDraw:
    """Return an even draw of all classes of a model, as the model itself draws them."""
    return ClassDraw("even", (1,) * num_classes, "")
