"""distill_loss and data_loss against their references in float64."""

import itertools
import math

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
    WEIGHTS,
    angles,
    assert_accepted,
    images,
)
from launch_inputs import LARGE, ODD, ONE, SMALL, TYPES, Code, Traffic, raw, rising_angles
from launch_inputs import values as values_of
from torch.library import opcheck

from pdfast.config.names import OUTPUTS
from pdfast.diffusion.angles import prediction
from pdfast.kernels.distill_loss import (
    block_of,
    data_loss,
    data_loss_op,
    distill_loss,
    distill_loss_op,
    loss_and_grad,
    loss_weight,
    target,
)
from pdfast.kernels.parameterizations import PREDICTIONS

ANGLES = [torch.tensor([angle], dtype=torch.float64) for angle in (1.2, 0.9, 0.3, 0.5)]
READ_Z_T = [  # parameterizations whose target has a term of z_t
    name
    for name, predicts in PREDICTIONS.items()
    if predicts.target_coefficients(*ANGLES, torch.tensor([False]))[2] is not None
]
CASE = {
    "parameterization": st.sampled_from(PARAMETERIZATIONS),
    "weight": st.sampled_from(WEIGHTS),
    "shape": SHAPES,
    "layout": LAYOUTS,
    "num_steps": STEPS,
    "draw": SEEDS,
    "uneven": st.booleans(),
    "steps": st.sampled_from(("two", "some alone", "y1")),
    "huber_c": st.sampled_from((0.0, 0.00054, 0.3)),
}


def inputs(
    parameterization,
    weight,
    shape,
    layout,
    num_steps,
    draw,
    dtype,
    uneven=False,
    steps="two",
    huber_c=0.0,
):
    """`steps`: two of networks; for some images only the first; or the first as y itself."""
    g = torch.Generator().manual_seed(draw)
    b, c, h, w = shape
    raw = (b, c * OUTPUTS[parameterization].copies, h, w)
    out, out_t, out_mid = (images(raw, dtype, layout, g) for _ in range(3))
    z_t = images(shape, torch.float32, layout, g)
    phi_t, phi_mid, last = angles(num_steps, b, g)
    if steps == "some alone":
        phi_mid = torch.where(torch.arange(b, device=phi_t.device) % 3 == 1, phi_t, phi_mid)
    if steps == "y1":
        out_t = images(shape, dtype, layout, g)
    ratio = 0.2 + 2 * torch.rand(b, generator=g, dtype=torch.float64).to(phi_t)
    phi_next = (phi_mid - ratio * (phi_t - phi_mid)).clamp(min=0) if uneven else None
    of = (parameterization, weight, phi_next, huber_c)
    return out, z_t, out_t, out_mid, phi_t, phi_mid, last, *of


def assert_loss_accepted(loss, args, y, y_rounded):
    """Check a loss of args[0] against the float64 target y; `y_rounded` is y in float32."""
    out, phi, parameterization, weight, huber_c = args
    exact = loss_and_grad(out.double(), y, phi, parameterization, weight, huber_c)
    eager = loss_and_grad(out.float(), y_rounded, phi, parameterization, weight, huber_c)
    # The gradient is linear in y-hat - y, the loss quadratic.
    found = prediction(out.double(), phi, parameterization)
    amplified = (found.abs() + y.abs()) / (found - y).abs().clamp(min=1e-200)
    k = loss_weight(phi, parameterization, weight)
    per_image_terms = 2 * k * ((found - y).square() * amplified).flatten(1).mean(1)
    copies = exact.grad_out.shape[1] // y.shape[1]
    grad_terms = exact.grad_out.abs() * torch.cat([amplified] * copies, 1)
    if huber_c:  # its root changes, relatively, by half as much as e
        e = loss_and_grad(out.double(), y, phi, parameterization, weight).per_image
        root = (e + huber_c**2).sqrt()
        per_image_terms = per_image_terms / (2 * root)
        grad_terms = (
            grad_terms + exact.grad_out.abs() * (per_image_terms / root)[:, None, None, None]
        )
    assert_accepted(loss.per_image, eager.per_image, exact.per_image, per_image_terms)
    assert_accepted(loss.grad_out, eager.grad_out.to(out.dtype), exact.grad_out, grad_terms)
    assert loss.grad_out.is_contiguous(memory_format=torch.channels_last)


def target_in(dtype, z_t, out_t, out_mid, *rest):
    return target(z_t.to(dtype), out_t.to(dtype), out_mid.to(dtype), *rest)


def check(dtype, **case):
    args = inputs(**case, dtype=dtype)
    out, z_t, *teacher, parameterization, weight, phi_next, huber_c = args
    phi = teacher[2]
    y, y_rounded = (
        target_in(d, z_t, *teacher, parameterization, phi_next)
        for d in (torch.float64, torch.float32)
    )
    rest = (out, phi, parameterization, weight, huber_c)
    assert_loss_accepted(distill_loss(*args), rest, y, y_rounded)
    assert_loss_accepted(
        data_loss(out, z_t, phi, parameterization, weight, huber_c), rest, z_t.double(), z_t
    )


def test_random_cases():
    FEW(given(dtype=st.sampled_from(DTYPES), **CASE)(lambda **case: check(**case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()


ARGS = {
    "parameterization": "v",
    "weight": "snr_trunc",
    "shape": (3, 3, 5, 7),
    "layout": "channels last",
    "num_steps": 64,
    "draw": 0,
    "dtype": torch.float32,
}


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_every_weight_and_the_same_bits_again(parameterization):
    for weight, dtype in zip(WEIGHTS, itertools.cycle(DTYPES), strict=False):
        case = ARGS | {"parameterization": parameterization, "weight": weight, "dtype": dtype}
        check(**case)
        args = inputs(**case)
        first, second = distill_loss(*args), distill_loss(*args)
        assert torch.equal(first.per_image, second.per_image)
        assert torch.equal(first.grad_out, second.grad_out)


def test_more_elements_than_a_block():
    check(**ARGS | {"shape": (2, 3, 31, 29)})


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_steps_of_one_size_are_the_default(parameterization):
    """To one or two float32 roundings: the coefficients differ in float64's last place."""
    *args, _, _ = inputs(**ARGS | {"parameterization": parameterization})
    phi_t, phi_mid = args[4:6]
    equal = distill_loss(*args, (2 * phi_mid - phi_t).clamp(min=0))
    torch.testing.assert_close(equal, distill_loss(*args), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_one_step_alone_is_its_own_target(parameterization):
    """By selection. At m = s = 0 the formula would give the second network a weight of up to 1 in
    x, and where the first angles of a table are equal it divides 0 by 0.
    """
    phi_t = torch.tensor([0.3, 1e-6, 1.2, 0.4], dtype=torch.float64)
    phi_next = torch.tensor([0.2, 1e-6, 0.0, 0.4], dtype=torch.float64)
    last = torch.tensor([False, True, True, True])
    case = ARGS | {"parameterization": parameterization, "shape": (4, 3, 5, 7)}
    out, z_t, out_t, out_mid, *_ = inputs(**case)
    out_mid = 1e3 * out_mid
    predicts = PREDICTIONS[parameterization]
    found = target(z_t, out_t, out_mid, phi_t, phi_t, last, parameterization, phi_next)
    assert torch.equal(found, predicts.of(out_t, phi_t))
    loss = distill_loss(
        out, z_t, out_t, out_mid, phi_t, phi_t, last, parameterization, "v_mse", phi_next
    )
    of_y1 = data_loss(out, predicts.of(out_t, phi_t), phi_t, parameterization, "v_mse")
    torch.testing.assert_close(loss.per_image, of_y1.per_image, rtol=2e-6, atol=0)
    torch.testing.assert_close(loss.grad_out, of_y1.grad_out, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("steps", ["some alone", "y1"])
def test_other_steps_and_the_pseudo_huber_loss(parameterization, steps):
    for dtype, huber_c in zip(DTYPES, itertools.cycle((0.00054, 0.3)), strict=False):
        case = {"parameterization": parameterization, "dtype": dtype, "huber_c": huber_c}
        check(**ARGS | case, steps=steps, uneven=True)


def test_pseudo_huber_is_half_of_the_square_where_errors_are_small_and_the_norm_where_large():
    out, z_t, *rest = inputs(**ARGS | {"dtype": torch.float64})
    phi, y = rest[2], z_t.double()
    square = loss_and_grad(out, y, phi, "v", "v_mse")
    flat, steep = (loss_and_grad(out, y, phi, "v", "v_mse", c) for c in (1e4, 1e-9))
    torch.testing.assert_close(flat.per_image, square.per_image / 2e4, rtol=1e-7, atol=0)
    torch.testing.assert_close(flat.grad_out, square.grad_out / 2e4, rtol=1e-7, atol=0)
    torch.testing.assert_close(steep.per_image, square.per_image.sqrt(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_gradient_of_pseudo_huber_is_autograds(parameterization):
    case = ARGS | {"parameterization": parameterization, "dtype": torch.float64}
    out, z_t, *rest = inputs(**case)
    out.requires_grad_()
    k = loss_weight(rest[2], parameterization, "snr")
    error = prediction(out, rest[2], parameterization) - z_t.double()
    e = k * error.square().flatten(1).mean(1)
    ((e + 0.01).sqrt() - 0.1).mean().backward()
    found = loss_and_grad(out.detach(), z_t.double(), rest[2], parameterization, "snr", 0.1)
    torch.testing.assert_close(found.grad_out, out.grad, rtol=1e-10, atol=1e-14)


def test_registered():
    args = inputs(**ARGS)
    opcheck(distill_loss_op, args)
    opcheck(distill_loss_op, inputs(**ARGS, uneven=True))
    opcheck(distill_loss_op, inputs(**ARGS, huber_c=0.1, steps="some alone"))
    opcheck(data_loss_op, (args[0], args[1], args[4], "v", "snr"))
    opcheck(data_loss_op, (args[0], args[1], args[4], "v", "snr", 0.1))


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, lambda t: t.double().long(), "out must be float32 or bfloat16 or float16 or float64"),
        (0, lambda t: t[:2], r"out must have shape \(3, 3, 5, 7\)"),
        (1, lambda t: t.half(), "z_t must be float32 or float64, not float16"),
        (1, lambda t: t[0], r"z_t must be \(B, C, H, W\), none of them 0, not \(3, 5, 7\)"),
        (1, lambda t: t[:0], "z_t must be .*none of them 0"),
        (2, lambda t: None, "out_t must be a tensor, not NoneType"),
        (3, lambda t: t[:, :1], "out_mid must have shape"),
        (4, lambda t: t.float(), "phi_t must be float64, not float32"),
        (5, lambda t: t[:1], r"phi_mid must have shape \(3,\), not \(1,\)"),
        (5, lambda t: t.to("meta"), "phi_mid must be on .*, not on meta"),
        (6, lambda t: t.long(), "is_last_step must be bool, not int64"),
        (
            7,
            lambda t: "w",
            "parameterization must be one of x, .*, not 'w'",
        ),
        (8, lambda t: "w", f"weight must be one of {', '.join(WEIGHTS)}, not 'w'"),
        (10, lambda t: -0.1, "huber_c must be finite and at least 0, not -0.1"),
    ],
)
def test_bad_arguments(position, bad, message):
    args = list(inputs(**ARGS))
    args[position] = bad(args[position])
    with pytest.raises((TypeError, ValueError), match=message):
        distill_loss(*args)


# ------------------------------------------------------------------------------------------
# Launches, machine code and bytes: see launch_cases.py


def launch(
    device,
    parameterization="v",
    weight="snr_trunc",
    dtype="bf16",
    shape=LARGE,
    uneven=False,
    huber_c=0.0,
    y1=False,
):
    """`uneven`: the end of the second step is given; `y1`: the first step is y itself."""
    outs = [raw(shape, parameterization, TYPES[dtype], device, seed) for seed in (1, 2, 3)]
    z, phi = values_of(shape, torch.float32, device), rising_angles(len(outs[0]), device)
    last = torch.arange(len(z), device=device) == 0
    phi_next = phi - 0.25 if uneven else None
    if y1:
        outs[1] = values_of(shape, TYPES[dtype], device)
    rest = (phi, phi - 0.1, last, parameterization, weight, phi_next, huber_c)
    return distill_loss(outs[0], z, *outs[1:], *rest)


def launch_data(
    device, parameterization="v", weight="snr_trunc", dtype="bf16", shape=LARGE, huber_c=0.0
):
    out = raw(shape, parameterization, TYPES[dtype], device, 1)
    y = values_of(shape, torch.float32, device)
    return data_loss(out, y, rising_angles(len(y), device), parameterization, weight, huber_c)


def launch_cases():
    for parameterization, dtype in itertools.product(PARAMETERIZATIONS, TYPES):
        yield "data_loss", launch_data, {"parameterization": parameterization, "dtype": dtype}
        for uneven in (False, True):
            yield (
                "distill_loss",
                launch,
                {"parameterization": parameterization, "dtype": dtype, "uneven": uneven},
            )
    for parameterization, weight in itertools.product(PARAMETERIZATIONS, WEIGHTS):
        yield "distill_loss", launch, {"parameterization": parameterization, "weight": weight}
        for y1 in (False, True):
            options = {"parameterization": parameterization, "weight": weight, "y1": y1}
            yield "distill_loss", launch, options | {"huber_c": 0.1, "uneven": True}
    for weight in WEIGHTS:
        yield "data_loss", launch_data, {"weight": weight}
        yield "data_loss", launch_data, {"weight": weight, "huber_c": 0.1}
    for shape in (SMALL, ODD, ONE):
        yield "distill_loss", launch, {"shape": shape}
        yield "data_loss", launch_data, {"shape": shape}


def machine_code():
    """Of the kernel with the target given, and with the teacher's target, of even steps or not."""
    kinds = [
        (90, parameterization, "snr_trunc", dtype, LARGE)
        for parameterization in PARAMETERIZATIONS
        for dtype in TYPES
    ]
    kinds += [
        (90, parameterization, "snr_trunc", "bf16", SMALL) for parameterization in PARAMETERIZATIONS
    ]
    kinds += [
        (arch, parameterization, "snr_trunc", "bf16", LARGE)
        for arch in (80, 100)
        for parameterization in READ_Z_T
    ]
    cases = [(*kind, goal) for kind in kinds for goal in ("even", "given", "uneven")]
    weights = [weight for weight in WEIGHTS if weight != "snr_trunc"]
    cases += [
        (90, parameterization, weight, "bf16", LARGE, "even")
        for parameterization in PARAMETERIZATIONS
        for weight in weights
    ]
    cases += [
        (90, parameterization, "snr_trunc", "bf16", LARGE, goal)
        for parameterization in PARAMETERIZATIONS
        for goal in ("huber", "given huber")
    ]
    for arch, parameterization, weight, dtype, shape, goal in cases:
        block, copies = block_of(parameterization), OUTPUTS[parameterization].copies
        flat = TYPES[dtype].itemsize if copies == 1 else 0
        options = {
            "parameterization": parameterization,
            "weight": weight,
            "dtype": dtype,
            "shape": shape,
        }
        passes = 1
        if goal.endswith("huber"):
            options["huber_c"], passes = 0.1, 2
            turns = -(-math.prod(shape[1:]) // block)
            if goal.startswith("given") and turns < 8:  # the compiler unrolls a short sum
                passes = turns + 1
        if goal.startswith("given"):
            loads = passes * (flat + 4) * block
            yield Code("data_loss", arch, loads, flat * block, launch_data, options)
            continue
        loads = passes * (3 * flat + (4 if parameterization in READ_Z_T else 0)) * block
        options["uneven"] = goal in ("uneven", "huber")
        yield Code("distill_loss", arch, loads, flat * block, launch, options)


def traffic():
    """Everything is read or written once; z_t is not read for x and eps."""
    shape = (2, 3, 16, 16)
    for parameterization in PARAMETERIZATIONS:
        args = inputs(parameterization, "snr_trunc", shape, "channels last", 64, 0, torch.float32)

        def run(args=args, parameterization=parameterization):
            loss, z_t = distill_loss(*args), args[1]
            reads_z_t = parameterization in READ_Z_T
            read = [(t, 1, 0) for t in args[:7] if t is not z_t or reads_z_t]
            return [*read, *((t, 0, 1) for t in loss)]

        def eager(args=args, parameterization=parameterization):
            y = target(*args[1:7], parameterization)
            return loss_and_grad(args[0], y, args[4], parameterization, "snr_trunc")

        yield Traffic(f"distill_loss {parameterization}", run, eager, args[1].numel())
