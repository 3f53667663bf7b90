"""Samplers: DDIM (deterministic) and ancestral, from pure noise at u = 1 to x-hat.

Both visit u = 1, (N-1)/N, ..., 1/N; at the last, i = 0, they return x-hat itself.
Angles as in angles.py; the formulas hold for every parameterization, since only x-hat is used.
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
    """What a sampler needs of a model."""

    schedule: Schedule

    def predict_x_at_angle(self, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
        """x-hat (B, C, H, W) at angle phi (B,), unclipped."""


def ddim_to(z: Tensor, x_hat: Tensor, phi: Tensor, phi_next: Tensor) -> Tensor:
    """alpha_s x-hat + sigma_s eps-hat, with eps-hat = (z - alpha x-hat) / sigma."""
    return combine((phi_next.sin() / phi.sin(), z), ((phi - phi_next).sin() / phi.sin(), x_hat))


def ancestral_to(
    z: Tensor, x_hat: Tensor, noise: Tensor, phi: Tensor, phi_next: Tensor, variance: float
) -> Tensor:
    """One draw from p(z_s | z_t) with mean r (alpha_s/alpha_t) z + (1 - r) alpha_s x-hat.

    r = SNR_t / SNR_s. `variance` interpolates ln var from 0, "small" (1 - r) sigma_s^2, to 1,
    "large" (1 - r) sigma_t^2; the published code calls it logvar_type fixed_medium:<variance>.
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
    """Raise UsageError for arguments that `sample` refuses; a schedule may allow fewer steps."""
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
    """The x-hats (B, C, H, W) of `sample`, one for each of its steps: a network call at a time.

    Arguments as of `sample`, which checks them. An x-hat must not be changed before the next one is
    asked for. Each may be asked for by another thread.
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
    """z (B, C, H, W) ~ N(0, I) -> images of the same shape and dtype in `num_steps` steps.

    With `clip`, x-hat is cut to that interval at every step and eps-hat recomputed from it.
    The ancestral sampler calls `noise(i)` for the standard normal tensor of step i.
    `on_step` is called before each network call, `on_x_hat` after it with the steps left to do and
    the x-hat (B, C, H, W) that the sampler continues from, which it must not change. Raises
    UsageError for a bad argument.
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
