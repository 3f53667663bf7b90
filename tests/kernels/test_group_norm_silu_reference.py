"""group_norm_silu where nothing is compiled: the reference, forward and backward."""

import pytest
import torch
from group_norm_checks import DTYPES, check, make, outputs

from pdfast.kernels import group_norm_silu as module
from pdfast.kernels.group_norm_silu import group_norm_silu, reference

MEANS = [0.0, 10.0, 100.0, 1000.0, 10000.0]


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(module, "COMPILED_FOR", ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", MEANS)
def test_right_values_far_from_zero(mean, dtype):
    """By the rule of the compiled op, whose bound does not grow with the mean."""
    for film, silu in ((True, True), (False, False)):
        check([make((2, 64, 16, 16), dtype, film, mean)], 8, silu)
    mixed = make((2, 64, 16, 16), dtype, mean=mean, param=torch.float32)
    check([[t.contiguous() for t in mixed]], 8, True)


def test_it_is_differentiated_as_a_whole():
    """The means that it subtracts have no gradient of their own, and need none."""
    x, weight, bias, film, _ = make((2, 12, 5, 3), torch.float64, mean=2.0)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, film)]
    assert torch.autograd.gradcheck(lambda *a: group_norm_silu(*a, groups=4), leaves)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_stay_in_their_group(value, dtype):
    tensors = make((3, 12, 4, 4), dtype)
    clean = outputs(group_norm_silu, *tensors, groups=3)
    tensors[0][1, 5, 2, 2] = value
    dirty = outputs(group_norm_silu, *tensors, groups=3)
    for a, b in zip(clean[:2], dirty[:2], strict=True):
        assert b[1, 4:8].isnan().all()
        b[1, 4:8] = a[1, 4:8]
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_type_and_layout(dtype):
    x, weight, bias, film, _ = make((2, 12, 5, 3), dtype)
    for given in (x, x.contiguous()):
        y = reference(given, weight, bias, film, groups=4)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
