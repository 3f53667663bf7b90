"""Samplers from pure noise at u = 1 to x-hat: DDIM (deterministic) and ancestral.

With N steps, both evaluate the model at u = 1, (N-1)/N, ..., 1/N and return the last x-hat. Angles
are those of angles.py. The formulas hold for every parameterization, since they use only x-hat.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from pdfast.config.names import Sampler
from pdfast.config.schema import MAX_STEPS as MAX_STEPS
from pdfast.diffusion.angles import combine
from pdfast.diffusion.conditioning import UNCONDITIONAL, Conditioning
from pdfast.diffusion.schedules import Schedule
from pdfast.errors import UsageError
from pdfast.kernels.angles import divide

Noise = Callable[[int], Tensor]


class Denoiser(Protocol):
    """The part of a model that samplers use."""

    schedule: Schedule

    def predict_x_at_angle(self, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
        """Return x-hat (B, C, H, W), unclipped, at z (B, C, H, W) and angle phi (B,)."""


def ddim_to(z: Tensor, x_hat: Tensor, phi: Tensor, phi_next: Tensor) -> Tensor:
    """Take one DDIM step from angle `phi` to `phi_next` (DDIM, Song et al. 2021, eq. 12).

    z_s = alpha_s x-hat + sigma_s eps-hat, with eps-hat = (z - alpha x-hat) / sigma.

    Args:
        z: Noisy images (B, C, H, W).
        x_hat: Predicted images (B, C, H, W).
        phi: Angles in radians, float64 (B,).
        phi_next: Angles where the step ends, float64 (B,), below `phi`.

    Returns:
        z_s (B, C, H, W), of z's dtype.
    """
    return combine((phi_next.sin() / phi.sin(), z), ((phi - phi_next).sin() / phi.sin(), x_hat))


def ancestral_to(
    z: Tensor, x_hat: Tensor, noise: Tensor, phi: Tensor, phi_next: Tensor, variance: float
) -> Tensor:
    """Draw z_s from p(z_s | z_t), an ancestral step from angle `phi` to `phi_next`.

    Its mean is r (alpha_s / alpha_t) z + (1 - r) alpha_s x-hat, with r = SNR_t / SNR_s (Ho et al.
    2020).

    Args:
        z: Noisy images z_t (B, C, H, W).
        x_hat: Predicted images (B, C, H, W).
        noise: Standard normal numbers (B, C, H, W).
        phi: Angles in radians, float64 (B,).
        phi_next: Angles where the step ends, float64 (B,), below `phi`.
        variance: Interpolates the log variance between "small", (1 - r) sigma_s^2, at 0 and
            "large", (1 - r) sigma_t^2, at 1. The published code calls it logvar_type
            fixed_medium:<variance>.

    Returns:
        z_s (B, C, H, W), of z's dtype.
    """
    r = (phi_next.tan() / phi.tan()).square()
    # 1 - r without cancellation
    one_minus_r = (phi - phi_next).sin() * (phi + phi_next).sin()
    one_minus_r = one_minus_r / (phi.sin() * phi_next.cos()).square()
    sigma = phi_next.sin() ** (1.0 - variance) * phi.sin() ** variance
    return combine(
        (r * phi_next.cos() / phi.cos(), z),
        (one_minus_r * phi_next.cos(), x_hat),
        (one_minus_r.sqrt() * sigma, noise),
    )


def check_arguments(
    num_steps: int, sampler: Sampler, variance: float, most_steps: int = MAX_STEPS
) -> None:
    """Check the arguments of `sample`.

    Args:
        num_steps: Number of sampling steps.
        sampler: "ddim" or "ancestral".
        variance: Variance of the ancestral sampler, 0 to 1.
        most_steps: Most sampling steps that the schedule allows.

    Raises:
        UsageError: An argument is wrong.
    """
    if not 1 <= num_steps <= most_steps:
        raise UsageError(f"steps must be in 1 .. {most_steps}, not {num_steps}")
    if sampler not in ("ddim", "ancestral"):
        raise UsageError(f"sampler must be 'ddim' or 'ancestral', not {sampler!r}")
    if not 0.0 <= variance <= 1.0:
        raise UsageError(f"variance must be in 0 (small) .. 1 (large), not {variance}")


@torch.no_grad()
def denoised(
    model: Denoiser,
    z: Tensor,
    num_steps: int,
    *,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    conditioning: Conditioning = UNCONDITIONAL,
    sampler: Sampler = "ddim",
    variance: float = 1.0,
    noise: Noise | None = None,
) -> Iterator[Tensor]:
    """Yield the x-hat of each sampling step, with one network call per item.

    Items may be requested from different threads, one at a time.

    Args:
        model: The model.
        z: Initial noise (B, C, H, W).
        num_steps: Number of sampling steps; not checked, nor are the other arguments.
        clip: As in `sample`.
        conditioning: As in `sample`.
        sampler: As in `sample`.
        variance: As in `sample`.
        noise: As in `sample`.

    Yields:
        x-hat (B, C, H, W), which must not be changed before the next one is requested.
    """
    k = torch.arange(num_steps + 1, dtype=torch.float64, device=z.device)
    phis = model.schedule.phi(divide(k, num_steps))
    for i in reversed(range(num_steps)):
        phi, phi_next = phis[i + 1].expand(len(z)), phis[i].expand(len(z))
        x_hat = model.predict_x_at_angle(z, phi, conditioning)
        if clip is not None:
            x_hat = x_hat.clamp(*clip)
        yield x_hat
        if i == 0:
            return
        if noise is not None and sampler == "ancestral":
            z = ancestral_to(z, x_hat, noise(i), phi, phi_next, variance)
        else:
            z = ddim_to(z, x_hat, phi, phi_next)


def sample(
    model: Denoiser,
    z: Tensor,
    num_steps: int,
    *,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    conditioning: Conditioning = UNCONDITIONAL,
    sampler: Sampler = "ddim",
    variance: float = 1.0,
    noise: Noise | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_x_hat: Callable[[int, Tensor], None] = lambda step, x_hat: None,
) -> Tensor:
    """Sample images from noise in `num_steps` sampling steps.

    Args:
        model: The model.
        z: Initial noise (B, C, H, W), standard normal.
        num_steps: Number of sampling steps.
        clip: Interval that x-hat is clipped to at every step, with eps-hat recomputed from it; None
            for no clipping.
        conditioning: Classes and other inputs of the model.
        sampler: "ddim" or "ancestral".
        variance: Variance of the ancestral sampler; see `ancestral_to`.
        noise: Returns the standard normal tensor of step i for the ancestral sampler.
        on_step: Called before each network call.
        on_x_hat: Called after each network call with the number of steps left and the x-hat
            (B, C, H, W) that the sampler continues from, which it must not change.

    Returns:
        Images (B, C, H, W), of z's dtype.

    Raises:
        UsageError: An argument is wrong.
    """
    check_arguments(num_steps, sampler, variance, model.schedule.most_steps)
    if sampler == "ancestral" and noise is None:
        raise UsageError("the ancestral sampler needs noise, one tensor per step")
    x_hats = denoised(
        model,
        z,
        num_steps,
        clip=clip,
        conditioning=conditioning,
        sampler=sampler,
        variance=variance,
        noise=noise,
    )
    for left in reversed(range(num_steps)):
        on_step()
        x_hat = next(x_hats)
        on_x_hat(left, x_hat)
    return x_hat
