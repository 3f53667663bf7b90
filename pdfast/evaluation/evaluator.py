"""Figures of sample sets against one data set: distances, scores, and distances by class."""

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
    """What is measured of one set of samples."""

    distance: float
    inception_score: InceptionScore | None = None
    """Of detectors that classify."""
    manifold: Manifold | None = None
    """Of detectors with a network."""
    classes: dict[int, float] = field(default_factory=dict)
    """Distance of the samples of each class from its images, where both are enough."""

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> "SampleMetrics":
        """What `table` gave, as JSON has it."""
        score, manifold = table["inception_score"], table["manifold"]
        return cls(
            table["distance"],
            None if score is None else InceptionScore(*score),
            None if manifold is None else Manifold(*manifold),
            {int(label): distance for label, distance in table["classes"].items()},
        )

    def table(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "distance": self.distance,
            "inception_score": self.inception_score,
            "manifold": self.manifold,
            "classes": {str(label): distance for label, distance in self.classes.items()},
        }


@dataclass(frozen=True)
class ClassReference:
    """The images of one class."""

    gaussian: Gaussian
    floor: float
    """Distance of resamples of them, of as many as there are samples."""


class Evaluator:
    """Figures of samples against one data set.

    For the first process, but for what is reached by all, who share what takes a network.
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
        """`num` samples per distance, 0 for as many as the set has images.

        `model`: one whose classes are looked at, too; all that are judged have the same. `shares`
        says how samples' classes are drawn, see `EvalConfig.classes`; of a set without labels, as
        the model draws them.
        Raises UsageError for fewer images or samples than the detector needs.
        """
        self.num = num or len(data)
        self.seed, self.detector, self.data = seed, detector, data
        self.metric = detector.metric
        self._screen = screen or Screen(quiet=True)
        self.reference = Reference(data, detector, self._screen)
        self.set_classes: Classes | None = None
        """Of the set and the model, where both have classes."""
        self.draw = evenly(model.num_classes) if model is not None and model.num_classes else None
        """How the classes of samples are drawn; None of an unconditional model."""
        if model is not None:
            self.set_classes = Classes.of(data, model.num_classes, model.class_names)
        if self.set_classes is not None:
            self.draw = ClassDraw.of(self.set_classes, shares)
        self.labels = None if self.draw is None else self.draw.labels(seed, self.num)
        """Class of each sample, int64 (num,) on the CPU."""
        more = f"set eval.num (eval's --num) to {detector.needed} or more"
        detector.check_number("samples", self.num, more)
        detector.check_number("images", len(data), "take a larger set, or another eval.detector")

    @classmethod
    def of(
        cls,
        data: Dataset,
        config: Config,
        device: torch.device,
        screen: Screen | None = None,
        model: Model | None = None,
    ) -> "Evaluator":
        """The one that a config asks for. Reached by all processes; raises as `open_detector`."""
        detector = open_detector(config.eval.detector, data, device)
        settings = config.eval
        return cls(data, settings.num, config.seed, detector, screen, model, settings.classes)

    def key(self) -> dict[str, str]:
        """What figures depend on, but for the samples; as texts.

        A version that counts another figure of the same says so here, where the key of what was
        kept before has nothing.
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
        """What samples depend on besides the model, their number of steps and the seed.

        Nothing where their classes are those that the model draws, as before there were others.
        """
        return {"classes": self.draw.key} if self.draw is not None and self.draw.key else {}

    def floor(self) -> tuple[float, float]:
        """Mean and standard deviation of the distance of bootstrap resamples of the data.

        Reached by all processes.
        """
        return self.reference.floor(self.num, self.seed)

    def distance(self, images: Tensor) -> float:
        """Distance of images (N, H, W, C), as the set's, from it."""
        moments = Moments()
        with collectives.alone():
            for found in self._features(images):
                moments.add(found.values)
        return frechet_distance(self.reference.gaussian, moments.gaussian())

    def figure(self, images: Tensor) -> SampleMetrics:
        """All that is measured of `num` samples (num, H, W, C), as the set's.

        Sample k is of the class `labels[k]`, as `sampled` makes it. Reached by all processes, each
        with all samples.
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
        """(distance, samples) of `num` DDIM samples in `steps` steps, clipped where the model is.

        The samples are (num, H, W, C), of the set's dtype. Reached by all processes.
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
        """A model's DDIM samples first .. first + num - 1, of these classes, as the set's.

        Arguments as of `Model.sample_images`. Reached by all processes.
        """
        labels = None if self.labels is None else self.labels[first : first + num]
        return self.stored(
            model.sample_images(num, steps, self.seed, labels, on_step=on_step, first=first)
        )

    def stored(self, images: Tensor) -> Tensor:
        """Samples as the set holds its images."""
        return as_stored(images, self.data.images.dtype)

    # -- classes ---------------------------------------------------------------------------

    @cached_property
    def classes(self) -> dict[int, ClassReference]:
        """The classes that have enough images and enough samples; of conditional models.

        Enough are more than there are features: a distance of fewer says little.
        """
        found = {}
        for label, images in self._class_counts.items():
            num = int(self._are(label).sum())
            if min(images, num) > self.width:
                found[label] = ClassReference(*self.reference.of_class(label, num, self.seed))
        return found

    @property
    def num_left_out(self) -> int:
        """Classes that have too few."""
        return len(self._class_counts) - len(self.classes)

    @property
    def width(self) -> int:
        """Features of an image."""
        return len(self.reference.gaussian.mean)

    @property
    def _class_counts(self) -> dict[int, int]:
        return {} if self.labels is None else self.reference.class_counts

    def _are(self, label: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Which of some samples are of a class."""
        assert self.labels is not None
        return self.labels[start:stop] == label
