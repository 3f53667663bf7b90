"""Sinusoidal embeddings of a U-Net's scalar inputs: noise level, timestep and guidance weight.

Shape letters: B batch.
"""

import math

import torch
from torch import Tensor

LOGSNR_CLIP = 20.0  # logSNR is clipped to +-20 before it is embedded
TIME_SCALE = 1000.0  # the embedded position of a noise level is in (0, 1000)
GUIDANCE_SCALE = 100.0  # the embedded position of a guidance weight is in (0, 100)


def logsnr_embedding(logsnr: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return the sinusoidal embedding of the noise level (Salimans & Ho 2022, released code).

    The embedded position is 1000 s with s = atan(exp(-logsnr / 2)) / (pi / 2), the published
    "inv_cos" input: the angle of the cosine schedule as a fraction of a right angle. It is rounded
    to float32 for every dtype, as in the published code.

    Args:
        logsnr: Noise levels (B,).
        dim: Width of the embedding, even.
        dtype: Type of the embedding.

    Returns:
        (B, dim), of `dtype`.
    """
    logsnr = logsnr.double().clamp(-LOGSNR_CLIP, LOGSNR_CLIP)
    s = torch.atan(torch.exp(-0.5 * logsnr)) / (math.pi / 2)
    return _sinusoids((TIME_SCALE * s).float().to(dtype), dim)


def guidance_embedding(w: Tensor, dim: int, least: float, most: float) -> Tensor:
    """Return the sinusoidal embedding of guidance weights.

    Args:
        w: Guidance weights (B,), in least .. most.
        dim: Width of the embedding, even.
        least: Smallest guidance weight.
        most: Largest guidance weight.

    Returns:
        (B, dim), of w's dtype.
    """
    return _sinusoids(GUIDANCE_SCALE * (w - least) / (most - least), dim)


def _sinusoids(position: Tensor, dim: int) -> Tensor:
    """Embed positions (B,) as (B, dim): sines, then cosines, of dim / 2 frequencies 1 .. 1e-4."""
    half = dim // 2
    rate = math.log(10_000.0) / (half - 1)
    freqs = torch.exp(-rate * torch.arange(half, dtype=position.dtype, device=position.device))
    angles = position[:, None] * freqs[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def timestep_embedding(t: Tensor, dim: int, freq_shift: int) -> Tensor:
    """Return the sinusoidal embedding of timesteps (Ho et al. 2020), as diffusers computes it.

    It is computed in float32 whatever the network's dtype, in diffusers' order of operations.
    Angles reach 1000, where a different rounding would change the embedding noticeably.

    Args:
        t: Timesteps (B,).
        dim: Width of the embedding, even.
        freq_shift: Subtracted from dim / 2 in the frequencies 10^(-4 k / (dim / 2 - freq_shift)).

    Returns:
        (B, dim), float32: sines, then cosines.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    freqs = torch.exp(-math.log(10_000.0) * k / (half - freq_shift))
    angles = t.float()[:, None] * freqs[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def noise_embedding(noise: Tensor, dim: int, freq_shift: int) -> Tensor:
    """Return the sinusoidal embedding of c_noise, as in the code of Karras et al. 2022.

    It is `timestep_embedding` with frequencies computed as powers of 1e-4. The two differ only in
    rounding, which matters because angles reach 999.

    Args:
        noise: c_noise of a preconditioning, float32 (B,).
        dim: Width of the embedding, even.
        freq_shift: As in `timestep_embedding`.

    Returns:
        (B, dim), float32: sines, then cosines.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=noise.device)
    angles = noise[:, None] * (1 / 10_000) ** (k / (half - freq_shift))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fourier_embedding(noise: Tensor, freqs: Tensor) -> Tensor:
    """Return the Fourier embedding of c_noise by given frequencies (NCSN++, Song et al. 2021).

    Args:
        noise: c_noise of a preconditioning, (B,).
        freqs: Frequencies (F,).

    Returns:
        (B, 2F), of freqs' dtype: sines, then cosines.
    """
    angles = noise.to(freqs)[:, None] * (2 * math.pi * freqs)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
