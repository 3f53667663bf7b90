"""Every op's public function through Triton's launcher: binding, specialisation, compilation."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from launch_cases import CASES, CODES, OPS, SHARED
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime.jit import JITFunction

import pdfast.kernels

CPU = torch.device("cpu")
# Names reserved by the function that Triton's launcher writes for a kernel, and by its own keyword
# arguments.
TAKEN = {"params", "specialization", "options", "backend", "specialize_impl", "JITCallable"}
TAKEN |= {"debug", "grid", "warmup", "instrumentation_mode"}
TAKEN |= {field.name for field in dataclasses.fields(CUDAOptions)}


def jitted():
    """Return all functions of kernels/ under @triton.jit, by name."""
    names = sorted(p.stem for p in Path(pdfast.kernels.__path__[0]).glob("*.py"))
    modules = [importlib.import_module(f"pdfast.kernels.{name}") for name in names]
    found = [f for m in modules for f in vars(m).values() if isinstance(f, JITFunction)]
    return {f.fn.__name__: f for f in found}


@pytest.mark.parametrize("case", CASES)
def test_launch(launches, case):
    op = OPS[case.split()[0]]
    CASES[case](CPU)
    assert [launch.kernel for launch in launches] == op.kernel_names
    # The name under which a file keeps the options of all its launches.
    file = importlib.import_module(f"pdfast.kernels.{op.file}")
    asked = getattr(file, "OPTIONS", {"num_warps": 4})
    for launch in launches:
        assert min(launch.grid) >= 1
        metadata = launch.compiled.metadata
        assert not metadata.enable_fp_fusion
        assert {name: getattr(metadata, name) for name in asked} == asked


def test_every_kernel_is_launched():
    kernels = {name for name in jitted() if name.endswith("_kernel")}
    launched = {kernel for case in CASES for kernel in OPS[case.split()[0]].kernel_names}
    assert not kernels - launched, f"no launch_cases() launches {sorted(kernels - launched)}"
    assert not launched - kernels, f"registered, but in no file: {sorted(launched - kernels)}"
    cases = {case.split()[0] for case in CASES}
    assert cases == set(OPS), f"ops without launch_cases(): {sorted(set(OPS) - cases)}"


def test_the_machine_code_of_every_op_is_checked():
    codes = {code.op for code in CODES.values()}
    assert codes == set(OPS), f"ops without machine_code(): {sorted(set(OPS) - codes)}"


def test_no_argument_has_a_name_that_triton_takes():
    for name, function in jitted().items():
        assert not TAKEN & set(inspect.signature(function.fn).parameters), name


@pytest.mark.parametrize(("call", "changes"), SHARED)
def test_draws_share_their_code(launches, call, changes):
    """No value that differs from update to update, or from run to run, is compiled in."""
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
    """The interpreter, and compilation ahead of time, accept it."""
    a, b = torch.zeros(16), torch.zeros(16)
    with pytest.raises(TypeError, match="dict"):
        named_params_kernel[(1,)](a, b, block=16)


def test_a_load_from_none_fails(launches):
    with pytest.raises(triton.CompilationError):
        loads_from_none_kernel[(1,)](None, torch.zeros(16), block=16)
