"""Types by which the test of a Triton op describes it to the tests of all ops: see launch_cases.py.

Tensors hold ordinary values, so that a call may also run against the op's reference.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pdfast.config.names import OUTPUTS

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ARCHS = (80, 90, 100)  # Ampere, Hopper, Blackwell
# (B, C, H, W). For the first two, H W C is a multiple of 16 and of the block. For the others Triton
# compiles special code: for a size that is not such a multiple, and for a size of 1.
LARGE, SMALL, ODD, ONE = (2, 3, 64, 64), (2, 1, 8, 8), (2, 3, 5, 7), (2, 1, 1, 1)


@dataclass
class Code:
    """Requirements of a kernel's machine code, as an op's call has it compiled."""

    op: str
    arch: int
    loads: int
    """Bytes that one program reads in 16-byte accesses: its block times the item size, summed over
    image inputs. Numbers that are read once per program do not count."""
    stores: int
    """Bytes that one program writes in 16-byte accesses."""
    call: Callable[..., object]
    """Calls the op, given a device and the options."""
    options: dict[str, Any] = field(default_factory=dict)
    launch: int = -1
    """The kernel's place among the launches of a call."""


@dataclass
class Traffic:
    """Memory traffic of a call, counted at the interpreter's accesses."""

    name: str
    run: Callable[[], list[tuple[Tensor, int, int]]]
    """Calls the op; returns each tensor with how often its elements are read and written."""
    eager: Callable[[], object]
    """Does the same in plain PyTorch, for comparison."""
    elements: int
    """Number by which the printed bytes are divided."""
    scratch: int = 0
    """Bytes read and written in buffers that the op makes for itself."""


def values(shape, dtype, device, seed=0):
    """Draw standard normals, channels-last for images; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    if tensor.ndim == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.to(device)


def raw(shape, parameterization, dtype, device, seed):
    """Draw a network's raw output."""
    b, c, h, w = shape
    return values((b, c * OUTPUTS[parameterization].copies, h, w), dtype, device, seed)


def rising_angles(batch, device, first=0.3):
    """Return rising angles, float64 (batch,) in (0, pi/2)."""
    return torch.linspace(first, 1.2, batch, dtype=torch.float64).to(device)
