"""dropout against its reference, to the bit; its mask against Philox in plain Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DEVICE, DTYPES, FEW, LAYOUTS, MANY, SEEDS, SHAPES, images
from launch_inputs import ARCHS, LARGE, ODD, ONE, SMALL, TYPES, Code, Traffic, values
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from pdfast.kernels import runtime
from pdfast.kernels.dropout import BLOCK, MOST, dropout, dropout_op, dropout_reference, keep_mask
from pdfast.kernels.philox import Stream

CASE = {
    "shape": SHAPES,
    "layout": LAYOUTS,
    "draw": SEEDS,
    "p": st.sampled_from([1e-5, 0.1, 0.5, 0.9, 0.99999]),
    "seed": st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    "round_": st.sampled_from([0, 1, 13, 2**24 - 1]),
    "update": st.sampled_from([0, 1, 49_999, 2**32 - 1, 2**32, 2**40 + 3]),
    "layer": st.sampled_from([0, 1, 127, 128, 255]),
    "first": st.sampled_from([0, 1, 1000, 2**31 - 1]),
}


def step(number):
    return torch.tensor([number], device=DEVICE)


def by_reference(x, p, *, seed, round_, update, layer, first):
    """Run the reference, rounded to x's dtype in the same way as the op here."""
    threshold = round(p * 65536)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    result = dropout_reference(wide, step(update), threshold, seed, round_, layer, first)
    if runtime.INTERPRETING and x.dtype == torch.bfloat16:  # the interpreter truncates
        result = (result.view(torch.int32) >> 16 << 16).view(torch.float32)
    return result.to(x.dtype)


def check(dtype, shape, layout, draw, **case):
    x = images(shape, dtype, layout, torch.Generator().manual_seed(draw))
    got = dropout(x, **case)
    assert got.is_contiguous(memory_format=torch.channels_last)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]  # to tell -0 from 0
    expected = by_reference(x, **case).contiguous()
    assert torch.equal(got.contiguous().view(integers), expected.view(integers))


def test_random_cases():
    FEW(given(dtype=st.sampled_from(DTYPES), **CASE)(lambda **case: check(**case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()


DRAW = {"seed": 7, "round_": 3, "update": 11, "layer": 5}
ARGS = {"p": 0.25, **DRAW}


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, device=DEVICE, dtype=dtype)


def test_more_elements_than_a_block():
    shape = (2, 3, 31, 29)
    assert math.prod(shape[1:]) > BLOCK
    check(torch.float32, shape, "channels first", 0, first=0, **ARGS)
    check(torch.float16, (2, 16, 32, 8), "channels last", 0, first=3, **ARGS)


def philox_words(counter, key):
    """Philox4x32-10 in Python's integers, from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def test_the_mask_is_that_of_philox():
    """An element reads the documented half of the documented word of its counter."""
    update, first, channels, width = 2**40 + 3, 9, 4, 6
    got = dropout(ones(2, channels, 5, width), 0.3, first=first, **DRAW | {"update": update}) != 0
    key = (DRAW["seed"], DRAW["round_"] << 8 | Stream.DROPOUT)
    for n, c, h, w in ((0, 0, 0, 0), (0, 3, 4, 5), (1, 1, 2, 3), (1, 2, 0, 1), (1, 3, 3, 2)):
        element = (h * width + w) * channels + c
        block = DRAW["layer"] << 24 | element // 8
        words = philox_words((block, first + n, update % 2**32, update >> 32), key)
        half = words[element % 8 // 2] >> 16 * (element % 2) & 0xFFFF
        assert bool(got[n, c, h, w]) == (half >= round(0.3 * 65536))


def test_the_mask_stays_what_it_is():
    """Saved runs depend on it: these bits must not change."""
    got = dropout(ones(2, 1, 4, 8), 0.5, **DRAW).flatten(1) != 0
    bits = [int("".join("01"[int(b)] for b in image), 2) for image in got]
    assert bits == [0xB79C6FB0, 0x6B2FAD5C]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_the_rate_and_the_scale(p):
    x = ones(2, 32, 32, 32)
    out = dropout(x, p, **DRAW)
    keep = 1 - round(p * 65536) / 65536
    kept = int((out != 0).sum())
    assert abs(kept - keep * x.numel()) < 5 * math.sqrt(x.numel() * keep * (1 - keep))
    assert torch.equal(out.unique(), torch.tensor([0, 1 / keep], device=DEVICE))


def test_masks_are_independent():
    """Between neighbours at any distance in a block, layers, updates, rounds, seeds and images."""

    def mask(n=16, **changed):
        update = step((DRAW | changed)["update"])
        case = {k: (DRAW | changed)[k] for k in ("seed", "round_", "layer")}
        shape, first = (n, 8, 32, 32), changed.get("first", 0)
        return keep_mask(shape, update, 2**15, first=first, **case).permute(0, 2, 3, 1).flatten()

    here = mask().double() - 0.5
    bound = 5 * 0.25 / math.sqrt(len(here))  # standard deviation of a product: 1/4
    for distance in (1, 2, 3, 4, 5, 6, 7, 8, 256, 8 * 32 * 32):
        assert abs((here[distance:] * here[:-distance]).mean()) < 1.1 * bound
    others = [{"layer": 6}, {"layer": 4}, {"update": 12}, {"update": 11 + 2**32}]
    for changed in (*others, {"round_": 4}, {"seed": 8}, {"first": 16}):
        assert abs((here * (mask(**changed).double() - 0.5)).mean()) < bound


def test_a_mask_depends_on_the_position():
    x = images((5, 3, 5, 7), torch.float32, "channels last", torch.Generator().manual_seed(0))
    whole = dropout(x, first=10, **ARGS)
    assert torch.equal(dropout(x[2:4], first=12, **ARGS), whole[2:4])
    assert not torch.equal(dropout(x[2:4], first=10, **ARGS), whole[2:4])
    assert torch.equal(dropout(x.contiguous(), first=10, **ARGS), whole)


def test_an_update_on_the_device_is_read_when_the_op_runs():
    x, here = ones(2, 3, 5, 7), step(11)
    expected = [dropout(x, **ARGS | {"update": k}) for k in (11, 12)]
    assert torch.equal(dropout(x, **ARGS | {"update": here}), expected[0])
    here += 1
    assert torch.equal(dropout(x, **ARGS | {"update": here}), expected[1])
    assert not torch.equal(*expected)


def test_dropped_is_zero_whatever_it_was():
    out = dropout(ones(2, 8, 8, 8) * math.nan, **ARGS)
    assert torch.equal(out.isnan(), dropout(ones(2, 8, 8, 8), **ARGS) != 0)
    assert (out.nan_to_num() == 0).all()


@pytest.mark.parametrize("p", [0, 0.0, 1 / 2**18])
def test_nothing_dropped_is_the_input_itself(p):
    x = ones(2, 3, 5, 7)
    assert dropout(x, p, **DRAW) is x


# ------------------------------------------------------------------------------------------
# Backward


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels last", "channels first", "every other column"])
def test_the_backward_has_the_same_mask(dtype, layout):
    g = torch.Generator().manual_seed(0)
    x, grad = (images((3, 3, 5, 7), dtype, layout, g) for _ in range(2))
    x.requires_grad_()
    update = step(11)
    out = dropout(x, first=4, **ARGS | {"update": update})
    out.backward(grad)
    assert torch.equal(x.grad, dropout(grad, first=4, **ARGS))
    assert torch.equal(x.grad != 0, out != 0)


def test_the_backward_keeps_the_update_alone():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dropout(ones(2, 3, 5, 7).requires_grad_(), **ARGS)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.int64, 1)]


def test_an_update_changed_before_the_backward_is_refused():
    update = step(11)
    out = dropout(ones(2, 3, 5, 7).requires_grad_(), **ARGS | {"update": update})
    update += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_recomputed_activation_has_the_same_mask():
    x = images((3, 3, 5, 7), torch.float32, "channels last", torch.Generator().manual_seed(0))
    grads = []
    for recompute in (False, True):
        here = x.clone().requires_grad_()

        def block(x):
            return dropout(x.square(), **ARGS).square()

        out = checkpoint(block, here, use_reentrant=False) if recompute else block(here)
        out.sum().backward()
        grads.append(here.grad)
    assert torch.equal(*grads)


def test_gradients():
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    update = step(11)

    def function(x):
        return dropout(x, **ARGS | {"update": update})

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


# ------------------------------------------------------------------------------------------
# Registration and arguments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["channels last", "channels first"])
def test_registered(dtype, layout):
    x = images((2, 3, 5, 7), dtype, layout, torch.Generator().manual_seed(0)).requires_grad_()
    opcheck(dropout_op, (x, step(3), 2**14, 7, 3, 5, 2))


def test_it_compiles_without_a_graph_break():
    x, update = ones(2, 3, 5, 7).requires_grad_(), step(11)

    def function(x, update):
        return dropout(x * 2, **ARGS | {"update": update})

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(x, update), function(x, update))
        (got,) = torch.autograd.grad(compiled(x, update).sum(), x)
        (expected,) = torch.autograd.grad(function(x, update).sum(), x)
        assert torch.equal(got, expected)
        update += 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": ones(2, 3, 5, 7, dtype=torch.int64)}, "x must be float32 or .*, not int64"),
        ({"x": ones(3, 5, 7)}, r"x must be \(B, C, H, W\).*not \(3, 5, 7\)"),
        ({"x": ones(0, 3, 5, 7)}, "x must be .*none of them 0"),
        ({"x": None}, "x must be a tensor, not NoneType"),
        ({"x": ones(1, 1, 1, 1).expand(1, 2, 1, MOST)}, f"at most {MOST} elements, not {2 * MOST}"),
        ({"p": -0.1}, r"p must be in \[0, 1\).*not -0.1"),
        ({"p": 1.0}, r"p must be in \[0, 1\)"),
        ({"p": 1 - 1 / 2**18}, "p must be .*below 1 to the nearest 1/65536"),
        ({"p": math.nan}, r"p must be in \[0, 1\).*nan"),
        ({"update": torch.zeros(2, dtype=torch.int64)}, r"update must have shape \(1,\)"),
        ({"update": torch.zeros(1, device=DEVICE)}, "update must be int64, not float32"),
        ({"update": torch.zeros(1, dtype=torch.int64, device="meta")}, "update must be on"),
        ({"seed": 2**32}, r"seed must be in 0 .. 4294967295, not 4294967296"),
        ({"round_": -1}, "round_ must be in 0"),
        ({"layer": 256}, "layer must be in 0 .. 255, not 256"),
        ({"first": -1}, "first must be in 0"),
    ],
)
def test_bad_arguments(changed, message):
    case = {"x": ones(2, 3, 5, 7), "first": 0, **ARGS, "update": step(11)} | changed
    with pytest.raises((TypeError, ValueError), match=message):
        dropout(**case)


# ------------------------------------------------------------------------------------------
# Launches, machine code and bytes: see launch_cases.py


def launch(device, dtype="bf16", shape=LARGE, **draws):
    x = values(shape, TYPES[dtype], device)
    draws = {"seed": 2**32 - 1, "round_": 1, "update": 7, "layer": 3, **draws}
    return dropout(x, 0.1, **draws)


def launch_cases():
    options = [{"dtype": dtype} for dtype in TYPES]
    options += [{"shape": shape} for shape in (SMALL, ODD, ONE)]
    return [("dropout", launch, option) for option in options]


def machine_code():
    for arch in ARCHS:
        for dtype in TYPES:
            moved = TYPES[dtype].itemsize * BLOCK
            yield Code("dropout", arch, moved, moved, launch, {"dtype": dtype})


def shared_code():
    yield launch, [{"first": 0}, {"first": 1}, {"first": 16}]
    yield launch, [{"layer": 0}, {"layer": 1}, {"layer": 16}]
    yield launch, [{"round_": 0}, {"round_": 1}, {"seed": 2**31}]


def traffic():
    """Each program reads the update."""
    x, update = values((2, 3, 31, 29), torch.bfloat16, DEVICE), step(7)
    draw = {"seed": 0, "round_": 1, "layer": 5}
    programs = len(x) * -(-x[0].numel() // BLOCK)

    def run():
        y = dropout(x, 0.25, update=update, **draw)
        return [(x, 1, 0), (update, programs, 0), (y, 0, 1)]

    def eager():
        return dropout_reference(x, update, 2**14, *draw.values(), 0)

    yield Traffic("dropout", run, eager, x.numel())
