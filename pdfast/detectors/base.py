"""What a detector is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 4096  # images whose features are in memory at a time


class Features(NamedTuple):
    """What a detector finds in N images."""

    values: Tensor
    """float64 (N, D); of a network float32 until they are used."""
    logits: Tensor | None = None
    """The same, (N, classes) of a classifier, without its bias; None: it is none."""


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
    device: torch.device | None = None
    """Where its features are; None: where the images are."""
    warning: str = ""
    """What to tell who uses it."""
