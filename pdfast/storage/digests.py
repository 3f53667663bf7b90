"""SHA-256 of tensors, and the digest that identifies a data set."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**24  # bytes hashed at a time, so that a set on a GPU is not copied whole
GIVEN = "data="  # begins data.source of a run whose data were an argument; their SHA-256 follows
SHOWN = 16  # digits of a SHA-256 in a message


def digest(tensors: Mapping[str, Tensor], on_part: Callable[[], None] = lambda: None) -> str:
    """Compute the SHA-256 of tensors: of their names, dtypes, shapes and bytes.

    Args:
        tensors: Tensors by name, on any device.
        on_part: Called between parts, so that a signal can interrupt the work.

    Returns:
        The digest in hexadecimal.
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
    """The digest that identifies a set wherever it lies; runs and saved states record it."""

    num: int = 0
    """Number of images; 0: the set is unknown."""
    images: str = ""
    """SHA-256 of the images' tensor, as the model sees them."""
    labels: str = ""
    """SHA-256 of the labels' tensor; "" without labels."""

    @property
    def known(self) -> bool:
        """Whether this is the digest of a set."""
        return bool(self.num)

    def differ(self, other: "Digest") -> bool:
        """Return whether the images differ, or the labels if both sets have some."""
        labels = self.labels and other.labels
        return self.images != other.images or bool(labels and self.labels != other.labels)

    def __str__(self) -> str:
        labels = f", of the labels {self.labels[:SHOWN]}" if self.labels else ""
        return f"{self.num:,} images, SHA-256 {self.images[:SHOWN]}{labels}"


UNKNOWN = Digest()
