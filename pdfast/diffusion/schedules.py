"""Noise schedules in angles: alpha = cos(phi), sigma = sin(phi), logSNR = -2 ln tan(phi).

A schedule is the angle phi(u) of a time u in (0, 1], 1 being pure noise, and rises with u. N
sampling steps visit u = N/N, ..., 1/N. The published one is the cosine schedule, phi = a u + b
(Salimans & Ho 2022, section 2 and the authors' schedules.py); the others serve networks that
were trained on them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pdfast.config.schema import MAX_STEPS
from pdfast.config.serialization import check
from pdfast.kernels.angles import divide

Grid = tuple[float, float] | Tensor
"""What `add_noise` takes of a schedule: (a, b) of phi = a u + b, or angles at k / 2N."""


def logsnr_of(phi: Tensor) -> Tensor:
    """Angle in radians -> logSNR = -2 ln tan(phi)."""
    return -2.0 * torch.log(torch.tan(phi))


def phi_of(logsnr: Tensor) -> Tensor:
    """logSNR -> angle in radians, float64."""
    return torch.atan(torch.exp(-0.5 * logsnr.double()))


def next_angle(grid: Grid, phi_t: Tensor) -> Tensor | None:
    """Of angles at u = (i + 1) / N, those at i / N; None where steps are equal in angle."""
    if not isinstance(grid, Tensor):
        return None
    return grid[torch.searchsorted(grid, phi_t.contiguous()) - 2]  # phi_t is entry 2i + 2 itself


def fine_grid(schedule: "Schedule", num_steps: int, device: torch.device) -> Grid:
    """The times u = k / `num_steps`, k = 0 .. `num_steps`, of steps that a round merges."""
    if num_steps % 2 == 0:
        return schedule.grid(num_steps // 2, device)
    grid = schedule.grid(num_steps, device)  # k / 2 num_steps
    return grid[::2] if isinstance(grid, Tensor) else grid


class Schedule(Protocol):
    """What samplers, objectives and networks need of a schedule."""

    @property
    def most_steps(self) -> int:
        """Sampling steps beyond which it has nothing to say."""

    def phi(self, u: Tensor) -> Tensor:
        """u in (0, 1], of any shape -> angle in radians, float64."""

    def u(self, logsnr: Tensor) -> Tensor:
        """The inverse: logSNR of any shape -> u, float64."""

    def grid(self, num_steps: int, device: torch.device) -> Grid:
        """The times of a student of N steps, and those half a step earlier; N = 0: all."""

    def describe(self) -> dict[str, Any]:
        """What defines it, for JSON: its `kind`, and numbers."""


@dataclass(frozen=True)
class CosineSchedule:
    """phi = a u + b, from `logsnr_max` at u = 0 to `logsnr_min` at u = 1."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    most_steps: ClassVar[int] = MAX_STEPS

    def __post_init__(self) -> None:
        check(
            -30 <= self.logsnr_min < self.logsnr_max <= 30,
            "CosineSchedule needs logsnr_min below logsnr_max, and both within -30 .. 30",
        )

    @cached_property
    def b(self) -> float:
        """The angle at u = 0."""
        return math.atan(math.exp(-0.5 * self.logsnr_max))

    @cached_property
    def a(self) -> float:
        """How far the angle rises from u = 0 to u = 1."""
        return math.atan(math.exp(-0.5 * self.logsnr_min)) - self.b

    def phi(self, u: Tensor) -> Tensor:
        """u of any shape -> angle in radians, float64."""
        return self.a * u.double() + self.b

    def u(self, logsnr: Tensor) -> Tensor:
        """logSNR of any shape -> u, float64."""
        return (phi_of(logsnr) - self.b) / self.a

    def grid(self, num_steps: int, device: torch.device) -> Grid:
        """(a, b), whatever the number of steps."""
        return self.a, self.b

    def describe(self) -> dict[str, Any]:
        """Its range, and a and b that follow from it."""
        numbers = {"logsnr_min": self.logsnr_min, "logsnr_max": self.logsnr_max}
        return {"kind": "cosine", **numbers, "a": self.a, "b": self.b}


class FormulaSchedule(ABC):
    """A schedule by any formula: subclasses give `phi` and `u`.

    It distils, by a table of the angles that a round visits; a teacher is trained in continuous
    time on the cosine schedule alone.
    """

    @property
    def most_steps(self) -> int:
        """As many as any sampler takes."""
        return MAX_STEPS

    @abstractmethod
    def phi(self, u: Tensor) -> Tensor:
        """u of any shape -> angle in radians, float64."""

    @abstractmethod
    def u(self, logsnr: Tensor) -> Tensor:
        """logSNR of any shape -> u, float64."""

    def grid(self, num_steps: int, device: torch.device) -> Grid:
        """Angles at u = k / 2N for k = 0 .. 2N, float64 (2N + 1,), N being `num_steps`."""
        if not num_steps:
            raise ValueError("this schedule has no continuous time: num_steps must be at least 1")
        k = torch.arange(2 * num_steps + 1, dtype=torch.float64, device=device)
        return self.phi(divide(k, 2 * num_steps))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What defines it, for JSON."""


class TableSchedule(FormulaSchedule):
    """logSNR at T times, interpolated linearly between them.

    Of a teacher that was trained on T timesteps t = 0 .. T-1, which stand for u = (t + 1) / T.
    """

    def __init__(self, logsnr: Tensor) -> None:
        """logsnr (T,), finite and strictly falling, of u = 1/T, 2/T, ... 1. Raises ValueError."""
        logsnr = torch.as_tensor(logsnr, dtype=torch.float64, device="cpu").detach()
        if logsnr.ndim != 1 or len(logsnr) < 2 or not logsnr.isfinite().all():
            raise ValueError("logsnr must be (T,) with T of at least 2, and finite")
        if not (logsnr.diff() < 0).all():
            raise ValueError("logsnr must fall strictly from u = 1/T to u = 1")
        self.logsnr = logsnr
        self._on: dict[torch.device, Tensor] = {}

    @property
    def most_steps(self) -> int:
        """T: more would fall between the times that the network was trained on."""
        return len(self.logsnr)

    def phi(self, u: Tensor) -> Tensor:
        """u of any shape -> angle in radians, float64; below u = 1/T it is that of 1/T."""
        place = (u.double() * len(self.logsnr) - 1).clamp(0, len(self.logsnr) - 1)
        return phi_of(_between(self._table(u.device), place))

    def u(self, logsnr: Tensor) -> Tensor:
        """logSNR of any shape -> u in 1/T .. 1, float64."""
        rising = -self._table(logsnr.device)
        wanted = (-logsnr.double()).contiguous()
        right = torch.searchsorted(rising, wanted).clamp(1, len(rising) - 1)
        low, high = rising[right - 1], rising[right]
        place = right - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
        return divide(place + 1, len(rising))

    def _table(self, device: torch.device) -> Tensor:
        """logsnr on a device, kept there: the capture of a CUDA graph allows no copy to it."""
        if device not in self._on:
            self._on[device] = self.logsnr.to(device)
        return self._on[device]

    def __repr__(self) -> str:
        """Its length, not its numbers."""
        return f"TableSchedule(logsnr of {len(self.logsnr)} timesteps)"

    def describe(self) -> dict[str, Any]:
        """The table."""
        return {"kind": "table", "logsnr": self.logsnr.tolist()}


def _between(values: Tensor, place: Tensor) -> Tensor:
    """The values (T,) at places in 0 .. T - 1, by linear interpolation."""
    left = place.floor().clamp(max=len(values) - 2).long()
    return torch.lerp(values[left], values[left + 1], place - left)
