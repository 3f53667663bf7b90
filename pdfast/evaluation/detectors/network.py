"""What detectors with a network share: their weights, read with suspicion, and their batches."""

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

BATCH = 64  # images per call, the last call filled up, so that each one's features are the same
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
COUNTERS = ".num_batches_tracked"  # of batch norms; older files have none, and nothing reads them


def missing(detector: str, package: str, extra: str, error: ImportError) -> PdfastError:
    """The error for a detector whose package cannot be imported."""
    return PdfastError(
        f"eval.detector {detector} needs {package}, which cannot be imported "
        f"({files.reason(error)}): pip install 'pdfast[{extra}]'"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of torch.save; no code in it is run. Raises UsageError."""
    try:
        there = path.is_file()
    except OSError as error:
        raise UsageError(f"eval.detector: {path} cannot be read: {files.reason(error)}") from None
    if not there:
        raise UsageError(f"eval.detector: there is no weights file {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the error says
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of whatever type: the parser's word on what the file holds
        raise UsageError(
            f"eval.detector: {path} cannot be read as weights, a state dict that torch.save wrote: "
            "put a whole copy in its place"
        ) from None
    if not isinstance(state, Mapping) or not all(map(_is_plain, state.values())):
        raise UsageError(f"eval.detector: {path} holds no state dict, which is names and tensors")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(
                f"eval.detector: {path} holds numbers that are not finite, in {name}: put a whole "
                "copy in its place"
            )
    return {str(name): tensor for name, tensor in state.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor of a type that weights have."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
        and value.dtype in TYPES
    )


def fill(net: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Give a network its weights. Raises UsageError where they are of another one."""
    expected = {k: v for k, v in net.state_dict().items() if not k.endswith(COUNTERS)}
    given = {k: v for k, v in state.items() if not k.endswith(COUNTERS)}
    for name in sorted(expected.keys() | given.keys()):
        shapes = [str(tuple(t[name].shape)) if name in t else "" for t in (given, expected)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"eval.detector: {path} holds the weights of another network than {what}: its "
                f"{name[:100]} is {shapes[0] or 'missing'}, not {shapes[1] or 'one of them'}"
            )
    nn.Module.load_state_dict(net, given, strict=False)


def batches(
    net: nn.Module, call: Callable[[Any, Tensor], Features], device: torch.device
) -> Callable[[Tensor], Features]:
    """A detector's `extract` by `call(net, x)` on uint8 x (BATCH, 3, H, W); grey is repeated.

    In float32 with exact products, whatever precision the models have.
    """
    net = net.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def extract(images: Tensor) -> Features:
        num = len(images)
        x = images.to(device).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        x = torch.cat([x, x[-1:].expand(BATCH - num, -1, -1, -1)])
        with precision.without_tf32():
            values, logits = call(net, x)
        return Features(values[:num], None if logits is None else logits[:num])

    return extract
