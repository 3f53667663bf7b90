"""The detector that a config names, for the given kind of data."""

import torch

from pdfast.config.detectors import split
from pdfast.data.dataset import Dataset
from pdfast.errors import UsageError
from pdfast.evaluation.detectors import plain
from pdfast.evaluation.detectors.base import Detector


def without_network(data: Dataset) -> Detector:
    """Return the detector without a network: pixels for pictures, numbers for other samples."""
    return plain.PIXEL if data.images.dtype == torch.uint8 else plain.raw(data.shape)


def open_detector(detector: str, data: Dataset, device: torch.device) -> Detector:
    """Open the detector that `eval.detector` names. Reached by all processes.

    Args:
        detector: As `eval.detector`.
        data: The samples or images that it will be used on.
        device: Where its network runs.

    Raises:
        UsageError: The detector does not take such data, or its weights file is wrong.
        PdfastError: Its package is missing, or a download fails.
    """
    name, path = split(detector)
    if name == "pixel":
        return without_network(data)
    channels = data.images.shape[-1]
    if data.images.dtype != torch.uint8 or channels not in (1, 3):
        raise UsageError(
            f"eval.detector {name} is for pictures of 1 or 3 channels, and these samples are not: "
            "leave eval.detector at pixel, which compares any numbers"
        )
    # Imported here because other evaluations need neither.
    if name == "lite0":
        from pdfast.evaluation.detectors.lite0 import open_lite0

        return open_lite0(device)
    from pdfast.evaluation.detectors.inception import open_inception

    return open_inception(path, device)
