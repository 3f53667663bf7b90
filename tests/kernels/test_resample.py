"""resample against its reference, to the bit; its definition and its gradients by hand."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DEVICE, DTYPES, FEW, LAYOUTS, MANY, SEEDS, assert_accepted, images
from launch_inputs import ARCHS, TYPES, Code, Traffic, values
from torch.library import opcheck

from pdfast.kernels import runtime
from pdfast.kernels.resample import (
    BLOCK,
    MOST,
    avg_pool2x2,
    resample_op,
    resample_reference,
    upsample2x,
)

# Arguments of the op, (up, divisor), forward and backward.
FORMS = {
    "avg_pool2x2": (False, 4),
    "upsample2x": (True, 1),
    "backward of avg_pool2x2": (True, 4),
    "backward of upsample2x": (False, 1),
}
PUBLIC = {"avg_pool2x2": avg_pool2x2, "upsample2x": upsample2x}
CASE = {
    "form": st.sampled_from(list(FORMS)),
    "shape": st.tuples(
        st.integers(1, 3),
        st.sampled_from([1, 3, 8, 16, 40]),
        st.sampled_from([2, 6, 8]),
        st.sampled_from([2, 4, 14]),
    ),
    "layout": LAYOUTS,
    "draw": SEEDS,
}


def defined(x, up, divisor):
    """Compute the op by its definition, with views of the pixels."""
    b, c, h, w = x.shape
    if up:
        return (x / divisor).view(b, c, h, 1, w, 1).expand(b, c, h, 2, w, 2).reshape(
            b, c, 2 * h, 2 * w
        )  # fmt: skip
    return x.reshape(b, c, h // 2, 2, w // 2, 2).sum((3, 5)) / divisor


def rounded(result, dtype):
    """Round to a dtype, as the op does here."""
    if runtime.INTERPRETING and dtype == torch.bfloat16:  # the interpreter truncates
        result = (result.view(torch.int32) >> 16 << 16).view(torch.float32)
    return result.to(dtype)


def check(dtype, form, shape, layout, draw):
    x = images(shape, dtype, layout, torch.Generator().manual_seed(draw))
    got = resample_op(x, *FORMS[form])
    assert got.is_contiguous(memory_format=torch.channels_last)
    exact = defined(x.double(), *FORMS[form])
    assert_accepted(got, resample_reference(x, *FORMS[form]), exact)
    same = resample_reference(x.float().contiguous(), *FORMS[form])
    assert torch.equal(got, rounded(same, dtype))


def test_random_cases():
    FEW(given(dtype=st.sampled_from(DTYPES), **CASE)(lambda **case: check(**case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_random_cases(dtype):
    MANY(given(**CASE)(lambda **case: check(dtype, **case)))()


@pytest.mark.parametrize("form", FORMS)
def test_more_elements_than_a_block(form):
    """Whole blocks, and a remainder."""
    for shape in ((2, 64, 16, 16), (2, 40, 14, 18)):
        assert shape[1] * shape[2] * shape[3] > 4 * BLOCK
        check(torch.float32, form, shape, "channels last", 0)


def test_float16_sums_do_not_overflow():
    x = torch.full((1, 16, 2, 2), 60_000.0, dtype=torch.float16, device=DEVICE)
    assert (avg_pool2x2(x) == 60_000).all()


def test_not_a_number_stays_in_its_pixel():
    x = torch.zeros(1, 3, 4, 4, device=DEVICE)
    x[0, 1, 2, 3] = torch.nan
    pooled, doubled = avg_pool2x2(x).isnan(), upsample2x(x).isnan()
    assert pooled.nonzero().tolist() == [[0, 1, 1, 1]]
    assert doubled.nonzero().tolist() == [[0, 1, i, j] for i in (4, 5) for j in (6, 7)]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_again(form):
    x = images((3, 40, 6, 14), torch.float32, "channels last", torch.Generator().manual_seed(0))
    first, second = (resample_op(x, *FORMS[form]) for _ in range(2))
    assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------
# Backward


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels last", "channels first", "every other column"])
@pytest.mark.parametrize("name", PUBLIC)
def test_the_backward_is_the_transpose(name, layout, dtype):
    """(A x) . y = x . (A^T y), to the bit: small integers, whose sums are exact."""
    up, divisor = FORMS[name]
    shape = (2, 24, 4, 6)
    g = torch.Generator().manual_seed(0)
    x = (images(shape, torch.float32, layout, g) * 3).round().to(dtype).mul(divisor)
    x.requires_grad_()
    out = PUBLIC[name](x)
    assert out.shape[2:] == ((8, 12) if up else (2, 3))
    grad = (images(tuple(out.shape), torch.float32, layout, g) * 3).round().to(dtype)
    out.backward(grad)
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, resample_op(grad, *FORMS[f"backward of {name}"]))
    ours = (out.detach().double() * grad.double()).sum()
    assert ours == (x.detach().double() * x.grad.double()).sum()
    assert ours != 0


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def function(x):
        return resample_op(x, *FORMS[form])

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_nothing_is_kept_for_the_backward():
    kept = []
    x = torch.ones(2, 3, 4, 4, device=DEVICE).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        upsample2x(avg_pool2x2(x)).sum()
    assert not kept


# ------------------------------------------------------------------------------------------
# Registration and arguments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 6, 4), (2, 1, 2, 2)])
@pytest.mark.parametrize("layout", ["channels last", "channels first"])
@pytest.mark.parametrize("form", FORMS)
def test_registered(form, layout, shape, dtype):
    x = images(shape, dtype, layout, torch.Generator().manual_seed(0)).requires_grad_()
    opcheck(resample_op, (x, *FORMS[form]))


def test_the_op_compiles_without_a_graph_break():
    x = torch.randn(2, 3, 4, 6, device=DEVICE).requires_grad_()

    def function(x):
        return resample_op(resample_op(x * 2, True, 1).sin(), False, 4)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), function(x))
    (got,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    assert torch.equal(got, expected)


def test_float64_takes_the_reference(launched):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, device=DEVICE)
    for name, function in PUBLIC.items():
        torch.testing.assert_close(function(x), defined(x, *FORMS[name]), rtol=1e-15, atol=1e-15)
    assert launched == []
    upsample2x(avg_pool2x2(x.float()))
    assert launched == ["resample_kernel"] * 2


@pytest.mark.parametrize(
    ("function", "x", "message"),
    [
        (avg_pool2x2, torch.ones(2, 3, 4, 4, dtype=torch.int64), "x must be float32 .* not int64"),
        (avg_pool2x2, torch.ones(3, 4, 4), r"x must be \(B, C, H, W\).*not \(3, 4, 4\)"),
        (upsample2x, torch.ones(0, 3, 4, 4), "x must be .*none of them 0"),
        (upsample2x, None, "x must be a tensor, not NoneType"),
        (avg_pool2x2, torch.ones(2, 3, 5, 4), "an even height and width, not 5x4"),
        (avg_pool2x2, torch.ones(2, 3, 4, 7), "an even height and width, not 4x7"),
        (avg_pool2x2, torch.ones(1).expand(1, 2, 2**15, 2**15), f"at most {MOST} elements, not"),
        (upsample2x, torch.ones(1).expand(1, 2, 2**14, 2**14), f"at most {MOST} elements, not"),
    ],
)
def test_bad_arguments(function, x, message):
    with pytest.raises((TypeError, ValueError), match=message):
        function(x)


# ------------------------------------------------------------------------------------------
# Launches, machine code and bytes: see launch_cases.py

WIDE = (2, 32, 16, 16)  # C is a multiple of 16


def launch(device, form="avg_pool2x2", dtype="bf16", shape=WIDE, public=False, offset=0):
    """Launch the op, or with `public` the function; x begins `offset` elements into a buffer."""
    x = values(shape, TYPES[dtype], device)
    if offset:
        b, c, h, w = shape
        flat = torch.cat([x.new_zeros(offset), x.permute(0, 2, 3, 1).flatten()])[offset:]
        x = flat.view(b, h, w, c).permute(0, 3, 1, 2)
    return PUBLIC[form](x) if public else resample_op(x, *FORMS[form])


def launch_cases():
    options = [{"form": form, "dtype": d} for form, d in itertools.product(FORMS, TYPES)]
    few, odd, one = (2, 1, 8, 8), (2, 3, 6, 14), (2, 1, 2, 2)
    for form in PUBLIC:
        options += [{"form": form, "shape": shape} for shape in (few, odd, one)]
        options += [{"form": form, "public": True}, {"form": form, "offset": 1}]
    return [("resample", launch, option) for option in options]


def machine_code():
    """The backward's dtype of sums and quotients changes nothing beyond the forward."""
    forms = [*itertools.product(PUBLIC, TYPES), *((f, "bf16") for f in FORMS if f not in PUBLIC)]
    for arch, (form, dtype) in itertools.product(ARCHS, forms):
        small = TYPES[dtype].itemsize * BLOCK
        loads, stores = (small, 4 * small) if FORMS[form][0] else (4 * small, small)
        yield Code("resample", arch, loads, stores, launch, {"form": form, "dtype": dtype})


def shared_code():
    for form in FORMS:
        yield launch, [{"form": form, "shape": (2, c, s, s)} for c, s in ((32, 16), (64, 8))]


def traffic():
    for form, case in FORMS.items():
        x = values((2, 40, 14, 18), torch.bfloat16, DEVICE)

        def run(x=x, case=case):
            return [(x, 1, 0), (resample_op(x, *case), 0, 1)]

        def eager(x=x, case=case):
            return resample_reference(x, *case)

        yield Traffic(f"resample {form}", run, eager, x.numel())
