"""GroupNorm, FiLM and SiLU in one op: the Python face of csrc/group_norm_silu, and its reference.

Fused: statistics, normalisation, the affine map, FiLM's `(1 + scale) h + shift` (Perez et al. 2018)
and SiLU. As separate PyTorch ops the forward reads and writes the activations five times or more;
here x is read and y written once, and the backward reads x and dy and writes dx. Bound: memory.
On a CPU the slab that a core works on stays in its L2 cache; on a GPU, in shared memory.
It loses where an image's slab fits neither (then x is read twice), and nowhere else known.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor

from pdfast.errors import PdfastError


def _load() -> tuple[Any, str]:
    """The compiled module, which registers the ops, or None, and what is wrong with it."""
    try:
        return importlib.import_module("pdfast._C"), ""
    except ModuleNotFoundError:  # setup.py could not build it, and said why
        return None, ""
    except ImportError as error:
        return None, (
            f"pdfast's extension does not fit PyTorch {torch.__version__}, which is installed: "
            "build it again with pip install --no-build-isolation --force-reinstall --no-deps "
            f"on pdfast ({error})"
        )


_C, UNFIT = _load()


def build_facts() -> dict[str, str | None]:
    """Compiler, CUDA version and architectures of the extension; empty if it was not built."""
    facts: dict[str, str | None] = _C.build_facts() if _C else {}
    return facts


HAS_CPU = _C is not None
HAS_CUDA = build_facts().get("cuda") is not None


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> Tensor:
    """The same in PyTorch's own ops; arguments as for `group_norm_silu`."""
    h = torch.group_norm(x, groups, weight, bias, eps)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
    h = F.silu(h) if silu else h
    return h.contiguous(memory_format=torch.channels_last)


def implementation(device: torch.device) -> str:
    """What runs on tensors of this device, and why, for people to read.

    Raises PdfastError where the extension was built for another PyTorch.
    """
    if UNFIT:
        raise PdfastError(UNFIT)
    if device.type == "cuda" and not HAS_CUDA:
        return "PyTorch reference: pdfast was built without nvcc"
    if _C is None:
        return "PyTorch reference: pdfast was built without a C++ compiler"
    if device.type == "cuda":
        return f"compiled CUDA op, built for {build_facts()['cuda_architectures']}"
    return f"compiled CPU op, {_C.cpu_isa()}"


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> Tensor:
    """GroupNorm over `groups`, then FiLM if `film` is given, then SiLU if `silu`.

    x (N, C, H, W) float32, bfloat16, float16 or, on a CPU, float64, in any memory layout; weight
    and bias (C,) and film (N, 2C), scale then shift, in x's type or float32. Returns (N, C, H, W),
    channels-last, in x's type. Differentiable once, in all four tensors; gradients are the same
    bits from run to run. Raises ValueError or TypeError, naming the argument.
    """
    if HAS_CUDA or (HAS_CPU and x.device.type != "cuda"):
        op = torch.ops.pdfast.group_norm_silu
        y: Tensor = op(x, weight, bias, film, groups, eps, silu)[0]
        return y
    if UNFIT:
        raise PdfastError(UNFIT)
    return reference(x, weight, bias, film, groups=groups, eps=eps, silu=silu)


if HAS_CPU:

    @torch.library.register_fake("pdfast::group_norm_silu")
    def _fake_forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        film: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        statistics = x.new_empty((x.shape[0], groups), dtype=dtype)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        return y, statistics, torch.empty_like(statistics)

    @torch.library.register_fake("pdfast::group_norm_silu_backward")
    def _fake_backward(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        bias: Tensor,
        film: Tensor | None,
        groups: int,
        silu: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dfilm = weight.new_empty(0) if film is None else torch.empty_like(film)
        return dx, torch.empty_like(weight), torch.empty_like(bias), dfilm
