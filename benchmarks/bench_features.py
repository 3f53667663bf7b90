"""Features of EfficientNet-Lite0 as `pdfast eval` extracts them, against a plain loop.

The plain loop calls the network with 64 images in PyTorch's default memory format. On a CPU pdfast
calls it with fewer images, in the channels-last format.
"""

import importlib

import pytest
import torch
from torch import Tensor

from pdfast.evaluation.detectors import lite0
from pdfast.training import precision

PDFAST, PLAIN = "pdfast", "eager"
PLAIN_BATCH = 64
CASES = [1024, 256]  # numbers of images
if not torch.cuda.is_available():
    CASES = [256]


def plain_loop(device: torch.device):
    """Return a function that extracts the features of a batch, with random weights."""
    networks = importlib.import_module("efficientnet_lite_pytorch")
    net = networks.EfficientNet.from_name(lite0.NAME, image_size=lite0.SIZE).to(device).eval()

    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        x = images.to(device).permute(0, 3, 1, 2).contiguous()
        with precision.without_tf32():
            return lite0.features(net, x).values

    return extract


@pytest.mark.parametrize("who", [PDFAST, PLAIN])
def test_features(case, who, measure_images, device):
    """Extract the features of `case` images of 32x32."""
    images = torch.randint(0, 256, (case, 32, 32, 3), dtype=torch.uint8)
    if who == PDFAST:
        detector = lite0.open_lite0(device)
        extract, batch = detector.extract, detector.batch
    else:
        extract, batch = plain_loop(device), PLAIN_BATCH
    measure_images(
        lambda: [extract(part) for part in images.split(batch)],
        op="features", shape=f"lite0, {case} images", who=who, num=case,
    )  # fmt: skip
