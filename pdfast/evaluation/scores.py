"""Scores of features beside the distance: Inception score, precision and recall.

The definitions are torch-fidelity's. Its functions need torchvision, which may be missing when
lite0's features are scored; `tests/evaluation/test_fidelity.py` compares the numbers.
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
MOST = 50_000  # most images and samples for precision and recall, the usual number
BLOCK_BYTES = 2**28  # bytes of distances in memory at a time


class InceptionScore(NamedTuple):
    """Mean and standard deviation of the Inception score over the splits."""

    mean: float
    std: float


class Manifold(NamedTuple):
    """Precision and recall, each in 0 .. 1."""

    precision: float
    recall: float


def inception_score(logits: Tensor) -> InceptionScore:
    """Return the Inception score exp E KL(p(y|x) || p(y)) (Salimans et al. 2016).

    Args:
        logits: Logits of the samples, float64 (N, classes), N >= 10.

    Returns:
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
    """Points (N, D), N > 3, each with a ball that reaches to its third nearest neighbour."""

    points: Tensor
    radii: Tensor
    """Radii of the balls, float64 (N,)."""

    @classmethod
    def of(cls, points: Tensor) -> "Neighbourhood":
        """Return the neighbourhood of features (N, D), usually at most 50,000."""
        # Not kthvalue, which is not deterministic on a GPU before torch 2.10.
        nearest = [d.topk(NEIGHBOURS + 1, largest=False).values for d in _distances(points, points)]
        return cls(points, torch.cat(nearest).amax(1))

    def share(self, points: Tensor) -> float:
        """Return the fraction of points (M, D) that lie in any of the balls."""
        inside = sum(int((d <= self.radii).any(1).sum()) for d in _distances(points, self.points))
        return inside / len(points)


def precision_recall(samples: Tensor, images: Neighbourhood) -> Manifold:
    """Return precision and recall (Kynkaanniemi et al. 2019).

    Args:
        samples: Features of the samples (N, D).
        images: Neighbourhood of the images' features.

    Returns:
        The fraction of samples in the images' neighbourhood, and of images in the samples'.
    """
    return Manifold(images.share(samples), Neighbourhood.of(samples).share(images.points))


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield distances, float64 (rows, M), from some rows of `a` at a time to all of `b`."""
    b = b.double()
    for part in torch.split(a, max(1, BLOCK_BYTES // (8 * len(b)))):
        poll()
        yield torch.cdist(part.double(), b)
