"""SHA-256 of tensors, and what a data set is known by."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**24  # bytes hashed at a time, so that a set on a GPU is not copied whole
GIVEN = "data="  # data.source of a run whose data came with the call, and their SHA-256
SHOWN = 16  # digits of a SHA-256 in a sentence


def digest(tensors: Mapping[str, Tensor], on_part: Callable[[], None] = lambda: None) -> str:
    """SHA-256, in hexadecimal, of names, types, shapes and bytes.

    `on_part` is called between parts, so that a signal can be heard.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.contiguous().reshape(-1)
        for part in torch.split(flat, max(1, BLOCK // tensor.element_size())):
            found.update(part.cpu().view(torch.uint8).numpy().data)
            on_part()
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What a set is known by, wherever it lies; as runs and states keep it."""

    num: int = 0
    """Images; 0: the set is not known."""
    images: str = ""
    """SHA-256 of their tensor, as the model sees them."""
    labels: str = ""
    """SHA-256 of the labels' tensor; "" without labels."""

    @property
    def known(self) -> bool:
        """Whether it is of a set."""
        return bool(self.num)

    def differ(self, other: "Digest") -> bool:
        """Whether the images, or the labels where both have some, are not the same."""
        labels = self.labels and other.labels
        return self.images != other.images or bool(labels and self.labels != other.labels)

    def __str__(self) -> str:
        labels = f", of the labels {self.labels[:SHOWN]}" if self.labels else ""
        return f"{self.num:,} images, SHA-256 {self.images[:SHOWN]}{labels}"


UNKNOWN = Digest()
