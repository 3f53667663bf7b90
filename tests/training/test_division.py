"""Divisions by a number: on CUDA, PyTorch rounds twice unless the number is on the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.diffusion import wrappers
from pdfast.diffusion.samplers import sample
from pdfast.diffusion.schedules import CosineSchedule, TableSchedule
from pdfast.kernels.add_noise import NoiseOptions, add_noise_reference
from pdfast.kernels.angles import divide

aten = torch.ops.aten
TABLE = TableSchedule(torch.linspace(12, -12, 1003, dtype=torch.float64))
SCHEDULES = [TABLE, wrappers.LinearVP(), wrappers.EDM(), wrappers.FlowMatching()]


class DividesAsCuda(TorchDispatchMode):
    """Divide by a number as PyTorch's CUDA kernel does: multiply with its reciprocal."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.div.Tensor and not isinstance(args[1], torch.Tensor):
            return func(args[0], torch.full((), 1.0, dtype=args[0].dtype)) * (1.0 / args[1])
        return func(*args, **(kwargs or {}))


def exact(count, number):
    """Return k / number for k = 0 .. count - 1, each rounded once."""
    return torch.tensor([k / number for k in range(count)], dtype=torch.float64)


def test_only_divide_rounds_once_on_cuda():
    a = torch.arange(100, dtype=torch.float64)
    with DividesAsCuda():
        assert not torch.equal(a / 49, exact(100, 49))
        assert torch.equal(divide(a, 49), exact(100, 49))


@pytest.mark.parametrize("first", range(1, 257, 64))
def test_add_noise_has_one_value_on_every_device(first):
    """For every N; the kernel's own division is compared in tests/kernels/test_add_noise.py."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    update = torch.tensor([5])
    for num_steps in range(first, first + 64):
        options = NoiseOptions(seed=0, round_=1, num=16, num_steps=num_steps, parameterization="v")
        args = pixels, (1.57, 4.5e-5), update, options
        expected = add_noise_reference(*args, dtype=torch.float32)
        with DividesAsCuda():
            found = add_noise_reference(*args, dtype=torch.float32)
        for a, b in zip(expected, found, strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_times_of_a_grid_are_exact_fractions(schedule, monkeypatch):
    monkeypatch.setattr(type(schedule), "phi", lambda self, u: u)
    for num_steps in (*range(1, 60), 1000):
        with DividesAsCuda():
            u = schedule.grid(num_steps, torch.device("cpu"))
        assert torch.equal(u, exact(2 * num_steps + 1, 2 * num_steps))


def test_the_sampler_visits_exact_fractions():
    visited = []

    class Fake:
        """A model that predicts zeros; its schedule records the times that it receives."""

        def predict_x_at_angle(self, z, phi, conditioning):
            return torch.zeros_like(z)

    fake = Fake()
    fake.schedule = type("Noting", (), {"most_steps": 8192})()
    fake.schedule.phi = lambda u: visited.append(u) or CosineSchedule().phi(u)
    for num_steps in (3, 49, 103):
        with DividesAsCuda():
            sample(fake, torch.zeros(1, 1, 2, 2), num_steps)
        assert torch.equal(visited.pop(), exact(num_steps + 1, num_steps))
