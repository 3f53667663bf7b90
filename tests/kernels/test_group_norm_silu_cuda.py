"""group_norm_silu's CUDA kernels without a GPU: their host build against float64.

That build runs the kernels' own source with blocks and threads as loops, and the device's
approximate instructions with their largest documented errors.
"""

import group_norm_checks
import pytest
import torch
from group_norm_checks import EXTREMES, NAMES, OUTLIERS, exact_of, make, make_outliers
from group_norm_silu_host import (
    A100,
    DTYPES,
    EPS,
    H100,
    STREAM,
    compile_host,
    draw,
    draw_sum,
    load_host,
    plan,
    run,
    sum_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import group_norm, silu


@pytest.fixture(scope="session")
def lib(tmp_path_factory):
    out = tmp_path_factory.mktemp("host") / "group_norm_silu.so"
    return load_host(compile_host(out, "-O2", "-shared", "-fPIC"))


def eager(t, groups, act, dtype=None):
    """Compute it by PyTorch, in the inputs' dtypes or all in `dtype`; its norm is contiguous."""
    t = {k: v if v is None else v.to(dtype or v.dtype) for k, v in t.items()}
    leaves = {k: v.clone().requires_grad_() for k, v in t.items() if k != "dy" and v is not None}
    c = t["x"].shape[2]
    x = leaves["x"].mT.contiguous()  # (n, c, hw)
    h = group_norm(x, groups, leaves["weight"], leaves["bias"], EPS).mT
    if t["film"] is not None:
        h = h * (1 + leaves["film"][:, None, :c]) + leaves["film"][:, None, c:]
    y = (silu(h) if act else h).to(t["x"].dtype)
    y.backward(t["dy"])
    return {"y": y.detach(), **{"d" + k: v.grad for k, v in leaves.items()}}


def distance(a, b):
    return float((a.double() - b).norm() / b.norm().clamp_min(1e-300))


def as_image(v):
    """Reshape (n, hw, c) to (n, c, hw, 1)."""
    return v.mT[..., None]


def check(lib, t, groups, act=True, **kwargs):
    """Check float32's bound, and at most twice eager PyTorch's error plus 1 ulp."""
    got = run(lib, t, groups, act, **kwargs)
    small = [t[k] for k in ("weight", "bias", "film")]
    exact = exact_of(as_image(t["x"]), *small, as_image(t["dy"]), groups, act, EPS)
    peer, names = eager(t, groups, act), [k for k in NAMES if got[k] is not None]
    bounds = exact.bounds([got[k].dtype for k in names])
    for name, want, bound in zip(names, exact.values, bounds, strict=True):
        found, eager_found = (
            as_image(v[name]) if name in ("y", "dx") else v[name] for v in (got, peer)
        )
        error, allowed = distance(found, want), 2 * distance(eager_found, want)
        assert error <= allowed + torch.finfo(found.dtype).eps, (name, error, allowed)
        error = (found.double() - want).norm()
        assert error <= bound, f"{name}: {error:.3g} > {bound:.3g}, the bound of float32"
    n, hw, c = t["x"].shape
    x = t["x"].double().reshape(n, hw, groups, c // groups)
    var, mean = torch.var_mean(x, dim=(1, 3), correction=0)
    size = (mean**2 + var).sqrt()
    assert ((got["mean"] - mean).abs() <= 3e-7 * size + 1e-12).all()
    assert distance(got["rstd"], (var + EPS).rsqrt()) < 1e-6
    return got


def same(a, b):
    return all(
        v is None or torch.equal(v.view(torch.uint8), b[k].view(torch.uint8)) for k, v in a.items()
    )


def by_host(lib, machine, cluster=0):
    """Return it as group_norm_checks.check takes it: channels-last images to y and gradients."""

    def ours(tensors, groups, silu, eps):
        assert eps == EPS
        x, weight, bias, film, dy = tensors
        n, c, h, w = x.shape
        t = {k: v.permute(0, 2, 3, 1).reshape(n, h * w, c) for k, v in (("x", x), ("dy", dy))}
        t |= {"weight": weight, "bias": bias, "film": film}
        out = run(lib, t, groups, silu, machine=machine, cluster=cluster)
        for name in ("y", "dx"):
            out[name] = out[name].reshape(n, h, w, c).permute(0, 3, 1, 2)
        return [out[k] for k in NAMES if out[k] is not None]

    return ours


def random_case(lib, dtype, machine, shape, film, silu, mean, mixed, seed):
    n, groups, per_group, h, w = shape
    param, full = torch.float32 if mixed else dtype, (n, groups * per_group, h, w)
    draws = [make(full, dtype, film, mean, 1.0, param, 8 * seed + k) for k in range(8)]
    group_norm_checks.check(draws, groups, silu, EPS, [by_host(lib, machine)])


RANDOM = {
    "machine": st.sampled_from([H100, A100, STREAM]),
    "shape": group_norm_checks.shapes(3, 6, 9, 7, 7),
    "film": st.booleans(),
    "silu": st.booleans(),
    "mean": st.sampled_from([0.0, 3.0, 100.0, 1e4]),
    "mixed": st.booleans(),
    "seed": st.integers(0, 1000),
}
COMMON = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}


def test_random_cases(lib):
    rule, dtypes = settings(max_examples=100, **COMMON), st.sampled_from(list(DTYPES))
    rule(given(dtype=dtypes, **RANDOM)(lambda **case: random_case(lib, **case)))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_many_random_cases(lib, dtype):
    rule = settings(max_examples=500, **COMMON)
    rule(given(**RANDOM)(lambda **case: random_case(lib, dtype, **case)))()


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    ("c", "hw"), [(c, hw) for c in (256, 512) for hw in (1024, 256, 64)]
)  # fmt: skip
def test_census(lib, c, hw, dtype, film, act):
    n = 1 if c * hw > 300000 else 2
    check(lib, draw(n, hw, c, dtype, film=film), 32, act)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("machine", [H100, A100, STREAM], ids=["h100", "a100", "stream"])
@pytest.mark.parametrize(
    ("hw", "c", "groups"),
    [
        (1, 6, 3), (15, 6, 1), (49, 12, 4), (15, 33, 33), (49, 40, 5), (1, 40, 40), (49, 40, 1),
        (130, 24, 6), (15, 48, 16), (49, 128, 32), (64, 64, 64), (7, 1200, 2), (3, 4000, 1),
        (5, 1332, 1), (2, 5000, 5),
    ],
)  # fmt: skip
def test_odd_sizes(lib, hw, c, groups, machine, dtype):
    t = draw(3 if hw > 1 else 24, hw, c, dtype)
    if hw * c > groups:
        check(lib, t, groups, machine=machine)
    else:  # one value a group: xhat and dx are 0, and eager's are only rounding
        got = run(lib, t, groups, machine=machine)
        assert (got["dx"] == 0).all()
        assert torch.equal(got["mean"], t["x"][:, 0].float())
        assert torch.allclose(got["rstd"], torch.full_like(got["rstd"], EPS**-0.5))


@pytest.mark.parametrize("hw", [64, 100, 1024, 5])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("machine", [H100, STREAM], ids=["resident", "stream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clusters(lib, hw, cluster, machine, dtype):
    made = plan(lib, 2, hw, 64, 16, dtype, machine=machine, cluster=cluster)
    assert made.cluster == cluster
    assert made.resident == (machine is H100)
    check(lib, draw(2, hw, 64, dtype), 16, machine=machine, cluster=cluster)


@pytest.mark.parametrize("machine", [H100, STREAM], ids=["resident", "stream"])
@pytest.mark.parametrize("mean", [1e3, -1e5, 3e6])
def test_mean_far_above_std(lib, mean, machine):
    t = draw(2, 256, 64, torch.float32, mean=mean)
    got = check(lib, t, 16, machine=machine)
    # Better than eager: only y's rounding is left, as nothing but x - mean cancels.
    exact = eager(t, 16, True, torch.float64)
    assert distance(got["y"], exact["y"]) < 3e-7


@pytest.mark.parametrize("machine", [H100, STREAM], ids=["resident", "stream"])
@pytest.mark.parametrize("outlier", [1e2, 1e4])
def test_outliers_where_statistics_start(lib, outlier, machine):
    t = draw(2, 256, 64, torch.float32)
    t["x"][:, 0] += outlier
    check(lib, t, 16, machine=machine)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(("mean", "std"), EXTREMES)
def test_extreme_statistics(lib, mean, std, dtype):
    ours = [by_host(lib, machine) for machine in (H100, A100, STREAM)]
    group_norm_checks.check([make((2, 24, 6, 6), dtype, mean=mean, std=std)], 4, True, EPS, ours)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("where", OUTLIERS)
def test_outliers(lib, where, dtype):
    """With all pivots far from the mean, on one block and on a cluster of eight."""
    draws = [make_outliers(where, (1, 16, 64, 64), dtype)]
    ours = [by_host(lib, H100, cluster) for cluster in (1, 8)] + [by_host(lib, STREAM)]
    group_norm_checks.check(draws, 2, True, EPS, ours)


def check_sum(lib, t, groups, act=True, **kwargs):
    """Check, by the rule of `check`, the norm of a sum, and of two tensors as one.

    The exact result is of the sum as it is rounded. Each term of a 16-bit addend's gradient is
    rounded twice, when du is kept and, in PyTorch, at the end; these are independent.
    """
    got, first = run(lib, t, groups, act, **kwargs), t["x"].shape[2]
    total, skip = sum_of(t), t["skip"]
    dtype = t["x"].dtype
    if got["sum"] is not None:
        assert torch.equal(got["sum"], total)
    whole = total if skip is None else torch.cat([total.double(), skip.double()], dim=2)
    small = [t[k] for k in ("weight", "bias", "film")]
    exact = exact_of(as_image(whole), *small, as_image(t["dy"]), groups, act, EPS)
    if t["dsum"] is not None:
        exact.values[1][:, :first] += as_image(t["dsum"].double())
    got["dx"] = got["dx"] if skip is None else torch.cat([got["dx"], got["dskip"]], dim=2)
    names = [k for k in NAMES if got[k] is not None]
    bounds = exact.bounds([got[k].dtype for k in names])
    for name, want, bound in zip(names, exact.values, bounds, strict=True):
        found = as_image(got[name]) if name in ("y", "dx") else got[name]
        error = (found.double() - want).norm()
        assert error <= bound, f"{name}: {error:.3g} > {bound:.3g}, the bound of float32"
    if t["addend"] is None:
        return got
    of_pixels = (0, 2, 3) if t["addend"].ndim == 1 else (2, 3)
    want = exact.values[1][:, :first].sum(of_pixels)
    terms = exact.terms[1][:, :first] + exact.values[1][:, :first].abs()
    bound = group_norm_checks.ROUNDINGS * group_norm_checks.ROUNDOFF * terms.sum(of_pixels).norm()
    if dtype.itemsize < 4:
        bound += torch.finfo(dtype).eps * exact.summands[1][:, :first].norm()
    bound += group_norm_checks.last_rounding(want, got["daddend"].dtype)
    error = (got["daddend"].double() - want).norm()
    assert error <= bound, f"daddend: {error:.3g} > {bound:.3g}"
    return got


SUMS = [
    # addend, residual, dsum: after a convolution, an attention, a resampling, without FiLM
    ("one", True, True),
    ("one", False, False),
    ("each", False, False),
    ("each", True, False),
    ("", True, True),
]


@pytest.mark.parametrize("machine", [H100, A100, STREAM], ids=["h100", "a100", "stream"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(("addend", "residual", "dsum"), SUMS)
@pytest.mark.parametrize(
    ("hw", "c", "groups", "first"),
    [(64, 64, 8, 0), (64, 96, 4, 64), (49, 96, 16, 32), (100, 40, 8, 13), (15, 1200, 2, 600)],
)
def test_sums(lib, hw, c, groups, first, addend, residual, dsum, dtype, machine):
    """Groups of whole vectors and others, groups that straddle both tensors, narrow groups."""
    t = draw_sum(2, hw, c, dtype, first, addend, residual, dsum, torch.float32, mean=0.5)
    check_sum(lib, t, groups, machine=machine)


@pytest.mark.parametrize("cluster", [1, 2, 8])
@pytest.mark.parametrize("machine", [H100, STREAM], ids=["resident", "stream"])
@pytest.mark.parametrize("act", [True, False])
def test_sums_of_clusters(lib, cluster, machine, act):
    for dtype in (torch.float32, torch.bfloat16):
        t = draw_sum(2, 100, 64, dtype, 32, film=False)
        check_sum(lib, t, 16, act, machine=machine, cluster=cluster)


@pytest.mark.parametrize("machine", [H100, STREAM], ids=["resident", "stream"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_slab_after_slab(lib, machine, dtype):
    """Blocks that take many slabs each, from several images, have the bits of one slab a block."""
    few = {**machine, "sms": 1}
    for t, groups in [(draw_sum(3, 512, 96, dtype, 64), 16), (draw(3, 512, 96, dtype), 32)]:
        made = plan(lib, 3, 512, 96, groups, dtype, machine=few)
        assert made.grid // made.cluster < made.total
        assert made.slab == plan(lib, 3, 512, 96, groups, dtype, machine=machine).slab
        for cluster in (1, 2):
            once = run(lib, t, groups, machine=machine, cluster=cluster)
            many = run(lib, t, groups, machine=few, cluster=cluster)
            assert same(many, once)
            assert same(many, run(lib, t, groups, machine=few, cluster=cluster, order=1))


@pytest.mark.parametrize(("c", "groups", "first"), [(256, 32, 0), (512, 32, 256), (768, 32, 384)])
@pytest.mark.parametrize("hw", [1024, 256, 64])
def test_sums_of_the_census(lib, hw, c, groups, first):
    t = draw_sum(1, hw, c, torch.bfloat16, first, film=hw == 256)
    check_sum(lib, t, groups, machine=H100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("film", "act"), [(True, True), (False, False)])
def test_float32_parameters(lib, dtype, film, act):
    check(lib, draw(2, 64, 64, dtype, torch.float32, film), 16, act)
    t = draw(2, 64, 64, dtype, torch.float32)
    t["film"] = t["film"].to(dtype)
    check(lib, t, 16, act)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("offset", [1, 3])
def test_unaligned(lib, dtype, offset):
    check(lib, draw(2, 49, 48, dtype), 6, offset=offset)


@pytest.mark.parametrize("machine", [H100, A100, STREAM], ids=["h100", "a100", "stream"])
@pytest.mark.parametrize(("c", "groups"), [(64, 16), (40, 5), (12, 12), (1200, 2)])
def test_bits_do_not_depend_on_order(lib, c, groups, machine):
    """Running threads forward and backward would show a race; so would memory left unset."""
    for dtype in (torch.float32, torch.bfloat16):
        t = draw(2, 100, c, dtype)
        first = run(lib, t, groups, machine=machine)
        assert same(first, run(lib, t, groups, machine=machine))
        assert same(first, run(lib, t, groups, machine=machine, order=1))
        # An image's bits do not depend on its batch, if both batches are cut up alike.
        alone = {k: v[1:] if v is not None and v.shape[0] == 2 else v for k, v in t.items()}
        if machine is not H100:
            one = run(lib, alone, groups, machine=machine)
            assert torch.equal(one["y"][0], first["y"][1])
            assert torch.equal(one["dx"][0], first["dx"][1])


@pytest.mark.parametrize("machine", [H100, STREAM], ids=["resident", "stream"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pixel", [0, 77])
def test_not_finite_stays_in_its_group(lib, bad, pixel, machine):
    for c, groups in [(64, 16), (64, 4)]:
        t = draw(2, 100, c, torch.float32)
        per_group = c // groups
        clean = run(lib, t, groups, machine=machine)
        t["x"][1, pixel, 3 * per_group] = bad
        got = run(lib, t, groups, machine=machine)
        hit = torch.zeros(2, groups, dtype=torch.bool)
        hit[1, 3] = True
        assert torch.equal(got["rstd"].isnan(), hit)
        hit = hit.repeat_interleave(per_group, 1)[:, None].expand_as(got["y"])
        for name in ("y", "dx"):
            assert torch.equal(got[name].isnan(), hit)
            assert torch.equal(got[name][~hit], clean[name][~hit])
        assert got["dweight"].isnan().sum() == got["dbias"].isnan().sum() == per_group


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_extreme_values_of_u(lib, dtype):
    t = draw(1, 64, 64, dtype)
    t["weight"] *= 300
    got = check(lib, t, 8)
    assert got["y"].isfinite().all()
    assert got["dx"].isfinite().all()


def test_empty_batch(lib):
    got = run(lib, draw(0, 16, 64, torch.bfloat16), 16)
    assert (got["dweight"] == 0).all()
    assert (got["dbias"] == 0).all()


@pytest.mark.parametrize(
    ("hw", "c", "backward", "dtype", "want"),
    [
        # slab, cluster, threads, blocks, slabs, resident, elements an access; batch 128 on an H100
        (1024, 256, False, torch.bfloat16, (32, 1, 128, 396, 1024, True, 8)),
        (1024, 512, False, torch.bfloat16, (32, 1, 128, 396, 2048, True, 8)),
        (1024, 256, True, torch.bfloat16, (32, 2, 128, 396, 1024, True, 8)),
        (1024, 256, True, torch.float32, (16, 2, 128, 396, 2048, True, 4)),
        (256, 256, False, torch.bfloat16, (32, 1, 128, 528, 1024, True, 8)),
        (64, 256, False, torch.bfloat16, (64, 1, 128, 512, 512, True, 8)),
        (16384, 256, False, torch.bfloat16, (16, 8, 128, 392, 2048, True, 8)),
        (65536, 256, False, torch.bfloat16, (32, 8, 128, 392, 1024, False, 8)),
        (1024, 257, False, torch.bfloat16, None),
    ],
)
def test_plan(lib, hw, c, backward, dtype, want):
    if want is None:
        assert plan(lib, 128, hw, c, 1, dtype).vector == 1
        return
    p = plan(lib, 128, hw, c, 32, dtype, backward)
    got = (p.slab, p.cluster, p.threads, p.grid, p.total, p.resident, p.vector)
    assert got == want
    if hw == 1024:
        assert p.shared_bytes < (75 if not backward else 113) * 1024  # 3 or 2 blocks on an SM
    assert not plan(lib, 128, hw, c, 32, dtype, backward, aligned=False).resident


def test_plan_of_every_size_fits(lib):
    for c, groups in [(32, 32), (64, 4), (96, 32), (256, 32), (1280, 32), (33, 11), (5000, 1)]:
        for hw in (1, 7, 64, 1000, 4096, 65536, 1 << 22):
            for machine in (H100, A100, STREAM):
                for dtype in DTYPES:
                    for backward in (False, True):
                        p = plan(lib, 3, hw, c, groups, dtype, backward, machine=machine)
                        roof = machine["shared_limit"] if p.resident else 64 * 1024
                        assert p.shared_bytes <= roof
                        assert p.cluster in ((1, 2, 4, 8) if machine["clusters"] else (1,))
                        assert p.threads <= 128
                        assert p.threads % 32 == c % p.slab == p.slab % (c // groups) == 0
                        assert p.total == 3 * (c // p.slab)
                        assert p.grid % p.cluster == 0 < p.grid <= p.total * p.cluster


def test_refusals(lib):
    with pytest.raises(RuntimeError, match="groups must divide"):
        plan(lib, 1, 64, 30, 4)
    with pytest.raises(RuntimeError, match="float64 runs on the CPU only"):
        plan(lib, 1, 64, 32, 4, torch.float64)
