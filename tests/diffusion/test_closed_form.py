"""Cases that need no network: the exact answers are known."""

import math

import pytest
import torch

from pdfast import reference
from pdfast.diffusion import angles
from pdfast.diffusion.samplers import ancestral_to, sample
from pdfast.diffusion.schedules import CosineSchedule, logsnr_of

MEAN, STD = 0.3, 0.4
SCHEDULE = CosineSchedule()


def exact_x(z, phi):
    """Return E[x | z] for x ~ N(MEAN, STD^2)."""
    alpha, sigma = angles.per_image(phi.cos(), z), angles.per_image(phi.sin(), z)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def exact_table(num_steps, parameterization):
    """Return the exact denoiser at u = (i + 1) / N as out = slope z + offset: float64 (N, 2)."""
    phi = SCHEDULE.phi(torch.arange(1, num_steps + 1) / num_steps)
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(num_steps, 1, 1, 2)
    x_hat = exact_x(z, phi)
    out = (
        x_hat
        if parameterization == "x"
        else angles.combine((1 / phi.tan(), z), (-1 / phi.sin(), x_hat))
    )
    return slope_offset(out)


def slope_offset(out):
    at_0, at_1 = out[:, 0, 0, 0], out[:, 0, 0, 1]
    return torch.stack([at_1 - at_0, at_0], dim=1)


def affine(table, z):
    return table[:, 0, None, None, None] * z + table[:, 1, None, None, None]


def exact_round(table, parameterization, dtype):
    """Return the student that matches its teacher exactly, as a table of half the length."""
    num_steps = len(table) // 2
    i = torch.arange(num_steps)
    phi_t, phi_mid = SCHEDULE.phi((i + 1) / num_steps), SCHEDULE.phi((i + 0.5) / num_steps)
    z_t = torch.tensor([0.0, 1.0], dtype=dtype).expand(num_steps, 1, 1, 2)
    out_t = affine(table[1::2], z_t)
    z_mid = angles.ddim_step(z_t, out_t, phi_t, phi_mid, parameterization).z
    out_mid = affine(table[0::2], z_mid)
    return slope_offset(
        angles.target(z_t, out_t, out_mid, phi_t, phi_mid, i == 0, parameterization)
    )


class Exact:
    schedule = SCHEDULE

    def predict_x_at_angle(self, z, phi, conditioning):
        return exact_x(z, phi)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("parameterization", ["v", "x"])
def test_thirteen_exact_rounds_equal_8192_ddim_steps(parameterization, dtype, tol):
    z = torch.linspace(-4, 4, 33, dtype=torch.float64).view(1, 1, 1, 33)
    expected = sample(Exact(), z, 8192, clip=None)
    table = exact_table(8192, parameterization).to(dtype)
    for _ in range(13):
        table = exact_round(table, parameterization, dtype)
    assert len(table) == 1
    phi = SCHEDULE.phi(torch.ones(1))
    x_hat = angles.predict_x(z.to(dtype), affine(table, z.to(dtype)), phi, parameterization)
    assert ((x_hat - expected).abs().max() / expected.abs().max()) < tol


def test_ancestral_sampler_against_the_published_loop():
    """mean r (alpha_s / alpha_t) z + (1 - r) alpha_s x-hat, as written in the authors' dpm.py."""
    steps, fraction = 5, 0.4
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4, 1, 2, 2, generator=g, dtype=torch.float64)
    noise = {i: torch.randn(4, 1, 2, 2, generator=g, dtype=torch.float64) for i in range(steps)}
    args = {"clip": None, "sampler": "ancestral", "variance": fraction, "noise": noise.get}
    ours = sample(Exact(), z, steps, **args)
    for i in reversed(range(steps)):
        u_t, u_s = (torch.tensor(u, dtype=torch.float64) for u in ((i + 1) / steps, i / steps))
        logsnr_t, logsnr_s = (reference.logsnr_schedule(u) for u in (u_t, u_s))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            reference.alpha_sigma(logsnr, z) for logsnr in (logsnr_t, logsnr_s)
        )
        x_hat = exact_x(z, SCHEDULE.phi(u_t.expand(4)))
        if i == 0:
            break
        r = torch.exp(logsnr_t - logsnr_s)
        small, large = (1 - r) * sigma_s**2, (1 - r) * sigma_t**2
        var = torch.exp(fraction * large.log() + (1 - fraction) * small.log())
        z = r * alpha_s / alpha_t * z + (1 - r) * alpha_s * x_hat + var.sqrt() * noise[i]
    assert torch.allclose(ours, x_hat, rtol=1e-10)


def test_ddim_of_gaussian_data_keeps_the_distribution():
    """The sampler's map is z -> MEAN + STD z, up to discretisation and sigma at both ends."""
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).view(1, 1, 1, 7)
    assert torch.allclose(sample(Exact(), z, 8192, clip=None), MEAN + STD * z, atol=2e-3)


def probe(phi, phi_next, variance):
    """Return the coefficients of z, x-hat and noise in one ancestral step."""
    one, zero = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (1.0, 0.0))
    args = ((one, zero, zero), (zero, one, zero), (zero, zero, one))
    return [ancestral_to(*a, phi, phi_next, variance).item() for a in args]


PAIRS = [(1.0, 0.75), (1.0, 0.0), (0.5, 0.5 - 1 / 8192), (1 / 64, 1 / 128), (2 / 8192, 1 / 8192)]


@pytest.mark.parametrize(("u_t", "u_s"), PAIRS)
def test_ancestral_small_variance_is_exact_for_point_data(u_t, u_s):
    """x-hat = x: z_s is N(alpha_s x, sigma_s^2) when z_t is N(alpha_t x, sigma_t^2)."""
    phi, phi_next = (SCHEDULE.phi(torch.tensor([u], dtype=torch.float64)) for u in (u_t, u_s))
    c_z, c_x, c_noise = probe(phi, phi_next, variance=0.0)
    assert c_z * phi.cos().item() + c_x == pytest.approx(phi_next.cos().item(), rel=1e-12)
    var = c_z**2 * phi.sin().item() ** 2 + c_noise**2
    assert var == pytest.approx(phi_next.sin().item() ** 2, rel=1e-12)


@pytest.mark.parametrize(("u_t", "u_s"), PAIRS)
def test_ancestral_large_variance_keeps_unit_gaussian_data(u_t, u_s):
    """N(0, 1) data: x-hat = alpha_t z, and the variance stays 1."""
    phi, phi_next = (SCHEDULE.phi(torch.tensor([u], dtype=torch.float64)) for u in (u_t, u_s))
    c_z, c_x, c_noise = probe(phi, phi_next, variance=1.0)
    var = (c_z + c_x * phi.cos().item()) ** 2 + c_noise**2
    assert var == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_ancestral_variance_interpolates_as_published(fraction):
    """fixed_medium:f is f ln(large) + (1 - f) ln(small); r as published, from logSNR."""
    phi, phi_next = (SCHEDULE.phi(torch.tensor([u], dtype=torch.float64)) for u in (0.6, 0.5))
    r = math.exp(logsnr_of(phi).item() - logsnr_of(phi_next).item())
    small = (1 - r) * phi_next.sin().item() ** 2
    large = (1 - r) * phi.sin().item() ** 2
    expected = math.exp(fraction * math.log(large) + (1 - fraction) * math.log(small))
    c_z, c_x, c_noise = probe(phi, phi_next, fraction)
    assert c_noise**2 == pytest.approx(expected, rel=1e-12)
    assert c_z == pytest.approx(r * phi_next.cos().item() / phi.cos().item(), rel=1e-12)
    assert c_x == pytest.approx((1 - r) * phi_next.cos().item(), rel=1e-12)
