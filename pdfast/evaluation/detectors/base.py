"""What a detector is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.errors import UsageError

CHUNK = 4096  # images whose features are in memory at a time


class Features(NamedTuple):
    """What a detector finds in N images."""

    values: Tensor
    """float64 (N, D); of a network float32 until they are used."""
    logits: Tensor | None = None
    """The same, (N, classes) of a classifier, without its bias; None: it is none."""


class Rows:
    """Rows that come in parts, in one tensor.

    Kept as they come, between the larger tensors of a network and a covariance, they would leave
    the memory of a CPU in pieces too small for those: of 60,000 images some 10 GB.
    """

    def __init__(self, most: int) -> None:
        """`most`: rows that there is room for."""
        self._most, self._rows, self._count = most, torch.empty(0), 0

    def add(self, rows: Tensor) -> None:
        """Some more, of one type and on one device with the first; room is made when any come."""
        if not len(rows):
            return
        if not self._count:
            self._rows = rows.new_empty(self._most, *rows.shape[1:])
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def all(self) -> Tensor:
        """Those that came."""
        return self._rows[: self._count]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A map from images to features, and what is to be said of it beside every figure."""

    name: str
    """As in `eval.detector`, without a path; "raw" for samples that are no pictures."""
    metric: str
    """The name of its distance."""
    extract: Callable[[Tensor], Features]
    """Of at most `batch` images (N, H, W, C) as stored."""
    resize: str = "none"
    """What it does to the images' size."""
    batch: int = CHUNK
    weights: str = ""
    """SHA-256 of its network's weights file; "": there is no network."""
    needed: int = 2
    """Images, and samples, that the distance takes at least."""
    width: int = 0
    """Features of its network; 0 where there is none, and the images' size decides."""
    device: torch.device | None = None
    """Where its features are; None: where the images are."""
    warning: str = ""
    """What to tell who uses it."""

    def check_number(self, what: str, there: int, fix: str) -> None:
        """Raise UsageError for fewer images or samples, `what`, than the distance takes."""
        if there < self.needed:
            raise UsageError(
                f"{self.metric} needs at least {self.needed:,} {what}, for a covariance of "
                f"full rank (50,000 are usual), and here are {there:,}: {fix}"
            )

    def features(self, images: Tensor) -> int:
        """How many features each of some images has, (N, H, W, C), N >= 1."""
        return self.width or self.extract(images[:1]).values.shape[1]
