"""Data that come with a call, as tensors or arrays, for custom networks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdfast.data.dataset import MIN_SAMPLES, Dataset
from pdfast.errors import UsageError
from pdfast.models.images import to_floats


def from_numbers(
    data: Any, shape: tuple[int, ...], image_shape: tuple[int, int, int], num_classes: int
) -> Dataset:
    """A set of samples (M, *shape), floats, or (samples, labels) where there are classes.

    Tensors or arrays; they are taken as they are, in float32. Raises UsageError for what is wrong.
    """
    pair = isinstance(data, tuple)
    x, labels = data if pair and len(data) == 2 else (data, None)
    samples, wanted = as_tensor("data", x), ("M", *shape)
    wanted_text = f"({', '.join(map(str, wanted))}{',' if len(wanted) == 1 else ''})"
    if not samples.is_floating_point():
        raise UsageError(
            f"data holds {str(samples.dtype).removeprefix('torch.')}, where floats are needed, of "
            "about the noise's scale (pictures: from -1 to 1)"
        )
    if samples.ndim != len(wanted) or samples.shape[1:] != shape:
        raise UsageError(f"data has shape {tuple(samples.shape)}, where {wanted_text} is needed")
    if len(samples) < MIN_SAMPLES:
        raise UsageError(f"data has {len(samples)} samples, where {MIN_SAMPLES} are the least")
    samples = samples.detach().float()
    if not samples.isfinite().all():
        bad = (~samples.flatten(1).isfinite().all(1)).nonzero()
        raise UsageError(
            f"data holds numbers that are not finite in float32, in sample {int(bad[0])}"
        )
    images = to_floats(samples.reshape(len(samples), *image_shape))
    if not num_classes:
        if labels is not None:
            raise UsageError("data has labels, but the network has no classes: set num_classes")
        return Dataset(images, None, shape)
    if labels is None:
        raise UsageError(f"the network has {num_classes} classes: pass data=(samples, labels)")
    classes = as_tensor("the labels of data", labels)
    if classes.shape != samples.shape[:1] or classes.is_floating_point():
        raise UsageError(
            f"the labels of data must be {len(samples)} whole numbers, not "
            f"{str(classes.dtype).removeprefix('torch.')} {tuple(classes.shape)}"
        )
    least, most = int(classes.min()), int(classes.max())
    if least < 0 or most >= num_classes:
        raise UsageError(
            f"the labels of data are from {least} to {most}, outside 0 .. {num_classes - 1}"
        )
    return Dataset(images, classes.long(), shape)


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor or an array as a tensor on the CPU. Raises UsageError for what is neither."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise UsageError(f"{name} is a sparse tensor: call .to_dense() on it")
        return value.cpu()
    try:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(value))
    except (TypeError, ValueError):  # such as texts, and numbers of the other byte order
        raise UsageError(f"{name} holds {value.dtype}, which torch has no type for") from None
    raise UsageError(f"{name} must be a tensor or an array, not {type(value).__name__}")
