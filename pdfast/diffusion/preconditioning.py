"""Preconditioning of Karras et al. 2022, table 1: inputs and outputs of their networks.

s = sigma / alpha = exp(-logSNR / 2) is their sigma: they add noise without scaling, z_edm = x +
s eps, and pdfast's z is alpha z_edm with alpha = 1 / sqrt(1 + s^2). A network F gives the denoiser

    D(z_edm, s) = c_skip z_edm + c_out F(c_in z_edm, c_noise).

| | c_skip | c_out | c_in z_edm | c_noise |
|---|---|---|---|---|
| vp | 1 | -s | z | (M - 1) t, t the time of s on the VP SDE of beta_d and beta_min |
| ve | 1 | s | z / alpha | ln(s / 2) |
| iddpm | 1 | -s | z | M - 1 - j, u_j the nearest of M + 1 noise levels to s |
| edm | d^2 / (s^2 + d^2) | s d / sqrt(s^2 + d^2) | z / (alpha sqrt(s^2 + d^2)) | ln(s) / 4 |

where d is sigma_data. So F is eps-hat for vp and iddpm, and -eps-hat for ve, and is used as such.
For edm, D is x-hat and v-hat = (alpha z - D) / sigma. Expanded, this has no division by sigma:

    v-hat = s (1 - d^2) / (s^2 + d^2) z - d sqrt((1 + s^2) / (s^2 + d^2)) F.
"""

import math

import torch
from torch import Tensor

from pdfast.config.names import Parameterization
from pdfast.config.schema import NetConfig
from pdfast.diffusion.angles import per_image


class Preconditioner:
    """The preconditioning of a network's config, in float32, or in float64 if z is."""

    def __init__(self, cfg: NetConfig) -> None:
        self.kind = cfg.edm.preconditioning
        self.constants = cfg.edm.constants
        self.parameterization: Parameterization = cfg.parameterization
        self._levels: dict[torch.device, Tensor] = {}

    def noise(self, logsnr: Tensor) -> Tensor:
        """Return c_noise (B,) at logsnr (B,), float32.

        It is float32 for every dtype of the network, with the order of operations of the published
        code. In float32, ln(1 + s^2) has few digits for a small s, and the c_noise of vp, up to
        999, is the argument of sines: with other rounding the network would get other inputs than
        in training.
        """
        sigma = torch.exp(-0.5 * logsnr.double()).float()
        if self.kind == "vp":
            beta_d, beta_min, times = self.constants
            root = (beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt()
            return (times - 1) * ((root - beta_min) / beta_d)
        if self.kind == "ve":
            return (0.5 * sigma).log()
        if self.kind == "iddpm":
            nearest = (sigma[:, None] - self._table(sigma.device)).abs().argmin(1)
            return self.constants[2] - 1 - nearest.float()
        return sigma.log() / 4

    def scaled(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the network's input c_in z_edm (B, C, H, W), of z's dtype, at logsnr (B,)."""
        if self.kind in ("vp", "iddpm"):
            return z
        s2 = torch.exp(-logsnr.double())
        scale = (1 + s2).sqrt()
        if self.kind == "edm":
            scale = scale / (s2 + self.constants[0] ** 2).sqrt()
        return (z.to(_wide(z)) * per_image(scale, z).to(_wide(z))).to(z.dtype)

    def output(self, z: Tensor, out: Tensor, logsnr: Tensor) -> Tensor:
        """Convert a raw output F to the network's parameterization.

        Args:
            z: Noisy images (B, C, H, W).
            out: Raw output F (B, C, H, W), at `scaled(z, logsnr)`.
            logsnr: Noise levels (B,).

        Returns:
            The prediction (B, C, H, W), of out's dtype: x-hat or v-hat for edm, otherwise `out`.
        """
        if self.kind != "edm":
            return out
        s2, data = torch.exp(-logsnr.double()), self.constants[0]
        s, total = s2.sqrt(), s2 + data**2
        if self.parameterization == "x":
            of_z, of_out = data**2 * (1 + s2).sqrt() / total, s * data / total.sqrt()
        else:
            of_z, of_out = s * (1 - data**2) / total, -data * ((1 + s2) / total).sqrt()
        wide = _wide(out)
        a, b = (per_image(factor, z).to(wide) for factor in (of_z, of_out))
        return (a * z.to(wide) + b * out.to(wide)).to(out.dtype)

    def _table(self, device: torch.device) -> Tensor:
        """Return the noise levels of iddpm on a device.

        They are cached, because no copy to the device is allowed while a CUDA graph is captured.
        """
        if device not in self._levels:
            self._levels[device] = iddpm_levels(*self.constants).float().to(device)
        return self._levels[device]


def iddpm_levels(c_1: float, c_2: float, times: float) -> Tensor:
    """Return the noise levels u_0 > u_1 > ... > u_M = 0 of iDDPM (Karras et al. 2022, table 1).

    u_(j-1)^2 + 1 = (u_j^2 + 1) / max(alpha-bar_(j-1) / alpha-bar_j, C_1), with alpha-bar_j =
    sin^2(pi/2 j / (M (C_2 + 1))).

    Args:
        c_1: C_1, the least ratio of successive alpha-bar.
        c_2: C_2, the offset of alpha-bar.
        times: M, the number of noise levels above 0.

    Returns:
        The levels (M + 1,), float64, on the CPU.
    """
    bars = [math.sin(0.5 * math.pi * j / times / (c_2 + 1)) ** 2 for j in range(int(times) + 1)]
    levels = [0.0]
    for j in range(int(times), 0, -1):
        ratio = max(bars[j - 1] / bars[j], c_1)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return torch.tensor(levels[::-1], dtype=torch.float64, device="cpu")


def preconditioner_of(cfg: NetConfig) -> Preconditioner | None:
    """Return the preconditioner of a config, or None if the config has none."""
    return None if cfg.edm.preconditioning == "none" else Preconditioner(cfg)


def _wide(t: Tensor) -> torch.dtype:
    """Return float64 if t is float64, otherwise float32."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
