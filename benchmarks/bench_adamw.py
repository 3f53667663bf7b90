"""adamw: clipping, AdamW, averaged weights and their bfloat16 copy."""

import pytest
import torch
from harness import COPY

from pdfast.config.schema import load_config
from pdfast.kernels.adamw import AdamWHyperparameters, adamw
from pdfast.models import backends
from pdfast.models.unet import UNet

CASES = ["cifar10", "digits"] if torch.cuda.is_available() else ["digits"]


@pytest.mark.parametrize("averages", [1, 3])
@pytest.mark.parametrize("who", ["pdfast", "eager", "torch fused", "apex", COPY])
def test_adamw(case, who, averages, measure, device):
    """Time all parameters of a config's network, with averages; eager is AdamW(foreach=True)."""
    absent = backends.why_not("optimizer") if who == "apex" else ""
    with torch.device("meta"):
        shapes = [p.shape for p in UNet(load_config(case).model).parameters()]
    size = -(-sum(s.numel() for s in shapes) // 16) * 16
    moved = size * (4 + 16 + 12 + 8 * averages + 2)
    decays = (0.9999, 0.999, 0.99)[:averages]
    options = AdamWHyperparameters(
        max_norm=1.0, max_skipped=10, weight_decay=0.01, ema_decays=decays
    )
    lr = torch.full((1,), 1e-4, dtype=torch.float64, device=device)
    step = torch.full((1,), 7, dtype=torch.int64, device=device)
    loss, skipped = torch.ones((), device=device), torch.zeros_like(step).repeat(2)

    if who in ("pdfast", "apex"):
        flat = [torch.randn(size, device=device) for _ in range(2)]
        flat += [torch.zeros(size, device=device) for _ in range(2)] + [flat[0].repeat(averages, 1)]
        copy = torch.empty(size, dtype=torch.bfloat16, device=device)
        function = adamw if who == "pdfast" else backends.apex_adamw
        run = lambda: function(*flat, copy, lr, step, loss, skipped, options)  # noqa: E731
    elif who == COPY:
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        run = lambda: target.copy_(source)  # noqa: E731
    else:
        params = [torch.randn(s, device=device).requires_grad_() for s in shapes]
        kept = [[p.detach().clone() for p in params] for _ in decays]
        copies = [p.detach().bfloat16() for p in params]
        for p in params:
            p.grad = torch.randn_like(p)
        kind = {"fused": True} if who == "torch fused" else {"foreach": True}
        on_gpu = {"capturable": True} if device.type == "cuda" else {}
        optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, **kind, **on_gpu)

        def run():
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                for average, decay in zip(kept, decays, strict=True):
                    torch._foreach_lerp_(average, params, 1 - decay)
                torch._foreach_copy_(copies, params)

    name = f"{case}, {size:,} parameters" + (f", {averages} averages" if averages > 1 else "")
    measure(run, op="adamw", shape=name, who=who, moved=moved, absent=absent)
