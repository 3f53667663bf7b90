"""The compiled CPU op against float64, on every instruction set that this machine has."""

import itertools
import os
import pathlib
import subprocess

import group_norm_checks
import pytest
import torch
from group_norm_checks import (
    CENSUS,
    DTYPES,
    EXTREMES,
    OUTLIERS,
    check,
    make,
    make_outliers,
    outputs,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.config.schema import NetConfig
from pdfast.kernels import group_norm_silu as module
from pdfast.kernels.group_norm_silu import group_norm_silu, reference
from pdfast.models.blocks import GroupNormSiLU
from pdfast.models.unet import UNet

ROOT = pathlib.Path(__file__).parents[2]
NONE = None, None, None  # no addend, no residual, no skip


@pytest.fixture(params=module._C.cpu_isas())
def isa(request):
    """Each instruction set of this machine."""
    before = module._C.cpu_isa()
    module._C.use_cpu_isa(request.param)
    yield request.param
    module._C.use_cpu_isa(before)


shapes = group_norm_checks.shapes(4, 8, 9, 9, 9)


def example(dtype, shape, film, silu, mean, mixed, layout, seed):
    n, groups, per_group, h, w = shape
    mixed = mixed and dtype != torch.float64  # float64 mixes with no other dtype
    param, draws = torch.float32 if mixed else dtype, []
    for k in range(8):  # small tensors have few errors to average
        full = (n, groups * per_group, h, w)
        x, weight, bias, modulation, dy = make(full, dtype, film, mean, 1.0, param, 8 * seed + k)
        if layout == "contiguous":
            x, dy = x.contiguous(), dy.contiguous()
        elif layout == "strided":
            x = torch.stack([x, x], dim=-1)[..., 0]
            dy = dy.transpose(2, 3).contiguous().transpose(2, 3)
        draws.append((x, weight, bias, modulation, dy))
    check(draws, groups, silu, ours=[by_isa(name) for name in module._C.cpu_isas()])


def by_isa(name):
    """Return the op on one instruction set, as `check` takes it."""

    def ours(tensors, **options):
        before = module._C.cpu_isa()
        module._C.use_cpu_isa(name)
        try:
            return group_norm_checks.op(tensors, **options)
        finally:
            module._C.use_cpu_isa(before)

    return ours


arguments = {
    "shape": shapes,
    "film": st.booleans(),
    "silu": st.booleans(),
    "mean": st.sampled_from([0.0, 3.0, 100.0, 1e4]),
    "mixed": st.booleans(),
    "layout": st.sampled_from(["channels_last", "contiguous", "strided"]),
    "seed": st.integers(0, 1000),
}
common = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@settings(max_examples=60, **common)
@given(**arguments)
def test_accuracy(dtype, shape, film, silu, mean, mixed, layout, seed):
    example(dtype, shape, film, silu, mean, mixed, layout, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@settings(max_examples=500, **common)
@given(**arguments)
def test_accuracy_at_length(dtype, shape, film, silu, mean, mixed, layout, seed):
    example(dtype, shape, film, silu, mean, mixed, layout, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "size", "film", "silu"), CENSUS)
def test_census(channels, size, film, silu, dtype):
    check([make((2, channels, size, size), dtype, film)], 32, silu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("mean", "std"), EXTREMES)
def test_extreme_statistics(mean, std, dtype):
    draws = [make((2, 24, 6, 6), dtype, mean=mean, std=std)]
    check(draws, 4, True, ours=[by_isa(name) for name in module._C.cpu_isas()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", OUTLIERS)
def test_outliers(where, dtype):
    draws = [make_outliers(where, (1, 16, 64, 64), dtype)]
    check(draws, 2, True, ours=[by_isa(name) for name in module._C.cpu_isas()])


def test_statistics_do_not_cancel():
    """With mean >> std, E[x^2] - E[x]^2 would have no digit left."""
    x = make((1, 8, 16, 16), torch.float32, mean=4096.0, std=1.0)[0]
    y = group_norm_silu(x, torch.ones(8), torch.zeros(8), groups=2, silu=False, eps=0.0)
    exact = reference(
        x.double(), torch.ones(8).double(), torch.zeros(8).double(), groups=2, silu=False, eps=0.0
    )
    assert (y.double() - exact).abs().max() < 1e-6


def test_float64(isa):
    x, weight, bias, film, dy = make((2, 12, 5, 3), torch.float64, mean=2.0)
    for silu, modulation in itertools.product((True, False), (film, None)):
        args = (x, weight, bias, modulation, dy)
        ours = outputs(group_norm_silu, *args, groups=4, silu=silu)
        exact = outputs(reference, *args, groups=4, silu=silu)
        for a, b in zip(ours, exact, strict=True):
            assert (a - b).norm() <= 1e-13 * b.norm()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, film)]
    assert torch.autograd.gradcheck(lambda *a: group_norm_silu(*a, groups=4), leaves)


def test_saved_statistics():
    x, weight, bias, film, _ = make((3, 12, 7, 5), torch.float32, mean=10.0)
    *_, mean, rstd = torch.ops.pdfast.group_norm_silu(
        x, *NONE, weight, bias, film, 4, 1e-6, True, False
    )
    grouped = x.double().reshape(3, 4, -1)
    assert mean.dtype == rstd.dtype == torch.float32
    torch.testing.assert_close(mean.double(), grouped.mean(2), rtol=1e-7, atol=0)
    exact = (grouped.var(2, unbiased=False) + 1e-6).rsqrt()
    torch.testing.assert_close(rstd.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_stay_in_their_group(value, dtype, isa):
    """They reach their whole group, and no other bit changes."""
    tensors = make((3, 12, 4, 4), dtype)
    clean = outputs(group_norm_silu, *tensors, groups=3)
    tensors[0][1, 5, 2, 2] = value
    dirty = outputs(group_norm_silu, *tensors, groups=3)
    for a, b in zip(clean[:2], dirty[:2], strict=True):
        assert b[1, 4:8].isnan().all()
        b[1, 4:8] = a[1, 4:8]
        assert torch.equal(a, b)
    assert dirty[2][4:8].isnan().all()
    assert not dirty[2][:4].isnan().any()


def test_nan_in_a_parameter_reaches_its_channel(isa):
    x, weight, bias, film, _ = make((2, 6, 3, 3), torch.float32)
    film[0, 8] = float("nan")
    y = group_norm_silu(x, weight, bias, film, groups=2)
    assert y[0, 2].isnan().all()
    assert int(y.isnan().sum()) == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_conversions(dtype, isa):
    """With x = 0 and no SiLU, y is the bias: all 65,536 values in, and roundings out."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = torch.zeros(1, 2**16, 1, 1, dtype=dtype)
    y = group_norm_silu(x, torch.ones_like(every), every, groups=2**16, silu=False).flatten()
    assert torch.equal(y.isnan(), every.isnan())
    assert torch.equal(y[~y.isnan()], every[~every.isnan()])
    # Float32 values between, at, and halfway between 16-bit neighbours, over the whole range.
    bits = torch.arange(0, 2**32, 65521, dtype=torch.int64)
    ties = torch.arange(0, 2**16, dtype=torch.int64) * 2**16 + 2**15
    half_ties = torch.arange(0, 2**16, dtype=torch.int64) * 2**13 + 0x38000000 + 2**12
    words = torch.cat([bits, ties, half_ties])
    value = (words - (words >= 2**31) * 2**32).to(torch.int32).view(torch.float32)
    c = len(value)
    x = torch.zeros(1, c, 1, 1, dtype=dtype)
    y = group_norm_silu(x, torch.ones(c), value, groups=c, silu=False).flatten()
    want = value.to(dtype)
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y[~y.isnan()], want[~want.isnan()])


def test_silu_over_its_range(isa):
    """From overflow to underflow of exp; each value within 2 units in the last place."""
    u = torch.cat([torch.linspace(-80, 120, 100_001), torch.tensor([0.0, -0.0, 1e30, -86.9])])
    c = len(u)
    y = group_norm_silu(torch.zeros(1, c, 1, 1), torch.ones(c), u, groups=c).flatten()
    exact = torch.nn.functional.silu(u.double())
    assert ((y.double() - exact).abs() <= 2 * 2**-23 * exact.abs()).all()
    far = torch.tensor([-90.0, -1e4, -3e38, 3e38, float("inf")])
    y = group_norm_silu(torch.zeros(1, 5, 1, 1), torch.ones(5), far, groups=5).flatten()
    assert y.tolist() == [0.0, 0.0, 0.0, far[3], float("inf")]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_same_bits_from_run_to_run_and_for_any_threads(dtype):
    tensors = make((5, 48, 9, 9), dtype)
    first = outputs(group_norm_silu, *tensors, groups=8)
    threads = torch.get_num_threads()
    for number in (threads, 1, 2, 3):
        torch.set_num_threads(number)
        again = outputs(group_norm_silu, *tensors, groups=8)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(film, dtype):
    x, weight, bias, modulation, dy = make((2, 8, 3, 5), dtype, film)
    leaves = [t if t is None else t.requires_grad_() for t in (x, weight, bias, modulation)]
    operands = (leaves[0], *NONE, *leaves[1:], 4, 1e-6, True, False)
    torch.library.opcheck(torch.ops.pdfast.group_norm_silu, operands)
    with torch.no_grad():
        *_, mean, rstd = torch.ops.pdfast.group_norm_silu(*operands)
    detached = [t if t is None else t.detach() for t in leaves]
    if film:  # a gradient has strides of its own
        detached[3] = detached[3].t().contiguous().t()
    torch.library.opcheck(
        torch.ops.pdfast.group_norm_silu_backward,
        (dy, None, detached[0], None, None, mean, rstd, *detached[1:], 4, True, 0),
    )


def test_only_the_first_derivative():
    x, weight, bias, film, _ = make((1, 4, 2, 2), torch.float32)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(
        group_norm_silu(x, weight, bias, film, groups=2).sum(), x, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


BAD = [  # argument, how it is spoilt, error, a part of the message
    ("x", lambda _: None, TypeError, "x must be a tensor"),
    ("x", lambda t: t[0], ValueError, "x must have shape"),
    ("x", lambda t: t[:0], ValueError, "x is empty"),
    ("x", lambda t: t.int(), TypeError, "x must be float32"),
    ("x", lambda t: t.to(torch.complex64), TypeError, "x must be float32"),
    ("weight", lambda t: t[:-1], ValueError, "weight must have shape"),
    ("weight", lambda t: t[None], ValueError, "weight must have shape"),
    ("weight", lambda t: t.double(), TypeError, "weight must be Float"),
    ("weight", lambda t: t.half(), TypeError, "weight must be Float"),
    ("bias", lambda t: t.repeat(2), ValueError, "bias must have shape"),
    ("bias", lambda t: t.long(), TypeError, "bias must be Float"),
    ("film", lambda t: t[:1], ValueError, "film must have shape"),
    ("film", lambda t: t[:, :8], ValueError, "film must have shape"),
    ("film", lambda t: t[..., None, None], ValueError, "film must have shape"),
    ("film", lambda t: t.bfloat16(), TypeError, "film must be Float"),
    ("groups", lambda _: 3, ValueError, "groups must divide"),
    ("groups", lambda _: 0, ValueError, "groups must divide"),
    ("groups", lambda _: -4, ValueError, "groups must divide"),
    ("eps", lambda _: float("nan"), ValueError, "eps must be finite"),
    ("eps", lambda _: float("inf"), ValueError, "eps must be finite"),
    ("eps", lambda _: -1e-6, ValueError, "eps must be finite"),
]


@pytest.mark.parametrize(("name", "spoil", "error", "message"), BAD)
def test_bad_input(name, spoil, error, message, monkeypatch):
    x, weight, bias, film, _ = make((2, 8, 3, 3), torch.float32)
    arguments = {"x": x, "weight": weight, "bias": bias, "film": film, "groups": 4, "eps": 1e-6}
    arguments[name] = spoil(arguments[name])
    with pytest.raises(error, match=message):
        group_norm_silu(**arguments)
    monkeypatch.setattr(module, "COMPILED_FOR", ())  # the reference names the argument too
    with pytest.raises(error, match=f"^{name} "):
        group_norm_silu(**arguments)


def test_bad_input_to_the_backward():
    x, weight, bias, film, dy = make((2, 8, 3, 3), torch.float32)
    op = torch.ops.pdfast.group_norm_silu_backward
    *_, mean, rstd = torch.ops.pdfast.group_norm_silu(
        x, *NONE, weight, bias, film, 4, 1e-6, True, False
    )
    rest = (weight, bias, film, 4, True, 0)
    for bad, name in (
        ((dy[:1], None, x, None, None, mean, rstd), "dy"),
        ((dy, dy[:1], x, None, None, mean, rstd), "dsum"),
        ((dy, None, x, None, None, mean[:, :2], rstd), "mean"),
        ((dy, None, x, None, None, mean, rstd[:1]), "rstd"),
    ):
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            op(*bad, *rest)
    with pytest.raises(TypeError, match="dy must be"):
        op(dy.double(), None, x, None, None, mean, rstd, *rest)
    with pytest.raises(ValueError, match="daddend_rows must be 0, 1 or 2, not 3"):
        op(dy, None, x, None, None, mean, rstd, weight, bias, film, 4, True, 3)
    with pytest.raises(TypeError, match="daddend_type must be Float"):
        op(dy, None, x, None, None, mean, rstd, weight, bias, film, 4, True, 1, torch.float16)


def test_build_facts_and_plan():
    facts = module._C.build_facts()
    assert facts["compiler"].startswith(("gcc", "clang"))
    assert module._C.cpu_isa() == module._C.cpu_isas()[-1]
    assert module._C.cpu_isa() in module.implementation(torch.device("cpu"))
    plan = module._C.cpu_plan(8, 1024, 256, 32)
    assert plan["slab"] % 8 == 0
    assert plan["tasks"] == 8 * -(-256 // plan["slab"])
    with pytest.raises(ValueError, match="groups divide c"):
        module._C.cpu_plan(1, 1, 7, 2)
    with pytest.raises(ValueError, match="no CPU instruction set 'sse9'"):
        module._C.use_cpu_isa("sse9")


def test_every_norm_of_the_unet_is_this_op():
    cfg = NetConfig(image_size=8, channels=1, ch=8, emb_ch=16, ch_mult=(1, 1), num_res_blocks=1,
                    attn_resolutions=(4,), groups=4)  # fmt: skip
    net = UNet(cfg)
    calls = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with Counter():
        net(torch.randn(2, 1, 8, 8), torch.zeros(2)).sum().backward()
    norms = sum(isinstance(m, GroupNormSiLU) for m in net.modules())
    assert calls.count(torch.ops.pdfast.group_norm_silu.default) == norms
    assert calls.count(torch.ops.pdfast.group_norm_silu_backward.default) == norms
    names = {str(f) for f in calls}
    assert not {n for n in names if "norm" in n and "pdfast" not in n}
    assert not {n for n in names if n.startswith("aten.silu") and "backward" not in n} - {
        "aten.silu.default"  # of the time embedding
    }


@pytest.mark.slow
def test_sanitizers(tmp_path):
    """The core, under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set."""
    driver = tmp_path / "driver"
    sources = [pathlib.Path(__file__).with_name("sanitize_group_norm_silu.cpp")]
    sources += [ROOT / "csrc" / f"group_norm_silu_{k}.cpp" for k in ("cpu", "avx2", "avx512")]
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O0"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*command, *sources, "-o", driver], check=True)
    done = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == f"{352 * len(module._C.cpu_isas())} cases"
