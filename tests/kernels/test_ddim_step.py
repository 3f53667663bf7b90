"""ddim_step against its reference in float64."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import (
    DTYPES,
    FEW,
    LAYOUTS,
    MANY,
    PARAMETERIZATIONS,
    SEEDS,
    SHAPES,
    STEPS,
    angles,
    assert_accepted,
    images,
)
from launch_inputs import ARCHS, LARGE, ODD, ONE, SMALL, TYPES, Code, Traffic, raw, rising_angles
from launch_inputs import values as values_of
from torch.library import opcheck

from pdfast.config.names import OUTPUTS
from pdfast.kernels.ddim_step import BLOCK, ddim_step, ddim_step_op, ddim_step_reference

CASE = {
    "parameterization": st.sampled_from(PARAMETERIZATIONS),
    "shape": SHAPES,
    "layout": LAYOUTS,
    "num_steps": STEPS,
    "draw": SEEDS,
}


def inputs(parameterization, shape, layout, num_steps, draw, dtype):
    g = torch.Generator().manual_seed(draw)
    b, c, h, w = shape
    z = images(shape, torch.float32, layout, g)
    out = images((b, c * OUTPUTS[parameterization].copies, h, w), dtype, layout, g)
    phi, phi_next, _ = angles(num_steps, b, g)
    return z, out, phi, phi_next, parameterization


def parts_of(z, out, *rest):
    """Return the magnitudes of z_next's terms; with eps, they cancel near pi/2."""
    none = torch.zeros_like(out)
    total = ddim_step_reference(z, none, *rest).abs()
    for k in range(out.shape[1] // z.shape[1]):
        one = none.clone()
        one.unflatten(1, (-1, z.shape[1]))[:, k] = out.unflatten(1, (-1, z.shape[1]))[:, k]
        total += ddim_step_reference(torch.zeros_like(z), one, *rest).abs()
    return total


def check(dtype, **case):
    z, out, phi, phi_next, parameterization = inputs(**case, dtype=dtype)
    exact = ddim_step_reference(z.double(), out.double(), phi, phi_next, parameterization)
    eager = ddim_step_reference(z, out.float(), phi, phi_next, parameterization)
    step = ddim_step(z, out, phi, phi_next, parameterization, dtype)
    parts = parts_of(z.double(), out.double(), phi, phi_next, parameterization)
    assert_accepted(step.z, eager, exact, parts=parts)
    assert_accepted(step.z_in, eager.to(dtype), exact, parts=parts)
    assert (step.z_in is step.z) == (dtype == torch.float32)
    assert step.z.is_contiguous(memory_format=torch.channels_last)


def test_random_cases():
    FEW(given(dtype=st.sampled_from(DTYPES), **CASE)(lambda **case: check(**case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()


ARGS = {
    "parameterization": "v",
    "shape": (3, 3, 5, 7),
    "layout": "channels last",
    "num_steps": 64,
    "draw": 0,
    "dtype": torch.bfloat16,
}


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_same_bits_again(parameterization):
    args = inputs(**ARGS | {"parameterization": parameterization})
    first, second = (ddim_step(*args, torch.bfloat16) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert torch.equal(first.z_in, second.z_in)


def test_more_elements_than_a_block():
    check(**ARGS | {"shape": (2, 3, 31, 29)})


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.bfloat16])
def test_registered(net_dtype):
    opcheck(ddim_step_op, (*inputs(**ARGS), net_dtype))


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, lambda t: t.half(), "z must be float32 or float64, not float16"),
        (0, lambda t: t[0], r"z must be \(B, C, H, W\), none of them 0, not \(3, 5, 7\)"),
        (0, lambda t: t[:0], "z must be .*none of them 0"),
        (0, lambda t: 1.0, "z must be a tensor, not float"),
        (1, lambda t: t[:2], r"out must have shape \(3, 3, 5, 7\), not \(2, 3, 5, 7\)"),
        (1, lambda t: t.long(), "out must be float32 or bfloat16 or float16 or float64"),
        (2, lambda t: t.float(), "phi must be float64, not float32"),
        (3, lambda t: t[:1], r"phi_next must have shape \(3,\), not \(1,\)"),
        (3, lambda t: t.to("meta"), "phi_next must be on .*, not on meta"),
        (4, lambda t: "x_eps", r"out must have shape \(3, 6, 5, 7\)"),
        (
            4,
            lambda t: "w",
            "parameterization must be one of x, .*, not 'w'",
        ),
    ],
)
def test_bad_arguments(position, bad, message):
    args = list(inputs(**ARGS))
    args[position] = bad(args[position])
    with pytest.raises((TypeError, ValueError), match=message):
        ddim_step(*args)


# ------------------------------------------------------------------------------------------
# Launches, machine code and bytes: see launch_cases.py


def launch(device, parameterization="v", dtype="bf16", shape=LARGE, offset=0):
    """Launch a step; z begins `offset` elements into a buffer."""
    z = values_of(shape, torch.float32, device)
    if offset:
        b, c, h, w = shape
        flat = torch.cat([z.new_zeros(offset), z.permute(0, 2, 3, 1).flatten()])[offset:]
        z = flat.view(b, h, w, c).permute(0, 3, 1, 2)
    out = raw(shape, parameterization, TYPES[dtype], device, 1)
    phi = rising_angles(len(z), device)
    return ddim_step(z, out, phi, phi - 0.1, parameterization, TYPES[dtype])


def launch_cases():
    options = [
        {"parameterization": h, "dtype": d} for h, d in itertools.product(PARAMETERIZATIONS, TYPES)
    ]
    options += [{"shape": shape} for shape in (SMALL, ODD, ONE)]
    options.append({"offset": 1, "shape": SMALL})
    return [("ddim_step", launch, option) for option in options]


def machine_code():
    for arch, parameterization, dtype in itertools.product(ARCHS, PARAMETERIZATIONS, TYPES):
        size = TYPES[dtype].itemsize
        loads = 4 + (size if OUTPUTS[parameterization].copies == 1 else 0)
        stores = 4 + (size if dtype != "fp32" else 0)
        options = {"parameterization": parameterization, "dtype": dtype}
        yield Code("ddim_step", arch, loads * BLOCK, stores * BLOCK, launch, options)


def traffic():
    """One tile an image: every number is read, or written, once."""
    for parameterization in PARAMETERIZATIONS:
        args = inputs(**ARGS | {"parameterization": parameterization, "shape": (2, 3, 16, 16)})

        def run(args=args):
            step = ddim_step(*args, torch.bfloat16)
            return [*((t, 1, 0) for t in args[:4]), (step.z, 0, 1), (step.z_in, 0, 1)]

        def eager(args=args):
            z, out, *rest = args
            return ddim_step_reference(z, out.float(), *rest).to(torch.bfloat16)

        yield Traffic(f"ddim_step {parameterization}", run, eager, args[0].numel())
