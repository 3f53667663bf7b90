"""Which kernels one whole update launches: each op once, the optimizer twice."""

import dataclasses

import pytest
import torch
from kernel_checks import DEVICE

from pdfast.data import Dataset
from pdfast.distillation import Rollout
from pdfast.engine import Batch, Optimizer, update
from pdfast.model import Model
from pdfast.training import DataObjective

OPTIMIZER = ["sum_of_squares_kernel", "adamw_kernel"]


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
    for k in range(2):
        update(student, objective, optimizer, dataclasses.replace(batch, update=k), k)
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
    update(model, DataObjective("snr_trunc"), optimizer, batch, 0)
    assert launched == ["add_noise_kernel", "distill_loss_kernel", *OPTIMIZER]


def test_a_float64_model_launches_nothing(tiny, model, batch, launched):
    model.double()
    optimizer = Optimizer(model, tiny.train)
    batch = dataclasses.replace(batch, dtype=torch.float64)
    loss, norm = update(model, DataObjective("snr_trunc"), optimizer, batch, 0)
    assert loss.dtype == norm.dtype == torch.float64
    assert launched == []
