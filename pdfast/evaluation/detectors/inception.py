"""FID's detector: the InceptionV3 of Heusel et al. 2017, in torch-fidelity's implementation.

The network is torch-fidelity's own class (Apache-2.0). Its weights are a file of 95 MB that neither
package includes. Distances with any other network are never called FID.
"""

import importlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdfast.distributed import collectives
from pdfast.errors import PdfastError
from pdfast.evaluation.detectors import network
from pdfast.evaluation.detectors.base import Detector, Features
from pdfast.storage import files

PACKAGE = "torch_fidelity"
WIDTH = 2048
NEEDED = WIDTH + 1  # a covariance of 2048 features has full rank from 2049 images on
USUAL = "6726825d"  # first digits of the SHA-256 of the weights behind published FIDs


def open_inception(path: str, device: torch.device) -> Detector:
    """Open the detector. Reached by all processes.

    Args:
        path: The weights file; "" to download it, once.
        device: Where the network runs.

    Raises:
        PdfastError: torch-fidelity is missing, or the download fails.
        UsageError: The file does not hold the network's weights.
    """
    module = collectives.together(_module)
    if not path:
        path = collectives.from_first(lambda: str(_downloaded(module.URL_INCEPTION_V3)))
    file = Path(path)
    return collectives.together(lambda: _opened(module, file, device))


def _opened(module: Any, file: Path, device: torch.device) -> Detector:
    state = network.read_weights(file)

    class Unfilled(module.FeatureExtractorInceptionV3):  # type: ignore[misc]
        """The network without its weights.

        Its constructor would unpickle the file and run any code in it. So it gets an empty file
        here, and the weights, read without running code, are loaded later.
        """

        def load_state_dict(self, *_: object) -> None:
            return

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    net = Unfilled("inception-v3-compat", [str(WIDTH), "logits_unbiased"], nothing)
    network.fill(net, state, file, "torch-fidelity's InceptionV3")
    weights = files.sha256(file)
    other = "" if weights.startswith(USUAL) else (
        f"the SHA-256 of {file} begins with {weights[:8]}, not {USUAL}: it does not hold the "
        "weights that published FIDs are computed with"
    )  # fmt: skip
    return Detector(
        name="inception",
        metric="FID",
        extract=network.batches(net, features, device),
        resize="299x299, bilinear as TensorFlow 1 has it",
        batch=network.BATCH[device.type],
        weights=weights,
        needed=NEEDED,
        width=WIDTH,
        device=device,
        warning=other,
    )


def features(net: Any, x: Tensor) -> Features:
    """Return the features (B, 2048) and logits (B, 1008) of uint8 images (B, 3, H, W)."""
    values, logits = net(x)
    return Features(values, logits)


def _module() -> Any:
    """Import torch-fidelity's module of the network without the rest of the package.

    Importing any part of the package imports torchvision, for other detectors. This module needs
    torch alone, so an empty package stands in for torch_fidelity during the import. That way pdfast
    behaves the same with and without torchvision.
    """
    name = f"{PACKAGE}.feature_extractor_inceptionv3"
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        absent = ModuleNotFoundError(f"no module named '{PACKAGE}'")
        raise network.missing("inception", "torch-fidelity", "fid", absent)
    if PACKAGE in sys.modules:
        return importlib.import_module(name)
    before = set(sys.modules)
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise network.missing("inception", "torch-fidelity", "fid", error) from None
    finally:  # a later import of the package must get the real one
        for left in set(sys.modules) - before:
            if left.split(".")[0] == PACKAGE:
                del sys.modules[left]


def _downloaded(url: str) -> Path:
    """Return the weights file in torch.hub's cache, after downloading it if it is missing."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=USUAL, progress=False)
    except (OSError, RuntimeError) as error:  # no network, a proxy's page, other contents
        raise PdfastError(
            f"eval.detector inception: its weights could not be downloaded from {url} "
            f"({files.reason(error)}): get that file elsewhere, also known as "
            f"pt_inception-2015-12-05-{USUAL}.pth, and pass inception:PATH"
        ) from None
    return file
