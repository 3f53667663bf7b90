"""GroupNorm, FiLM and SiLU in one op: the Python side of csrc/group_norm_silu.

Fused: statistics, normalisation, the affine map, FiLM's `(1 + scale) h + shift` (Perez et al. 2018)
and SiLU. As separate PyTorch ops the forward reads and writes the activations five times or more;
here it reads x and writes y once, and the backward reads x and dy and writes dx. Bound: memory. The
slab that a core works on stays in its L2 cache on a CPU, and in shared memory on a GPU. On a GPU
the same pass reads the terms of a sum, `x + addend + residual`, and the channels of a second
tensor; on a CPU PyTorch's ops first make one tensor of them. Loses: where a slab fits neither (x is
then read twice), and without FiLM to PyTorch's own ops on CPUs without AVX2, where the portable
build takes up to twice their time.
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
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.kernels import runtime
from pdfast.kernels.calls import (
    ADDS,
    CATS,
    NORM_BACKWARD,
    NORM_FORWARD,
    NORM_PARAMS,
    REDUCTIONS,
    Call,
    Launch,
    bytes_of,
    copy_of,
    made_dense,
    tensors_of,
)
from pdfast.kernels.group_norm_reference import composed
from pdfast.kernels.group_norm_reference import eager as eager
from pdfast.kernels.group_norm_reference import reference as reference
from pdfast.kernels.registry import Op, Stage, register
from pdfast.launch import speaks

RECORD = re.compile(rb"pdfast is built for PyTorch ([0-9.]*[0-9])")  # in the extension's file
FIX = "build it again with pip install --no-build-isolation --force-reinstall --no-deps on pdfast"


def _built_for() -> str:
    """Return the PyTorch release that the extension's file names; "" if it names none."""
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
    """Module that registers the ops; None if it is missing or was not loaded."""
    unfit: str = ""
    """Reason to refuse GroupNorm; empty if it runs."""
    absent: str = "pdfast was built without a C++ compiler or Python's headers"
    """Reason why `module` is None."""


def _load() -> _Extension:
    """Load the extension if it was built for the installed PyTorch.

    PyTorch promises no binary compatibility of its C++ library, not even between patch releases: a
    module built for another release may crash or compute nonsense, so it is not loaded. A different
    patch release comes with any update of an environment: the reference then runs, with a warning.
    A different minor release was somebody's choice: GroupNorm is then refused, with the fix.
    """
    found = re.match(r"[\d.]*\d", torch.__version__)  # "2.9.0" of "2.9.0a0+git" and "2.9.0+cu130"
    here, built, module = found[0] if found else torch.__version__, _built_for(), None
    try:
        if built in ("", here):
            module = importlib.import_module("pdfast._C")
            built = module.build_facts().get("torch") or "another release"
    except ModuleNotFoundError:  # setup.py could not build it, and gave the reason then
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
    """Return the extension's compiler, CUDA version and architectures; empty if not built."""
    facts: dict[str, str | None] = _C.build_facts() if _C else {}
    return facts


HAS_CPU = _C is not None
HAS_CUDA = build_facts().get("cuda") is not None

COMPILED_FOR = ("cpu", "meta") * HAS_CPU + ("cuda",) * HAS_CUDA  # types of devices


def implementation(device: torch.device) -> str:
    """Describe, for people, how float32 tensors of `device` are normed, and why.

    Raises:
        PdfastError: The extension was built for another minor release of PyTorch, or does not load.
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
    """Apply GroupNorm over `groups`, then FiLM if `film` is given, then SiLU if `silu`.

    y = SiLU((1 + scale) (weight (x - mean) / sqrt(var + eps) + bias) + shift) (Wu & He 2018; FiLM:
    Perez et al. 2018). Differentiable once, in all four tensors; the gradients of the compiled op
    have the same bits in every run. float64 on a GPU takes the reference.

    Args:
        x: Activations (N, C, H, W), float32, bfloat16, float16 or float64, in any memory layout.
        weight: Scale of the affine map (C,), of x's dtype or float32.
        bias: Shift of the affine map (C,), of weight's dtype.
        film: Scale, then shift, (N, 2C), of x's dtype or float32; None: no FiLM.
        groups: Number of groups, a divisor of C.
        eps: Added to the variance; finite, at least 0.
        silu: Whether to apply SiLU.

    Returns:
        y (N, C, H, W), channels-last, of x's dtype.

    Raises:
        PdfastError: The extension was built for another minor release of PyTorch, or does not load.
        TypeError: A tensor has the wrong type or dtype.
        ValueError: A shape, a device or a number is wrong.
    """
    if UNFIT:
        raise PdfastError(UNFIT)
    if _is_compiled_for(x):
        op = torch.ops.pdfast.group_norm_silu
        absent, kept = (None, None, None), False
        y: Tensor = op(x, *absent, weight, bias, film, groups, eps, silu, kept)[0]
        return y
    _check(x, weight, bias, film, groups, eps)
    return reference(x, weight, bias, film, groups=groups, eps=eps, silu=silu)


def sum_group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    addend: Tensor | None = None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    keep_sum: bool = False,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Apply `group_norm_silu` to s = x + addend + residual, with the channels of `skip` after s's.

    With a residual, s is rounded to x's dtype before its statistics are taken. With only an addend
    it is not, unless it is kept. Differentiable once, in all tensors and through both results.

    Args:
        x: Activations (N, C, H, W), of a dtype that `group_norm_silu` takes.
        weight: Scale of the affine map (C + C2,); see `group_norm_silu`.
        bias: Shift of the affine map (C + C2,).
        film: Scale, then shift, (N, 2 (C + C2)); None: no FiLM.
        addend: Added to each pixel, (C,) or (N, C), of x's dtype or float32; or None.
        residual: Added to x, of its shape and dtype; or None.
        skip: Channels to join, (N, C2, H, W), of x's dtype; None: C2 is 0.
        keep_sum: Whether to return s.
        groups: Number of groups, a divisor of C + C2.
        eps: Added to the variance; finite, at least 0.
        silu: Whether to apply SiLU.

    Returns:
        y (N, C + C2, H, W), channels-last, of x's dtype; and s if `keep_sum` (x itself if there is
        nothing to add), else None.

    Raises:
        PdfastError: The extension was built for another minor release of PyTorch, or does not load.
        TypeError: A tensor has the wrong type or dtype.
        ValueError: A shape, a device or a number is wrong.
    """
    if UNFIT:
        raise PdfastError(UNFIT)
    options: dict[str, Any] = {"groups": groups, "eps": eps, "silu": silu}
    if not _is_compiled_for(x):
        summands: dict[str, Any] = {"addend": addend, "residual": residual, "skip": skip}
        _check(x, weight, bias, film, groups, eps, **summands)
        summands["keep_sum"] = keep_sum
        return composed(reference, x, weight, bias, film, **summands, **options)
    kept = keep_sum and (addend is not None or residual is not None)
    op = torch.ops.pdfast.group_norm_silu
    y, s, *_ = op(x, addend, residual, skip, weight, bias, film, *options.values(), kept)
    return y, s if kept else x if keep_sum else None


def _is_compiled_for(x: Tensor) -> bool:
    """Return whether the compiled op takes x; raise TypeError if it is not a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, not {type(x).__name__}")
    wide_on_gpu = x.device.type == "cuda" and x.dtype == torch.float64
    return x.device.type in COMPILED_FOR and not wide_on_gpu


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    groups: int,
    eps: float,
    addend: Tensor | None = None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """Check the reference's arguments as csrc/group_norm_silu_aten.cpp checks its own."""
    runtime.check_tensor("x", x, runtime.FLOATS)
    n, c, *size = x.shape
    types = tuple({x.dtype, x.dtype if x.dtype == torch.float64 else torch.float32})
    if addend is not None:
        one_row = isinstance(addend, Tensor) and addend.ndim == 1
        runtime.check_tensor("addend", addend, types, (c,) if one_row else (n, c), x)
    if residual is not None:
        runtime.check_tensor("residual", residual, (x.dtype,), tuple(x.shape), x)
    if skip is not None:
        runtime.check_tensor("skip", skip, (x.dtype,), like=x)
        runtime.check_tensor("skip", skip, (x.dtype,), (n, skip.shape[1], *size))
        c += skip.shape[1]
    if groups < 1 or c % groups:
        beside = "" if skip is None else " and skip"
        raise ValueError(f"groups must divide the {c} channels of x{beside}, and {groups} does not")
    runtime.check_tensor("weight", weight, types, (c,), x)
    runtime.check_tensor("bias", bias, (weight.dtype,), (c,), x)
    if film is not None:
        runtime.check_tensor("film", film, types, (n, 2 * c), x)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, not {eps}")


if HAS_CPU:

    def _empty(like: Tensor, channels: int) -> Tensor:
        shape, layout = (like.shape[0], channels, *like.shape[2:]), torch.channels_last
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)

    @torch.library.register_fake("pdfast::group_norm_silu")
    def _fake_forward(
        x: Tensor,
        addend: Tensor | None,
        residual: Tensor | None,
        skip: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        film: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
        keep_sum: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        statistics = x.new_empty((x.shape[0], groups), dtype=dtype)
        s = _empty(x, x.shape[1]) if keep_sum else x.new_empty(0)
        return _empty(x, weight.shape[0]), s, statistics, torch.empty_like(statistics)

    @torch.library.register_fake("pdfast::group_norm_silu_backward")
    def _fake_backward(
        dy: Tensor,
        dsum: Tensor | None,
        x: Tensor,
        addend: Tensor | None,
        skip: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        bias: Tensor,
        film: Tensor | None,
        groups: int,
        silu: bool,
        daddend_rows: int,
        daddend_type: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        n, c = x.shape[:2]
        dskip = x.new_empty(0) if skip is None else _empty(x, skip.shape[1])
        dfilm = weight.new_empty(0) if film is None else film.new_empty(film.shape)
        daddend = weight.new_empty(0)
        if daddend_rows:
            dtype = (daddend_type or mean.dtype) if addend is None else addend.dtype
            daddend = x.new_empty((c,) if daddend_rows == 1 else (n, c), dtype=dtype)
        params = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
        return _empty(x, c), dskip, *params, dfilm, daddend


def _is_joined(call: Call) -> bool:
    """Return whether x and skip are joined first: otherwise a 16-byte vector would span both."""
    x, skip = call["x"], call["skip"]
    vector = 16 // x.element_size()
    return skip is not None and bool(x.shape[1] % vector or skip.shape[1] % vector)


def _joining(call: Call) -> list[Launch]:
    """Return the passes that join the sum and skip, without the casts of 16-bit dtypes."""
    x, summands = call["x"], tensors_of([call["addend"], call["residual"]])
    adds = [Launch(ADDS, bytes_of(x, summand, x)) for summand in summands]
    return [*adds, Launch(CATS, 2 * bytes_of(x, call["skip"]))]


def _forward_launches(call: Call) -> list[Launch]:
    found = made_dense(torch.channels_last, *_images(call, "x", "residual", "skip"))
    if not _is_joined(call):
        return [*found, Launch(NORM_FORWARD, call.moved())]
    apart = tensors_of([call["addend"], call["residual"], call.result[1]])
    return [*found, *_joining(call), Launch(NORM_FORWARD, call.moved() - bytes_of(*apart))]


def _backward_launches(call: Call) -> list[Launch]:
    """Count two kernels for the norm: the first writes sums per image, the second adds them up."""
    x, dsum, joined = call["x"], call["dsum"], _is_joined(call)
    dx, dskip, dweight, dbias, _, daddend = call.result
    found = made_dense(torch.channels_last, *_images(call, "dy", "dsum", "x", "skip"))
    after, apart = [], 0
    summed, channels = [dweight, dbias], 2 * dweight.numel()
    if joined:
        found += _joining(call)
        after = [copy_of(dx), copy_of(dskip)]
        after += [Launch(ADDS, bytes_of(dx, dsum, dx))] * (dsum is not None)
        after += [Launch(REDUCTIONS, bytes_of(dx, daddend))] * bool(call["daddend_rows"])
        apart = bytes_of(daddend, *tensors_of([dsum, call["addend"]]))
    elif call["daddend_rows"] == 1:
        summed.append(daddend)
        channels += daddend.numel()
    sums = x.shape[0] * channels * call["mean"].element_size()
    params = bytes_of(*summed)
    main = Launch(NORM_BACKWARD, call.moved() - apart - params + sums)
    return [*found, main, Launch(NORM_PARAMS, sums + params), *after]


def _images(call: Call, *names: str) -> list[Tensor]:
    return tensors_of([call[name] for name in names])


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
