"""Features of a set of samples, added a batch at a time, and the figures of all of them."""

from collections.abc import Callable

from pdfast.evaluation import scores
from pdfast.evaluation.detectors.base import Detector, Features, Rows
from pdfast.evaluation.frechet import Gaussian, Moments
from pdfast.evaluation.scores import InceptionScore, Manifold, Neighbourhood, precision_recall


class Collected:
    """Moments of all features; for a network also up to 50,000 features, and all logits."""

    def __init__(self, num: int, detector: Detector) -> None:
        """Allocate room for the features of at most `num` samples."""
        self.num = 0
        """Samples so far."""
        self._moments, self._network = Moments(), bool(detector.weights)
        self._points, self._logits = Rows(min(num, scores.MOST)), Rows(num)

    def add(self, found: Features) -> None:
        """Add the features of more samples."""
        self._moments.add(found.values)
        if self._network:
            self._points.add(found.values[: max(0, scores.MOST - self.num)].float())
        if found.logits is not None:
            self._logits.add(found.logits)
        self.num += len(found.values)

    def gaussian(self) -> Gaussian:
        """Return mean and covariance of all features so far, of at least 2 samples."""
        return self._moments.gaussian()

    def inception_score(self) -> InceptionScore | None:
        """Return the Inception score; None for a detector that does not classify."""
        return scores.inception_score(self._logits.all()) if len(self._logits) else None

    def manifold(self, near: Callable[[], Neighbourhood]) -> Manifold | None:
        """Return precision and recall against images; None for a detector without a network.

        Args:
            near: Returns the neighbourhood of the images; not called without a network.
        """
        return precision_recall(self._points.all(), near()) if len(self._points) else None
