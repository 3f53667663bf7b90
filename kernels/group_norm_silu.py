"""GroupNorm, FiLM and SiLU in one op: the Python face of csrc/group_norm_silu, and its reference.

Fused: statistics, normalisation, the affine map, FiLM's `(1 + scale) h + shift` (Perez et al. 2018)
and SiLU. As separate PyTorch ops the forward reads and writes the activations five times or more;
here x is read and y written once, and the backward reads x and dy and writes dx. Bound: memory.
On a CPU the slab that a core works on stays in its L2 cache; on a GPU, in shared memory.
It loses where a slab fits neither (x is then read twice), and without FiLM to PyTorch's own ops on
CPUs that lack AVX2, where the portable build takes up to twice their time.
"""

import contextlib
import importlib
import importlib.util
import math
import mmap
import re
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.kernels import runtime
from pdfast.kernels.calls import (
    NORM_BACKWARD,
    NORM_FORWARD,
    NORM_PARAMS,
    Call,
    Launch,
    bytes_of,
    made_dense,
)
from pdfast.kernels.registry import Op, Stage, register
from pdfast.launch import speaks

RECORD = re.compile(rb"pdfast is built for PyTorch ([0-9.]*[0-9])")  # in the extension's file
FIX = "build it again with pip install --no-build-isolation --force-reinstall --no-deps on pdfast"


def _built_for() -> str:
    """The PyTorch that the extension was built for, by its file; "" where that is not known."""
    spec = importlib.util.find_spec("pdfast._C")
    if spec is None or not spec.origin:
        return ""
    with (
        contextlib.suppress(OSError, ValueError),  # not a file, or an empty one
        open(spec.origin, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        found = RECORD.search(content)
        return found[1].decode() if found else ""
    return ""


class _Extension(NamedTuple):
    module: Any = None
    """Registers the ops; None where there is none, or none that fits."""
    unfit: str = ""
    """Why GroupNorm is refused; empty where it is not."""
    absent: str = "pdfast was built without a C++ compiler or Python's headers"
    """Why there is no module."""


def _load() -> _Extension:
    """The extension, if it was built for the PyTorch that is installed.

    PyTorch promises no binary compatibility of its C++ library, not even of patch releases: a
    module that was built for another one may crash or compute nonsense, and is not loaded. In
    another patch release, which comes with any update of an environment, the reference takes its
    place, with a warning. Another minor release someone chose, and decides what to do.
    """
    found = re.match(r"[\d.]*\d", torch.__version__)  # "2.9.0" of "2.9.0a0+git" and "2.9.0+cu130"
    here, built, module = found[0] if found else torch.__version__, _built_for(), None
    try:
        if built in ("", here):
            module = importlib.import_module("pdfast._C")
            built = module.build_facts().get("torch") or "another release"
    except ModuleNotFoundError:  # setup.py could not build it, and said why
        return _Extension()
    except ImportError as error:
        return _Extension(unfit=f"pdfast's extension does not load: {error}; {FIX}")
    if built == here:
        return _Extension(module)
    what = f"pdfast's extension was built for PyTorch {built}, and PyTorch {here} is installed"
    if built.split(".")[:2] != here.split(".")[:2]:
        return _Extension(unfit=f"{what}: {FIX}")
    if speaks():
        warnings.warn(
            f"{what}: GroupNorm runs as its slower reference until you {FIX}", stacklevel=1
        )
    return _Extension(absent=f"pdfast was built for PyTorch {built}, and this is {here}")


_C, UNFIT, _ABSENT = _load()


def build_facts() -> dict[str, str | None]:
    """Compiler, CUDA version and architectures of the extension; empty if it was not built."""
    facts: dict[str, str | None] = _C.build_facts() if _C else {}
    return facts


HAS_CPU = _C is not None
HAS_CUDA = build_facts().get("cuda") is not None


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> Tensor:
    """The same in PyTorch's own ops, which want one type; arguments as for `group_norm_silu`.

    What the benchmarks compare with, and what is exported. It loses digits where the mean is far
    above the spread: on a CPU, PyTorch takes the variance of a channels-last tensor as
    mean(x^2) - mean(x)^2 in float32, and its affine map is a x + b in any layout.
    """
    h = torch.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if film is not None:
        scale, shift = film.to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
    h = F.silu(h) if silu else h
    return h.contiguous(memory_format=torch.channels_last)


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
    """What runs where nothing is compiled: PyTorch's own ops on x less its groups' means.

    Arguments as for `group_norm_silu`. A group norm does not change when a constant is taken from
    a group, and its backward neither, so the means need no gradient and no great accuracy. What is
    left has a mean near 0, where PyTorch's ops lose no digits, forward or backward, in any layout.
    16-bit types are computed in float32 and rounded once, as the compiled op does.
    """
    n, c = x.shape[:2]
    wide = torch.promote_types(x.dtype, torch.float32)
    of_channels = x.detach().mean((2, 3), dtype=wide).view(n, groups, c // groups)
    means = of_channels.mean(2, keepdim=True).expand_as(of_channels).reshape(n, c, 1, 1)
    y = eager(x.to(wide) - means, weight, bias, film, groups=groups, eps=eps, silu=silu)
    return y.to(x.dtype)


COMPILED_FOR = ("cpu", "meta") * HAS_CPU + ("cuda",) * HAS_CUDA  # kinds of devices


def implementation(device: torch.device) -> str:
    """What runs on float32 tensors of this device, and why, for people to read.

    Raises PdfastError where the extension was built for another PyTorch.
    """
    if UNFIT:
        raise PdfastError(UNFIT)
    if not HAS_CPU:
        return f"PyTorch reference: {_ABSENT}"
    if device.type not in COMPILED_FOR:
        return f"PyTorch reference: pdfast was built without code for {device.type}"
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

    x (N, C, H, W) float32, bfloat16, float16 or float64, in any memory layout; weight and bias (C,)
    and film (N, 2C), scale then shift, in x's type or float32. Returns (N, C, H, W), channels-last,
    in x's type. Differentiable once, in all four tensors; the compiled op's gradients are the same
    bits from run to run. float64 on a GPU takes the reference. Raises ValueError or TypeError,
    naming the argument.
    """
    if UNFIT:
        raise PdfastError(UNFIT)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, not {type(x).__name__}")
    wide_on_gpu = x.device.type == "cuda" and x.dtype == torch.float64
    if x.device.type in COMPILED_FOR and not wide_on_gpu:
        op = torch.ops.pdfast.group_norm_silu
        y: Tensor = op(x, weight, bias, film, groups, eps, silu)[0]
        return y
    _check(x, weight, bias, film, groups, eps)
    return reference(x, weight, bias, film, groups=groups, eps=eps, silu=silu)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None, groups: int, eps: float
) -> None:
    """Check the reference's arguments as csrc/group_norm_silu_aten.cpp checks its own."""
    runtime.check_tensor("x", x, runtime.FLOATS)
    n, c = x.shape[:2]
    types = tuple({x.dtype, x.dtype if x.dtype == torch.float64 else torch.float32})
    if groups < 1 or c % groups:
        raise ValueError(f"groups must divide the {c} channels of x, and {groups} does not")
    runtime.check_tensor("weight", weight, types, (c,), x)
    runtime.check_tensor("bias", bias, (weight.dtype,), (c,), x)
    if film is not None:
        runtime.check_tensor("film", film, types, (n, 2 * c), x)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, not {eps}")


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
        dfilm = weight.new_empty(0) if film is None else film.new_empty(film.shape)
        return dx, weight.new_empty(weight.shape), bias.new_empty(bias.shape), dfilm


def _forward_launches(call: Call) -> list[Launch]:
    found = made_dense(torch.channels_last, call["x"])
    return [*found, Launch(NORM_FORWARD, call.moved())]


def _backward_launches(call: Call) -> list[Launch]:
    """The first kernel leaves sums for each image, which the second adds up."""
    x, (_, dweight, dbias, _) = call["x"], call.result
    sums = 2 * x.shape[0] * x.shape[1] * call["mean"].element_size()
    params = bytes_of(dweight, dbias)
    return [
        *made_dense(torch.channels_last, call["dy"], x),
        Launch(NORM_BACKWARD, call.moved() - params + sums),
        Launch(NORM_PARAMS, sums + params),
    ]


register(
    Op(
        name="group_norm_silu",
        stage=Stage.NETWORK,
        kind=NORM_FORWARD,
        rule=_forward_launches,
        implementation=implementation,
    )
)
register(
    Op(
        name="group_norm_silu_backward",
        stage=Stage.NETWORK,
        kind=NORM_BACKWARD,
        rule=_backward_launches,
        implementation=implementation,
        beside="group_norm_silu",
    )
)
