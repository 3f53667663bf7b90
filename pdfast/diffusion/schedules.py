"""Noise schedules in angles: alpha = cos(phi), sigma = sin(phi), logSNR = -2 ln tan(phi).

A schedule is an angle phi(u) that rises with the time u in (0, 1]; u = 1 is pure noise. N sampling
steps visit u = N/N, ..., 1/N. The published one is the cosine schedule, phi = a u + b (Salimans &
Ho 2022, section 2 and the authors' schedules.py); the others are for networks trained on them.
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
"""Angles in the form `add_noise` takes: (a, b) of phi = a u + b, or a table at u = k / 2N."""


def logsnr_of(phi: Tensor) -> Tensor:
    """Return logSNR = -2 ln tan(phi) of angles in radians."""
    return -2.0 * torch.log(torch.tan(phi))


def phi_of(logsnr: Tensor) -> Tensor:
    """Return phi = arctan(exp(-logSNR / 2)) in radians, float64."""
    return torch.atan(torch.exp(-0.5 * logsnr.double()))


def next_angle(grid: Grid, phi_t: Tensor) -> Tensor | None:
    """Return the angles one sampling step below `phi_t`.

    Args:
        grid: The grid of a student of N steps, from `Schedule.grid`.
        phi_t: Angles at u = (i + 1) / N, entries of the grid, float64 (B,).

    Returns:
        Angles at u = i / N, float64 (B,); None if `grid` is (a, b), where all steps are equal.
    """
    if not isinstance(grid, Tensor):
        return None
    return grid[torch.searchsorted(grid, phi_t.contiguous()) - 2]  # phi_t is entry 2i + 2 itself


def fine_grid(schedule: "Schedule", num_steps: int, device: torch.device) -> Grid:
    """Return the grid of the teacher's steps that a round merges.

    Args:
        schedule: The noise schedule.
        num_steps: The teacher's number of steps.
        device: Where a table of angles is made.

    Returns:
        Angles at u = k / num_steps for k = 0 .. num_steps, or (a, b) of the cosine schedule.
    """
    if num_steps % 2 == 0:
        return schedule.grid(num_steps // 2, device)
    grid = schedule.grid(num_steps, device)  # k / 2 num_steps
    return grid[::2] if isinstance(grid, Tensor) else grid


class Schedule(Protocol):
    """The interface of noise schedules."""

    @property
    def most_steps(self) -> int:
        """Largest number of sampling steps that the schedule supports."""

    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u in (0, 1], of any shape: radians, float64."""

    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u, float64, at logSNR of any shape: the inverse of `phi`."""

    def grid(self, num_steps: int, device: torch.device) -> Grid:
        """Return the angles of a student's N steps and of the times halfway between them.

        Args:
            num_steps: N, or 0 for continuous time.
            device: Where a table of angles is made.
        """

    def describe(self) -> dict[str, Any]:
        """Return the schedule's `kind` and its numbers, for JSON."""


@dataclass(frozen=True)
class CosineSchedule:
    """phi = a u + b, from `logsnr_max` at u = 0 to `logsnr_min` at u = 1.

    Raises:
        UsageError: Not `logsnr_min` < `logsnr_max`, or one is out of bounds.
    """

    logsnr_min: float = -20.0
    """logSNR at u = 1, pure noise."""
    logsnr_max: float = 20.0
    """logSNR at u = 0, the data."""
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
        """The rise of the angle from u = 0 to u = 1."""
        return math.atan(math.exp(-0.5 * self.logsnr_min)) - self.b

    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u of any shape: radians, float64."""
        return self.a * u.double() + self.b

    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u, float64, at logSNR of any shape."""
        return (phi_of(logsnr) - self.b) / self.a

    def grid(self, num_steps: int, device: torch.device) -> Grid:
        """Return (a, b), the same for every number of steps."""
        return self.a, self.b

    def describe(self) -> dict[str, Any]:
        """Return the range of logSNR, with the a and b that follow from it, for JSON."""
        numbers = {"logsnr_min": self.logsnr_min, "logsnr_max": self.logsnr_max}
        return {"kind": "cosine", **numbers, "a": self.a, "b": self.b}


class FormulaSchedule(ABC):
    """A schedule given by a formula: subclasses implement `phi` and `u`.

    Distillation uses a table of the angles that a round visits. A teacher cannot be trained on it:
    pdfast trains teachers on the cosine schedule alone.
    """

    @property
    def most_steps(self) -> int:
        """The most steps that any sampler takes."""
        return MAX_STEPS

    @abstractmethod
    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u of any shape: radians, float64."""

    @abstractmethod
    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u, float64, at logSNR of any shape."""

    def grid(self, num_steps: int, device: torch.device) -> Grid:
        """Return the angles at u = k / 2N for k = 0 .. 2N, with N = `num_steps`.

        Args:
            num_steps: N, at least 1.
            device: Where the angles are made.

        Returns:
            Angles in radians, float64 (2N + 1,).

        Raises:
            ValueError: `num_steps` is 0.
        """
        if not num_steps:
            raise ValueError(
                "training in continuous time needs the cosine schedule: pass num_steps of 1 or more"
            )
        k = torch.arange(2 * num_steps + 1, dtype=torch.float64, device=device)
        return self.phi(divide(k, 2 * num_steps))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the schedule's `kind` and its numbers, for JSON."""


class TableSchedule(FormulaSchedule):
    """logSNR at T times, interpolated linearly between them.

    It is for teachers trained on T timesteps t = 0 .. T-1; timestep t is the time u = (t + 1) / T.
    """

    def __init__(self, logsnr: Tensor) -> None:
        """Create a schedule from its logSNR at u = 1/T, 2/T, ..., 1.

        Args:
            logsnr: logSNR (T,), T at least 2, finite and strictly falling.

        Raises:
            ValueError: `logsnr` has another shape, is not finite, or does not fall strictly.
        """
        logsnr = torch.as_tensor(logsnr, dtype=torch.float64, device="cpu").detach()
        if logsnr.ndim != 1 or len(logsnr) < 2 or not logsnr.isfinite().all():
            raise ValueError("logsnr must be (T,) with T of at least 2, and finite")
        if not (logsnr.diff() < 0).all():
            raise ValueError("logsnr must fall strictly from u = 1/T to u = 1")
        self.logsnr = logsnr
        self._on: dict[torch.device, Tensor] = {}

    @property
    def most_steps(self) -> int:
        """T, since more steps would fall between the times that the network was trained on."""
        return len(self.logsnr)

    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u of any shape: radians, float64; constant below u = 1/T."""
        place = (u.double() * len(self.logsnr) - 1).clamp(0, len(self.logsnr) - 1)
        return phi_of(_between(self._table(u.device), place))

    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u in 1/T .. 1, float64, at logSNR of any shape."""
        rising = -self._table(logsnr.device)
        wanted = (-logsnr.double()).contiguous()
        right = torch.searchsorted(rising, wanted).clamp(1, len(rising) - 1)
        low, high = rising[right - 1], rising[right]
        place = right - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
        return divide(place + 1, len(rising))

    def _table(self, device: torch.device) -> Tensor:
        """Return logsnr on a device; cached, as the capture of a CUDA graph allows no copies."""
        if device not in self._on:
            self._on[device] = self.logsnr.to(device)
        return self._on[device]

    def __repr__(self) -> str:
        """Show the number of timesteps, not the whole table."""
        return f"TableSchedule(logsnr of {len(self.logsnr)} timesteps)"

    def describe(self) -> dict[str, Any]:
        """Return the table, for JSON."""
        return {"kind": "table", "logsnr": self.logsnr.tolist()}


def _between(values: Tensor, place: Tensor) -> Tensor:
    """Interpolate values (T,) linearly at fractional indices in 0 .. T - 1."""
    left = place.floor().clamp(max=len(values) - 2).long()
    return torch.lerp(values[left], values[left + 1], place - left)
