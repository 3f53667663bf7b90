"""Images held out of training: which, by counter."""

import dataclasses

import torch
from torch import Tensor

from pdfast.config.serialization import check
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream

AT_ONCE = 2**16  # images whose draws are made together


def hold_out(data: Dataset, num: int, seed: int) -> Dataset:
    """The same set, of which `num` images that the seed draws are not to be trained on.

    Raises UsageError if no image is left.
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
    """Numbers of the images of a set that are held out: int64 (num,), fewer the first of more.

    They are those with the least 64-bit draws, so that any image may be: sets are often in an
    order, by class say.
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
    """Raise UsageError if so many images cannot be held out of a set."""
    check(
        num < population,
        f"data.holdout {num} leaves no image to train on: the set has {population}",
    )
