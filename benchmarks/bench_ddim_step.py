"""ddim_step: from the teacher's output at z_t to z_mid and the network's next input."""

import pytest
import torch
from harness import BATCHES, COPY, NET

from pdfast.kernels.ddim_step import ddim_step, ddim_step_reference

CASES = BATCHES


@pytest.mark.parametrize("who", ["pdfast", "eager", "torch.compile", COPY])
def test_ddim_step(case, who, measure, device):
    """Time a step of the v parameterization."""
    n, c, s = case
    z = torch.randn(n, c, s, s, device=device).contiguous(memory_format=torch.channels_last)
    out = torch.randn_like(z).to(NET)
    phi = torch.linspace(0.1, 1.5, n, device=device, dtype=torch.float64)
    phi_next = phi - 0.05
    size = NET.itemsize
    moved = z.numel() * (4 + size + 4 + (size if torch.float32 != NET else 0))

    def eager():
        z_next = ddim_step_reference(z, out.float(), phi, phi_next, "v")
        return z_next, z_next.to(NET)

    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    functions = {
        "pdfast": lambda: ddim_step(z, out, phi, phi_next, "v", NET),
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        COPY: lambda: target.copy_(source),
    }
    measure(functions[who], op="ddim_step", shape=case, who=who, moved=moved)
