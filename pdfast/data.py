"""Data sets: uint8 images resident in memory, (N, H, W, C), with optional int64 labels (N,).

All that can be wrong with a set is found when it is read, before anything is trained; how each
kind of file is read is in sources/.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdfast import sources
from pdfast.config import DataConfig, NetConfig
from pdfast.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, H, W, C) and labels int64 (N,), or None, on one device."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same set on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Dataset(self.images.to(device), labels)


def to_uint8(images: Tensor) -> Tensor:
    """Float (N, C, H, W) in [-1, 1] -> uint8 (N, H, W, C), rounded to nearest."""
    scaled = (images.permute(0, 2, 3, 1).float() + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).contiguous()


def load_dataset(data: DataConfig, model: NetConfig) -> Dataset:
    """Read `data.source` as the model's size, channels and classes ask.

    Raises UsageError naming the file and the fix.
    """
    images, labels = sources.read(data.source, model)
    if not model.num_classes:
        return Dataset(torch.from_numpy(images), None)
    where = data.source
    if labels is None:
        raise UsageError(
            f"{where} has no labels, but model.num_classes is {model.num_classes}: add labels "
            "(class sub-folders, or `labels` in the .npz) or set it to 0"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise UsageError(f"{where} has negative labels ({least}): number classes from 0")
    if most >= model.num_classes:
        raise UsageError(
            f"{where} has labels from {least} to {most}, outside "
            f"0 .. {model.num_classes - 1}: set model.num_classes to {most + 1}"
        )
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
