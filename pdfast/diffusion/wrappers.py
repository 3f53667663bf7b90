"""Adapters of networks with other conventions to pdfast's (z, logsnr, label) -> raw output.

pdfast's z = alpha x + sigma eps has alpha^2 + sigma^2 = 1, and the noise level is given as logSNR =
ln(alpha^2 / sigma^2), so that alpha^2 = sigmoid(logSNR) and sigma^2 = sigmoid(-logSNR). Every other
Gaussian noising s (x + r eps) with the same ratio r = sigma / alpha is the same image and noise,
scaled. So the conversion between conventions is exact.

The schedules here define the noise levels that N sampling steps visit. A network can be distilled
on any of them, whatever it was trained on; the natural choice is the schedule it was sampled with.

    teacher = pdfast.Network(
        wrappers.from_flow(velocity), shape=(1, 64), schedule=wrappers.FlowMatching()
    )
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdfast.config.serialization import check, from_table
from pdfast.diffusion.angles import per_image
from pdfast.diffusion.schedules import CosineSchedule as CosineSchedule
from pdfast.diffusion.schedules import FormulaSchedule, Schedule, logsnr_of, phi_of
from pdfast.diffusion.schedules import TableSchedule as TableSchedule
from pdfast.errors import UsageError

# ------------------------------------------------------------------------------------------
# Schedules


@dataclass(frozen=True)
class LinearVP(FormulaSchedule):
    """The variance-preserving SDE with a linear noise rate (score SDEs, Song et al. 2021, eq. 32).

    alpha^2 = exp(-B) with B(u) = beta_min u + (beta_max - beta_min) u^2 / 2, so that
    sigma^2 / alpha^2 = e^B - 1. DDPM's linear betas are its discretisation.

    Raises:
        UsageError: Not 0 < beta_min <= beta_max.
    """

    beta_min: float = 0.1
    """Noise rate at u = 0."""
    beta_max: float = 20.0
    """Noise rate at u = 1."""

    def __post_init__(self) -> None:
        check(
            0 < self.beta_min <= self.beta_max < math.inf,
            "LinearVP needs 0 < beta_min <= beta_max",
        )

    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u of any shape: radians, float64."""
        u = u.double()
        b = self.beta_min * u + (self.beta_max - self.beta_min) * u.square() / 2
        return torch.atan(torch.expm1(b).sqrt())

    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u, float64, at logSNR of any shape: the root of B(u) = ln(1 + 1/SNR)."""
        b = nn.functional.softplus(-logsnr.double())
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b).sqrt()
        return 2 * b / (self.beta_min + root)  # the form of the root that has no cancellation

    def describe(self) -> dict[str, Any]:
        """Return the schedule's `kind` and its numbers, for JSON."""
        return {"kind": "linear_vp", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class EDM(FormulaSchedule):
    """The noise levels of Karras et al. 2022, eq. 5, in continuous time.

    sigma_edm(u) = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho is the ratio
    sigma / alpha. N steps visit u = 1, ..., 1/N; the last one returns x-hat.

    Raises:
        UsageError: Not 0 < sigma_min < sigma_max, or rho is not above 0.
    """

    sigma_min: float = 0.002
    """sigma / alpha at u = 0."""
    sigma_max: float = 80.0
    """sigma / alpha at u = 1."""
    rho: float = 7.0
    """Exponent of the spacing; larger values have more steps at little noise."""

    def __post_init__(self) -> None:
        check(
            0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.rho < math.inf,
            "EDM needs 0 < sigma_min < sigma_max, and rho above 0",
        )

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u of any shape: radians, float64."""
        low, high = self._ends()
        return torch.atan((low + u.double() * (high - low)) ** self.rho)

    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u, float64, at logSNR of any shape."""
        low, high = self._ends()
        return (torch.exp(-0.5 * logsnr.double() / self.rho) - low) / (high - low)

    def describe(self) -> dict[str, Any]:
        """Return the schedule's `kind` and its numbers, for JSON."""
        return {"kind": "edm", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class FlowMatching(FormulaSchedule):
    """The straight path (1 - t) x + t eps of flow matching (Lipman et al. 2023), with t = u.

    Only its ratio of noise to data, sigma / alpha = t / (1 - t), matters here.
    """

    def phi(self, u: Tensor) -> Tensor:
        """Return the angles at times u of any shape: radians, float64."""
        u = u.double()
        return torch.atan2(u, 1 - u)

    def u(self, logsnr: Tensor) -> Tensor:
        """Return the times u = r / (1 + r), float64, with r = exp(-logSNR / 2), of any shape."""
        return torch.sigmoid(-0.5 * logsnr.double())

    def describe(self) -> dict[str, Any]:
        """Return the schedule's `kind` and its numbers, for JSON."""
        return {"kind": "flow_matching"}


FORMULAS: dict[str, type[LinearVP] | type[EDM] | type[FlowMatching]] = {
    "linear_vp": LinearVP,
    "edm": EDM,
    "flow_matching": FlowMatching,
}


def schedule_from(table: dict[str, Any]) -> Schedule:
    """Return the schedule of a table written by `Schedule.describe`.

    Raises:
        UsageError: The table describes no schedule.
    """
    kind, numbers = table.get("kind"), {k: v for k, v in table.items() if k != "kind"}
    if kind == "cosine":
        ends = {key: numbers.get(key) for key in ("logsnr_min", "logsnr_max")}
        return from_table(CosineSchedule, ends, "schedule.")
    if kind == "table":
        try:
            return TableSchedule(torch.tensor(numbers.get("logsnr"), dtype=torch.float64))
        except (TypeError, ValueError, RuntimeError):
            raise UsageError("schedule.logsnr must be a list of falling numbers") from None
    if kind not in FORMULAS:
        known = ", ".join(["cosine", "table", *FORMULAS])
        raise UsageError(f"schedule.kind must be one of {known}, not {kind!r}")
    return from_table(FORMULAS[kind], numbers, "schedule.")


# ------------------------------------------------------------------------------------------
# Networks


class Adapter(nn.Module):
    """A network of another convention, wrapped for pdfast.

    Subclasses whose networks do not take every noise level override `fault` and `fix`.
    """

    def fault(self, logsnr: float) -> str:
        """Return why the network cannot take noise level `logsnr`; "" if it can."""
        return ""

    def fix(self) -> str:
        """Return advice on a schedule whose noise levels the network takes; "" if it takes all."""
        return ""


SLACK = 1e-6  # in logSNR: rounding must not put a schedule's end outside its own range


class FromEDM(Adapter):
    """The network of `from_edm`."""

    def __init__(self, denoiser: nn.Module, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        check(
            0 <= sigma_min < sigma_max,
            f"from_edm needs 0 <= sigma_min < sigma_max, not {sigma_min:g} and {sigma_max:g}",
        )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def fault(self, logsnr: float) -> str:
        """Return why the network cannot take noise level `logsnr`; "" if it can."""
        sigma = math.exp(-0.5 * logsnr)
        if self.sigma_min * (1 - SLACK) <= sigma <= self.sigma_max * (1 + SLACK):
            return ""
        return f"sigma {sigma:.4g}, outside {self.sigma_min:g} .. {self.sigma_max:g} of from_edm"

    def fix(self) -> str:
        """Return advice on a schedule whose noise levels the network takes."""
        ends = f"sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"
        return (
            f"schedule=EDM({ends}) to pdfast.Network, or, if the network was trained for more, "
            "sigma_min and sigma_max to from_edm"
        )

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return x-hat, like z (B, ...), at logsnr (B,)."""
        sigma = torch.exp(-0.5 * logsnr.double())
        z_edm = z * per_image((1 + sigma.square()).sqrt(), z)
        x_hat: Tensor = self.denoiser(z_edm, sigma.to(z), label)
        return x_hat


class FromFlow(Adapter):
    """The network of `from_flow`."""

    def __init__(self, velocity: nn.Module) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return v-hat, like z (B, ...), at logsnr (B,)."""
        phi = phi_of(logsnr)
        alpha, sigma = phi.cos(), phi.sin()
        total = alpha + sigma
        w = self.velocity(z / per_image(total, z), (sigma / total).to(z), label)
        v_hat: Tensor = per_image((alpha - sigma) / total, z) * z + w / per_image(total, z)
        return v_hat


class FromTime(Adapter):
    """The network of `from_time`."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def fault(self, logsnr: float) -> str:
        """Return why the network cannot take noise level `logsnr`; "" if it can."""
        most, least = (level_at(self.schedule, u) for u in (0.0, 1.0))
        if least - SLACK <= logsnr <= most + SLACK:
            return ""
        return (
            f"logSNR {logsnr:.4g}, outside {least:.4g} (t = 1) .. {most:.4g} (t = 0) of "
            f"from_time's {self.schedule}"
        )

    def fix(self) -> str:
        """Return advice on a schedule whose noise levels the network takes."""
        return f"schedule={self.schedule} to pdfast.Network, as to from_time"

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the network's output at z (B, ...) and logsnr (B,)."""
        out: Tensor = self.network(z, self.schedule.u(logsnr).to(z), label)
        return out


def level_at(schedule: Schedule, u: float) -> float:
    """Return the logSNR of a schedule at time u; inf where there is no noise."""
    return float(logsnr_of(schedule.phi(torch.tensor(u, dtype=torch.float64))))


def from_edm(denoiser: nn.Module, sigma_min: float = 0.002, sigma_max: float = 80.0) -> nn.Module:
    """Wrap EDM's denoiser D(x + sigma_edm eps, sigma_edm, label) as a network that predicts x.

    Karras et al. 2022 add noise without scaling, z_edm = x + sigma_edm eps. With sigma_edm =
    sigma / alpha = exp(-logSNR / 2), alpha = 1 / sqrt(1 + sigma_edm^2) and z = alpha z_edm; so
    z_edm = z sqrt(1 + sigma_edm^2), and x-hat needs no conversion.

    Args:
        denoiser: D, called with z_edm (B, ...), sigma_edm (B,) of z's dtype, and the label, int64
            (B,) or None; returns x-hat (B, ...).
        sigma_min: Least sigma_edm that the denoiser was trained for.
        sigma_max: Largest sigma_edm that the denoiser was trained for. A schedule that leaves this
            range, as the cosine schedule does, is refused.

    Returns:
        A module of z, logsnr and label that predicts x: pass `pdfast.Network` parameterization="x".

    Raises:
        UsageError: Not 0 <= sigma_min < sigma_max.
    """
    return FromEDM(denoiser, sigma_min, sigma_max)


def from_flow(velocity: nn.Module) -> nn.Module:
    """Wrap a velocity w((1 - t) x + t eps, t, label) -> eps - x as a network that predicts v.

    With t = sigma / (alpha + sigma), the path's point is z / (alpha + sigma). From z = alpha x +
    sigma eps and w = eps - x, eps = (z + alpha w) / (alpha + sigma) and x = (z - sigma w) /
    (alpha + sigma), hence v = alpha eps - sigma x = ((alpha - sigma) z + w) / (alpha + sigma).

    Args:
        velocity: w, called with the path's point (B, ...), t (B,) of its dtype, and the label,
            int64 (B,) or None; returns w (B, ...). Time runs from data at t = 0 to noise at t = 1.
            Liu et al. 2023 and Lipman et al. 2023 run it the other way: pass a module that calls
            theirs with 1 - t and negates its output.

    Returns:
        A module of z, logsnr and label that predicts v.
    """
    return FromFlow(velocity)


def from_time(network: nn.Module, schedule: Schedule) -> nn.Module:
    """Wrap a variance-preserving network f(z, t, label) of continuous time t in (0, 1].

    It may have any parameterization. A network of T timesteps takes t T - 1 (Ho et al. 2020, Song
    et al. 2021).

    Args:
        network: f, called with z (B, ...), t (B,) of z's dtype in (0, 1], where 1 is noise, and the
            label, int64 (B,) or None.
        schedule: The schedule of the training; t is its u at a logSNR. Sampling at noise levels
            that it does not have, for which t would leave (0, 1], is refused.

    Returns:
        A module of z, logsnr and label with the output of `network`.
    """
    return FromTime(network, schedule)
