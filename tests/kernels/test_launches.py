"""Which kernels one update launches: each op once, the optimizer two, every norm in csrc."""

import dataclasses

import pytest
import torch
from kernel_checks import DEVICE
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.data import Dataset
from pdfast.distillation import Rollout
from pdfast.engine import Batch, Optimizer, update
from pdfast.model import Model
from pdfast.training import DataObjective
from pdfast.unet import GroupNormSiLU

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


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return Model(tiny.model).to(DEVICE)


@pytest.fixture
def batch(model):
    pixels = torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8)
    return Batch(Dataset(pixels, None).to(DEVICE), 4, 0, 1, False, model.dtype)


def test_distillation(tiny, model, batch, launched):
    student = Model(tiny.model).to(DEVICE)
    optimizer = Optimizer(student, tiny.distill)
    objective = Rollout(model, 4, "snr_trunc")
    launched.clear()
    layers = sum(isinstance(m, GroupNormSiLU) for m in student.modules())
    for k in range(2):
        with Norms() as norms:
            update(student, objective, optimizer, dataclasses.replace(batch, update=k), k)
        assert (norms.forward, norms.backward) == (3 * layers, layers)  # two of the teacher's
        assert launched == [
            "add_noise_kernel",
            "ddim_step_kernel",
            "distill_loss_kernel",
            *OPTIMIZER,
        ]
        launched.clear()


def test_training(tiny, model, batch, launched):
    optimizer = Optimizer(model, tiny.train)
    launched.clear()
    layers = sum(isinstance(m, GroupNormSiLU) for m in model.modules())
    with Norms() as norms:
        update(model, DataObjective("snr_trunc"), optimizer, batch, 0)
    assert (norms.forward, norms.backward) == (layers, layers)
    assert launched == ["add_noise_kernel", "distill_loss_kernel", *OPTIMIZER]


def test_a_float64_model_launches_nothing(tiny, model, batch, launched):
    model.double()
    optimizer = Optimizer(model, tiny.train)
    batch = dataclasses.replace(batch, dtype=torch.float64)
    loss, norm = update(model, DataObjective("snr_trunc"), optimizer, batch, 0)
    assert loss.dtype == norm.dtype == torch.float64
    assert launched == []
