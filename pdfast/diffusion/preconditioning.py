"""Preconditioning of Karras et al. 2022, table 1: inputs and outputs of their networks.

s = sigma / alpha = exp(-logSNR / 2) is their sigma: they noise without scaling, z_edm = x + s eps,
and pdfast's z is alpha z_edm with alpha = 1 / sqrt(1 + s^2). A network F has its denoiser from

    D(z_edm, s) = c_skip z_edm + c_out F(c_in z_edm, c_noise).

| | c_skip | c_out | c_in z_edm | c_noise |
|---|---|---|---|---|
| vp | 1 | -s | z | (M - 1) t, t the time of s on the VP SDE of beta_d and beta_min |
| ve | 1 | s | z / alpha | ln(s / 2) |
| iddpm | 1 | -s | z | M - 1 - j, u_j the nearest of M + 1 noise levels to s |
| edm | d^2 / (s^2 + d^2) | s d / sqrt(s^2 + d^2) | z / (alpha sqrt(s^2 + d^2)) | ln(s) / 4 |

where d is sigma_data. So F is eps-hat for vp and iddpm, -eps-hat for ve, and is taken as that. Of
edm D is x-hat, and v-hat = (alpha z - D) / sigma, in which nothing divides by sigma once it is
written out:

    v-hat = s (1 - d^2) / (s^2 + d^2) z - d sqrt((1 + s^2) / (s^2 + d^2)) F.
"""

import math

import torch
from torch import Tensor

from pdfast.config.names import Parameterization
from pdfast.config.schema import NetConfig
from pdfast.diffusion.angles import per_image


class Preconditioner:
    """The preconditioning of a network's config, in float32, or float64 where z is."""

    def __init__(self, cfg: NetConfig) -> None:
        self.kind = cfg.edm.preconditioning
        self.constants = cfg.edm.constants
        self.parameterization: Parameterization = cfg.parameterization
        self._levels: dict[torch.device, Tensor] = {}

    def noise(self, logsnr: Tensor) -> Tensor:
        """c_noise at logsnr (B,): float32 (B,).

        In float32 whatever the network computes in, in the order of operations of the published
        code: ln(1 + s^2) of a small s has few digits there, and c_noise of vp, up to 999, is an
        angle. Another rounding is another input than the one that was trained with.
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
        """The network's input at z (B, C, H, W) and logsnr (B,), in z's dtype."""
        if self.kind in ("vp", "iddpm"):
            return z
        s2 = torch.exp(-logsnr.double())
        scale = (1 + s2).sqrt()
        if self.kind == "edm":
            scale = scale / (s2 + self.constants[0] ** 2).sqrt()
        return (z.to(_wide(z)) * per_image(scale, z).to(_wide(z))).to(z.dtype)

    def output(self, z: Tensor, out: Tensor, logsnr: Tensor) -> Tensor:
        """The network's output `out` at z as what the parameterization says, in out's dtype."""
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
        """The noise levels of iddpm on a device, kept: the capture of a CUDA graph allows no copy
        to it."""
        if device not in self._levels:
            self._levels[device] = iddpm_levels(*self.constants).float().to(device)
        return self._levels[device]


def iddpm_levels(c_1: float, c_2: float, times: float) -> Tensor:
    """u_0 > u_1 > ... > u_M = 0 of Karras et al. 2022, table 1: float64 (M + 1,), on the CPU.

    u_(j-1)^2 + 1 = (u_j^2 + 1) / max(alpha-bar_(j-1) / alpha-bar_j, C_1), with alpha-bar_j =
    sin^2(pi/2 j / (M (C_2 + 1))).
    """
    bars = [math.sin(0.5 * math.pi * j / times / (c_2 + 1)) ** 2 for j in range(int(times) + 1)]
    levels = [0.0]
    for j in range(int(times), 0, -1):
        ratio = max(bars[j - 1] / bars[j], c_1)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return torch.tensor(levels[::-1], dtype=torch.float64, device="cpu")


def preconditioner_of(cfg: NetConfig) -> Preconditioner | None:
    """The preconditioning of a config; None where it has none."""
    return None if cfg.edm.preconditioning == "none" else Preconditioner(cfg)


def _wide(t: Tensor) -> torch.dtype:
    """float64 where t is, else float32."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
