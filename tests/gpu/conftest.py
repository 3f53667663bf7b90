"""Fixtures of the tests on a GPU."""

import dataclasses
import os

import pytest
from engine_cases import set_of
from gpu_phase import CPU, DEVICE, NET, UPDATES

from pdfast.training import precision

# Set before the first product on the GPU: PyTorch does not read it later.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    """Put failing captures last: after one, PyTorch up to 2.11 can capture nothing."""
    items.sort(key=lambda item: item.name == "test_what_cannot_be_captured")


@pytest.fixture
def deterministic():
    precision.set_precision("fp32", DEVICE, deterministic=True)
    yield
    precision.set_precision("fp32", CPU)


@pytest.fixture
def fast():
    """Torch's settings in a run that does not ask for repeatable bits."""
    precision.set_precision("fp32", DEVICE)
    yield
    precision.set_precision("fp32", CPU)


@pytest.fixture
def small(tiny):
    """Two levels, colour, classes; averages, clipping, mirroring, and a rate that changes."""
    config = dataclasses.replace(tiny, model=NET, save_every=10_000)
    options = {"updates": UPDATES, "grad_clip": 0.05, "ema_decay": 0.9, "weight_decay": 0.01}
    return set_of(set_of(config, "distill", **options), "train", **options, dropout=0.25)
