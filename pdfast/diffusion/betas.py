"""Noise schedules defined by betas, computed as in diffusers, and the schedule of a config.

A scheduler's alpha-bar at timestep t = 0 .. T-1 is the product of 1 - beta up to t, in float32.
Here timestep t is the time u = (t + 1) / T. The table holds logSNR = ln(alpha-bar / (1 -
alpha-bar)) in float64, computed from these float32 values because the network was trained on them.
"""

import math

import torch
from torch import Tensor

from pdfast.config.schema import NetConfig
from pdfast.diffusion.schedules import CosineSchedule, Schedule, TableSchedule
from pdfast.diffusion.wrappers import EDM
from pdfast.errors import UsageError

LEAST_LOGSNR = -20.0  # where the last alpha-bar is 0; the cosine schedule ends there too
MAX_BETA = 0.999  # the cap of squaredcos_cap_v2


def betas(cfg: NetConfig) -> Tensor:
    """Return the betas (T,) of a config's schedule, float32, on the CPU."""
    steps, cpu = cfg.timesteps, torch.device("cpu")
    if cfg.schedule == "trained_betas":
        return torch.tensor(cfg.betas, dtype=torch.float32, device=cpu)
    if cfg.schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        ratios = [alpha_bar((t + 1) / steps) / alpha_bar(t / steps) for t in range(steps)]
        capped = [min(1 - ratio, MAX_BETA) for ratio in ratios]
        return torch.tensor(capped, dtype=torch.float32, device=cpu)
    first, last = cfg.betas
    if cfg.schedule == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float32, device=cpu)
    roots = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32, device=cpu)
    return roots**2


def alpha_bar(cfg: NetConfig) -> Tensor:
    """Return alpha-bar (T,) at u = 1/T .. 1 for a schedule of betas, float32, on the CPU."""
    return torch.cumprod(1.0 - betas(cfg), dim=0)


def schedule_of(cfg: NetConfig) -> Schedule:
    """Return the noise schedule of a model.

    Args:
        cfg: The model's config.

    Raises:
        UsageError: The betas give a float32 alpha-bar that starts at 1, does not fall at every
            timestep, or falls below the cosine schedule's least value before the last timestep.
    """
    if cfg.schedule == "cosine":
        return CosineSchedule(cfg.logsnr_min, cfg.logsnr_max)
    if cfg.schedule == "edm":
        return EDM(*cfg.sigmas)
    product = alpha_bar(cfg).double()
    logsnr = torch.log(product) - torch.log1p(-product)
    logsnr[-1].clamp_(min=LEAST_LOGSNR)
    if not logsnr.isfinite().all() or not (logsnr.diff() < 0).all():
        raise UsageError(
            f"model.schedule {cfg.schedule} is not valid with {cfg.timesteps} timesteps: in "
            "float32 its alpha-bar must be below 1 and above 2e-9, and fall at every timestep "
            "except the last"
        )
    return TableSchedule(logsnr)


def rescaled(given: Tensor) -> Tensor:
    """Rescale betas so that the last alpha-bar is 0, as diffusers does.

    Lin et al. 2023, algorithm 1: sqrt(alpha-bar) is shifted and scaled; its first value is kept.

    Args:
        given: Betas (T,), float32.

    Returns:
        Rescaled betas (T,), float32.
    """
    root = torch.cumprod(1.0 - given, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    product = root**2
    return 1 - torch.cat([product[:1], product[1:] / product[:-1]])
