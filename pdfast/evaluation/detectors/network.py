"""Weights of untrusted files, and batches, for detectors with a network."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdfast.errors import PdfastError, UsageError
from pdfast.evaluation.detectors.base import Features
from pdfast.storage import files
from pdfast.training import precision

# Images per call, by type of device: on a CPU, as many as its caches favour. The last call is
# padded, so that features do not depend on its size.
BATCH = {"cpu": 16, "cuda": 64}
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
COUNTERS = ".num_batches_tracked"  # of batch norms: missing in older files, and never read


def missing(detector: str, package: str, extra: str, error: ImportError) -> PdfastError:
    """Return the error for a detector whose package cannot be imported."""
    return PdfastError(
        f"eval.detector {detector} needs {package}, which cannot be imported "
        f"({files.reason(error)}): pip install 'pdfast[{extra}]'"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict that torch.save wrote, without running code in the file.

    Raises:
        UsageError: The file is missing, or holds no finite, dense state dict.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise UsageError(f"eval.detector: {path} cannot be read: {files.reason(error)}") from None
    if not there:
        raise UsageError(f"eval.detector: there is no weights file {path}: correct the path")
    try:
        with warnings.catch_warnings(action="ignore"):  # the error below says more
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a malformed file raises errors of many types
        raise UsageError(
            f"eval.detector: {path} cannot be read as weights, a state dict that torch.save wrote: "
            "put a whole copy in its place"
        ) from None
    if not isinstance(state, Mapping) or not all(map(_is_plain, state.values())):
        raise UsageError(
            f"eval.detector: {path} is not a state dict of names and tensors: name another file"
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(
                f"eval.detector: {path} holds numbers that are not finite, in {name}: put a whole "
                "copy in its place"
            )
    return {str(name): tensor for name, tensor in state.items()}


def _is_plain(value: object) -> bool:
    """Whether a value is a dense tensor on the CPU, of a dtype that weights have."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
        and value.dtype in TYPES
    )


def fill(net: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load weights into a network.

    Args:
        net: The network.
        state: Its state dict; counters of batch norms are ignored.
        path: The file, for messages.
        what: Name of the network, for messages.

    Raises:
        UsageError: The weights are of another network.
    """
    expected = {k: v for k, v in net.state_dict().items() if not k.endswith(COUNTERS)}
    given = {k: v for k, v in state.items() if not k.endswith(COUNTERS)}
    for name in sorted(expected.keys() | given.keys()):
        shapes = [str(tuple(t[name].shape)) if name in t else "" for t in (given, expected)]
        if shapes[0] != shapes[1]:
            its = f"its {name[:100]} is {shapes[0] or 'missing'}, not {shapes[1]}"
            its = its if shapes[1] else f"it holds {name[:100]}, which {what} does not have"
            raise UsageError(
                f"eval.detector: {path} holds the weights of another network than {what} ({its}): "
                "put the right file in its place"
            )
    nn.Module.load_state_dict(net, given, strict=False)


def batches(
    net: nn.Module, call: Callable[[Any, Tensor], Features], device: torch.device
) -> Callable[[Tensor], Features]:
    """Return a detector's `extract`, which runs a network on padded batches.

    It computes in float32 without TF32, whatever the precision of the models. Grey images are
    repeated to 3 channels.

    Args:
        net: The network, which is moved to the device.
        call: Returns the features of `net` for uint8 images (BATCH[device.type], 3, H, W).
        device: Where the network runs.
    """
    net = net.to(device).eval().requires_grad_(False)
    batch = BATCH[device.type]
    if device.type == "cpu":  # whose float32 convolutions are faster in this format
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def extract(images: Tensor) -> Features:
        num = len(images)
        x = images.to(device).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        x = torch.cat([x, x[-1:].expand(batch - num, -1, -1, -1)])
        with precision.without_tf32():
            values, logits = call(net, x)
        return Features(values[:num], None if logits is None else logits[:num])

    return extract
