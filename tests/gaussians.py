"""Gaussians of features that lie in memory, all at once."""

from pdfast.evaluation.frechet import Moments


def gaussian_of(features):
    """Of float64 (N, D), N >= 2."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()
