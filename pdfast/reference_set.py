"""The images that samples are compared with: their features, and the floor of the distance.

What takes a network is kept in $XDG_CACHE_HOME/pdfast, or ~/.cache/pdfast, under the SHA-256 of the
images and of the network's weights; pixels are counted anew each time.
"""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pdfast import files, kept, scores
from pdfast.data import Dataset
from pdfast.detectors.base import CHUNK, Detector, Features
from pdfast.draws import Draws, Stream, index_below
from pdfast.errors import PdfastError, UsageError
from pdfast.files import Damaged
from pdfast.frechet import Gaussian, Moments, frechet_distance, gaussian_of
from pdfast.progress import Screen
from pdfast.signals import poll

NUM_RESAMPLES = 10
CLASS_RESAMPLES = 3  # of each class
FORMAT = "1"  # of the kept files; another one is made anew


def cache_folder() -> Path:
    """Where features of sets are kept."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdfast"
    except RuntimeError:
        raise UsageError(
            "there is no home folder to keep features in: set XDG_CACHE_HOME to a folder"
        ) from None


def features_of(detector: Detector, images: Tensor, screen: Screen) -> Iterator[Features]:
    """Features of images, a batch at a time; those of a network with a bar."""
    starts = range(0, len(images), detector.batch)
    shown = screen if detector.weights else Screen(quiet=True)
    with shown.task(f"features, {detector.name}", len(starts)) as task:
        for start in starts:
            poll()
            yield detector.extract(images[start : start + detector.batch])
            task.advance()


class Reference:
    """A set of images, seen by a detector."""

    def __init__(self, data: Dataset, detector: Detector, screen: Screen) -> None:
        self._images, self._labels = data.images, data.labels
        self._detector, self._screen = detector, screen

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images' tensor."""
        return kept.digest({"images": self._images})

    @property
    def gaussian(self) -> Gaussian:
        """Of all images."""
        return self._statistics[0]

    @property
    def points(self) -> Tensor:
        """Features, float32 (M, D), of at most 50,000 images, evenly apart; of a network alone."""
        return self._statistics[1]

    # -- the floor -------------------------------------------------------------------------

    def floor(self, num: int, seed: int) -> tuple[float, float]:
        """Mean and standard deviation of the distance of bootstrap resamples of the images.

        A perfect sampler of the data would score this much from `num` samples.
        """

        def count() -> dict[str, Tensor]:
            return {"distances": torch.tensor(self._resampled(num, seed), dtype=torch.float64)}

        found = self._kept(f"floor-{num}-{seed}", {"num": str(num), "seed": str(seed)}, count)
        distances = found["distances"]
        return float(distances.mean()), float(distances.std())

    def _resampled(self, num: int, seed: int) -> list[float]:
        draws = Draws(seed, Stream.BOOTSTRAP, device=self._images.device)
        chosen = [
            index_below(draws.words(resample, 0, num)[:, 0], len(self._images))
            for resample in range(NUM_RESAMPLES)
        ]
        # One after another, to hold one covariance; but features that take a network but once.
        once = bool(self._detector.weights) and len(self.points) < len(self._images)
        distances = []
        for group in [chosen] if once else [[indices] for indices in chosen]:
            for found in self._gaussians(group):
                distances.append(frechet_distance(self.gaussian, found))
        return distances

    def _gaussians(self, resamples: list[Tensor]) -> list[Gaussian]:
        """Of images by their numbers, some of them several times."""
        counts = [torch.bincount(chosen, minlength=len(self._images)) for chosen in resamples]
        moments, start = [Moments() for _ in resamples], 0
        for features in self._features():
            stop = start + len(features)
            for of, count in zip(moments, counts, strict=True):
                times = count[start:stop].to(features.device)
                of.add(features.repeat_interleave(times, dim=0))
            start = stop
        return [of.gaussian() for of in moments]

    # -- features --------------------------------------------------------------------------

    def _features(self) -> Iterator[Tensor]:
        """Of all images in order, float64, a part at a time."""
        if self._detector.weights and len(self.points) == len(self._images):
            yield from (part.double() for part in torch.split(self.points, CHUNK))
        else:
            yield from (f.values for f in features_of(self._detector, self._images, self._screen))

    @cached_property
    def _statistics(self) -> tuple[Gaussian, Tensor]:
        found = self._kept("statistics", {}, self._counted)
        device = self._detector.device or self._images.device
        moved = {name: tensor.to(device) for name, tensor in found.items()}
        return Gaussian(moved["mean"], moved["cov"]), moved["points"]

    def _counted(self) -> dict[str, Tensor]:
        """Mean, covariance, and the features that are kept, in one pass."""
        moments, points, start = Moments(), [], 0
        wanted = torch.zeros(len(self._images), dtype=torch.bool)
        wanted[self._spread()] = bool(self._detector.weights)
        for found in features_of(self._detector, self._images, self._screen):
            moments.add(found.values)
            taken = wanted[start : start + len(found.values)].to(found.values.device)
            points.append(found.values[taken].float())
            start += len(found.values)
        gaussian = moments.gaussian()
        return {"mean": gaussian.mean, "cov": gaussian.cov, "points": torch.cat(points)}

    def _spread(self) -> Tensor:
        """Numbers of the images whose features are kept."""
        num = len(self._images)
        taken = min(num, scores.MOST)
        return torch.arange(taken) * num // taken

    # -- classes ---------------------------------------------------------------------------

    @cached_property
    def class_counts(self) -> dict[int, int]:
        """Images of each class, of those whose features are kept; empty without labels."""
        if self._labels is None:
            return {}
        counts = torch.bincount(self._class_labels())
        return {label: int(count) for label, count in enumerate(counts) if count}

    def of_class(self, label: int, num: int, seed: int) -> tuple[Gaussian, float]:
        """The images of a class, and the floor of `num` samples of it: the mean of a few."""
        features = self._class_features(label)
        gaussian, distances = gaussian_of(features), []
        draws = Draws(seed, Stream.BOOTSTRAP, device=features.device)
        for k in range(CLASS_RESAMPLES):
            words = draws.words(NUM_RESAMPLES + label * CLASS_RESAMPLES + k, 0, num)[:, 0]
            chosen = features[index_below(words, len(features))]
            distances.append(frechet_distance(gaussian, gaussian_of(chosen)))
        return gaussian, sum(distances) / len(distances)

    def _class_labels(self) -> Tensor:
        """Of the images whose features are kept, or of all."""
        assert self._labels is not None
        labels = self._labels.cpu()
        return labels[self._spread()] if self._detector.weights else labels

    def _class_features(self, label: int) -> Tensor:
        """float64 (n, D)."""
        chosen = self._class_labels() == label
        if self._detector.weights:
            return self.points[chosen.to(self.points.device)].double()
        images = self._images[chosen.to(self._images.device)]
        return torch.cat([f.values for f in features_of(self._detector, images, self._screen)])

    # -- files -----------------------------------------------------------------------------

    def _kept(
        self, name: str, more: dict[str, str], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What `make` gives; of a network's features read again where it was kept."""
        weights = self._detector.weights
        if not weights:
            return make()
        path = cache_folder() / f"{self.digest[:16]}-{weights[:16]}-{name}.safetensors"
        facts = {"format": FORMAT, "images": self.digest, "weights": weights, **more}
        try:
            if (found := kept.load(path, facts)) is not None:
                return found
        except Damaged as error:
            self._screen.warn(f"{error.what}: what was kept there of the data is made again")
        made = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.save(path, made, facts)
        except (OSError, PdfastError) as error:
            self._screen.warn(
                f"features of the data are not kept for the next time: {files.reason(error)}"
            )
        return made
