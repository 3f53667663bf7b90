"""Every op's public function through Triton's launcher: binding, specialisation, compilation."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from launch_cases import CASES, drop, noise
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime.jit import JITFunction

import pdfast.kernels
from pdfast.kernels import distill_loss

CPU = torch.device("cpu")
KERNELS = {
    "adamw": ["sum_of_squares_kernel", "adamw_kernel"],
    "add_noise": ["add_noise_kernel"],
    "ddim_step": ["ddim_step_kernel"],
    "data_loss": ["distill_loss_kernel"],
    "distill_loss": ["distill_loss_kernel"],
    "dropout": ["dropout_kernel"],
}
# Names that the function which Triton's launcher writes for a kernel has for itself, and those of
# its own keyword arguments.
TAKEN = {"params", "specialization", "options", "backend", "specialize_impl", "JITCallable"}
TAKEN |= {"debug", "grid", "warmup", "instrumentation_mode"}
TAKEN |= {field.name for field in dataclasses.fields(CUDAOptions)}


def jitted():
    """All functions under @triton.jit of kernels/, by name."""
    names = sorted(p.stem for p in Path(pdfast.kernels.__path__[0]).glob("*.py"))
    modules = [importlib.import_module(f"pdfast.kernels.{name}") for name in names]
    found = [f for m in modules for f in vars(m).values() if isinstance(f, JITFunction)]
    return {f.fn.__name__: f for f in found}


@pytest.mark.parametrize("case", CASES)
def test_launch(launches, case):
    CASES[case](CPU)
    assert [launch.kernel for launch in launches] == KERNELS[case.split()[0]]
    for launch in launches:
        assert min(launch.grid) >= 1
        metadata = launch.compiled.metadata
        assert not metadata.enable_fp_fusion
        asked = distill_loss.OPTIONS if launch.kernel == "distill_loss_kernel" else {"num_warps": 4}
        assert {name: getattr(metadata, name) for name in asked} == asked


def test_every_kernel_is_launched():
    kernels = {name for name in jitted() if name.endswith("_kernel")}
    launched = {kernel for case in CASES for kernel in KERNELS[case.split()[0]]}
    assert kernels == launched
    assert {case.split()[0] for case in CASES} == set(KERNELS)


def test_no_argument_has_a_name_that_triton_takes():
    for name, function in jitted().items():
        assert not TAKEN & set(inspect.signature(function.fn).parameters), name


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        (noise, [{"seed": 0}, {"seed": 16}, {"seed": 1}]),
        (noise, [{"round_": 0}, {"round_": 1}, {"round_": 16}]),
        (noise, [{"first": 0}, {"first": 1}, {"first": 16}, {"first": 17}]),
        (noise, [{"shape": (n, 3, 32, 32)} for n in (3, 16, 17)]),
        (noise, [{"shuffled_by": n} for n in (1, 3, 16, 128)]),
        (drop, [{"first": 0}, {"first": 1}, {"first": 16}]),
        (drop, [{"layer": 0}, {"layer": 1}, {"layer": 16}]),
        (drop, [{"round_": 0}, {"round_": 1}, {"seed": 2**31}]),
    ],
)
def test_draws_share_their_code(launches, call, changes):
    """A value that differs from update to update, or from run to run, is compiled in by none."""
    for changed in changes:
        call(CPU, **changed)
    assert len({id(launch.compiled) for launch in launches}) == 1


@triton.jit
def named_params_kernel(params, out, block: tl.constexpr):
    i = tl.arange(0, block)
    tl.store(out + i, tl.load(params + i))


@triton.jit
def loads_from_none_kernel(absent, out, block: tl.constexpr):
    i = tl.arange(0, block)
    tl.store(out + i, tl.load(absent + i))


def test_an_argument_named_params_fails(launches):
    """What the interpreter and compilation ahead of time accept."""
    a, b = torch.zeros(16), torch.zeros(16)
    with pytest.raises(TypeError, match="dict"):
        named_params_kernel[(1,)](a, b, block=16)


def test_a_load_from_none_fails(launches):
    with pytest.raises(triton.CompilationError):
        loads_from_none_kernel[(1,)](None, torch.zeros(16), block=16)
