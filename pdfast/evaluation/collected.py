"""The features of a set of samples, taken up a batch at a time, and what comes of all of them."""

from collections.abc import Callable

from pdfast.evaluation import scores
from pdfast.evaluation.detectors.base import Detector, Features, Rows
from pdfast.evaluation.frechet import Gaussian, Moments
from pdfast.evaluation.scores import InceptionScore, Manifold, Neighbourhood, precision_recall


class Collected:
    """Moments of all features; of a network also features, at most 50,000, and all logits."""

    def __init__(self, num: int, detector: Detector) -> None:
        """Make room for the features of at most `num` samples."""
        self.num = 0
        """Samples so far."""
        self._moments, self._network = Moments(), bool(detector.weights)
        self._points, self._logits = Rows(min(num, scores.MOST)), Rows(num)

    def add(self, found: Features) -> None:
        """Take up those of some more samples."""
        self._moments.add(found.values)
        if self._network:
            self._points.add(found.values[: max(0, scores.MOST - self.num)].float())
        if found.logits is not None:
            self._logits.add(found.logits)
        self.num += len(found.values)

    def gaussian(self) -> Gaussian:
        """Mean and covariance of all features so far, of at least 2 samples."""
        return self._moments.gaussian()

    def inception_score(self) -> InceptionScore | None:
        """The Inception score; None of a detector that does not classify."""
        return scores.inception_score(self._logits.all()) if len(self._logits) else None

    def manifold(self, near: Callable[[], Neighbourhood]) -> Manifold | None:
        """Precision and recall beside images, of a network; `near` is called for no other."""
        return precision_recall(self._points.all(), near()) if len(self._points) else None
