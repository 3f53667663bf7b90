"""Sampling: batches of a config's network as `pdfast sample` draws them, against a plain loop.

The plain loop samples one batch after the other, on all of PyTorch's threads, and calls the network
at each step. pdfast samples several batches at once on a CPU, and replays the call as a CUDA graph
on a GPU. The network is that of "digits" in 8 steps on a CPU, and that of "cifar10" in 64 steps on
a GPU.
"""

import contextlib
from dataclasses import dataclass

import pytest
import torch

from pdfast.config.schema import load_config
from pdfast.diffusion.samplers import Denoiser
from pdfast.models.lanes import Lanes
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.training.precision import cast_to_precision

PDFAST, PLAIN = "pdfast", "eager"


@dataclass(frozen=True)
class Case:
    """A config's network, the number of sampling steps, and the number of images."""

    config: str
    steps: int
    num: int

    def __str__(self) -> str:
        """Return the case's name in the table."""
        return f"{self.config}, {self.steps} steps, {self.num} images"


CASES = [Case("cifar10", 64, 4 * SAMPLE_BATCH), Case("cifar10", 4, 16 * SAMPLE_BATCH)]
if not torch.cuda.is_available():
    CASES = [Case("digits", 8, 16 * SAMPLE_BATCH)]


class Plain(Model):
    """A model that samples without lanes, and without a CUDA graph."""

    def lanes(self, batches: int) -> Lanes:
        """Return lanes without threads."""
        return Lanes(0)

    def denoiser(self, calls: int) -> contextlib.AbstractContextManager[Denoiser]:
        """Return the model itself."""
        return contextlib.nullcontext(self)


@pytest.mark.parametrize("who", [PDFAST, PLAIN])
def test_sampling(case, who, measure_images, device, request):
    """Draw the images of a case; with --quick two batches in one step."""
    quick = request.config.getoption("--quick")
    num, steps = (2 * SAMPLE_BATCH, 1) if quick else (case.num, case.steps)
    kind = Model if who == PDFAST else Plain
    model = kind(load_config(case.config).model).to(device)
    if device.type == "cuda":
        model = cast_to_precision(model, "bf16")
    measure_images(
        lambda: model.sample_images(num, steps), op="sampling", shape=str(case), who=who, num=num
    )
