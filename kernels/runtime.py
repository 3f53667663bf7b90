"""Shared by the kernels: where Triton comes from, the dispatch rule, launches, argument checks."""

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
except ImportError:  # no Triton here (macOS), or one that cannot be used: references alone run
    HAVE_TRITON, INTERPRETING = False, False
    triton = SimpleNamespace(jit=lambda *function, **_: function[0] if function else triton.jit)
    tl = SimpleNamespace(constexpr=lambda value: value)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of a network's output
STATES = (torch.float32, torch.float64)  # of what is never rounded further


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


# ------------------------------------------------------------------------------------------
# Dispatch and launch


def uses_triton(device: torch.device, *dtypes: torch.dtype) -> bool:
    """The dispatch rule of every op here: Triton for CUDA tensors.

    Also for CPU tensors when Triton's interpreter was asked for (TRITON_INTERPRET=1, read when
    the kernels are imported). float64, and any place without Triton, take the reference.
    """
    return HAVE_TRITON and (device.type == "cuda" or INTERPRETING) and torch.float64 not in dtypes


def implementation(device: torch.device) -> str:
    """What the ops of kernels/*.py run as on float32 tensors of `device`, and why, for people."""
    if uses_triton(device, torch.float32):
        return f"Triton {triton.__version__}" + (", interpreted" if INTERPRETING else "")
    if device.type == "cuda":
        return "PyTorch reference (Triton 3.6 or newer is not installed)"
    return "PyTorch reference (Triton needs a GPU)"


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **meta: Any
) -> None:
    """Run `kernel` over `grid` on `device`.

    Multiplications and additions are not fused: a sum then has the same roundings on every device.
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
    """TypeError or ValueError that names the argument, unless it is such a tensor.

    Without a `shape` it must be a batch of images, (B, C, H, W), with no empty dimension. It must
    lie on the device of `like`.
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
    """ValueError unless `value` is one of a Literal's."""
    allowed = typing.get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def channels_last(images: Tensor) -> Tensor:
    """The same images as (B, H, W, C) in memory; no copy where they are so already."""
    return images.contiguous(memory_format=torch.channels_last)


def empty_images(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Images of the shape of `like`, (B, H, W, C) in memory, to be written."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.channels_last)
