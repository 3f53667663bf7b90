"""add_noise against its reference: integers to the bit, normals to an ulp, images in float64."""

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
    SCHEDULE,
    SEEDS,
    SIDES,
    assert_accepted,
)

from pdfast.kernels.add_noise import add_noise, add_noise_reference

CASE = {
    "shape": st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), SIDES, SIDES),
    "layout": LAYOUTS,
    "num_steps": st.sampled_from([0, 1, 2, 3, 64, 8192]),
    "seed": st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    "round_": st.sampled_from([0, 1, 13]),
    "update": st.sampled_from([0, 1, 49_999, 2**32 - 1, 2**32, 2**40 + 3]),
    "first": st.sampled_from([0, 1, 1000]),
    "num": st.integers(1, 4),
    "flip": st.booleans(),
    "head": st.sampled_from([None, *HEADS]),
    "held": st.booleans(),
    "draw": SEEDS,
}


def data(shape, layout, draw):
    m, c, h, w = shape
    g = torch.Generator().manual_seed(draw)
    pixels = torch.randint(0, 256, (m, c, h, 2 * w), generator=g, dtype=torch.uint8).to(DEVICE)
    if layout == "every other column":
        return pixels[..., ::2]
    last = layout == "channels last"
    return pixels[..., :w].contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def check(dtype, shape, layout, draw, num_steps, **case):
    pixels = data(shape, layout, draw)
    got = add_noise(
        pixels, (SCHEDULE.a, SCHEDULE.b), num_steps, net_dtype=dtype, **case
    )
    case["update"] = torch.tensor([case["update"]], device=DEVICE)
    args = {"a": SCHEDULE.a, "b": SCHEDULE.b, "num_steps": num_steps, **case}
    exact, phi_t, phi_mid, last, chosen, y_exact = add_noise_reference(
        pixels, dtype=torch.float64, **args
    )
    eager, *_, y = add_noise_reference(pixels, dtype=torch.float32, **args)
    assert torch.equal(got.chosen, chosen)
    assert torch.equal(got.last, last)
    assert torch.equal(got.phi_t, phi_t)
    assert torch.equal(got.phi_mid, phi_mid)
    assert_accepted(got.z_t, eager, exact)
    assert_accepted(got.z_in, eager.to(dtype), exact)
    assert (got.z_in is got.z_t) == (dtype == torch.float32)
    assert (got.y is None) == (case["head"] is None)
    if got.y is not None:
        assert_accepted(got.y, y, y_exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(dtype):
    FEW(given(**CASE)(lambda **case: check(dtype, **case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()
