"""What the exports share: how a written network is compared with the model it came from."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.model import Model

TOLERANCE = 1e-5  # largest difference of two networks' float32 outputs, of their scale


class Prepared(NamedTuple):
    """An export that was found right, and is still to be written."""

    write: Callable[[Path], object]
    """Fills an empty folder."""
    line: str
    """What to tell the user."""


class Probe(NamedTuple):
    """Network inputs to compare at."""

    z: Tensor
    logsnr: Tensor
    label: Tensor | None


def probe(model: Model, logsnr: Tensor) -> Probe:
    """Fixed noise at the noise levels (B,), and a class for each where there are classes."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(len(logsnr), *model.image_shape, generator=generator)
    classes = model.num_classes
    return Probe(z, logsnr, torch.arange(len(logsnr)) % classes if classes else None)


def agreed(library: str, output: Tensor, expected: Tensor) -> float:
    """The largest difference of two outputs, of their scale, or of 1 where they are smaller.

    Raises PdfastError if it is more than the tolerance.
    """
    difference = float((output - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not difference <= TOLERANCE:
        raise PdfastError(
            f"the network in {library} differs from the model by {difference:.1e}, where "
            f"{TOLERANCE:.0e} is allowed: install another version of {library}"
        )
    return difference
