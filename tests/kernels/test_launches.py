"""Kernels of one update: each op launches once, the optimizer twice, every norm in csrc.

A block that resamples launches pooling or doubling twice, and twice again in the backward.
"""

import dataclasses

import pytest
import torch
from kernel_checks import DEVICE
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.data.dataset import Dataset
from pdfast.distillation.objectives import DataObjective, Rollout
from pdfast.models.blocks import GroupNormSiLU, ResBlock
from pdfast.models.model import Model
from pdfast.training.batch import open_batch
from pdfast.training.optimizer import Optimizer
from pdfast.training.update import update

OPTIMIZER = ["sum_of_squares_kernel", "adamw_kernel"]


class Norms(TorchDispatchMode):
    """Counts the compiled op's forward and backward calls."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.forward += func is torch.ops.pdfast.group_norm_silu.default
        self.backward += func is torch.ops.pdfast.group_norm_silu_backward.default
        return func(*args, **(kwargs or {}))


def as_on_a_gpu(cfg):
    """Return a model that leaves sums to their readers and resamples by pdfast's kernels."""
    model = Model(cfg).to(DEVICE)
    model.net.defer = True
    return model


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return as_on_a_gpu(tiny.model)


def batch_of(tiny, model, optimizer):
    pixels = torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8)
    data = Dataset(pixels, None).to(DEVICE)
    return open_batch(tiny, tiny.train, data, model, 1, optimizer.done)[0]


def resampling(model):
    """Return the launches of one pass, forward or backward."""
    blocks = [m for m in model.modules() if isinstance(m, ResBlock) and m.resample != "none"]
    assert {block.resample for block in blocks} == {"down", "up"}
    return ["resample_kernel"] * 2 * len(blocks)


def test_distillation(tiny, model, launched):
    student = as_on_a_gpu(tiny.model)
    optimizer = Optimizer(student, tiny.distill)
    objective = Rollout(model, 4, "snr_trunc")
    batch = batch_of(tiny, student, optimizer)
    launched.clear()
    layers = sum(isinstance(m, GroupNormSiLU) for m in student.modules())
    resampled = resampling(model)
    for _ in range(2):
        with Norms() as norms:
            update(student, objective, optimizer, batch)
        assert (norms.forward, norms.backward) == (3 * layers, layers)  # two of the teacher's
        assert launched == [
            "add_noise_kernel",
            *resampled,  # the teacher
            "ddim_step_kernel",
            *resampled,  # the teacher again
            *resampled,
            "distill_loss_kernel",
            *resampled,
            *OPTIMIZER,
        ]
        launched.clear()


def test_training(tiny, model, launched):
    optimizer = Optimizer(model, tiny.train)
    batch = batch_of(tiny, model, optimizer)
    launched.clear()
    layers = sum(isinstance(m, GroupNormSiLU) for m in model.modules())
    with Norms() as norms:
        update(model, DataObjective("snr_trunc"), optimizer, batch)
    assert (norms.forward, norms.backward) == (layers, layers)
    resampled = resampling(model)
    both = "distill_loss_kernel", *resampled
    assert launched == ["add_noise_kernel", *resampled, *both, *OPTIMIZER]


def test_training_with_dropout(tiny, launched):
    """Two launches for each residual block: the backward draws the mask again."""
    cfg = dataclasses.replace(tiny.model, dropout=0.25)
    model = as_on_a_gpu(cfg).train()
    with torch.no_grad():  # the last layers start at zero, and so do their inputs' gradients
        for p in model.parameters():
            p.add_(0.01)
    optimizer = Optimizer(model, tiny.train)
    batch = batch_of(tiny, model, optimizer)
    launched.clear()
    blocks = sum(isinstance(m, ResBlock) for m in model.modules())
    update(model, DataObjective("snr_trunc"), optimizer, batch)
    masks = ["dropout_kernel"] * blocks
    others = [name for name in launched if name != "resample_kernel"]
    assert others == ["add_noise_kernel", *masks, "distill_loss_kernel", *masks, *OPTIMIZER]
    assert len(launched) - len(others) == 2 * len(resampling(model))


def test_a_float64_model_launches_nothing(tiny, model, launched):
    model.double()
    model.net.defer = None
    optimizer = Optimizer(model, tiny.train)
    batch = batch_of(tiny, model, optimizer)
    loss, norm = update(model, DataObjective("snr_trunc"), optimizer, batch)
    assert loss.dtype == norm.dtype == torch.float64
    assert launched == []
