"""shuffle: the cost of drawing without replacement in add_noise, and of a table of the order."""

import pytest
import torch
from harness import BATCHES, NET

from pdfast.kernels.add_noise import NoiseOptions, add_noise
from pdfast.kernels.philox import Stream, key_of
from pdfast.kernels.shuffle import shuffled

IMAGES = 2000

CASES = BATCHES


@pytest.mark.parametrize("who", ["add_noise, shuffled", "add_noise", "reference", "eager"])
def test_shuffle(case, who, measure, device):
    """reference: only the draws, by PyTorch's ops; eager: the order of an epoch, by randperm."""
    n, c, s = case
    data = torch.randint(0, 256, (IMAGES, s, s, c), dtype=torch.uint8, device=device)
    images, update = data.permute(0, 3, 1, 2), torch.zeros(1, dtype=torch.int64, device=device)
    draws, key = torch.arange(n, device=device), key_of(0, Stream.BATCH, 1)

    def noised(shuffled_by: int):
        options = NoiseOptions(
            seed=0, round_=1, num=n, num_steps=64, net_dtype=NET, shuffled_by=shuffled_by
        )
        return add_noise(images, (1.57, 4.5e-5), update, options)

    functions = {
        "add_noise, shuffled": lambda: noised(n),
        "add_noise": lambda: noised(0),
        "reference": lambda: shuffled(draws, IMAGES, key),
        "eager": lambda: torch.randperm(IMAGES, device=device)[:n],
    }
    measure(functions[who], op="shuffle", shape=case, who=who)
