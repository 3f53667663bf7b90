"""PyTorch's process-wide settings: a call changes them for its work, and restores them.

The precision of float32 products has two sets of switches. The older ones are `allow_tf32` and
`float32_matmul_precision`. Since PyTorch 2.9 each backend and operation has `fp32_precision`, which
decides. If a caller has used both so that they contradict each other, PyTorch refuses to read the
older ones; they are then left alone.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # set by pdfast
HAS_PLACES = hasattr(torch._C, "_get_fp32_precision_getter")
# Places where fp32_precision is set. Those of ABOVE come first: the others may inherit from them.
ABOVE = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
OF_CUDA = (("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"))
OF_CPU = (("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"))
EXACT = ("ieee", "none")


# ------------------------------------------------------------------------------------------
# Restored


@contextmanager
def kept() -> Iterator[None]:
    """Restore all settings at the end of the block, however it ends."""
    cudnn, matmul, more = _backends()
    threads = torch.get_num_threads()
    chosen = cudnn.benchmark, cudnn.deterministic
    sums = _sums()
    exact = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = more.fill_uninitialized_memory
    variables = {name: os.environ.get(name) for name in VARIABLES}
    device = torch.cuda.current_device() if _has_begun() else 0
    try:
        with kept_precision():
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = chosen
        if _sums() != sums:
            matmul.allow_bf16_reduced_precision_reduction = sums
        set_deterministic(exact, warns)
        more.fill_uninitialized_memory = fills
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if _has_begun() and torch.cuda.current_device() != device:
            torch.cuda.set_device(device)


@contextmanager
def kept_precision() -> Iterator[None]:
    """Restore the precision of float32 products at the end of the block."""
    places = {place: _precision(place) for place in (*ABOVE, *OF_CUDA, *OF_CPU)}
    legacy = _legacy()
    try:
        yield
    finally:
        now = _legacy()
        if legacy.matmul is not None and now.matmul != legacy.matmul:
            torch.set_float32_matmul_precision(legacy.matmul)
        if legacy.cudnn is not None and now.cudnn != legacy.cudnn:
            torch.backends.cudnn.allow_tf32 = legacy.cudnn
        for place, value in places.items():
            if _precision(place) != value:
                _set_precision(place, "none")  # the value before anybody sets one
            if _precision(place) != value:
                _set_precision(place, value)


@contextmanager
def same_choice() -> Iterator[None]:
    """Have cuDNN choose the same algorithms in every process, by not timing them."""
    cudnn = _backends()[0]
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


# ------------------------------------------------------------------------------------------
# Set


def set_deterministic(on: bool, warn_only: bool = False) -> None:
    """Set whether PyTorch uses deterministic algorithms only."""
    now = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if now != (on, warn_only):  # the call takes seconds
        torch.use_deterministic_algorithms(on, warn_only=warn_only)


def set_algorithms(deterministic: bool) -> None:
    """Sum in float32, and use the fastest algorithms, or with `deterministic` the same ones."""
    cudnn, matmul, more = _backends()
    cudnn.benchmark = not deterministic  # the shapes never change
    matmul.allow_bf16_reduced_precision_reduction = False
    set_deterministic(deterministic)
    more.fill_uninitialized_memory = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is first used


def allow_tf32(allowed: bool) -> None:
    """Set whether a GPU's float32 products may round to TF32 (by default, convolutions do)."""
    if not torch.cuda.is_available():
        return
    now = _legacy()
    if None not in now:
        with _quiet():
            torch.set_float32_matmul_precision("high" if allowed else "highest")
            torch.backends.cudnn.allow_tf32 = allowed
    for place in OF_CUDA:
        if (_precision(place) == "tf32") != allowed:
            _set_precision(place, "tf32" if allowed else "ieee")


def be_exact_on_cpu() -> None:
    """Keep a CPU's float32 products from being rounded to bfloat16 or TF32."""
    for place in OF_CPU:
        if _precision(place) not in EXACT:
            _set_precision(place, "ieee")


def tf32_is_allowed() -> bool:
    """Return whether a GPU's matrix products may round to TF32."""
    if HAS_PLACES:
        return _precision(("cuda", "matmul")) == "tf32"
    return bool(torch.backends.cuda.matmul.allow_tf32)


# ------------------------------------------------------------------------------------------
# PyTorch's own switches


class _Legacy(NamedTuple):
    """The older switches; None where PyTorch refuses to read them, or they have no effect."""

    matmul: str | None
    cudnn: bool | None


def _legacy() -> _Legacy:
    if not torch.cuda.is_available():
        return _Legacy(None, None)
    return _Legacy(
        _read(torch.get_float32_matmul_precision), _read(lambda: torch.backends.cudnn.allow_tf32)
    )


def _read(get: Callable[[], T]) -> T | None:
    try:
        with _quiet():
            return get()
    except RuntimeError:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress PyTorch's warning that these switches are the older ones."""
    with warnings.catch_warnings(action="ignore"):
        yield


def _sums() -> Any:
    """Return whether sums of bf16 products may be rounded; since PyTorch 2.10 also split-k."""
    matmul, name = torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"
    try:
        return getattr(matmul, name), getattr(matmul, f"{name}_split_k")
    except AttributeError:
        return getattr(matmul, name)


def _has_begun() -> bool:
    """Return whether CUDA is in use and has a current device."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _backends() -> tuple[Any, Any, Any]:
    """Return untyped modules whose attributes are settings."""
    return torch.backends.cudnn, torch.backends.cuda.matmul, torch.utils.deterministic


def _precision(place: tuple[str, str]) -> str:
    """Return the precision at a place, its own or inherited; "none" if PyTorch has no places."""
    get: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
    return str(get(*place)) if get else "none"


def _set_precision(place: tuple[str, str], value: str) -> None:
    # Not the public attributes: mkldnn's sets another place than its own in PyTorch 2.13.
    put: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
    if put:
        put(*place, value)
