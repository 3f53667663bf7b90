"""What `Model.sample` returns and reports: tensors, arrays, pictures, and each step's x-hat."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pdfast.config.names import Sampler
from pdfast.errors import UsageError
from pdfast.models.images import to_uint8

Output = Literal["pt", "np", "pil"]
OUTPUTS = ("pt", "np", "pil")


class SamplingStep(NamedTuple):
    """A sampling step of a batch, as it is reported when it is done."""

    done: int
    """Steps done, of all batches."""
    total: int
    """Steps to do, of all batches."""
    first: int
    """Number of the batch's first sample; `x_hat` holds those from there on."""
    u: float
    """Time of the step, 1 for the first, 1 / steps for the last."""
    x_hat: Tensor
    """Its prediction of the samples, (B, *shape), clipped as the sampler goes on with it; a copy.
    The last step's is the result."""


class SampleArguments(TypedDict, total=False):
    """Arguments of `Model.sample` by name; see there."""

    seed: int
    label: Tensor | None
    noise: Tensor | None
    clip: bool
    sampler: Sampler
    variance: float
    callback: Callable[[SamplingStep], object] | None


def check(output: str, pictures: bool, shape: tuple[int, ...]) -> None:
    """Raise UsageError for an output that there is not, or not of these samples."""
    if output not in OUTPUTS:
        raise UsageError(f"output must be 'pt', 'np' or 'pil', not {output!r}")
    if output == "pil" and not pictures:
        raise UsageError(
            f"samples of shape {shape} are no pictures, which have 1 or 3 channels and "
            "clip=(-1, 1): use output='np'"
        )


def to_array(samples: Tensor, pictures: bool) -> NDArray[Any]:
    """Samples (N, *shape) as an array: of pictures uint8 (N, H, W, C), of others as they are."""
    return (to_uint8(samples) if pictures else samples).cpu().numpy()


def to_pictures(samples: Tensor) -> list[Image.Image]:
    """Pictures (N, C, H, W) in [-1, 1], grey or in colour."""
    return [picture(image) for image in to_array(samples, True)]


def picture(image: NDArray[Any]) -> Image.Image:
    """One picture of uint8 (H, W, C), C being 1 or 3."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
