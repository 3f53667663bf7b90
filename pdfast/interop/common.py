"""What the exports share: how a written network is compared with the model it came from."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.models.model import Model

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

    Raises PdfastError if it is more than the tolerance, or not a number.
    """
    if not expected.isfinite().all():
        raise PdfastError(
            "the model's output holds numbers that are not finite: it has diverged, and is not "
            "exported"
        )
    difference = float((output - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not difference <= TOLERANCE:
        here = f"{library} {importlib.metadata.version(library)}"
        raise PdfastError(
            f"the network in {here} differs from the model by {difference:.1e}, where "
            f"{TOLERANCE:.0e} is allowed, and is not written: sample the model with pdfast sample; "
            f"another version of {library} may round its operators less"
        )
    return difference
