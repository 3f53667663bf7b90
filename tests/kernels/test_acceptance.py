"""The rules of acceptance reject results that lose digits, and accept the others."""

import pytest
import torch
from group_norm_checks import DTYPES, NAMES, check, exact_of, make, op, outputs, pytorch
from kernel_checks import assert_accepted

SHAPE, GROUPS = (2, 32, 16, 16), 4


def naive(tensors, groups, silu, eps):
    """group_norm_silu with the variance as E[x^2] - E[x]^2, in float32."""

    def function(x, weight, bias, film):
        n, c = x.shape[:2]
        wide = x.float().reshape(n, groups, -1)
        mean = wide.mean(2, keepdim=True)
        variance = wide.square().mean(2, keepdim=True) - mean.square()
        h = (wide - mean) * (variance.clamp(min=0) + eps).rsqrt()
        h = h.view_as(x) * weight.float().view(1, c, 1, 1) + bias.float().view(1, c, 1, 1)
        scale, shift = film.float()[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
        return (torch.nn.functional.silu(h) if silu else h).to(x.dtype)

    return outputs(function, *tensors)


CANCELS = [
    (torch.float32, 100.0),
    (torch.float32, 1000.0),
    (torch.bfloat16, 1000.0),
    (torch.float16, 1000.0),
]


@pytest.mark.parametrize(("dtype", "mean"), CANCELS)
@pytest.mark.parametrize("silu", [True, False])
def test_a_variance_that_cancels_is_rejected(dtype, mean, silu):
    draws = [make(SHAPE, dtype, mean=mean)]
    check(draws, GROUPS, silu)
    with pytest.raises(AssertionError, match=r"^y: "):
        check(draws, GROUPS, silu, ours=[naive])


@pytest.mark.parametrize(("dtype", "mean"), CANCELS)
@pytest.mark.parametrize("name", ["dx", "dweight", "dfilm"])
def test_so_is_each_gradient_that_depends_on_it(name, dtype, mean):
    """Not dbias: the variance enters it only by SiLU's slope, too little for a 16-bit dtype."""
    at = NAMES.index(name)

    def one_wrong(tensors, **options):
        found = op(tensors, **options)
        found[at] = naive(tensors, **options)[at]
        return found

    with pytest.raises(AssertionError, match=f"^{name}: "):
        check([make(SHAPE, dtype, mean=mean)], GROUPS, True, ours=[one_wrong])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_nothing_cancels_it_is_accepted(dtype):
    check([make(SHAPE, dtype)], GROUPS, True, ours=[naive])


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_the_formulas_are_those_of_autograd(silu, film):
    tensors = make((3, 24, 5, 7), torch.float64, film, mean=2.0)
    options = {"groups": 4, "silu": silu, "eps": 1e-6}
    expected, exact = outputs(pytorch, *tensors, **options), exact_of(*tensors, **options)
    for name, a, b in zip(NAMES, exact.values, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_a_peer_that_lost_its_digits_allows_no_more():
    """By the rule of the Triton kernels."""
    exact = torch.linspace(1, 2, 1000, dtype=torch.float64)
    peer = (exact * (1 + 1e-3)).float()
    assert_accepted(exact.float(), peer, exact)
    with pytest.raises(AssertionError, match="is above the allowed 5"):
        assert_accepted((exact * (1 - 1e-5)).float(), peer, exact)
