"""Frechet distance between sets of features, each taken for a Gaussian.

Named FD-<detector>; FID where the features are Inception's, and nowhere else (pdfast/detectors).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    cov: Tensor

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance; eigenvalues rounded below zero are cut off."""
        values, vectors = torch.linalg.eigh(self.cov)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


class Moments:
    """Mean and covariance of features that come in chunks, merged by Chan et al. 1979."""

    def __init__(self) -> None:
        self.count = 0
        self._mean, self._scatter = torch.zeros(()), torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Count these features in, float64 (N, D), N >= 0."""
        n = len(features)
        if n == 0:
            return
        mean = features.mean(0)
        centred = features - mean
        if self.count == 0:
            self.count, self._mean, self._scatter = n, mean, centred.T @ centred
            return
        delta, total = mean - self._mean, self.count + n
        between = torch.outer(delta, delta) * (self.count * n / total)
        self._scatter = self._scatter + centred.T @ centred + between
        self.count, self._mean = total, self._mean + delta * (n / total)

    def gaussian(self) -> Gaussian:
        """Of at least 2; the covariance is unbiased."""
        return Gaussian(self._mean, self._scatter / (self.count - 1))


def gaussian_of(features: Tensor) -> Gaussian:
    """Mean and covariance of features, float64 (N, D), N >= 2."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """||mu_p - mu_q||^2 + tr(C_p + C_q - 2 (C_p^1/2 C_q C_p^1/2)^1/2) (Dowson & Landau 1982).

    The symmetric square root keeps every eigenvalue real. p's is computed once and kept.
    """
    cross = torch.linalg.eigvalsh(p.root @ q.cov @ p.root).clamp(min=0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p.cov.trace() + q.cov.trace() - 2 * cross
    return float(distance)
