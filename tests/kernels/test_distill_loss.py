"""distill_loss and data_loss against their references in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import (
    DTYPES,
    FEW,
    HEADS,
    LAYOUTS,
    MANY,
    SEEDS,
    SHAPES,
    STEPS,
    WEIGHTS,
    angles,
    assert_accepted,
    images,
)

from pdfast.kernels.distill_loss import data_loss, distill_loss, loss_and_grad, target

CASE = {
    "head": st.sampled_from(HEADS),
    "weight": st.sampled_from(WEIGHTS),
    "shape": SHAPES,
    "layout": LAYOUTS,
    "num_steps": STEPS,
    "draw": SEEDS,
}


def inputs(head, weight, shape, layout, num_steps, draw, dtype):
    g = torch.Generator().manual_seed(draw)
    b, c, h, w = shape
    raw = (b, 2 * c if head == "both" else c, h, w)
    out, out_t, out_mid = (images(raw, dtype, layout, g) for _ in range(3))
    z_t = images(shape, torch.float32, layout, g)
    return out, z_t, out_t, out_mid, *angles(num_steps, b, g), head, weight


def chain(dtype, out, z_t, out_t, out_mid, phi_t, phi_mid, last, head, weight):
    """The references in a dtype."""
    y = target(z_t.to(dtype), out_t.to(dtype), out_mid.to(dtype), phi_t, phi_mid, last, head)
    return loss_and_grad(out.to(dtype), y, phi_t, head, weight)


def assert_loss_accepted(ours, eager, exact, dtype):
    assert_accepted(ours.per_image, eager.per_image, exact.per_image)
    assert_accepted(ours.grad_out, eager.grad_out.to(dtype), exact.grad_out)
    assert ours.grad_out.is_contiguous(memory_format=torch.channels_last)


def check(dtype, **case):
    args = inputs(**case, dtype=dtype)
    exact, eager = chain(torch.float64, *args), chain(torch.float32, *args)
    assert_loss_accepted(distill_loss(*args), eager, exact, dtype)
    out, y, phi, head, weight = args[0], args[1], args[4], args[7], args[8]
    exact = loss_and_grad(out.double(), y.double(), phi, head, weight)
    eager = loss_and_grad(out.float(), y, phi, head, weight)
    assert_loss_accepted(data_loss(out, y, phi, head, weight), eager, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(dtype):
    FEW(given(**CASE)(lambda **case: check(dtype, **case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()
