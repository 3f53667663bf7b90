"""The classes of the samples that are judged and shown, drawn by counter.

That of image k depends on the seed and k alone, so that every model, and any number of processes,
draws the same ones.
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
    """How the classes of samples are drawn."""

    how: ClassShares
    weights: tuple[int, ...]
    """Weight of each class, by number; a class of weight 2 is drawn twice as often as one of 1."""
    key: str
    """Key of the draw, on which kept samples depend; "" for the even draw among all classes."""

    @classmethod
    def of(cls, classes: Classes, how: ClassShares) -> "ClassDraw":
        """Draw by the class shares of the set, or evenly among the classes that it has."""
        counts = classes.counts
        weights = counts if how == "data" else tuple(int(count > 0) for count in counts)
        if how == "even" and not classes.absent:
            return evenly(len(counts))
        found = hashlib.sha256(json.dumps(weights).encode()).hexdigest()
        return cls(how, weights, f"{how} {found}")

    def labels(self, seed: int, num: int, first: int = 0) -> Tensor:
        """Classes, int64 (num,) on the CPU, of the images first .. first + num - 1.

        They are exact: each class has its share of the 2^32 words, to one word.
        """
        words = Draws(seed, Stream.SAMPLE).class_words(first, num)
        ends = torch.tensor(self.weights).cumsum(0)
        return torch.searchsorted(ends, index_below(words, int(ends[-1])), right=True)


def evenly(num_classes: int) -> ClassDraw:
    """All classes of a model alike, as the model itself draws them."""
    return ClassDraw("even", (1,) * num_classes, "")
