"""The detector that a config asks for, of the data's kind."""

import torch

from pdfast.config.detectors import split
from pdfast.data.dataset import Dataset
from pdfast.errors import UsageError
from pdfast.evaluation.detectors import plain
from pdfast.evaluation.detectors.base import Detector


def without_network(data: Dataset) -> Detector:
    """Pixels of pictures; of other samples their numbers."""
    return plain.PIXEL if data.images.dtype == torch.uint8 else plain.raw(data.shape)


def open_detector(detector: str, data: Dataset, device: torch.device) -> Detector:
    """What `eval.detector` names; a network lies on the device. Reached by all processes.

    Raises UsageError for what the detector cannot look at, and for what its weights file is not;
    PdfastError where its package is missing.
    """
    name, path = split(detector)
    if name == "pixel":
        return without_network(data)
    channels = data.images.shape[-1]
    if data.images.dtype != torch.uint8 or channels not in (1, 3):
        raise UsageError(
            f"eval.detector {name} looks at pictures of 1 or 3 channels, which these samples are "
            "not: leave eval.detector at pixel, which compares any numbers"
        )
    # Imported here: other evaluations need neither.
    if name == "lite0":
        from pdfast.evaluation.detectors.lite0 import open_lite0

        return open_lite0(device)
    from pdfast.evaluation.detectors.inception import open_inception

    return open_inception(path, device)
