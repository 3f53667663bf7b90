"""Frechet distance between sets of images, with a pluggable feature extractor.

The distance is named FD-<extractor>. FD-pixel uses the pixels themselves, in [-1, 1]: it needs
no network and is meant for small images. It is not FID, whose features are Inception's. FD-raw is
the same for samples that are no pictures: of their numbers as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from pdfast import distributed
from pdfast.config import Config
from pdfast.data import Dataset, as_stored
from pdfast.draws import Draws, Stream, index_below
from pdfast.model import Model
from pdfast.signals import poll

NUM_RESAMPLES = 10
PIXELS = 32  # largest size whose pixels are features
NUMBERS = 1024  # most features of a sample that is no picture
CHUNK = 4096  # images whose features are in memory at a time


@dataclass(frozen=True)
class Features:
    """A feature extractor: images (N, H, W, C) as stored -> float64 features (N, D)."""

    name: str
    extract: Callable[[Tensor], Tensor]


def pixels(images: Tensor) -> Tensor:
    """The pixels in [-1, 1]: uint8 (N, H, W, C) -> float64 (N, H W C).

    Images larger than 32 pixels are averaged down to that first: a covariance of 128x128x3 pixels
    would take 19 GB.
    """
    if images.shape[1] > PIXELS:
        channels_first = images.permute(0, 3, 1, 2).double()
        images = adaptive_avg_pool2d(channels_first, PIXELS).permute(0, 2, 3, 1)
    return images.flatten(1).double() / 127.5 - 1.0


def raw(shape: tuple[int, ...]) -> Features:
    """The numbers of samples of this shape, float32 -> float64 (N, D).

    More than 1024 of them are averaged over neighbours first: the longest axis is halved, the
    first one (channels) last, until they are no more.
    """

    def extract(images: Tensor) -> Tensor:
        numbers = images.permute(0, 3, 1, 2).double().reshape(-1, *shape)
        while numbers[0].numel() > NUMBERS:
            sizes = (
                numbers.shape[2:] if max(numbers.shape[2:], default=1) > 1 else numbers.shape[1:]
            )
            axis = numbers.ndim - len(sizes) + sizes.index(max(sizes))
            moved = numbers.movedim(axis, -1)
            halved = adaptive_avg_pool1d(moved.flatten(0, -2), -(-moved.shape[-1] // 2))
            numbers = halved.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
        return numbers.flatten(1)

    return Features("raw", extract)


EXTRACTORS = {"pixel": Features("pixel", pixels)}


def features_for(data: Dataset, config: Config) -> Features:
    """What the config asks for of pictures; of other samples their numbers."""
    if data.images.dtype == torch.uint8:
        return EXTRACTORS[config.eval.features]
    return raw(data.shape)


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


def fit_gaussian(features: Features, images: Tensor) -> Gaussian:
    """Moments of the features of images (N, H, W, C), N >= 2; the covariance is unbiased.

    The features of one chunk at a time are in memory; chunks are merged by Chan et al. 1979.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(images), CHUNK):
        poll()
        found = features.extract(images[start : start + CHUNK])
        n, its_mean = len(found), found.mean(0)
        centred = found - its_mean
        if count == 0:
            count, mean, scatter = n, its_mean, centred.T @ centred
            continue
        delta, total = its_mean - mean, count + n
        scatter = scatter + centred.T @ centred + torch.outer(delta, delta) * (count * n / total)
        count, mean = total, mean + delta * (n / total)
    return Gaussian(mean, scatter / (count - 1))


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """||mu_p - mu_q||^2 + tr(C_p + C_q - 2 (C_p^1/2 C_q C_p^1/2)^1/2) (Dowson & Landau 1982).

    The symmetric square root keeps every eigenvalue real. p's is computed once and kept.
    """
    cross = torch.linalg.eigvalsh(p.root @ q.cov @ p.root).clamp(min=0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p.cov.trace() + q.cov.trace() - 2 * cross
    return float(distance)


class Judge:
    """Distances of sample sets from one data set."""

    def __init__(self, data: Dataset, num: int, seed: int, features: Features) -> None:
        """`num` samples per distance, 0 for as many as the set has images."""
        self.num = num or len(data)
        self.seed = seed
        self.metric = f"FD-{features.name}"
        self._features, self._images = features, data.images

    @classmethod
    def of(cls, data: Dataset, config: Config) -> "Judge":
        """The judge that a config asks for; of the data's kind."""
        return cls(data, config.eval.num, config.seed, features_for(data, config))

    @cached_property
    def _reference(self) -> Gaussian:
        """Of the data; only the process that computes distances needs it."""
        return fit_gaussian(self._features, self._images)

    def distance(self, images: Tensor) -> float:
        """Distance of images (N, H, W, C), as the set's, from it."""
        found = fit_gaussian(self._features, images.to(self._images.device))
        return frechet_distance(self._reference, found)

    def floor(self) -> tuple[float, float]:
        """Mean and standard deviation of the distance of bootstrap resamples of the data.

        A perfect sampler of the data would score this much from `num` samples.
        """
        draws = Draws(self.seed, Stream.BOOTSTRAP, device=self._images.device)
        distances = []
        for resample in range(NUM_RESAMPLES):
            chosen = index_below(draws.words(resample, 0, self.num)[:, 0], len(self._images))
            distances.append(self.distance(self._images[chosen]))
        spread = torch.tensor(distances, dtype=torch.float64)
        return float(spread.mean()), float(spread.std())

    def judge(
        self, model: Model, steps: int, on_step: Callable[[], None] = lambda: None
    ) -> tuple[float, Tensor]:
        """(distance, samples) of `num` DDIM samples in `steps` steps, clipped where the model is.

        The samples are (num, H, W, C), of the set's dtype.
        """
        images = as_stored(
            model.sample_images(self.num, steps, self.seed, on_step=on_step), self._images.dtype
        )
        return distributed.from_first(lambda: self.distance(images)), images
