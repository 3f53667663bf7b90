"""add_noise: a batch from the data set to the network's input."""

import pytest
import torch
from harness import BATCHES, COPY, NET

from pdfast.kernels.add_noise import NoiseOptions, add_noise, add_noise_reference

CASES = BATCHES


@pytest.mark.parametrize("who", ["pdfast", "reference", "eager", "torch.compile", COPY])
def test_add_noise(case, who, measure, device):
    """Time one batch; eager draws other numbers, by torch.randn, with the same work."""
    n, c, s = case
    data = torch.randint(0, 256, (2000, s, s, c), dtype=torch.uint8, device=device)
    images, update = data.permute(0, 3, 1, 2), torch.zeros(1, dtype=torch.int64, device=device)
    a, b, steps = 1.57, 4.5e-5, 64
    options = NoiseOptions(seed=0, round_=1, num=n, num_steps=steps, flip=True, net_dtype=NET)
    moved = n * c * s * s * (1 + 4 + (NET.itemsize if torch.float32 != NET else 0))

    def pdfast():
        return add_noise(images, (a, b), update, options)

    def reference():
        z_t = add_noise_reference(images, (a, b), update, options, dtype=torch.float32)[0]
        return z_t.to(NET)

    def eager():
        index = torch.randint(0, len(images), (n,), device=device)
        x = images[index].float() / 127.5 - 1
        x = torch.where(torch.rand(n, 1, 1, 1, device=device) < 0.5, x.flip(3), x)
        i = torch.randint(0, steps, (n,), device=device)
        phi = (a * (i.double() + 1) / steps + b).float()[:, None, None, None]
        z_t = phi.cos() * x + phi.sin() * torch.randn_like(x)
        return z_t, z_t.to(NET)

    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    functions = {
        "pdfast": pdfast,
        "reference": reference,
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        COPY: lambda: target.copy_(source),
    }
    measure(functions[who], op="add_noise", shape=case, who=who, moved=moved)
