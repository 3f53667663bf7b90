"""Exact denoisers of a mixture of Gaussians in two dimensions, in several conventions."""

import torch
from torch import nn

from pdfast.diffusion import wrappers
from pdfast.diffusion.wrappers import EDM, CosineSchedule, FlowMatching, LinearVP

SCHEDULES = [CosineSchedule(), LinearVP(), LinearVP(20.0, 20.0), EDM(), FlowMatching()]
MEANS, STD = torch.tensor([[-1.5, 0.5], [1.0, 1.0], [0.2, -2.0]]).double(), 0.4


def posterior_mean(y, r):
    """Return E[x | x + r eps = y] for an even mixture of Gaussians of standard deviation STD."""
    r = r.double().reshape(-1, 1, 1)
    variance = STD**2 + r**2
    distance = (y[:, None] - MEANS).square().sum(2, keepdim=True)
    share = torch.softmax(-distance / (2 * variance), dim=1)
    return (share * (STD**2 * y[:, None] + r**2 * MEANS) / variance).sum(1)


class Denoiser(nn.Module):
    def forward(self, z_edm, sigma, label):
        return posterior_mean(z_edm, sigma)


class Velocity(nn.Module):
    def forward(self, z_fm, t, label):
        """Return eps - x at z_fm = (1 - t) x + t eps."""
        t, rest = t[:, None], (1 - t[:, None]).clamp(min=1e-12)  # at t = 1 any x will do
        x = posterior_mean(z_fm / rest, t / rest)
        return (z_fm - (1 - t) * x) / t - x


class OfTime(nn.Module):
    """A variance-preserving network with the time of DDPM's SDE."""

    def __init__(self, parameterization, beta_min=0.1, beta_max=20.0):
        super().__init__()
        self.parameterization, self.rate = parameterization, (beta_min, beta_max)

    def forward(self, z, t, label):
        low, high = self.rate
        alpha = torch.exp(-0.5 * (low * t + 0.5 * (high - low) * t**2))[:, None]
        sigma = (1 - alpha.square()).sqrt()
        x = posterior_mean(z / alpha, sigma / alpha)
        eps = (z - alpha * x) / sigma
        return {"x": x, "eps": eps, "v": alpha * eps - sigma * x, "x_eps": torch.cat([x, eps], 1)}[
            self.parameterization
        ]


WIDE = LinearVP(0.1, 1000.0)  # its times reach all noise levels of the other schedules


def of_time(parameterization):
    return wrappers.from_time(OfTime(parameterization, WIDE.beta_min, WIDE.beta_max), WIDE)


class Affine(nn.Module):
    """v-hat affine in z at each of a schedule's four levels, which suffices for Gaussians."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        self.scale = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))

    def forward(self, z, logsnr, label):
        level = (4 * self.schedule.u(logsnr)).round().long() - 1
        return self.scale[level, None] * z + self.shift[level]


class OneGaussian(nn.Module):
    def forward(self, z_fm, t, label):
        t, rest = t[:, None], (1 - t[:, None]).clamp(min=1e-12)
        x = (STD**2 * z_fm / rest + (t / rest) ** 2 * MEANS[0]) / (STD**2 + (t / rest) ** 2)
        return (z_fm - (1 - t) * x) / t - x
