"""Metrics of sample sets against one data set: distances, scores, and distances by class."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pdfast.config.schema import ClassShares, Config
from pdfast.console.progress import Screen
from pdfast.data.classes import Classes
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream, index_below
from pdfast.distributed import collectives
from pdfast.evaluation.class_draw import ClassDraw, evenly
from pdfast.evaluation.collected import Collected
from pdfast.evaluation.detectors.base import Detector, Features
from pdfast.evaluation.detectors.opening import open_detector
from pdfast.evaluation.frechet import Gaussian, Moments, frechet_distance
from pdfast.evaluation.reference_set import Reference, features_of
from pdfast.evaluation.scores import InceptionScore, Manifold
from pdfast.models.images import as_stored
from pdfast.models.model import Model


@dataclass(frozen=True)
class SampleMetrics:
    """Metrics of one set of samples."""

    distance: float
    """Frechet distance of the samples from the data."""
    inception_score: InceptionScore | None = None
    """Inception score; None unless the detector classifies."""
    manifold: Manifold | None = None
    """Precision and recall; None for a detector without a network."""
    classes: dict[int, float] = field(default_factory=dict)
    """Distance of each class's samples from its images, for classes with enough of both."""

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> "SampleMetrics":
        """Return the metrics from a table written by `table`."""
        score, manifold = table["inception_score"], table["manifold"]
        return cls(
            table["distance"],
            None if score is None else InceptionScore(*score),
            None if manifold is None else Manifold(*manifold),
            {int(label): distance for label, distance in table["classes"].items()},
        )

    def table(self) -> dict[str, Any]:
        """Return the metrics as a table that JSON can hold."""
        return {
            "distance": self.distance,
            "inception_score": self.inception_score,
            "manifold": self.manifold,
            "classes": {str(label): distance for label, distance in self.classes.items()},
        }


@dataclass(frozen=True)
class ClassReference:
    """Statistics of the images of one class."""

    gaussian: Gaussian
    """Gaussian of the images' features."""
    floor: float
    """Distance of bootstrap resamples of the images, as many as the class has samples."""


class Evaluator:
    """Computes metrics of samples against one data set.

    Methods marked "called by all processes" share the network's work among the processes. All other
    methods are for the first process.
    """

    def __init__(
        self,
        data: Dataset,
        num: int,
        seed: int,
        detector: Detector,
        screen: Screen | None = None,
        model: Model | None = None,
        shares: ClassShares = "data",
    ) -> None:
        """Prepare the evaluation, without computing features yet.

        Args:
            data: The data set.
            num: Number of samples per distance; 0 for as many as the set has images.
            seed: Seed of the samples and of the bootstrap resamples.
            detector: What turns images into features.
            screen: Where to show progress; None for warnings only.
            model: A model with the classes of all models that will be evaluated; None for
                unconditional models.
            shares: How the samples' classes are drawn; see `EvalConfig.classes`. For a set without
                labels, they are drawn as the model itself draws them.

        Raises:
            UsageError: There are fewer images or samples than the detector needs, or the classes
                of the set and the model contradict each other.
        """
        self.num = num or len(data)
        self.seed, self.detector, self.data = seed, detector, data
        self.metric = detector.metric
        self._screen = screen or Screen(quiet=True)
        self.reference = Reference(data, detector, self._screen)
        self.set_classes: Classes | None = None
        """Classes of the set and the model; None unless both have classes."""
        self.draw = evenly(model.num_classes) if model is not None and model.num_classes else None
        """Distribution of the samples' classes; None for an unconditional model."""
        if model is not None:
            self.set_classes = Classes.of(data, model.num_classes, model.class_names)
        if self.set_classes is not None:
            self.draw = ClassDraw.of(self.set_classes, shares)
        self.labels = None if self.draw is None else self.draw.labels(seed, self.num)
        """Class of each sample, int64 (num,) on the CPU; None for an unconditional model."""
        more = f"set eval.num (eval's --num) to {detector.needed} or more"
        detector.check_number("samples", self.num, more)
        detector.check_number("images", len(data), "use a larger set, or another eval.detector")

    @classmethod
    def of(
        cls,
        data: Dataset,
        config: Config,
        device: torch.device,
        screen: Screen | None = None,
        model: Model | None = None,
    ) -> "Evaluator":
        """Return the evaluator that a config asks for; called by all processes.

        Args:
            data: The data set.
            config: The run's config.
            device: Device of the detector.
            screen: Where to show progress; None for warnings only.
            model: As in the constructor.

        Raises:
            UsageError: As in the constructor and `open_detector`.
            PdfastError: As in `open_detector`.
        """
        detector = open_detector(config.eval.detector, data, device)
        settings = config.eval
        return cls(data, settings.num, config.seed, detector, screen, model, settings.classes)

    def key(self) -> dict[str, str]:
        """Return a key of everything that the metrics depend on, except for the samples.

        Saved metrics are reused if their key is the same. A version of pdfast that computes a
        metric differently must add an entry here, so that earlier metrics do not match.
        """
        return {
            "images": self.reference.digest,
            "labels": self.data.digest.labels,
            "detector": self.detector.name,
            "weights": self.detector.weights,
            "num": str(self.num),
            "seed": str(self.seed),
            **self.drawn,
        }

    @property
    def drawn(self) -> dict[str, str]:
        """Key of what samples depend on besides the model, the sampling steps and the seed.

        It is empty if the classes are drawn as the model itself draws them, which keeps the keys of
        earlier versions valid.
        """
        return {"classes": self.draw.key} if self.draw is not None and self.draw.key else {}

    def floor(self) -> tuple[float, float]:
        """Return mean and standard deviation of the distance of bootstrap resamples of the data.

        Called by all processes.
        """
        return self.reference.floor(self.num, self.seed)

    def resampled(self) -> float:
        """Return the distance of one resample of the data, an estimate of the floor.

        It is of `num` images, drawn with replacement. For the first process.
        """
        draws = Draws(self.seed, Stream.BOOTSTRAP, device=self.data.images.device)
        chosen = index_below(draws.words(0, 0, self.num)[:, 0], len(self.data))
        return self.distance(self.data.images[chosen])

    def distance(self, images: Tensor) -> float:
        """Return the distance of images (N, H, W, C), of the set's dtype, from the set."""
        moments = Moments()
        with collectives.alone():
            for found in self._features(images):
                moments.add(found.values)
        return frechet_distance(self.reference.gaussian, moments.gaussian())

    def figure(self, images: Tensor) -> SampleMetrics:
        """Return all metrics of `num` samples; called by all processes, each with all samples.

        Args:
            images: Samples (num, H, W, C), of the set's dtype. Sample k is of class `labels[k]`, as
                `sampled` returns them.
        """
        collected, by_class = Collected(self.num, self.detector), defaultdict[int, Moments](Moments)
        self.reference.find()
        classes = collectives.from_first(lambda: list(self.classes))
        for found in self._features(images):
            start = collected.num
            collected.add(found)
            for label in classes:
                chosen = self._are(label, start, collected.num).to(found.values.device)
                by_class[label].add(found.values[chosen])

        def counted() -> dict[str, Any]:
            return SampleMetrics(
                frechet_distance(self.reference.gaussian, collected.gaussian()),
                collected.inception_score(),
                collected.manifold(lambda: self.reference.near),
                {
                    label: frechet_distance(self.classes[label].gaussian, of.gaussian())
                    for label, of in by_class.items()
                },
            ).table()

        return SampleMetrics.from_table(collectives.from_first(counted))

    def _features(self, images: Tensor) -> Iterator[Features]:
        return features_of(self.detector, images.to(self.data.images.device), self._screen)

    def evaluate(
        self, model: Model, steps: int, on_step: Callable[[], None] = lambda: None
    ) -> tuple[float, Tensor]:
        """Draw `num` DDIM samples and return their distance; called by all processes.

        Args:
            model: The model.
            steps: Number of sampling steps.
            on_step: As in `Model.sample_images`.

        Returns:
            The distance; and the samples (num, H, W, C), of the set's dtype.

        Raises:
            UsageError: The model does not allow so many steps.
            PdfastError: The samples are not finite.
        """
        images = self.sampled(model, steps, self.num, on_step=on_step)
        return collectives.from_first(lambda: self.distance(images)), images

    def sampled(
        self,
        model: Model,
        steps: int,
        num: int,
        first: int = 0,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Draw DDIM samples of the classes `labels`; called by all processes.

        Args:
            model: The model.
            steps: Number of sampling steps.
            num: Number of samples.
            first: Number of the first sample, a multiple of SAMPLE_BATCH.
            on_step: As in `Model.sample_images`.

        Returns:
            Samples first .. first + num - 1, (num, H, W, C), of the set's dtype.

        Raises:
            UsageError: The model does not allow so many steps.
            PdfastError: The samples are not finite.
        """
        labels = None if self.labels is None else self.labels[first : first + num]
        return self.stored(
            model.sample_images(num, steps, self.seed, labels, on_step=on_step, first=first)
        )

    def stored(self, images: Tensor) -> Tensor:
        """Return samples (N, H, W, C) in the set's dtype."""
        return as_stored(images, self.data.images.dtype)

    # -- classes ---------------------------------------------------------------------------

    @cached_property
    def classes(self) -> dict[int, ClassReference]:
        """Statistics of the classes with enough images and enough samples, by class.

        Enough means more than there are features; a distance of fewer says little.
        """
        found = {}
        for label, images in self._class_counts.items():
            num = int(self._are(label).sum())
            if min(images, num) > self.width:
                found[label] = ClassReference(*self.reference.of_class(label, num, self.seed))
        return found

    @property
    def num_left_out(self) -> int:
        """Number of classes with too few images or samples for a distance."""
        return len(self._class_counts) - len(self.classes)

    @property
    def width(self) -> int:
        """Number of features per image."""
        return len(self.reference.gaussian.mean)

    @property
    def _class_counts(self) -> dict[int, int]:
        return {} if self.labels is None else self.reference.class_counts

    def _are(self, label: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Return which of the samples start .. stop - 1 are of a class, as a mask."""
        assert self.labels is not None
        return self.labels[start:stop] == label
