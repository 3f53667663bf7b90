"""The compiled CUDA op on a GPU: accuracy, bits, streams, graphs. Skipped without a GPU."""

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
from group_norm_sum_checks import STRADDLED, VARIANTS, Variant, case_of, check_sum, results

from pdfast.kernels import group_norm_silu as module
from pdfast.kernels.group_norm_silu import group_norm_silu, sum_group_norm_silu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(*args, **kwargs):
    return [t if t is None else t.cuda() for t in make(*args, **kwargs)]


def test_it_was_built():
    assert module.HAS_CUDA, module.implementation(torch.device("cuda"))


@pytest.mark.parametrize("n", [2, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "size", "film", "silu"), CENSUS)
def test_census(channels, size, film, silu, dtype, n):
    check([on_gpu((n, channels, size, size), dtype, film)], 32, silu)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((3, 6, 1, 5), 3),
        ((2, 33, 3, 5), 33),
        ((2, 40, 7, 7), 5),
        ((2, 12, 7, 7), 4),
        ((1, 4000, 1, 3), 1),
        ((2, 64, 5, 20), 16),
        ((2, 64, 128, 128), 8),  # read twice: the slab is too large
        ((1, 256, 256, 256), 32),
    ],
    ids=str,
)
def test_odd_sizes(shape, groups, dtype, mixed):
    param = torch.float32 if mixed else dtype
    draws = [on_gpu(shape, dtype, True, 1.0, 1.0, param, seed) for seed in range(4)]
    check(draws, groups, True)


@pytest.mark.parametrize(("mean", "std"), EXTREMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_statistics(mean, std, dtype):
    check([on_gpu((2, 64, 16, 16), dtype, mean=mean, std=std)], 8, True)


@pytest.mark.parametrize("where", OUTLIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outliers(where, dtype):
    check([[t.cuda() for t in make_outliers(where, (1, 16, 64, 64), dtype)]], 2, True)


def test_views_and_other_layouts():
    x, weight, bias, film, _ = on_gpu((4, 64, 8, 8), torch.bfloat16)
    whole = group_norm_silu(x, weight, bias, film, groups=8)
    assert torch.equal(group_norm_silu(x.contiguous(), weight, bias, film, groups=8), whole)
    shifted = torch.empty(x.numel() + 1, device="cuda", dtype=x.dtype)[1:]  # not 16-byte aligned
    view = shifted.view(4, 8, 8, 64).permute(0, 3, 1, 2).copy_(x)
    other = group_norm_silu(view, weight, bias, film, groups=8)
    torch.testing.assert_close(other, whole, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_group(value):
    tensors = on_gpu((3, 32, 4, 4), torch.bfloat16)
    clean = outputs(group_norm_silu, *tensors, groups=4)
    tensors[0][1, 13, 2, 2] = value
    dirty = outputs(group_norm_silu, *tensors, groups=4)
    for a, b in zip(clean[:2], dirty[:2], strict=True):
        assert b[1, 8:16].isnan().all()
        b[1, 8:16] = a[1, 8:16]
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(128, 256, 32, 32), (4, 64, 128, 128), (64, 512, 8, 8)])
def test_same_bits_from_run_to_run(shape):
    tensors = on_gpu(shape, torch.bfloat16)
    first = outputs(group_norm_silu, *tensors, groups=32)
    for _ in range(5):
        again = outputs(group_norm_silu, *tensors, groups=32)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_graph_replays_on_the_capturing_stream():
    tensors = on_gpu((8, 64, 16, 16), torch.bfloat16)
    x, weight, bias, film, _ = tensors
    group_norm_silu(x, weight, bias, film, groups=8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = group_norm_silu(x, weight, bias, film, groups=8)
    x.copy_(on_gpu((8, 64, 16, 16), torch.bfloat16, seed=5)[0])
    graph.replay()
    assert torch.equal(y, group_norm_silu(x, weight, bias, film, groups=8))


def test_no_memory_beyond_outputs_and_statistics():
    x, weight, bias, film, _ = on_gpu((16, 256, 32, 32), torch.bfloat16)
    with torch.no_grad():
        group_norm_silu(x, weight, bias, film, groups=32)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = group_norm_silu(x, weight, bias, film, groups=32)
    statistics = 2 * 16 * 32 * 4
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= y.numel() * y.element_size() + statistics + 2 * 512  # the allocator's rounding


@pytest.mark.parametrize("film", [True, False])
def test_opcheck(film):
    x, weight, bias, modulation, _ = on_gpu((2, 16, 3, 5), torch.float32, film)
    leaves = [t if t is None else t.requires_grad_() for t in (x, weight, bias, modulation)]
    operands = (leaves[0], None, None, None, *leaves[1:], 4, 1e-6, True, False)
    torch.library.opcheck(torch.ops.pdfast.group_norm_silu, operands)


def test_tensors_on_two_devices():
    x, weight, bias, film, _ = on_gpu((2, 16, 3, 5), torch.float32)
    with pytest.raises(ValueError, match="weight is on cpu, but x on cuda:0"):
        group_norm_silu(x, weight.cpu(), bias, film, groups=4)
    with pytest.raises(ValueError, match="film is on cpu, but x on cuda:0"):
        group_norm_silu(x, weight, bias, film.cpu(), groups=4)


def test_float64_takes_the_reference():
    doubles = [t.double() for t in on_gpu((2, 16, 3, 5), torch.float32)[:4]]
    operands = (doubles[0], None, None, None, *doubles[1:], 4, 1e-6, True, False)
    with pytest.raises(TypeError, match="x may be float64 on a CPU only"):
        torch.ops.pdfast.group_norm_silu(*operands)
    same = module.reference(*doubles, groups=4)
    assert torch.equal(group_norm_silu(*doubles, groups=4), same)


def sum_on_gpu(*args, **kwargs):
    case = case_of(*args, **kwargs)
    given = {name: t.cuda() for name, t in case.given.items()}
    return case._replace(
        given=given, dy=case.dy.cuda(), dsum=case.dsum if case.dsum is None else case.dsum.cuda()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [*VARIANTS, *STRADDLED], ids=str)
def test_sums(variant, dtype):
    """Odd sizes, mixed dtypes, groups that straddle x and skip, and a slab that is read twice."""
    for seed, (shape, groups) in enumerate([((3, 24, 5, 4), 4), ((2, 64, 16, 16), 8)]):
        check_sum(variant, sum_on_gpu(variant, shape, dtype, seed=seed), groups)
        kinds = {"param": torch.float32, "addend": torch.float32, "mean": 3.0}
        check_sum(variant, sum_on_gpu(variant, shape, dtype, film=False, **kinds), groups, False)
    check_sum(variant, sum_on_gpu(variant, (2, 64, 96, 96), dtype), 8)


@pytest.mark.parametrize(("channels", "skip", "size"), [(256, 256, 32), (256, 256, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_at_the_paper_s_sizes(channels, skip, size, dtype):
    variant = Variant("channels", residual=True, skip=skip, keep_sum=True)
    check_sum(variant, sum_on_gpu(variant, (2, channels, size, size), dtype), 32)


def test_sums_have_the_same_bits_from_run_to_run():
    variant = Variant("channels", residual=True, skip=64, keep_sum=True)
    case = sum_on_gpu(variant, (16, 64, 16, 16), torch.bfloat16)
    y, s, grads = results(sum_group_norm_silu, variant, case, groups=32)
    for _ in range(5):
        other = results(sum_group_norm_silu, variant, case, groups=32)
        assert torch.equal(y, other[0])
        assert torch.equal(s, other[1])
        assert all(torch.equal(t, other[2][name]) for name, t in grads.items())
