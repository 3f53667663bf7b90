"""group_norm_silu of a sum, and of two tensors side by side: on a CPU, composed around the op."""

import pytest
import torch
from group_norm_checks import DTYPES
from group_norm_sum_checks import STRADDLED, VARIANTS, Variant, case_of, check_sum, results

from pdfast.kernels import group_norm_silu as module
from pdfast.kernels.calls import ADDS, CATS, COPIES, NORM_BACKWARD, NORM_FORWARD, Call
from pdfast.kernels.group_norm_reference import composed, sum_of
from pdfast.kernels.group_norm_silu import (
    eager,
    group_norm_silu,
    reference,
    sum_group_norm_silu,
)
from pdfast.kernels.registry import registered

EVERY = [*VARIANTS, *STRADDLED]
SHAPE = (3, 24, 5, 4)
OPTIONS = {"groups": 4, "eps": 1e-6}
FULL = Variant("channels", residual=True, skip=8, keep_sum=True)


@pytest.fixture(params=["compiled", "reference"])
def implementation(request, monkeypatch):
    """The compiled op, and the reference that runs without it."""
    if request.param == "reference":
        monkeypatch.setattr(module, "COMPILED_FOR", ())
    return request.param


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_accuracy(variant, dtype, implementation):
    """Every output is within the bound of `Exact`, for a sum rounded where it should be."""
    for seed, (film, silu) in enumerate([(True, True), (False, False)]):
        check_sum(variant, case_of(variant, SHAPE, dtype, film, seed=seed), 4, silu)
    if dtype != torch.float64:
        kinds = {"param": torch.float32, "addend": torch.float32}
        check_sum(variant, case_of(variant, SHAPE, dtype, mean=3.0, **kinds), 4)


@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_float64_is_the_reference(variant):
    case = case_of(variant, SHAPE, torch.float64, mean=2.0)

    def by_reference(*args, **kwargs):
        return composed(reference, *args, **kwargs)

    y, s, grads = results(sum_group_norm_silu, variant, case, **OPTIONS)
    exact_y, exact_s, exact_grads = results(by_reference, variant, case, **OPTIONS)
    assert (s is None) == (exact_s is None)
    pairs = [(y, exact_y), *((s, exact_s) for _ in range(s is not None))]
    pairs += [(grads[name], exact_grads[name]) for name in grads]
    for found, exact in pairs:
        assert (found - exact).norm() <= 1e-13 * exact.norm()


@pytest.mark.parametrize("variant", [FULL, Variant("images", residual=True), Variant("channels")])
def test_gradients(variant):
    case = case_of(variant, (2, 8, 2, 3), torch.float64)
    leaves = {name: t.requires_grad_() for name, t in case.given.items()}

    def run(*args):
        named = dict(zip(leaves, args, strict=True))
        y, s = sum_group_norm_silu(**named, keep_sum=variant.keep_sum, **OPTIONS)
        return (y, s) if variant.keep_sum else y

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


def test_a_plain_call_has_the_bits_of_group_norm_silu():
    case = case_of(Variant(), SHAPE, torch.float32)
    ours, s, grads = results(sum_group_norm_silu, Variant(), case, **OPTIONS)
    assert s is None
    plain = {k: t.clone().requires_grad_() for k, t in case.given.items()}
    y = group_norm_silu(**plain, **OPTIONS)
    assert torch.equal(ours, y)
    expected = torch.autograd.grad(y, list(plain.values()), case.dy)
    assert all(torch.equal(grads[k], t) for k, t in zip(plain, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_residual_sum_has_the_bits_of_an_addition(dtype):
    """A network on a CPU then has the same numbers whichever way it adds."""
    case = case_of(Variant(residual=True, keep_sum=True), SHAPE, dtype)
    x, residual = case.given["x"], case.given["residual"]
    y, s = sum_group_norm_silu(**case.given, keep_sum=True, **OPTIONS)
    rest = {k: t for k, t in case.given.items() if k not in ("x", "residual")}
    assert torch.equal(s, x + residual)
    assert torch.equal(y, group_norm_silu(x + residual, **rest, **OPTIONS))


def test_nothing_to_add_gives_x_itself(implementation):
    case = case_of(Variant(skip=8), SHAPE, torch.float32)
    _, s = sum_group_norm_silu(**case.given, keep_sum=True, **OPTIONS)
    assert s is case.given["x"]
    assert sum_of(s, None) is s


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_layouts_do_not_matter(layout, implementation):
    """Nor do gaps between or in the rows of film and addend: the bits are the same.

    The reference, of PyTorch's own ops, sums in another order.
    """
    close = {"rtol": 0, "atol": 0 if implementation == "compiled" else 1e-5}
    variant = Variant("images", residual=True, skip=8, keep_sum=True)
    case = case_of(variant, SHAPE, torch.float32)
    given = dict(case.given)
    for name in ("x", "residual", "skip"):
        t = given[name].contiguous()
        given[name] = t if layout == "contiguous" else torch.stack([t, t], dim=-1)[..., 0]
    for name in ("film", "addend"):
        t = given[name]
        wider = torch.cat([t + 1, t, t - 1], dim=1)
        given[name] = wider[:, t.shape[1] : 2 * t.shape[1]]
        if layout == "strided":
            given[name] = torch.stack([t, t], dim=-1)[..., 0]
    y, s, grads = results(sum_group_norm_silu, variant, case, **OPTIONS)
    other = results(sum_group_norm_silu, variant, case._replace(given=given), **OPTIONS)
    torch.testing.assert_close((y, s, grads), other, **close)


def test_gradients_of_either_result_alone():
    case = case_of(FULL, SHAPE, torch.float64)
    for addend in (case.given["addend"], case.given["addend"].expand(3, -1)):
        given = {**case.given, "addend": addend}
        leaves = {k: t.clone().requires_grad_() for k, t in given.items()}
        y, s = sum_group_norm_silu(**leaves, keep_sum=True, **OPTIONS)
        of_sum = torch.autograd.grad(s, [leaves[k] for k in ("x", "addend", "residual")], case.dsum)
        axes = (0, 2, 3) if addend.ndim == 1 else (2, 3)
        assert torch.equal(of_sum[0], case.dsum)
        torch.testing.assert_close(of_sum[1], case.dsum.sum(axes), rtol=1e-12, atol=0)
        assert torch.equal(of_sum[2], case.dsum)
        y, s = sum_group_norm_silu(**leaves, keep_sum=True, **OPTIONS)
        assert y.requires_grad
        assert s.requires_grad
        unused = torch.autograd.grad(y, [leaves["weight"]], case.dy)
        assert unused[0].abs().max() > 0


def test_one_image_s_addend_keeps_its_shape():
    given = case_of(Variant("images"), (1, 8, 3, 3), torch.float32).given
    given["addend"].requires_grad_()
    y, _ = sum_group_norm_silu(**given, **OPTIONS)
    y.sum().backward()
    assert given["addend"].grad.shape == (1, 8)


def test_only_what_is_needed_is_kept():
    """The sum if there is a residual, which then need not be kept; else x and the addend."""

    def kept(variant):
        case = case_of(variant, SHAPE, torch.float32)
        case.given["x"].requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            _, s = sum_group_norm_silu(**case.given, keep_sum=variant.keep_sum, **OPTIONS)
        found = {t.data_ptr() for t in saved}
        named = case.given if s is None else {**case.given, "sum": s}
        return {name for name, t in named.items() if t.data_ptr() in found} - {"weight", "bias"}

    assert kept(Variant("images")) == {"x", "addend", "film"}
    assert kept(Variant("channels", residual=True, keep_sum=True)) == {"sum", "film"}
    assert kept(Variant("channels", residual=True, skip=8)) == {"skip", "film"}


@pytest.mark.parametrize("variant", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(variant, dtype):
    case = case_of(variant, (2, 16, 3, 5), dtype)
    for t in case.given.values():
        t.requires_grad_()
    names = ("x", "addend", "residual", "skip", "weight", "bias", "film")
    operands = [case.given.get(name) for name in names]
    keep = variant.keep_sum and variant.adds
    forward = torch.ops.pdfast.group_norm_silu
    torch.library.opcheck(forward, (*operands, 4, 1e-6, True, keep))
    x, addend, _, skip, *params = [t if t is None else t.detach() for t in operands]
    with torch.no_grad():
        y, s, mean, rstd = forward(*operands, 4, 1e-6, True, variant.rounded and variant.adds)
    if variant.rounded and variant.adds:
        x, addend = s, None
    rows = {"channels": 1, "images": 2}.get(variant.addend, 0)
    arguments = (torch.randn_like(y), case.dsum, x, addend, skip, mean, rstd, *params, 4, True)
    for kind in (None, dtype):
        backward = torch.ops.pdfast.group_norm_silu_backward
        torch.library.opcheck(backward, (*arguments, rows, kind))


def test_only_the_first_derivative():
    case = case_of(FULL, SHAPE, torch.float32)
    leaf = case.given["residual"].requires_grad_()
    y, s = sum_group_norm_silu(**case.given, keep_sum=True, **OPTIONS)
    (grad,) = torch.autograd.grad(y.sum() + s.sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


BAD = [  # argument, how it is spoilt, error, a part of the message
    ("addend", lambda t: t[:-1], ValueError, "addend must have shape"),
    ("addend", lambda t: t[None].expand(2, -1), ValueError, "addend must have shape"),
    ("addend", lambda t: t[:, None, None], ValueError, "addend must have shape"),
    ("addend", lambda t: t.bfloat16(), TypeError, "addend must be Float"),
    ("residual", lambda t: t[:1], ValueError, "residual must have shape"),
    ("residual", lambda t: t.double(), TypeError, "residual must be Float"),
    ("skip", lambda t: t[..., 0], ValueError, "skip must have shape"),
    ("skip", lambda t: t[:, :0], ValueError, "skip must have shape"),
    ("skip", lambda t: t[..., :-1], ValueError, "skip must have shape"),
    ("skip", lambda t: t.half(), TypeError, "skip must be Float"),
    ("weight", lambda t: t[:-8], ValueError, "weight must have shape"),
    ("film", lambda t: t[:, :-16], ValueError, "film must have shape"),
    ("groups", lambda _: 3, ValueError, "groups must divide the 32 channels of x and skip"),
]


@pytest.mark.parametrize(("name", "spoil", "error", "message"), BAD)
def test_bad_input(name, spoil, error, message, monkeypatch):
    given = case_of(FULL, SHAPE, torch.float32).given | OPTIONS
    given[name] = spoil(given[name])
    with pytest.raises(error, match=message):
        sum_group_norm_silu(**given)
    monkeypatch.setattr(module, "COMPILED_FOR", ())  # the reference names the argument too
    with pytest.raises(error, match=f"^{name} "):
        sum_group_norm_silu(**given)


def test_the_op_does_not_copy_x():
    given = case_of(Variant(), SHAPE, torch.float32).given
    x, params = given["x"], (given["weight"], given["bias"], given["film"])
    with pytest.raises(ValueError, match="keep_sum needs an addend or a residual"):
        torch.ops.pdfast.group_norm_silu(x, None, None, None, *params, 4, 1e-6, True, True)


@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_eager_is_the_same_sum(variant):
    case = case_of(variant, SHAPE, torch.float32)
    ours = sum_group_norm_silu(**case.given, keep_sum=variant.keep_sum, **OPTIONS)
    theirs = composed(eager, **case.given, keep_sum=variant.keep_sum, **OPTIONS)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------
# Counts of a call on a GPU


def launches_of(name, *args):
    op = getattr(torch.ops.pdfast, name).default
    return registered()[name].launches(Call(op, args, {}, op(*args)))


def moved(launches):
    return {kind: sum(x.bytes for x in launches if x.kind == kind) for kind, *_ in launches}


@pytest.mark.parametrize("skip", [8, 4])
def test_kernels_and_bytes_of_a_sum(skip):
    """One kernel reads and writes each tensor once; widths of no whole vectors are joined."""
    n, c, pixels, groups = 2, 16, 6, 4
    variant = Variant("channels", residual=True, skip=skip, keep_sum=True)
    case = case_of(variant, (n, c, 2, 3), torch.bfloat16, param=torch.float32)
    given = case.given
    names = ("x", "addend", "residual", "skip", "weight", "bias", "film")
    arguments = [given[name] for name in names]
    found = moved(launches_of("group_norm_silu", *arguments, groups, 1e-6, True, True))
    one, beside = 2 * n * c * pixels, 2 * n * skip * pixels
    params, film, statistics = 4 * 2 * (c + skip), 4 * n * 2 * (c + skip), 4 * 2 * n * groups
    small = params + film + statistics
    whole = 2 * (one + beside)
    if skip == 8:
        assert found == {NORM_FORWARD: 2 * one + one + whole - one + 2 * c + small}
    else:
        adds = 2 * one + 2 * c + 3 * one
        assert found == {ADDS: adds, CATS: whole, NORM_FORWARD: whole + small}
    y, s, mean, rstd = torch.ops.pdfast.group_norm_silu(*arguments, groups, 1e-6, True, True)
    rest = (given["skip"], mean, rstd, given["weight"], given["bias"], given["film"], groups, True)
    back = launches_of("group_norm_silu_backward", y, s, s, None, *rest, 1, torch.bfloat16)
    found = moved(back)
    if skip == 8:  # dy, s and skip, dx and dskip, and the sum's other gradient
        sums = 4 * n * (2 * (c + skip) + c)
        main = 3 * (one + beside) + one + params + 2 * film + statistics + sums
        assert found[NORM_BACKWARD] == main
        assert len(back) == 2
    else:
        assert found[CATS] == whole
        assert found[COPIES] == whole
        assert found[ADDS] == 3 * one
