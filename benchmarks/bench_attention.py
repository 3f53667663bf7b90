"""Attention at the shapes of the paper's CIFAR-10 network: PyTorch's, used by pdfast; xformers'."""

from typing import NamedTuple

import pytest
import torch
from harness import COPY

from pdfast.models import backends

ON_GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


class Case(NamedTuple):
    """Images, tokens, and width of the one head."""

    n: int
    tokens: int
    width: int = 256

    def __str__(self) -> str:
        return f"{self.n}x{self.tokens}x{self.width}"


CASES = [Case(128, 256), Case(128, 64)] if ON_GPU else [Case(8, 256), Case(8, 64)]


@pytest.mark.parametrize("who", ["pdfast", "xformers", COPY])
def test_attention(case, who, measure, device):
    """Time the forward pass of one head."""
    absent = backends.why_not("attention") if who == "xformers" else ""
    absent = absent or ("xformers needs a GPU" if who == "xformers" and not ON_GPU else "")
    q, k, v = torch.randn(3, case.n, 1, case.tokens, case.width, device=device, dtype=DTYPE)
    moved = 4 * q.numel() * q.element_size()
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    functions = {
        "pdfast": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        "xformers": lambda: backends.xformers_attention(q, k, v),
        COPY: lambda: target.copy_(source),
    }
    measure(functions[who], op="attention", shape=case, who=who, moved=moved, absent=absent)
