"""ddim_step against its reference in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import (
    DEVICE,
    DTYPES,
    FEW,
    HEADS,
    LAYOUTS,
    MANY,
    SEEDS,
    SHAPES,
    STEPS,
    angles,
    assert_accepted,
    images,
)

from pdfast.kernels.ddim_step import ddim_step, ddim_step_op, ddim_step_reference

CASE = {
    "head": st.sampled_from(HEADS),
    "shape": SHAPES,
    "layout": LAYOUTS,
    "num_steps": STEPS,
    "draw": SEEDS,
}


def inputs(head, shape, layout, num_steps, draw, dtype):
    g = torch.Generator().manual_seed(draw)
    b, c, h, w = shape
    z = images(shape, torch.float32, layout, g)
    out = images((b, 2 * c if head == "both" else c, h, w), dtype, layout, g)
    phi, phi_next, _ = angles(num_steps, b, g)
    return z, out, phi, phi_next, head


def check(dtype, **case):
    z, out, phi, phi_next, head = inputs(**case, dtype=dtype)
    exact = ddim_step_reference(z.double(), out.double(), phi, phi_next, head)
    eager = ddim_step_reference(z, out.float(), phi, phi_next, head)
    step = ddim_step(z, out, phi, phi_next, head, dtype)
    assert_accepted(step.z, eager, exact)
    assert_accepted(step.z_in, eager.to(dtype), exact)
    assert (step.z_in is step.z) == (dtype == torch.float32)
    assert step.z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(dtype):
    FEW(given(**CASE)(lambda **case: check(dtype, **case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()
