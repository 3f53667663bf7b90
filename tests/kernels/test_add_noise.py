"""add_noise against its reference: integers to the bit, normals to an ulp, images in float64."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import (
    DEVICE,
    DTYPES,
    FEW,
    LAYOUTS,
    MANY,
    PARAMETERIZATIONS,
    SCHEDULE,
    SEEDS,
    SIDES,
    assert_accepted,
)
from launch_inputs import ARCHS, ODD, ONE, SMALL, TYPES, Code, Traffic, values
from torch.library import opcheck

from pdfast.kernels import philox, runtime
from pdfast.kernels.add_noise import (
    BLOCK,
    NoiseOptions,
    add_noise,
    add_noise_op,
    add_noise_reference,
    draw_indices,
)
from pdfast.kernels.philox import normal_pair
from pdfast.kernels.runtime import tl, triton
from pdfast.kernels.shuffle import shuffled


def noised(images, schedule, update, rows=None, phase=None, **options):
    """Call add_noise with its options by name."""
    return add_noise(images, schedule, update, NoiseOptions(**options), rows, phase)


def told_on_the_device(case):
    """Return the same case with its round and N in a tensor, and other ones in the options."""
    case = dict(case)
    merged = case.pop("merged", 0)
    numbers = case.pop("round_"), case.pop("num_steps"), merged
    if isinstance(case["schedule"], torch.Tensor):  # as for a phase of more steps
        unused = torch.full((4,), math.inf, dtype=torch.float64, device=DEVICE)
        case["schedule"] = torch.cat([case["schedule"], unused])
    options = {"round_": 5, "num_steps": 7, "merged": 11 if merged else 0}
    return case | options | {"phase": torch.tensor(numbers, device=DEVICE)}


def reference(images, schedule, update, rows=None, *, dtype, **options):
    """Call the reference with its options by name."""
    return add_noise_reference(images, schedule, update, NoiseOptions(**options), rows, dtype=dtype)


def same(a, b):
    """Return whether two fields of `Noised` are equal; they may be None."""
    return a is b is None or torch.equal(a, b)


CASE = {
    "shape": st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), SIDES, SIDES),
    "layout": LAYOUTS,
    "num_steps": st.sampled_from([0, 1, 2, 3, 64, 8192]),
    "merged": st.sampled_from([0, 0, 0, 1, 2, 3, 64]),
    "seed": st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    "round_": st.sampled_from([0, 1, 13]),
    "update": st.sampled_from([0, 1, 49_999, 2**32 - 1, 2**32, 2**40 + 3]),
    "first": st.sampled_from([0, 1, 1000]),
    "num": st.integers(1, 2),
    "flip": st.booleans(),
    "parameterization": st.sampled_from([None, *PARAMETERIZATIONS]),
    "fixed": st.booleans(),
    "table": st.booleans(),
    "levels": st.sampled_from([torch.uint8, torch.float32]),
    "some": st.booleans(),
    "phase": st.booleans(),
    "shuffled_by": st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2**20]),  # the interpreter is slow
    "draw": SEEDS,
}


def data(shape, layout, draw, levels=torch.uint8):
    m, c, h, w = shape
    g = torch.Generator().manual_seed(draw)
    size = (m, c, h, 2 * w)
    if levels == torch.uint8:
        pixels = torch.randint(0, 256, size, generator=g, dtype=torch.uint8).to(DEVICE)
    else:
        pixels = (3 * torch.randn(size, generator=g)).to(DEVICE)
    if layout == "every other column":
        return pixels[..., ::2]
    last = layout == "channels last"
    return pixels[..., :w].contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def angles_of(num_steps, merged=2):
    """Return the angles of a schedule that is not a straight line."""
    u = torch.linspace(0, 1, merged * num_steps + 1, dtype=torch.float64, device=DEVICE)
    return 1.57 * u.square()


def check(
    dtype,
    shape,
    layout,
    draw,
    num_steps,
    table=False,
    levels=torch.uint8,
    some=False,
    phase=False,
    merged=0,
    **case,
):
    """`some`: only every other image may be drawn. `phase`: the round and N are on the device."""
    pixels = data(shape, layout, draw, levels)
    case["rows"] = torch.arange(0, len(pixels), 2, device=DEVICE) if some else None
    table = table and num_steps > 0
    merged = merged if num_steps else 0
    case["schedule"] = angles_of(num_steps, merged or 2) if table else (SCHEDULE.a, SCHEDULE.b)
    case |= {"num_steps": num_steps, "merged": merged}
    on_device = phase and num_steps > 0
    got = noised(pixels, net_dtype=dtype, **(told_on_the_device(case) if on_device else case))
    case["update"] = torch.tensor([case["update"]], device=DEVICE)
    exact, phi_t, phi_mid, is_last_step, chosen, spare, y_exact, phi_next = reference(
        pixels, dtype=torch.float64, **case
    )
    eager, *_, y, _ = reference(pixels, dtype=torch.float32, **case)
    assert torch.equal(got.chosen, chosen)
    assert not some or (chosen % 2 == 0).all()
    assert torch.equal(got.is_last_step, is_last_step)
    assert torch.equal(got.spare, spare)
    assert torch.equal(got.phi_t, phi_t)
    assert torch.equal(got.phi_mid, phi_mid)
    assert got.phi_next is phi_next is None or torch.equal(got.phi_next, phi_next)
    x, eps = (
        reference(pixels, dtype=torch.float64, **(case | {"parameterization": parameterization}))[
            -2
        ].abs()
        for parameterization in ("x", "eps")
    )
    cos, sin = (f(phi_t).reshape(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
    z_terms = cos * x + sin * eps
    assert_accepted(got.z_t, eager, exact, z_terms)
    assert_accepted(got.z_in, eager.to(dtype), exact, z_terms)
    assert (got.z_in is got.z_t) == (dtype == torch.float32)
    assert (got.y is None) == (case["parameterization"] is None)
    if got.y is not None:
        y_terms = {"x": x, "eps": eps}.get(case["parameterization"], cos * eps + sin * x)
        assert_accepted(got.y, y, y_exact, y_terms)


def test_random_cases():
    FEW(given(dtype=st.sampled_from(DTYPES), **CASE)(lambda **case: check(**case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()


ARGS = {
    "images": data((9, 3, 5, 7), "channels last", 0),
    "schedule": (SCHEDULE.a, SCHEDULE.b),
    "num_steps": 64,
    "seed": 7,
    "round_": 3,
    "update": 11,
    "num": 4,
}


@pytest.mark.parametrize("num_steps", [3, 49, 107, 8191])
def test_angles_have_one_value_for_any_number_of_steps(num_steps):
    """Also those that a product with 1 / N would round differently."""
    pixels = data((2, 1, 2, 2), "channels last", 0)
    draw = {"seed": 0, "round_": 1, "num": 64, "num_steps": num_steps}
    schedule, update = (SCHEDULE.a, SCHEDULE.b), torch.tensor([1], device=DEVICE)
    got = noised(pixels, schedule, 1, **draw)
    _, phi_t, phi_mid, *_ = reference(pixels, schedule, update, dtype=torch.float32, **draw)
    assert torch.equal(got.phi_t, phi_t)
    assert torch.equal(got.phi_mid, phi_mid)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(("num_steps", "merged"), [(4, 16), (1, 8), (5, 3), (3, 1), (8, 2)])
def test_merged_steps_end_where_the_students_do(num_steps, merged, table):
    """t takes each of the rN times equally often; m is a step below, the end is the segment's."""
    fine = num_steps * merged
    schedule = angles_of(num_steps, merged) if table else (SCHEDULE.a, SCHEDULE.b)
    u = torch.linspace(0, 1, fine + 1, dtype=torch.float64, device=DEVICE)
    times = schedule if table else SCHEDULE.a * u + SCHEDULE.b
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=DEVICE)
    draw = {"seed": 3, "round_": 1, "num": 64 * fine, "num_steps": num_steps, "merged": merged}
    update = torch.tensor([5], device=DEVICE)
    _, phi_t, phi_mid, is_last_step, *_, phi_next = reference(
        pixels, schedule, update, dtype=torch.float32, **draw
    )
    k = (times[None] - phi_t[:, None]).abs().argmin(1) - 1
    counts = torch.bincount(k, minlength=fine)
    assert len(counts) == fine
    assert (counts - 64).abs().max() < 6 * 64**0.5
    i, close = k // merged, {"rtol": 0, "atol": 1e-15}
    torch.testing.assert_close(phi_t, times[k + 1], **close)
    torch.testing.assert_close(phi_next, times[i * merged], **close)
    alone = k % merged == 0
    torch.testing.assert_close(phi_mid[~alone], times[k[~alone]], **close)
    assert torch.equal(phi_mid == phi_t, alone)
    assert torch.equal(is_last_step, i == 0)


def test_the_spare_number_is_uniform_and_of_its_own_bits():
    """It does not depend on the image, on mirroring, or on the time."""
    num = 4096
    images = torch.zeros(9, 1, 1, 2, dtype=torch.uint8)
    images[..., 1] = 255
    draw = {
        "seed": 7,
        "round_": 3,
        "num": num,
        "flip": True,
        "parameterization": "x",
        "dtype": torch.float32,
    }
    schedule, update = (SCHEDULE.a, SCHEDULE.b), torch.tensor([11])
    for steps in (64, 0):
        _, phi_t, _, _, chosen, spare, x, _ = reference(
            images, schedule, update, num_steps=steps, **draw
        )
        assert 0 < spare.min() < spare.max() < 1
        assert (torch.histc(spare, 8, 0, 1) - num / 8).abs().max() < 4 * (num / 8) ** 0.5
        for other in (chosen, phi_t, x[:, 0, 0, 0]):
            both = torch.stack([spare, other.double()])
            assert abs(float(both.corrcoef()[0, 1])) < 4 / num**0.5


def test_the_same_bits_again_and_by_position():
    first, second = (noised(**ARGS, flip=True, parameterization="v") for _ in range(2))
    part = noised(**ARGS | {"first": 1, "num": 2}, flip=True, parameterization="v")
    for name in ("z_t", "phi_t", "phi_mid", "is_last_step", "chosen", "spare", "y"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name)[1:3], getattr(part, name))


def test_an_update_on_the_device_is_the_same_as_a_number():
    here = torch.tensor([11], device=DEVICE)
    assert torch.equal(noised(**ARGS).z_t, noised(**ARGS | {"update": here}).z_t)


def test_more_elements_than_a_block():
    pixels = data((3, 3, 31, 29), "channels last", 0)
    args = {
        "update": 1,
        "first": 0,
        "num": 2,
        "flip": True,
        "parameterization": "v",
        "fixed": False,
    }
    assert pixels[0].numel() > BLOCK
    for num_steps in (0, 8):
        case = {"num_steps": num_steps, "seed": 5, "round_": 0, **args}
        check(torch.bfloat16, (3, 3, 31, 29), "channels last", 0, **case)


def test_some_images_are_drawn_as_a_set_of_them_alone_would_be():
    """And their order in the table matters."""
    rows = torch.tensor([8, 1, 2, 5], device=DEVICE)
    args = ARGS | {"num": 24, "flip": True, "parameterization": "x"}
    got = noised(**args, rows=rows)
    assert set(got.chosen.tolist()) == set(rows.tolist())
    alone = noised(**args | {"images": ARGS["images"][rows]})
    assert torch.equal(got.chosen, rows[alone.chosen])
    for name in ("z_t", "phi_t", "phi_mid", "is_last_step", "spare", "y"):
        assert torch.equal(getattr(got, name), getattr(alone, name)), name
    everything = noised(**args, rows=torch.arange(9, device=DEVICE))
    assert all(map(same, everything, noised(**args)))
    index = draw_indices(NoiseOptions(seed=7, round_=3, num=24, population=9), 11, rows.cpu())
    assert torch.equal(index, got.chosen.cpu())


@pytest.mark.parametrize("rows", [None, torch.tensor([], dtype=torch.int64)])
def test_nothing_is_drawn_from_nothing(rows):
    options = NoiseOptions(seed=7, round_=3, num=4, population=9 if rows is not None else 0)
    with pytest.raises(ValueError, match="there are no images to draw from"):
        draw_indices(options, 1, rows)


@pytest.mark.parametrize(("fixed", "some"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("num_steps", "net_dtype"), [(64, torch.bfloat16), (0, torch.float64)])
def test_images_gathered_elsewhere_are_those_of_the_whole_set(
    num_steps, net_dtype, flip, fixed, some
):
    """Also with first > 0, and for a set that is in no memory: only its size is known."""
    changed = {"num_steps": num_steps, "update": 2**32 + 11, "first": 2}
    changed["merged"] = 3 if num_steps else 0
    case = (
        ARGS
        | changed
        | {"flip": flip, "fixed": fixed, "net_dtype": net_dtype, "parameterization": "v"}
    )
    rows = torch.tensor([7, 0, 3]) if some else None
    whole = noised(**case, rows=rows if rows is None else rows.to(DEVICE))
    of_set = NoiseOptions(seed=7, round_=3, num=4, first=2, fixed=fixed, population=9)
    index = draw_indices(of_set, 2**32 + 11, rows)
    assert index.device.type == "cpu"
    assert torch.equal(index, whole.chosen.cpu())
    gathered = ARGS["images"].cpu()[index].to(DEVICE)
    part = noised(
        **case | {"images": gathered, "population": len(ARGS["images"])},
        rows=rows if rows is None else rows.to(DEVICE),
    )
    for name, expected in whole._asdict().items():
        assert same(getattr(part, name), expected), name
    other = noised(**case | {"images": gathered, "population": 2**31 - 1})
    of_set = dataclasses.replace(of_set, population=2**31 - 1)
    index = draw_indices(of_set, 2**32 + 11)
    assert torch.equal(other.chosen.cpu(), index)
    assert index.max() > 2**20
    assert torch.equal(other.z_t, whole.z_t)


@pytest.mark.parametrize("some", [False, True])
def test_without_replacement_only_the_choice_of_images_changes(some):
    """Also across the end of an epoch, and where other code gathers the images."""
    rows = torch.tensor([7, 0, 3, 8, 2], device=DEVICE) if some else None
    of, batch, update = 5 if some else 9, 12, 2**32 + 11
    case = ARGS | {"update": update, "first": 3, "num": 8, "flip": True, "rows": rows}
    got = noised(**case, shuffled_by=batch)
    draws = update * batch + 3 + torch.arange(8)
    expected = shuffled(draws, of, philox.key_of(7, philox.Stream.BATCH, 3))
    assert torch.equal(got.chosen.cpu(), expected if rows is None else rows.cpu()[expected])
    on_cpu = None if rows is None else rows.cpu()
    draw = NoiseOptions(seed=7, round_=3, num=8, first=3, population=9, shuffled_by=batch)
    index = draw_indices(draw, update, on_cpu)
    assert torch.equal(index, got.chosen.cpu())
    gathered = ARGS["images"].cpu()[index].to(DEVICE)
    part = noised(**case | {"images": gathered, "population": 9}, shuffled_by=batch)
    assert all(map(torch.equal, part[:7], got[:7]))

    alike = case | {"images": ARGS["images"][:1].expand(9, -1, -1, -1), "parameterization": "x"}
    one, other = noised(**alike, shuffled_by=batch), noised(**alike)
    assert not torch.equal(one.chosen, other.chosen)
    for name in ("z_t", "phi_t", "phi_mid", "is_last_step", "spare", "y"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_table_of_the_same_angles_is_the_same():
    u = torch.arange(129, dtype=torch.float64, device=DEVICE) / 128
    same = noised(**ARGS | {"schedule": SCHEDULE.a * u + SCHEDULE.b})
    assert all(torch.equal(a, b) for a, b in zip(same[:6], noised(**ARGS)[:6], strict=True))


@triton.jit
def normals_kernel(words, out, block: tl.constexpr):
    pair = 2 * (tl.program_id(0) * block + tl.arange(0, block))
    word_0, word_1 = tl.load(words + pair).to(tl.uint32), tl.load(words + pair + 1).to(tl.uint32)
    normal_0, normal_1 = normal_pair(word_0, word_1)
    tl.store(out + pair, normal_0)
    tl.store(out + pair + 1, normal_1)


def test_normals_are_those_of_pytorch_to_an_ulp():
    """For a million random words, and all pairs of words near quarter turns and the ends."""
    g = torch.Generator().manual_seed(0)
    near = [turn * 2**30 + d for turn in range(5) for d in (-2, -1, 0, 1, 2)]
    near = torch.tensor([w for w in near if 0 <= w < 2**32])
    extreme = torch.cartesian_prod(near, near).flatten()
    words = torch.randint(0, 2**32, (2**20,), generator=g)
    words[: len(extreme)] = extreme
    expected = philox.normal_of(words[None])[0]
    got, block = torch.empty(2**20, device=DEVICE), 2**13
    grid = (len(words) // 2 // block,)
    runtime.launch(normals_kernel, grid, DEVICE, words.to(DEVICE), got, block=block)
    ulps = (got.cpu().view(torch.int32).long() - expected.view(torch.int32).long()).abs()
    same = got.cpu() == expected  # counts 0 and -0 as equal
    differ, most = int((~same).sum()), int(ulps.where(~same, 0).max())
    print(f"\n{differ} normals of {len(same)} differ, by at most {most} ulp")
    assert (same | (ulps <= 1)).all()


@pytest.mark.parametrize(
    ("dtype", "parameterization", "population", "some", "by"),
    [
        (torch.float32, None, 0, False, 0),
        (torch.float32, "v", 100, False, 0),
        (torch.float32, "v", 0, True, 5),
        (torch.bfloat16, "v", 0, True, 5),
        (torch.float64, "v", 0, True, 5),
    ],
)
def test_registered(dtype, parameterization, population, some, by):
    update = torch.tensor([3], device=DEVICE)
    rows = torch.tensor([2, 0], device=DEVICE) if some else None
    draws = (64, 7, 3, update, 0, 4, True, parameterization, dtype, False, population, rows, by)
    images = ARGS["images"][: 4 if population else None]
    opcheck(add_noise_op, (images, SCHEDULE.a, SCHEDULE.b, None, *draws))
    opcheck(add_noise_op, (images.float(), 0.0, 0.0, angles_of(64), *draws))
    phase = torch.tensor([3, 64, 0], device=DEVICE)
    opcheck(add_noise_op, (images, SCHEDULE.a, SCHEDULE.b, None, *draws, phase))
    phase = torch.tensor([3, 64, 4], device=DEVICE)
    opcheck(add_noise_op, (images, SCHEDULE.a, SCHEDULE.b, None, *draws, phase, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("by", [0, 5])
def test_one_launch_serves_every_round(dtype, table, by):
    """A round and N on the device give the same bits as in the options."""
    phase = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    for round_, num_steps in ((1, 64), (2, 32), (13, 1), (2**24 - 1, 3)):
        schedule = angles_of(num_steps) if table else ARGS["schedule"]
        case = ARGS | {"schedule": schedule, "net_dtype": dtype, "shuffled_by": by}
        case |= {"round_": round_, "num_steps": num_steps, "seed": 2**32 - 1}
        told = told_on_the_device(case)
        phase.copy_(told["phase"])
        found = noised(**told | {"phase": phase})
        for name, expected in noised(**case)._asdict().items():
            found_too = getattr(found, name)
            assert same(found_too, expected), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": ARGS["images"].double()}, "images must be uint8 or float32, not float64"),
        ({"schedule": angles_of(32)}, r"schedule must have shape \(129,\), not \(65,\)"),
        ({"schedule": angles_of(64).float()}, "schedule must be float64, not float32"),
        ({"schedule": angles_of(0), "num_steps": 0}, "num_steps must be at least 1 where the"),
        ({"images": ARGS["images"][0]}, r"images must be \(B, C, H, W\).*not \(3, 5, 7\)"),
        ({"images": ARGS["images"][:0]}, "images must be .*none of them 0"),
        ({"images": None}, "images must be a tensor, not NoneType"),
        ({"update": torch.zeros(2, dtype=torch.int64)}, r"update must have shape \(1,\)"),
        ({"update": torch.zeros(1, device=DEVICE)}, "update must be int64, not float32"),
        ({"update": torch.zeros(1, dtype=torch.int64, device="meta")}, "update must be on"),
        (
            {"parameterization": "w"},
            "parameterization must be one of x, .*, not 'w'",
        ),
        ({"net_dtype": torch.int32}, "net_dtype must be a floating-point type"),
        ({"num_steps": -1}, "num_steps must be in 0"),
        ({"seed": 2**32}, r"seed must be in 0 .. 4294967295, not 4294967296"),
        ({"round_": -1}, "round_ must be in 0"),
        ({"first": -1}, "first must be in 0"),
        ({"num": 0}, "num must be at least 1, not 0"),
        ({"population": -1}, "population must be in 0"),
        ({"shuffled_by": -1}, "shuffled_by must be in 0 .. 1099511627776, not -1"),
        ({"rows": [0]}, "rows must be a tensor, not list"),
        ({"rows": torch.zeros(2, device=DEVICE)}, "rows must be int64, not float32"),
        (
            {"rows": torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)},
            r"rows must have shape \(2,",
        ),
        ({"rows": torch.zeros(0, dtype=torch.int64, device=DEVICE)}, "rows must hold at least one"),
        ({"rows": torch.zeros(1, dtype=torch.int64, device="meta")}, "rows must be on"),
        ({"population": 100}, "with a population, images must be the 4 drawn, not 9"),
        ({"phase": [1, 64]}, "phase must be a tensor, not list"),
        ({"phase": torch.ones(2, device=DEVICE)}, "phase must be int64, not float32"),
        ({"phase": torch.ones(1, dtype=torch.int64, device=DEVICE)}, r"phase must have shape \(3,"),
        ({"merged": -1}, "merged must be in 0 .. 33554431, not -1"),
        ({"merged": 2, "num_steps": 0}, "merged must be in 0 .. 0, not 2"),
        ({"schedule": angles_of(64), "merged": 3}, r"schedule must have shape \(193,\), not"),
        ({"phase": torch.ones(3, dtype=torch.int64, device="meta")}, "phase must be on"),
        (
            {"phase": torch.ones(3, dtype=torch.int64, device=DEVICE), "num_steps": 0},
            "num_steps must be at least 1 where a phase is given",
        ),
    ],
)
def test_bad_arguments(changed, message):
    with pytest.raises((TypeError, ValueError), match=message):
        noised(**ARGS | changed)


# ------------------------------------------------------------------------------------------
# Launches, machine code and bytes: see launch_cases.py


def launch(
    device,
    dtype="bf16",
    parameterization=None,
    flip=True,
    times="discrete",
    gathered=False,
    levels="u8",
    some=False,
    told=False,
    merged=0,
    shape=(5, 3, 32, 32),
    **draws,
):
    """Draw 3 images of 5, or of `some`, at `times`: discrete, continuous or by table.

    `told`: the round and N are in a tensor.
    """
    draws = {"seed": 2**32 - 1, "round_": 1, "update": 7, "num": 3, **draws}
    update = draws.pop("update")
    images = values(shape, torch.float32, "cpu")
    if levels == "u8":
        images = (40 * images + 128).clamp(0, 255).to(torch.uint8)
    draws["population"] = len(images) if gathered else 0
    rows = torch.tensor([4, 1]) if some else None
    if gathered:
        images = images[draw_indices(NoiseOptions(**draws), update, rows)]
    n = 0 if times == "continuous" else 6
    table = torch.linspace(0.1, 1.5, (merged or 2) * n + 1, dtype=torch.float64).square().to(device)
    return add_noise(
        images.contiguous(memory_format=torch.channels_last).to(device),
        table if times == "table" else (1.57, 4.5e-5),
        update,
        NoiseOptions(
            num_steps=n,
            merged=merged,
            flip=flip,
            parameterization=parameterization,
            net_dtype=TYPES[dtype],
            **draws,
        ),
        None if rows is None else rows.to(device),
        torch.tensor([draws["round_"], n, merged]).to(device) if told else None,
    )


def launch_cases():
    options = [
        {"dtype": dtype, "parameterization": parameterization, "times": "continuous"}
        for dtype, parameterization in itertools.product(
            ("bf16", "fp32"), (None, *PARAMETERIZATIONS)
        )
    ]
    options += [{"dtype": d, "flip": f} for d, f in itertools.product(TYPES, (False, True))]
    options += [
        {"parameterization": parameterization, "times": "table"} for parameterization in (None, "x")
    ]
    options += [
        {"levels": levels, "flip": flip, "gathered": gathered}
        for levels, flip, gathered in itertools.product(
            ("u8", "fp32"), (False, True), (False, True)
        )
    ]
    for gathered in (False, True):
        options.append({"some": True, "gathered": gathered})
        options.append({"shuffled_by": 6, "some": True, "gathered": gathered})
    options += [{"told": True, "times": times} for times in ("discrete", "table")]
    options.append({"told": True, "shuffled_by": 6, "some": True})
    options += [
        {"merged": merged, "told": told, "times": times}
        for merged, told, times in itertools.product((1, 16), (False, True), ("discrete", "table"))
    ]
    # Global batches of one image, of this process's images, of very many.
    options += [{"shuffled_by": by} for by in (1, 3, 2**31 + 5)]
    options += [{"shape": (5, *shape[1:]), "parameterization": "v"} for shape in (SMALL, ODD, ONE)]
    return [("add_noise", launch, option) for option in options]


def machine_code():
    names = ("arch", "parameterization", "dtype", "flip", "times", "gathered", "levels")
    cases = [
        (90, None, "bf16", flip, times)
        for flip in (False, True)
        for times in ("discrete", "continuous")
    ]
    cases += [(90, None, dtype, True, "continuous") for dtype in ("fp32", "fp16")]
    cases += [
        (90, parameterization, dtype, True, "continuous")
        for parameterization in PARAMETERIZATIONS
        for dtype in ("fp32", "bf16")
    ]
    cases += [(arch, None, "bf16", True, "discrete") for arch in (80, 100)]
    cases += [(arch, "v", "bf16", True, "continuous") for arch in (80, 100)]
    cases += [
        (arch, parameterization, "bf16", True, "table")
        for arch in ARCHS
        for parameterization in (None, "x")
    ]
    gathered = [(*case, True, levels) for case in cases[::5] for levels in ("u8", "fp32")]
    for case in [*((*case, False, "u8") for case in cases), *gathered]:
        options = dict(zip(names, case, strict=True))
        arch, dtype = options.pop("arch"), options["dtype"]
        loads = 4 if options["levels"] == "fp32" and not options["flip"] else 0
        stores = 4 + (TYPES[dtype].itemsize if dtype != "fp32" else 0)
        stores += 4 if options["parameterization"] else 0
        yield Code("add_noise", arch, loads * BLOCK, stores * BLOCK, launch, options)
    for arch in ARCHS:
        others = [{"some": True, "gathered": gathered} for gathered in (False, True)]
        told = [{"told": True, "times": times} for times in ("discrete", "table")]
        merged = [options | {"merged": 16} for options in ({}, *told)]
        for options in (
            *others,
            *told,
            *merged,
            {"shuffled_by": 6},
            {"shuffled_by": 6, "told": True},
        ):
            yield Code("add_noise", arch, 0, (4 + 2) * BLOCK, launch, options)


def shared_code():
    yield launch, [{"seed": 0}, {"seed": 16}, {"seed": 1}]
    yield launch, [{"round_": 0}, {"round_": 1}, {"round_": 16}]
    yield launch, [{"first": 0}, {"first": 1}, {"first": 16}, {"first": 17}]
    yield launch, [{"shape": (n, 3, 32, 32)} for n in (3, 16, 17)]
    yield launch, [{"shuffled_by": n} for n in (1, 3, 16, 128)]
    yield launch, [{"merged": n} for n in (1, 2, 16)]


def traffic():
    """Each program reads the update; an image's first program writes its numbers."""
    pixels, update = data((3, 3, 31, 29), "channels last", 0), torch.tensor([7], device=DEVICE)
    options = NoiseOptions(
        seed=7,
        round_=3,
        num=3,
        num_steps=64,
        flip=True,
        parameterization="v",
        net_dtype=torch.bfloat16,
        population=9,
    )
    args = pixels, (SCHEDULE.a, SCHEDULE.b), update, options
    programs = len(pixels) * -(-pixels[0].numel() // BLOCK)

    def run():
        made = [(t, 0, 1) for t in add_noise(*args) if t is not None]
        return [(pixels, 1, 0), (update, programs, 0), *made]

    def eager():
        z_t, *_ = add_noise_reference(*args, dtype=torch.float32)
        return z_t.to(torch.bfloat16)

    yield Traffic("add_noise", run, eager, pixels.numel())
