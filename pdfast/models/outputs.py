"""Outputs of `Model.sample`: tensors, arrays or pictures, and x-hat of each step."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pdfast.config.names import Sampler
from pdfast.errors import UsageError
from pdfast.models.images import to_uint8

Output = Literal["pt", "np", "pil"]
Labels = Tensor | NDArray[Any] | Sequence[int]
"""Classes of samples, by number, as a call may give them."""
OUTPUTS = ("pt", "np", "pil")


class SamplingStep(NamedTuple):
    """A finished sampling step of a batch, as passed to a callback."""

    done: int
    """Steps done, of all batches."""
    total: int
    """Number of steps, of all batches."""
    first: int
    """Number of the batch's first sample, which is the first in `x_hat`."""
    u: float
    """Time of the step: 1 for the first, 1 / steps for the last."""
    x_hat: Tensor
    """Prediction of the samples (B, *shape), clipped if the sampler clips; a copy. The last step's
    is the result."""


class SampleArguments(TypedDict, total=False):
    """Keyword arguments of `Model.sample`."""

    seed: int
    label: Labels | None
    noise: Tensor | NDArray[Any] | None
    clip: bool
    sampler: Sampler
    variance: float
    callback: Callable[[SamplingStep], object] | None


def check(output: str, pictures: bool, shape: tuple[int, ...]) -> None:
    """Check the `output` argument of `Model.sample`.

    Args:
        output: The argument.
        pictures: Whether the samples are pictures.
        shape: Shape of a sample.

    Raises:
        UsageError: It is not one of `OUTPUTS`, or "pil" and the samples are not pictures.
    """
    if output not in OUTPUTS:
        raise UsageError(f"output must be 'pt', 'np' or 'pil', not {output!r}")
    if output == "pil" and not pictures:
        raise UsageError(
            f"samples of shape {shape} are not pictures, which have 1 or 3 channels and "
            "clip=(-1, 1): use output='np'"
        )


def to_array(samples: Tensor, pictures: bool) -> NDArray[Any]:
    """Convert samples (N, *shape) to an array: uint8 (N, H, W, C) for pictures, else as is."""
    return (to_uint8(samples) if pictures else samples).cpu().numpy()


def to_pictures(samples: Tensor) -> list[Image.Image]:
    """Convert samples (N, C, H, W) in [-1, 1] to pictures, grey or in colour."""
    return [picture(image) for image in to_array(samples, True)]


def picture(image: NDArray[Any]) -> Image.Image:
    """Convert uint8 (H, W, C), with C of 1 or 3, to a picture."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
