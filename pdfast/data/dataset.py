"""Data sets: uint8 images resident in memory, (N, H, W, C), with optional int64 labels (N,).

Samples that are not images but vectors of numbers are float32 and have the same layout. Everything
that can be wrong with a set is found when it is read, before training starts. readers/ holds the
readers of each kind of file.
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
from pdfast.data.readers.reading import Checksum
from pdfast.storage import digests
from pdfast.storage.digests import UNKNOWN, Digest

MIN_SAMPLES = 2  # the fewest from which a covariance can be estimated


@dataclass(frozen=True)
class Dataset:
    """A data set on one device: images uint8 or float32 (N, H, W, C), labels int64 (N,) or None."""

    images: Tensor
    labels: Tensor | None
    shape: tuple[int, ...] = ()
    """Shape of one sample if its axes are not those of an image; else ()."""
    names: tuple[str, ...] = ()
    """Class names by number; () if the classes have none."""
    left_out: str = ""
    """Files that reading skipped, and why, as a phrase; "" if none were skipped."""
    unused: tuple[str, ...] = ()
    """Sub-folders of the source that could be classes, but the model has none."""
    stamp: str = ""
    """Fingerprint of the files that the set was read from, unchanged as long as nobody writes to
    them; "" if unknown. See `sources.stamp`."""
    checksum: Checksum | None = None
    """Checksum of images in a file that is mapped into memory; see `readers.reading.Arrays`."""
    told: Digest = UNKNOWN
    """The digest of the set, if it is known already."""
    trained: Tensor | None = None
    """Numbers of the images to train on, int64, ascending; None for all images."""
    held_out: Tensor | None = None
    """Numbers of the images held out of training, int64; None if none are held out."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> Digest:
        """The digest of the set; computed by a pass over all images unless it is known already."""
        return self.told if self.told.known else self.digested()

    def digested(self, on_part: Callable[[], None] = lambda: None) -> Digest:
        """Compute the digest of the tensors.

        Args:
            on_part: Called between parts of the images, so that a signal can interrupt the pass.

        Returns:
            Number of images, and SHA-256 of the images and of the labels.

        Raises:
            UsageError: The file that holds the images is damaged.
        """
        if self.checksum is not None:
            self.checksum.check(self.images.numpy(), on_part)
        labels = "" if self.labels is None else digests.digest({"labels": self.labels})
        images = digests.digest({"images": self.images}, on_part)
        return Digest(num=len(self), images=images, labels=labels)

    @property
    def num_trained(self) -> int:
        """Number of images to train on."""
        return len(self if self.trained is None else self.trained)

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the same set on another device."""
        rest = {"labels": self.labels, "trained": self.trained, "held_out": self.held_out}
        moved = {name: None if t is None else t.to(device) for name, t in rest.items()}
        return dataclasses.replace(self, images=self.images.to(device), **moved)  # type: ignore[arg-type]


def described(data: Dataset, config: DataConfig) -> str:
    """Return a phrase that says what was read, and from where."""
    _, height, width, channels = data.images.shape
    colour = {1: "grey", 3: "colour"}[channels]
    text = f"{len(data):,} images of {config.source}, as {height}x{width} {colour}"
    if data.held_out is not None:
        text += f", {len(data.held_out):,} of them held out of training"
    else:
        text += ", none held out"
    text += ", without classes" if data.labels is None else ", with classes"
    text += ", mirrored at random" if config.horizontal_flip else ", not mirrored"
    if data.left_out:
        text += f"; left out: {data.left_out}"
    return text


def load_dataset(data: DataConfig, model: NetConfig, screen: Screen | None = None) -> Dataset:
    """Read `data.source` with the model's image size, channels and classes.

    Args:
        data: The source and how to read it.
        model: The model's config: image_size, channels and num_classes (0: labels are ignored).
        screen: Where progress is shown; None: nowhere.

    Returns:
        The set on the CPU: images uint8 (N, H, W, C); labels int64 (N,), or None if num_classes is
            0.

    Raises:
        UsageError: The source cannot be used; the message names the file and the fix.
    """
    found = sources.read(data, model, screen)
    labels = found.labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's warning about read-only arrays
        images = torch.from_numpy(found.images)
    dataset = Dataset(
        images,
        None,
        left_out=found.left_out,
        unused=found.unused,
        stamp=found.stamp,
        checksum=found.checksum,
    )
    if not model.num_classes:
        return dataset
    numbers = torch.from_numpy(sources.checked_labels(data, model, labels).astype(np.int64))
    return dataclasses.replace(dataset, labels=numbers, names=found.names)
