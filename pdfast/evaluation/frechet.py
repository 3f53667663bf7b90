"""Frechet distance between sets of features, with a Gaussian fitted to each.

It is named FD-<detector>; only with Inception's features it is called FID (see detectors/).
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
        """Symmetric square root of the covariance; eigenvalues rounded below zero count as 0."""
        values, vectors = torch.linalg.eigh(self.cov)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


class Moments:
    """Running mean and covariance of features added in chunks (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean, self._scatter = torch.zeros(()), torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Add features (N, D), float64, N >= 0."""
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
        """Return mean and unbiased covariance of at least 2 features."""
        return Gaussian(self._mean, self._scatter / (self.count - 1))


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """Return the squared Frechet distance of two Gaussians (Dowson & Landau 1982).

    ||mu_p - mu_q||^2 + tr(C_p + C_q - 2 (C_p^1/2 C_q C_p^1/2)^1/2). The symmetric square root keeps
    every eigenvalue real. The root of C_p is computed once and cached in `p`.

    Args:
        p: The Gaussian of the reference.
        q: The Gaussian of the samples, of the same width.

    Returns:
        The distance, at least 0; negative values due to rounding become 0.

    Raises:
        PdfastError: The distance is more negative than rounding explains.
    """
    eigenvalues = torch.linalg.eigvalsh(p.root @ q.cov @ p.root).clamp(min=0)
    cross = eigenvalues.sqrt().sum()
    apart, p_trace, q_trace = (p.mean - q.mean).square().sum(), p.cov.trace(), q.cov.trace()
    # The order of the sum is kept, so that figures have the same bits in every version.
    distance = float(apart + p_trace + q_trace - 2 * cross)
    if distance >= 0 or math.isnan(distance):
        return distance
    # Each eigenvalue has an error of up to `error`, a few units in the last place of the product's
    # norm. The square root magnifies it where the eigenvalue should be 0.
    eps, width = torch.finfo(eigenvalues.dtype).eps, len(eigenvalues)
    error = 10 * math.sqrt(width) * eps * p.cov.norm() * q.cov.norm()
    too_much = (eigenvalues.sqrt() - (eigenvalues - error).clamp(min=0).sqrt()).sum()
    rounding = float(2 * too_much + 10 * width * eps * (p_trace + q_trace))
    if distance < -rounding:
        raise PdfastError(
            f"a Frechet distance came out as {distance:.3g}, where rounding explains "
            f"{-rounding:.1g}: the covariances' eigenvalues are wrong, by PyTorch "
            f"{torch.__version__} on {eigenvalues.device}; evaluate with --device cpu, or with "
            "another version of PyTorch"
        )
    return 0.0
