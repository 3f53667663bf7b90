"""dropout of activations at the shapes of the paper's CIFAR-10 network; small ones on a CPU."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from harness import COPY, NET, ON_GPU, Case

from pdfast.kernels.dropout import dropout

GPU_CASES = [Case(128, 256, 32), Case(128, 256, 16), Case(128, 256, 8)]
CASES = GPU_CASES if ON_GPU else [Case(8, 256, 32), Case(64, 32, 8)]
PASSES = {"forward": 2, "forward+backward": 4}  # tensors of x's size that must be moved


@pytest.mark.parametrize("who", ["pdfast", "eager", "torch.compile", COPY])
@pytest.mark.parametrize("passes", PASSES)
def test_dropout(case, passes, who, measure, device):
    """Time a pass; the others draw other masks, by torch's generator, with the same work."""
    n, c, s = case
    x = torch.randn(n, c, s, s, device=device, dtype=NET).contiguous(
        memory_format=torch.channels_last
    )
    dy, update = torch.randn_like(x), torch.zeros(1, dtype=torch.int64, device=device)
    moved = PASSES[passes] * x.numel() * NET.itemsize

    def pdfast(x):
        return dropout(x, 0.2, seed=0, round_=0, update=update, layer=3)

    def eager(x):
        return F.dropout(x, 0.2)

    function = {
        "pdfast": pdfast,
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

    measure(run, op=f"dropout, {passes}", shape=case, who=who, moved=moved)
