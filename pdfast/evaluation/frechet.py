"""Frechet distance between sets of features, each taken for a Gaussian.

Named FD-<detector>; FID where the features are Inception's, and nowhere else (pdfast/detectors).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pdfast.errors import PdfastError


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


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """||mu_p - mu_q||^2 + tr(C_p + C_q - 2 (C_p^1/2 C_q C_p^1/2)^1/2) (Dowson & Landau 1982).

    The symmetric square root keeps every eigenvalue real. p's is computed once and kept. It is at
    least 0: what rounding takes below is 0. Raises PdfastError where it is lower than that.
    """
    eigenvalues = torch.linalg.eigvalsh(p.root @ q.cov @ p.root).clamp(min=0)
    cross = eigenvalues.sqrt().sum()
    apart, p_trace, q_trace = (p.mean - q.mean).square().sum(), p.cov.trace(), q.cov.trace()
    # In this order, so that figures keep their bits from version to version.
    distance = float(apart + p_trace + q_trace - 2 * cross)
    if distance >= 0 or math.isnan(distance):
        return distance
    # Each eigenvalue is known to within `error`, about a few units in the last place of the
    # product's norm, of which the square root makes much where it should be 0.
    eps, width = torch.finfo(eigenvalues.dtype).eps, len(eigenvalues)
    error = 10 * math.sqrt(width) * eps * p.cov.norm() * q.cov.norm()
    too_much = (eigenvalues.sqrt() - (eigenvalues - error).clamp(min=0).sqrt()).sum()
    rounding = float(2 * too_much + 10 * width * eps * (p_trace + q_trace))
    if distance < -rounding:
        raise PdfastError(
            f"a Frechet distance came out as {distance:.3g}, where rounding explains "
            f"{-rounding:.1g}: the covariances' eigenvalues are wrong, by PyTorch "
            f"{torch.__version__} on {eigenvalues.device}; evaluate with --device cpu, or by "
            "another version of PyTorch"
        )
    return 0.0
