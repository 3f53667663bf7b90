"""distill_loss: from the networks' outputs to the loss and the student's gradient."""

import pytest
import torch
from harness import BATCHES, COPY, NET

from pdfast.kernels.distill_loss import distill_loss, loss_and_grad, target

CASES = BATCHES


@pytest.mark.parametrize("who", ["pdfast", "eager", "torch.compile", COPY])
def test_distill_loss(case, who, measure, device):
    """Time the v parameterization, with the weight snr_trunc."""
    n, c, s = case
    z_t = torch.randn(n, c, s, s, device=device).contiguous(memory_format=torch.channels_last)
    out_t, out_mid, out = (torch.randn_like(z_t).to(NET) for _ in range(3))
    phi_t = torch.linspace(0.1, 1.5, n, device=device, dtype=torch.float64)
    phi_mid, last = phi_t - 0.05, torch.zeros(n, dtype=torch.bool, device=device)
    moved = z_t.numel() * (4 + 4 * NET.itemsize)

    def eager():
        y = target(z_t, out_t.float(), out_mid.float(), phi_t, phi_mid, last, "v")
        return loss_and_grad(out, y, phi_t, "v", "snr_trunc")

    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    args = (out, z_t, out_t, out_mid, phi_t, phi_mid, last, "v", "snr_trunc")
    functions = {
        "pdfast": lambda: distill_loss(*args),
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        COPY: lambda: copy.copy_(source),
    }
    measure(functions[who], op="distill_loss", shape=case, who=who, moved=moved)
