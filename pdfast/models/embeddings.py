"""Sinusoidal embeddings of what a U-Net is conditioned on: noise level, timestep, guidance.

Shape letters: B batch.
"""

import math

import torch
from torch import Tensor

LOGSNR_CLIP = 20.0  # the embedding's input range, whatever the schedule's
TIME_SCALE = 1000.0  # the embedding's argument runs over (0, 1000)
GUIDANCE_SCALE = 100.0  # that of a guidance weight over (0, 100), its range


def logsnr_embedding(logsnr: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding of the noise level: logsnr (B,) -> (B, dim) in `dtype`.

    The published "inv_cos" input, s = atan(exp(-logsnr / 2)) / (pi / 2), is the angle of the
    cosine schedule as a fraction of a right angle. 1000 s is rounded to float32 whatever the
    dtype, as the published code does.
    """
    logsnr = logsnr.double().clamp(-LOGSNR_CLIP, LOGSNR_CLIP)
    s = torch.atan(torch.exp(-0.5 * logsnr)) / (math.pi / 2)
    return _sinusoids((TIME_SCALE * s).float().to(dtype), dim)


def guidance_embedding(w: Tensor, dim: int, least: float, most: float) -> Tensor:
    """Sinusoidal embedding of guidance weights: w (B,) in least .. most -> (B, dim), w's dtype."""
    return _sinusoids(GUIDANCE_SCALE * (w - least) / (most - least), dim)


def _sinusoids(position: Tensor, dim: int) -> Tensor:
    """(B,) -> (B, dim): sines, then cosines, of dim / 2 frequencies from 1 down to 1e-4."""
    half = dim // 2
    rate = math.log(10_000.0) / (half - 1)
    freqs = torch.exp(-rate * torch.arange(half, dtype=position.dtype, device=position.device))
    angles = position[:, None] * freqs[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def timestep_embedding(t: Tensor, dim: int, freq_shift: int) -> Tensor:
    """Sinusoidal embedding of a timestep: t (B,) -> (B, dim), float32.

    In float32 whatever the network computes in, and with diffusers' order of operations: angles
    reach 1000, where another rounding is another embedding than the one that was trained with.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    freqs = torch.exp(-math.log(10_000.0) * k / (half - freq_shift))
    angles = t.float()[:, None] * freqs[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def noise_embedding(noise: Tensor, dim: int, freq_shift: int) -> Tensor:
    """Sinusoidal embedding of a preconditioning's c_noise: (B,) -> (B, dim), float32.

    As `timestep_embedding`, with frequencies by powers of 1e-4, as the code of Karras et al. 2022
    has them: the same numbers but for rounding, which angles up to 999 make felt.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=noise.device)
    angles = noise[:, None] * (1 / 10_000) ** (k / (half - freq_shift))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fourier_embedding(noise: Tensor, freqs: Tensor) -> Tensor:
    """Embedding of c_noise by given frequencies, freqs (F,): (B,) -> (B, 2 F), in freqs' dtype.

    As in NCSN++ (Song et al. 2021), sines first.
    """
    angles = noise.to(freqs)[:, None] * (2 * math.pi * freqs)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
