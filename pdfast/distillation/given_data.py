"""Data passed to a call as tensors or arrays, for custom networks."""

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
    """Return a call's samples as a data set, unscaled, in float32.

    Args:
        data: Samples (M, *shape), a tensor or array of floats; with classes (samples, labels).
        shape: Shape of a sample.
        image_shape: The same as (C, H, W), in which the set holds it.
        num_classes: Number of classes; 0 for none.

    Raises:
        UsageError: The type, shape, number or values of samples or labels are wrong.
    """
    pair = isinstance(data, tuple)
    x, labels = data if pair and len(data) == 2 else (data, None)
    samples, wanted = as_tensor("data", x), ("M", *shape)
    wanted_text = f"({', '.join(map(str, wanted))}{',' if len(wanted) == 1 else ''})"
    if not samples.is_floating_point():
        raise UsageError(
            f"data holds {str(samples.dtype).removeprefix('torch.')}, where floats are needed, of "
            "about the scale of the noise: convert it (pictures: data / 127.5 - 1, as float32)"
        )
    if samples.ndim != len(wanted) or samples.shape[1:] != shape:
        raise UsageError(f"data must have shape {wanted_text}, not {tuple(samples.shape)}")
    if len(samples) < MIN_SAMPLES:
        raise UsageError(f"data must hold at least {MIN_SAMPLES} samples, not {len(samples)}")
    samples = samples.detach().float()
    if not samples.isfinite().all():
        bad = (~samples.flatten(1).isfinite().all(1)).nonzero()
        raise UsageError(
            f"data holds numbers that are not finite in float32, in sample {int(bad[0])}: "
            "remove such samples"
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
            f"the labels of data are from {least} to {most}, outside 0 .. {num_classes - 1}: "
            "number them from 0, or set num_classes"
        )
    return Dataset(images, classes.long(), shape)


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor or an array as a tensor on the CPU.

    Args:
        name: What the value is, for messages.
        value: A dense tensor or an array.

    Raises:
        UsageError: `value` is neither, or of a dtype that torch does not have.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise UsageError(f"{name} is a sparse tensor: call .to_dense() on it")
        return value.cpu()
    try:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(value))
    except (TypeError, ValueError):  # such as strings, and numbers of the other byte order
        raise UsageError(f"{name} holds {value.dtype}, a type that torch does not have") from None
    raise UsageError(f"{name} must be a tensor or an array, not {type(value).__name__}")
