"""Images held out of training, chosen by counter."""

import dataclasses

import torch
from torch import Tensor

from pdfast.config.serialization import check
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream

AT_ONCE = 2**16  # images drawn together


def hold_out(data: Dataset, num: int, seed: int) -> Dataset:
    """Return the set with `num` images, drawn by the seed, held out of training.

    Raises:
        UsageError: No image is left.
    """
    check_holdout(num, len(data))
    if not num:
        return data
    out = torch.zeros(len(data), dtype=torch.bool)
    out[drawn(num, len(data), seed)] = True
    trained, held_out = ((~out).nonzero()[:, 0], out.nonzero()[:, 0])
    here = data.images.device
    return dataclasses.replace(data, trained=trained.to(here), held_out=held_out.to(here))


def drawn(num: int, population: int, seed: int) -> Tensor:
    """Return the numbers of the held-out images of a set, int64 (num,).

    They are the images with the smallest 64-bit draws, so that any image may be held out: sets are
    often ordered, by class for example. A smaller `num` gives the first of the same images.
    """
    draws = Draws(seed, Stream.HOLDOUT)
    words = [
        draws.words(0, first, min(AT_ONCE, population - first))[:, :2]
        for first in range(0, population, AT_ONCE)
    ]
    high, low = torch.cat(words).unbind(1)
    order = low.argsort(stable=True)
    return order[high[order].argsort(stable=True)][:num]


def check_holdout(num: int, population: int) -> None:
    """Raise UsageError unless a set of `population` images has more than `num`."""
    check(
        num < population,
        f"data.holdout {num} leaves no image to train on: the set has {population}",
    )
