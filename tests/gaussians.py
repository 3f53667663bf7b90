"""Gaussians of features that are all in memory at once."""

from pdfast.evaluation.frechet import Moments


def gaussian_of(features):
    """Return the Gaussian of features, float64 (N, D), N >= 2."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()
