"""The reference set that samples are compared with: its features, and the floor of the distance.

Results of a detector with a network are cached in $XDG_CACHE_HOME/pdfast, or ~/.cache/pdfast, under
the SHA-256 of the images and of the network's weights. Those of pixels are recomputed each time.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pdfast.console.progress import Screen
from pdfast.data.dataset import Dataset
from pdfast.data.prepare import cache_folder
from pdfast.diffusion.rng import Draws, Stream, index_below
from pdfast.distributed import collectives
from pdfast.distributed.signals import poll
from pdfast.errors import PdfastError
from pdfast.evaluation import scores
from pdfast.evaluation.detectors.base import CHUNK, Detector, Features, Rows
from pdfast.evaluation.frechet import Gaussian, Moments, frechet_distance
from pdfast.evaluation.scores import Neighbourhood
from pdfast.storage import files, kept
from pdfast.storage.files import Damaged

NUM_RESAMPLES = 10  # bootstrap resamples of the whole set
CLASS_RESAMPLES = 3  # bootstrap resamples of each class
FORMAT = "2"  # of the cached files; files of another format are made again


def features_of(detector: Detector, images: Tensor, screen: Screen) -> Iterator[Features]:
    """Yield the features of images one batch at a time, in the first process only.

    Called by all processes with the same images. A detector with a network splits the batches among
    the processes, and shows a progress bar.

    Args:
        detector: Computes the features.
        images: Images (N, H, W, C).
        screen: Where to show progress.

    Yields:
        Features of a batch, float64.
    """
    batches = torch.split(images, detector.batch)
    shown = screen if detector.weights else Screen(quiet=True)
    at_a_time = collectives.size() if detector.weights else 1
    with shown.task(f"features, {detector.name}", len(batches)) as task:
        for start in range(0, len(batches), at_a_time):
            poll()
            turn = batches[start : start + at_a_time]
            mine = turn[collectives.rank() :][:1]
            found = [t for part in mine for t in detector.extract(part) if t is not None]
            for tensors in collectives.to_first(found, [len(part) for part in turn]):
                yield Features(*(tensor.double() for tensor in tensors))
                task.advance()


class Reference:
    """Feature statistics of a set of images under a detector.

    All processes call `find` and `floor`, and share the network's work. All else is for the first
    process, which may use it at any time: it then works without the others.
    """

    def __init__(self, data: Dataset, detector: Detector, screen: Screen) -> None:
        self._data, self._images, self._labels = data, data.images, data.labels
        self._detector, self._screen = detector, screen
        self._statistics: dict[str, Tensor] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the images."""
        return self._data.digest.images

    @cached_property
    def gaussian(self) -> Gaussian:
        """Gaussian of the features of all images."""
        return Gaussian(self._found["mean"], self._found["cov"])

    @property
    def points(self) -> Tensor:
        """Features of at most 50,000 evenly spaced images, float32 (M, D); (0, D) for pixels."""
        return self._found["points"]

    @cached_property
    def near(self) -> Neighbourhood:
        """Neighbourhood of `points`, computed once: 50,000 points take minutes on a CPU."""
        with collectives.alone():
            return Neighbourhood.of(self.points)

    # -- the floor -------------------------------------------------------------------------

    def floor(self, num: int, seed: int) -> tuple[float, float]:
        """Return mean and standard deviation of the distance of bootstrap resamples of the images.

        A perfect sampler of the data would have this distance with `num` samples. Called by all
        processes, which share the network's work.

        Args:
            num: Number of images in a resample, drawn with replacement. For a detector with a
                network, they are drawn from the images of `points`.
            seed: Seed of the draws.
        """

        def count() -> dict[str, Tensor]:
            return {"distances": torch.tensor(self._resampled(num, seed), dtype=torch.float64)}

        def told() -> tuple[float, float]:
            distances = found["distances"]
            return float(distances.mean()), float(distances.std())

        self.find()
        found = self._kept(f"floor-{num}-{seed}", {"num": str(num), "seed": str(seed)}, count)
        return collectives.from_first(told)

    def _resampled(self, num: int, seed: int) -> list[float]:
        draws = Draws(seed, Stream.BOOTSTRAP, device=self._images.device)
        of = self._num_kept if self._detector.weights else len(self._images)
        distances = []
        for resample in range(NUM_RESAMPLES):  # one at a time, to hold a single covariance
            chosen = index_below(draws.words(resample, 0, num)[:, 0], of)
            moments, start = Moments(), 0
            times = torch.bincount(chosen, minlength=of)
            for features in self._features():
                stop = start + len(features)
                moments.add(features.repeat_interleave(times[start:stop].to(features.device), 0))
                start = stop
            if moments.count:
                distances.append(frechet_distance(self.gaussian, moments.gaussian()))
        return distances

    # -- features --------------------------------------------------------------------------

    def _features(self) -> Iterator[Tensor]:
        """Yield features in parts, float64, in the first process only.

        They are the features of all images, in order, or `points` for a detector with a network.
        """
        if not self._detector.weights:
            yield from (f.values for f in features_of(self._detector, self._images, self._screen))
        elif collectives.rank() == 0:
            yield from (part.double() for part in torch.split(self.points, CHUNK))

    def find(self) -> None:
        """Compute or load the statistics, unless it is done; called by all processes."""
        if collectives.from_first(lambda: self._statistics is None):
            found = self._kept("statistics", {}, self._counted)
            device = self._detector.device or self._images.device
            self._statistics = {name: tensor.to(device) for name, tensor in found.items()}

    @property
    def _found(self) -> dict[str, Tensor]:
        """Statistics of the features, "mean", "cov" and "points"; for the first process."""
        if self._statistics is None:
            with collectives.alone():
                self.find()
        assert self._statistics is not None
        return self._statistics

    def _counted(self) -> dict[str, Tensor]:
        """Compute mean, covariance and `points` in one pass; called by all processes."""
        moments, points, start = Moments(), Rows(self._num_kept), 0
        wanted = torch.zeros(len(self._images), dtype=torch.bool)
        wanted[self._spread()] = bool(self._detector.weights)
        for found in features_of(self._detector, self._images, self._screen):
            moments.add(found.values)
            taken = wanted[start : start + len(found.values)].to(found.values.device)
            points.add(found.values[taken].float())
            start += len(found.values)
        if not moments.count:
            return {}
        gaussian = moments.gaussian()
        return {"mean": gaussian.mean, "cov": gaussian.cov, "points": points.all()}

    @property
    def _num_kept(self) -> int:
        """Number of images in `points`, for a detector with a network."""
        return min(len(self._images), scores.MOST)

    def _spread(self) -> Tensor:
        """Return the numbers of the images in `points`."""
        return torch.arange(self._num_kept) * len(self._images) // self._num_kept

    # -- classes ---------------------------------------------------------------------------

    @cached_property
    def class_counts(self) -> dict[int, int]:
        """Number of images of each class; empty without labels.

        For a detector with a network, only the images of `points` count.
        """
        if self._labels is None:
            return {}
        counts = torch.bincount(self._class_labels())
        return {label: int(count) for label, count in enumerate(counts) if count}

    def of_class(self, label: int, num: int, seed: int) -> tuple[Gaussian, float]:
        """Return the feature Gaussian of a class's images, and the floor of its distance.

        Args:
            label: The class.
            num: Number of its samples.
            seed: Seed of the draws.

        Returns:
            The Gaussian; and the mean distance of CLASS_RESAMPLES bootstrap resamples of `num`
            images.
        """
        rows = (self._class_labels() == label).nonzero()[:, 0]
        gaussian, distances = self._class_gaussian(rows), []
        draws = Draws(seed, Stream.BOOTSTRAP)
        for k in range(CLASS_RESAMPLES):
            words = draws.words(NUM_RESAMPLES + label * CLASS_RESAMPLES + k, 0, num)[:, 0]
            times = torch.bincount(index_below(words, len(rows)), minlength=len(rows))
            distances.append(frechet_distance(gaussian, self._class_gaussian(rows, times)))
        return gaussian, sum(distances) / len(distances)

    def _class_labels(self) -> Tensor:
        """Return the labels of the images in `points`, or of all images for pixels."""
        assert self._labels is not None
        labels = self._labels.cpu()
        return labels[self._spread()] if self._detector.weights else labels

    def _class_gaussian(self, rows: Tensor, times: Tensor | None = None) -> Gaussian:
        """Return the feature Gaussian of images by number, each counted `times` times."""
        moments, start = Moments(), 0
        with collectives.alone():
            for part in torch.split(rows, CHUNK):
                for values in self._values(part):
                    stop = start + len(values)
                    if times is not None:
                        values = values.repeat_interleave(times[start:stop].to(values.device), 0)
                    moments.add(values)
                    start = stop
        return moments.gaussian()

    def _values(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield the features of images by number in parts, float64 (n, D)."""
        if self._detector.weights:
            yield self.points[rows.to(self.points.device)].double()
            return
        images = self._images[rows.to(self._images.device)]
        yield from (f.values for f in features_of(self._detector, images, self._screen))

    # -- files -----------------------------------------------------------------------------

    def _kept(
        self, name: str, more: dict[str, str], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the result of `make`, cached on disk if the detector has a network.

        Called by all processes; the result is for the first.
        """
        weights = self._detector.weights
        if not weights:
            return make()
        found: dict[str, Tensor] = {}

        def place() -> tuple[Path, dict[str, str]]:
            path = cache_folder() / f"{self.digest[:16]}-{weights[:16]}-{name}.safetensors"
            return path, {"format": FORMAT, "images": self.digest, "weights": weights, **more}

        if not collectives.from_first(lambda: self._read(*place(), found)):
            found |= make()
            collectives.from_first(lambda: self._write(*place(), found))
        return found

    def _read(self, path: Path, facts: dict[str, str], found: dict[str, Tensor]) -> bool:
        """Load a cached result into `found`; return whether there was one."""
        try:
            found |= kept.load(path, facts) or {}
        except Damaged as error:
            self._screen.warn(f"{error.what}: its statistics of the data are made again")
        return bool(found)

    def _write(self, path: Path, facts: dict[str, str], made: dict[str, Tensor]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.save(path, made, facts)
        except (OSError, PdfastError) as error:
            self._screen.warn(f"the features of the data cannot be cached: {files.reason(error)}")
