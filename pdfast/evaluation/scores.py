"""Scores of features beside the distance: Inception score, and precision and recall.

Definitions are torch-fidelity's, whose own functions need torchvision and cannot be asked for
lite0's features where it is missing; `tests/evaluation/test_fidelity.py` compares the numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdfast.distributed.signals import poll

SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's
NEIGHBOURS = 3
MOST = 50_000  # images, and samples, that precision and recall look at: what is usual
BLOCK_BYTES = 2**28  # of distances in memory at a time


class InceptionScore(NamedTuple):
    """Of the splits."""

    mean: float
    std: float


class Manifold(NamedTuple):
    """Precision and recall, in 0 .. 1."""

    precision: float
    recall: float


def inception_score(logits: Tensor) -> InceptionScore:
    """exp E KL(p(y|x) || p(y)) of logits, float64 (N, classes), N >= 10 (Salimans et al. 2016).

    Mean and standard deviation over 10 splits of the shuffled samples.
    """
    num = len(logits)
    order = np.random.RandomState(SHUFFLE_SEED).permutation(num)
    log_p = logits[torch.from_numpy(order).to(logits.device)].log_softmax(1)
    found = []
    for k in range(SPLITS):
        part = log_p[k * num // SPLITS : (k + 1) * num // SPLITS]
        marginal = part.exp().mean(0).log()
        terms = torch.where(part.exp() > 0, part.exp() * (part - marginal), 0.0)  # 0 log 0 = 0
        found.append(float(terms.sum(1).mean().exp()))
    return InceptionScore(float(np.mean(found)), float(np.std(found)))


@dataclass(frozen=True)
class Neighbourhood:
    """Points (N, D), N > 3, each with a ball around it, as far as its third neighbour."""

    points: Tensor
    radii: Tensor
    """float64 (N,)."""

    @classmethod
    def of(cls, points: Tensor) -> "Neighbourhood":
        """Of features, at most 50,000 being meant."""
        # Not kthvalue, which has no deterministic form on a GPU before torch 2.10.
        nearest = [d.topk(NEIGHBOURS + 1, largest=False).values for d in _distances(points, points)]
        return cls(points, torch.cat(nearest).amax(1))

    def share(self, points: Tensor) -> float:
        """How many of some points lie in any of the balls."""
        inside = sum(int((d <= self.radii).any(1).sum()) for d in _distances(points, self.points))
        return inside / len(points)


def precision_recall(samples: Tensor, images: Neighbourhood) -> Manifold:
    """How many samples, (N, D), lie near images, and the reverse (Kynkaanniemi et al. 2019)."""
    return Manifold(images.share(samples), Neighbourhood.of(samples).share(images.points))


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Distances, float64 (rows, M), from some rows of `a` at a time to all of `b`."""
    b = b.double()
    for part in torch.split(a, max(1, BLOCK_BYTES // (8 * len(b)))):
        poll()
        yield torch.cdist(part.double(), b)
