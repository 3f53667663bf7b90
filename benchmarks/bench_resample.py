"""avg_pool2x2 and upsample2x at the shapes of the paper's CIFAR-10 network; small on a CPU."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from harness import COPY, NET, ON_GPU, Case

from pdfast.kernels.resample import avg_pool2x2, upsample2x

# Shapes of the larger tensor.
GPU_CASES = [Case(128, 256, 32), Case(128, 256, 16)]
CASES = GPU_CASES if ON_GPU else [Case(8, 256, 32), Case(64, 32, 8)]
PASSES = {"forward": 1, "forward+backward": 2}
FUNCTIONS = {"avg_pool2x2": avg_pool2x2, "upsample2x": upsample2x}


def eager_pool(x):
    """Average 2x2 pixels by PyTorch."""
    return F.avg_pool2d(x, 2)


def eager_upsample(x):
    """Double height and width by PyTorch."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


@pytest.mark.parametrize("who", ["pdfast", "eager", "torch.compile", COPY])
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_resample(case, name, passes, who, measure, device):
    """Time a pass: it reads one tensor and writes another of a quarter, or four times, its size."""
    n, c, s = case
    large = torch.randn(n, c, s, s, device=device, dtype=NET)
    large = large.contiguous(memory_format=torch.channels_last)
    small = large[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
    x, dy = (large, small) if name == "avg_pool2x2" else (small, large)
    moved = PASSES[passes] * (large.nbytes + small.nbytes)
    eager = eager_pool if name == "avg_pool2x2" else eager_upsample
    function = {
        "pdfast": FUNCTIONS[name],
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
    }.get(who)
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    backward = "backward" in passes
    x.requires_grad_(backward)

    def run():
        if function is None:
            target.copy_(source)
        elif backward:
            torch.autograd.grad(function(x), x, dy)
        else:
            function(x)

    measure(run, op=f"{name}, {passes}", shape=case, who=who, moved=moved)
