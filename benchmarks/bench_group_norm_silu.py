"""group_norm_silu at the shapes of the paper's CIFAR-10 network; small ones on a CPU."""

from typing import NamedTuple

import pytest
import torch
from harness import COPY

from pdfast.kernels.group_norm_silu import eager, group_norm_silu
from pdfast.models import backends

ON_GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


class Case(NamedTuple):
    """Sizes and options of one norm."""

    n: int
    channels: int
    size: int
    groups: int = 32
    film: bool = False
    silu: bool = True

    def __str__(self) -> str:
        options = "+FiLM" * self.film + "+SiLU" * self.silu
        return f"{self.n}x{self.channels}x{self.size}x{self.size} {options}".strip()


GPU_CASES = [
    Case(128, 512, 32),
    Case(128, 256, 32),
    Case(128, 256, 32, film=True),
    Case(128, 512, 16),
    Case(128, 256, 16),
    Case(128, 256, 16, film=True),
    Case(128, 256, 16, silu=False),
    Case(128, 512, 8),
    Case(128, 256, 8),
    Case(128, 256, 8, film=True),
    Case(128, 256, 8, silu=False),
]
CPU_CASES = [
    Case(8, 256, 32, film=True),
    Case(8, 256, 32),
    Case(8, 512, 16),
    Case(8, 256, 16, silu=False),
    Case(128, 32, 8, groups=8, film=True),
    Case(128, 32, 8, groups=8),
    Case(64, 64, 4, groups=8, film=True),
]
CASES = GPU_CASES if ON_GPU else CPU_CASES
WHO = ("pdfast", "eager", "torch.compile", "apex", COPY)
PASSES = {"forward": 2, "forward+backward": 5}  # tensors of x's size that must be moved


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("passes", PASSES)
def test_group_norm_silu(case, passes, who, measure, device):
    """Time one norm; eager is channels-last too."""
    absent = backends.why_not("group_norm") if who == "apex" else ""
    c = case.channels
    x = torch.randn(case.n, c, case.size, case.size, device=device, dtype=DTYPE)
    x = x.contiguous(memory_format=torch.channels_last)
    dy, moved = torch.randn_like(x), PASSES[passes] * x.numel() * x.element_size()
    weight, bias = torch.randn(2, c, device=device, dtype=DTYPE)
    film = torch.randn(case.n, 2 * c, device=device, dtype=DTYPE) if case.film else None
    options = {"groups": case.groups, "eps": 1e-6, "silu": case.silu}
    function = {
        "pdfast": group_norm_silu,
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        "apex": backends.apex_group_norm_silu,
    }.get(who)
    leaves = [t for t in (x, weight, bias, film) if t is not None]

    def forward() -> object:
        with torch.no_grad():
            return function(x, weight, bias, film, **options)

    def both() -> object:
        y = function(x, weight, bias, film, **options)
        return torch.autograd.grad(y, leaves, dy)

    run = run_of(who, passes, forward, both, leaves, moved, device)
    measure(run, op=f"group_norm_silu {passes}", shape=case, who=who, moved=moved, absent=absent)


def run_of(who, passes, forward, both, leaves, moved, device):
    """Return the function to time: a pass, or a copy that moves as many bytes."""
    if who == COPY:
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device).random_()
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    if passes == "forward":
        return forward
    for leaf in leaves:
        leaf.requires_grad_()
    return both
