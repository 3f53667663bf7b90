"""The interface of detectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.errors import UsageError

CHUNK = 4096  # most images per call of a detector


class Features(NamedTuple):
    """A detector's output for N images."""

    values: Tensor
    """Features (N, D), float64; of a network float32, until they are used."""
    logits: Tensor | None = None
    """Logits (N, classes) of a classifier, without its bias; None for other networks."""


class Rows:
    """One preallocated tensor whose rows are added in parts.

    Separate tensors for the parts would fragment a CPU's memory between the larger tensors of a
    network and a covariance, and waste some 10 GB for 60,000 images.
    """

    def __init__(self, most: int) -> None:
        """Allow for at most `most` rows."""
        self._most, self._rows, self._count = most, torch.empty(0), 0

    def add(self, rows: Tensor) -> None:
        """Add rows, of the first ones' dtype and device; the first call allocates the tensor."""
        if not len(rows):
            return
        if not self._count:
            self._rows = rows.new_empty(self._most, *rows.shape[1:])
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def all(self) -> Tensor:
        """Return all rows added so far."""
        return self._rows[: self._count]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A map from images to features, with the facts to show beside every figure."""

    name: str
    """Name as in `eval.detector`, without a path; "raw" for samples that are not pictures."""
    metric: str
    """Name of its distance."""
    extract: Callable[[Tensor], Features]
    """Extracts the features of at most `batch` images (N, H, W, C), as stored."""
    resize: str = "none"
    """How it resizes images, in words."""
    batch: int = CHUNK
    weights: str = ""
    """SHA-256 of its network's weights file; "" without a network."""
    needed: int = 2
    """Fewest images, and fewest samples, for the distance."""
    width: int = 0
    """Number of features of its network; 0 without one, where it depends on the images' size."""
    device: torch.device | None = None
    """Device of its features; None for the device of the images."""
    warning: str = ""
    """A warning for its users; "" for none."""

    def check_number(self, what: str, there: int, fix: str) -> None:
        """Check that images or samples are enough for the distance.

        Args:
            what: "images" or "samples".
            there: Their number.
            fix: What to do if they are too few.

        Raises:
            UsageError: They are too few.
        """
        if there < self.needed:
            raise UsageError(
                f"{self.metric} needs at least {self.needed:,} {what}, for a covariance of "
                f"full rank (50,000 are usual), not {there:,}: {fix}"
            )

    def features(self, images: Tensor) -> int:
        """Return the number of features of each of the images (N, H, W, C), N >= 1."""
        return self.width or self.extract(images[:1]).values.shape[1]
