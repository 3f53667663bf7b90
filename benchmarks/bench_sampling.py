"""Sampling: whole batches of a config's network, as `pdfast sample` runs them, beside a plain loop.

The plain loop samples one batch after the other by all of PyTorch's threads. On a CPU it is the
digits' network in 8 steps; on a GPU the CIFAR-10 network in 64 steps, where both are that loop.
"""

from dataclasses import dataclass

import pytest
import torch
from harness import ROWS

from pdfast.config.schema import load_config
from pdfast.models.lanes import Lanes
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.training.precision import cast_to_precision

PDFAST, PLAIN = "pdfast", "eager"


@dataclass(frozen=True)
class Case:
    """A network and what is sampled of it."""

    config: str
    steps: int
    num: int

    def __str__(self) -> str:
        """As it stands in the table."""
        return f"{self.config}, {self.steps} steps, {self.num} images"


CASES = [Case("cifar10", 64, 2 * SAMPLE_BATCH)]
if not torch.cuda.is_available():
    CASES = [Case("digits", 8, 16 * SAMPLE_BATCH)]


class Plain(Model):
    """The model without lanes."""

    def lanes(self, batches: int) -> Lanes:
        """None."""
        return Lanes(0)


@pytest.mark.parametrize("who", [PDFAST, PLAIN])
def test_sampling(case, who, benchmark, device, request):
    """Medians of a few repeats; images/s are in the row, and beside pytest-benchmark's times."""
    quick = request.config.getoption("--quick")
    num = 2 * SAMPLE_BATCH if quick else case.num
    row = {"op": "sampling", "shape": str(case), "who": who, "seconds": None, "bytes": 0}
    request.config.stash[ROWS].append(row)
    kind = Model if who == PDFAST else Plain
    model = kind(load_config(case.config).model).to(device)
    if device.type == "cuda":
        model = cast_to_precision(model, "bf16")

    def sample() -> None:
        model.sample_images(num, 1 if quick else case.steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    sample()
    benchmark.group = f"sampling {case}"
    benchmark.pedantic(sample, rounds=1 if quick else 5)
    row["seconds"] = benchmark.stats.stats.median
    row["images_per_s"] = benchmark.extra_info["images_per_s"] = num / row["seconds"]
