"""The check of an export: its network's output is compared with the model's."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.models.model import Model

TOLERANCE = 1e-5  # largest relative difference of two networks' float32 outputs


class Prepared(NamedTuple):
    """An export that passed its checks and is ready to be written."""

    write: Callable[[Path], object]
    """Function that fills an empty folder."""
    line: str
    """Summary for the user."""


class Probe(NamedTuple):
    """Network inputs at which two networks are compared."""

    z: Tensor
    """Noise, float32 (B, C, H, W)."""
    logsnr: Tensor
    """Noise levels (B,)."""
    label: Tensor | None
    """Classes, int64 (B,); None for an unconditional model."""


def probe(model: Model, logsnr: Tensor) -> Probe:
    """Return fixed noise at the given noise levels, with a class for each image.

    Args:
        model: The model, on the CPU.
        logsnr: Noise levels (B,).
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(len(logsnr), *model.image_shape, generator=generator)
    classes = model.num_classes
    return Probe(z, logsnr, torch.arange(len(logsnr)) % classes if classes else None)


def agreed(library: str, output: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two outputs, relative to max(1, max |expected|).

    Args:
        library: Name of the package that computed `output`, for the message.
        output: Output of the exported network.
        expected: Output of the model, of the same shape.

    Raises:
        PdfastError: The difference is above `TOLERANCE` or not a number, or the model's own output
            is not finite.
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
