"""Detectors without a network, whose features are the pixels or numbers themselves."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from pdfast.evaluation.detectors.base import Detector, Features

PIXELS = 32  # larger images are averaged down to this size
NUMBERS = 1024  # most features of a sample that is not a picture


def _pixels(images: Tensor) -> Features:
    if images.shape[1] > PIXELS:
        channels_first = images.permute(0, 3, 1, 2).double()
        images = adaptive_avg_pool2d(channels_first, PIXELS).permute(0, 2, 3, 1)
    return Features(images.flatten(1).double() / 127.5 - 1.0)


PIXEL = Detector(
    name="pixel",
    metric="FD-pixel",
    extract=_pixels,
    resize=f"averaged down to {PIXELS}x{PIXELS}, if larger",
)
"""The pixels of uint8 images (N, H, W, C), in [-1, 1]: features (N, H W C).

Images larger than 32x32 are averaged down to that first, as the covariance of 128x128x3 pixels
would take 19 GB.
"""


def raw(shape: tuple[int, ...]) -> Detector:
    """Return the detector whose features (N, D) are the numbers of float32 samples.

    Samples of more than 1024 numbers are averaged over neighbours first: the longest axis is halved
    until at most 1024 remain, and the first axis (channels) only if all others have size 1.

    Args:
        shape: Shape of a sample.
    """

    def extract(images: Tensor) -> Features:
        numbers = images.permute(0, 3, 1, 2).double().reshape(-1, *shape)
        while numbers[0].numel() > NUMBERS:
            sizes = (
                numbers.shape[2:] if max(numbers.shape[2:], default=1) > 1 else numbers.shape[1:]
            )
            axis = numbers.ndim - len(sizes) + sizes.index(max(sizes))
            moved = numbers.movedim(axis, -1)
            halved = adaptive_avg_pool1d(moved.flatten(0, -2), -(-moved.shape[-1] // 2))
            numbers = halved.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
        return Features(numbers.flatten(1))

    means = f"neighbours averaged down to {NUMBERS} numbers, if more"
    return Detector(name="raw", metric="FD-raw", extract=extract, resize=means)
