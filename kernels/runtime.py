"""Shared parts of the kernels: Triton's import, the dispatch rule, launches, argument checks."""

import typing
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "FLOATS",
    "HAVE_TRITON",
    "INTERPRETING",
    "STATES",
    "cdiv",
    "channels_last",
    "check_choice",
    "check_tensor",
    "empty_images",
    "implementation",
    "launch",
    "tl",
    "triton",
    "uses_triton",
]

try:
    import triton
    import triton.language as tl
    from triton import knobs

    HAVE_TRITON, INTERPRETING = True, bool(knobs.runtime.interpret)
except ImportError:  # Triton is missing (macOS) or unusable: only the references run
    HAVE_TRITON, INTERPRETING = False, False
    triton = SimpleNamespace(jit=lambda *function, **_: function[0] if function else triton.jit)
    tl = SimpleNamespace(constexpr=lambda value: value)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes of network outputs
STATES = (torch.float32, torch.float64)  # dtypes of tensors that are never rounded to 16 bits


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


# ------------------------------------------------------------------------------------------
# Dispatch and launch


def uses_triton(device: torch.device, *dtypes: torch.dtype) -> bool:
    """Return whether an op runs as its Triton kernel: the dispatch rule of every op here.

    CUDA tensors take the kernel. CPU tensors take it only under Triton's interpreter
    (TRITON_INTERPRET=1, read when the kernels are imported). float64 tensors take the reference,
    as does every tensor where Triton is not installed.

    Args:
        device: Device of the op's tensors.
        *dtypes: Dtypes of the op's tensors.
    """
    return HAVE_TRITON and (device.type == "cuda" or INTERPRETING) and torch.float64 not in dtypes


def implementation(device: torch.device) -> str:
    """Describe, for people, how the ops of kernels/ run on float32 tensors of `device`, and why."""
    if uses_triton(device, torch.float32):
        return f"Triton {triton.__version__}" + (", interpreted" if INTERPRETING else "")
    if device.type == "cuda":
        return "PyTorch reference (Triton 3.6 or newer is not installed)"
    return "PyTorch reference (Triton needs a GPU)"


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **meta: Any
) -> None:
    """Run `kernel` over `grid` on `device`.

    Fusing of multiplications and additions is disabled, so that a sum is rounded in the same way on
    every device.

    Args:
        kernel: A function compiled by `triton.jit`.
        grid: Number of programs along each axis.
        device: Device of the tensors.
        *args: The kernel's tensors and numbers.
        **meta: The kernel's compile-time constants, and Triton's options.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, enable_fp_fusion=False, **meta)


# ------------------------------------------------------------------------------------------
# Arguments


def check_tensor(
    name: str,
    tensor: object,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...] | None = None,
    like: Tensor | None = None,
) -> None:
    """Check the type, dtype, shape and device of an argument.

    Args:
        name: The argument's name, for the error message.
        tensor: The argument.
        dtypes: Allowed dtypes.
        shape: Required shape. None: a batch of images (B, C, H, W) without an empty dimension.
        like: A tensor on the required device; None: any device.

    Raises:
        TypeError: `tensor` is not a tensor, or its dtype is not in `dtypes`.
        ValueError: The shape or the device is wrong.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{name} must be {expected}, not {str(tensor.dtype).removeprefix('torch.')}"
        )
    if shape is None and (tensor.ndim != 4 or 0 in tensor.shape):
        raise ValueError(f"{name} must be (B, C, H, W), none of them 0, not {tuple(tensor.shape)}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, not on {tensor.device}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the values of the Literal type `choices`."""
    allowed = typing.get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def channels_last(images: Tensor) -> Tensor:
    """Return the images laid out as (B, H, W, C) in memory, copied only where they are not yet."""
    return images.contiguous(memory_format=torch.channels_last)


def empty_images(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uninitialised images of the shape of `like`, laid out as (B, H, W, C) in memory."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.channels_last)
