"""Data sets: uint8 images resident in memory, (N, H, W, C), with optional int64 labels (N,).

Samples of another kind, given as numbers, are float32 and laid out in the same way. All that can
be wrong with a set is found when it is read, before anything is trained; how each kind of file is
read is in readers/.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.console.progress import Screen
from pdfast.data import sources
from pdfast.data.readers import registry
from pdfast.data.readers.reading import Checksum
from pdfast.errors import UsageError
from pdfast.storage import digests
from pdfast.storage.digests import UNKNOWN, Digest

MIN_SAMPLES = 2  # of which a covariance can be estimated


@dataclass(frozen=True)
class Dataset:
    """Images uint8 or float32 (N, H, W, C) and labels int64 (N,), or None, on one device."""

    images: Tensor
    labels: Tensor | None
    shape: tuple[int, ...] = ()
    """Of one sample, where its axes are not those of an image."""
    names: tuple[str, ...] = ()
    """Of the classes, by number; () where they have none."""
    left_out: str = ""
    """What the reading passed over, and why."""
    stamp: str = ""
    """Of the files that it was read from: the same as long as nobody writes to them; "" where
    that is not known. See `sources.stamp`."""
    checksum: Checksum | None = None
    """Of images in a file that is mapped into memory; see `readers.reading.Arrays`."""
    told: Digest = UNKNOWN
    """Its digest, where that is known."""
    trained: Tensor | None = None
    """Numbers of the images to train on, int64, rising; None for all."""
    held_out: Tensor | None = None
    """Numbers of the others."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> Digest:
        """What it is known by: a pass over all images, unless it was told."""
        return self.told if self.told.known else self.digested()

    def digested(self, on_part: Callable[[], None] = lambda: None) -> Digest:
        """The digest of what the tensors hold; `on_part` is called on the way.

        Raises UsageError for a file of images that is damaged.
        """
        if self.checksum is not None:
            self.checksum.check(self.images.numpy(), on_part)
        labels = "" if self.labels is None else digests.digest({"labels": self.labels})
        images = digests.digest({"images": self.images}, on_part)
        return Digest(num=len(self), images=images, labels=labels)

    @property
    def num_trained(self) -> int:
        """How many images are trained on."""
        return len(self if self.trained is None else self.trained)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same set on another device."""
        rest = {"labels": self.labels, "trained": self.trained, "held_out": self.held_out}
        moved = {name: None if t is None else t.to(device) for name, t in rest.items()}
        return dataclasses.replace(self, images=self.images.to(device), **moved)  # type: ignore[arg-type]


def described(data: Dataset, config: DataConfig) -> str:
    """A sentence that says what was read, and from where."""
    _, height, width, channels = data.images.shape
    colour = {1: "grey", 3: "colour"}[channels]
    text = f"{len(data):,} images of {config.source}, as {height}x{width} {colour}"
    if data.held_out is not None:
        text += f", {len(data.held_out):,} of them held out of training"
    if data.left_out:
        text += f"; left out: {data.left_out}"
    return text


def load_dataset(data: DataConfig, model: NetConfig, screen: Screen | None = None) -> Dataset:
    """Read `data.source` as the model's size, channels and classes ask.

    Raises UsageError naming the file and the fix.
    """
    found = sources.read(data, model, screen)
    labels = found.labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of images that cannot be written to
        images = torch.from_numpy(found.images)
    dataset = Dataset(
        images, None, left_out=found.left_out, stamp=found.stamp, checksum=found.checksum
    )
    if not model.num_classes:
        return dataset
    where = data.source
    if labels is None:
        raise UsageError(
            f"{where} has no labels, but model.num_classes is {model.num_classes}: add labels "
            f"({registry.labels()}) or set it to 0"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise UsageError(f"{where} has negative labels ({least}): number classes from 0")
    if most >= model.num_classes:
        raise UsageError(
            f"{where} has labels from {least} to {most}, outside "
            f"0 .. {model.num_classes - 1}: set model.num_classes to {most + 1}"
        )
    numbers = torch.from_numpy(labels.astype(np.int64))
    return dataclasses.replace(dataset, labels=numbers, names=found.names)
