"""group_norm_silu of a residual sum at shapes of the paper's CIFAR-10 network; small on a CPU."""

import functools

import pytest
import torch
from bench_group_norm_silu import DTYPE, ON_GPU, Case, run_of
from harness import COPY

from pdfast.kernels.group_norm_reference import composed
from pdfast.kernels.group_norm_silu import eager, sum_group_norm_silu

GPU_CASES = [Case(128, 256, 32), Case(128, 256, 16), Case(128, 256, 8)]
CASES = GPU_CASES if ON_GPU else [Case(8, 256, 32), Case(128, 32, 8, groups=8)]
# Tensors of x's size to move: x, residual, sum, y; and dy, sum, the sum's own gradient, dx.
PASSES = {"forward": 4, "forward+backward": 8}


@pytest.mark.parametrize("who", ["pdfast", "eager", COPY])
@pytest.mark.parametrize("passes", PASSES)
def test_residual_sum(case, passes, who, measure, device):
    """Time the norm of a residual sum that is written out, and has another gradient of its own."""
    c = case.channels
    x = torch.randn(case.n, c, case.size, case.size, device=device, dtype=DTYPE)
    x = x.contiguous(memory_format=torch.channels_last)
    residual, dy, dsum = (torch.randn_like(x) for _ in range(3))
    moved = PASSES[passes] * x.numel() * x.element_size()
    weight, bias, addend = torch.randn(3, c, device=device, dtype=DTYPE)
    options = {"groups": case.groups, "eps": 1e-6, "silu": case.silu, "keep_sum": True}
    separate = functools.partial(composed, eager)
    function = sum_group_norm_silu if who == "pdfast" else separate
    leaves = [x, residual, addend, weight, bias]

    def both() -> object:
        found = function(x, weight, bias, addend=addend, residual=residual, **options)
        return torch.autograd.grad(found, leaves, (dy, dsum))

    def forward() -> object:
        with torch.no_grad():
            return function(x, weight, bias, addend=addend, residual=residual, **options)

    run = run_of(who, passes, forward, both, leaves, moved, device)
    measure(run, op=f"residual sum, {passes}", shape=case, who=who, moved=moved, absent="")
