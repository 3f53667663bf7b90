"""The v-space path against the published formulas over random cases, in float64."""

import typing

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from kernel_checks import PARAMETERIZATIONS, WEIGHTS

from pdfast import reference
from pdfast.config.names import LOSS_WEIGHTS, OUTPUTS, LossWeight
from pdfast.diffusion import angles
from pdfast.diffusion.samplers import ddim_to
from pdfast.diffusion.schedules import CosineSchedule

SHAPE = (1, 2, 3)
CASES = {
    "parameterization": st.sampled_from(PARAMETERIZATIONS),
    "weight": st.sampled_from(WEIGHTS),
    "log2_steps": st.integers(0, 12),
    "odd": st.sampled_from([1, 3, 5]),
    "where": st.floats(0, 1),
    "logsnr_max": st.sampled_from([20.0, 10.0, 4.0]),
    "draw": st.integers(0, 2**31 - 1),
}


class Affine:
    """A denoiser without a network: its output is a fixed affine map of z."""

    def __init__(self, parameterization, channels, logsnr_max, generator):
        self.parameterization = parameterization
        self.logsnr_min, self.logsnr_max = -logsnr_max, logsnr_max
        self.schedule = CosineSchedule(-logsnr_max, logsnr_max)
        copies = OUTPUTS[parameterization].copies
        shape = (2, copies * channels, 1, 1)
        self.gain, self.bias = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.copies = copies

    def __call__(self, z, logsnr, label=None):
        return self.gain * torch.cat([z] * self.copies, dim=1).tanh() + self.bias


def check(parameterization, weight, log2_steps, odd, where, logsnr_max, draw):
    num_steps = odd * 2**log2_steps
    g = torch.Generator().manual_seed(draw)
    teacher, student = (Affine(parameterization, SHAPE[0], logsnr_max, g) for _ in range(2))
    x, eps = (torch.randn(3, *SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    i = torch.tensor([0, num_steps - 1, min(int(where * num_steps), num_steps - 1)])
    loss, x_target = reference.distillation_loss(student, teacher, x, eps, i, num_steps, weight)

    phi_t = teacher.schedule.phi((i.double() + 1) / num_steps)
    phi_mid = teacher.schedule.phi((i.double() + 0.5) / num_steps)
    z_t = angles.diffuse(x, eps, phi_t)
    out_t = teacher(z_t, None)
    out_mid = teacher(angles.ddim_step(z_t, out_t, phi_t, phi_mid, parameterization).z, None)
    y_target = angles.target(z_t, out_t, out_mid, phi_t, phi_mid, i == 0, parameterization)
    plain = "v" if parameterization == "x_eps" else parameterization
    # The published target divides by alpha_s - (sigma_s / sigma_t) alpha_t, 1e-4 at N = 8192, and
    # its eps by sigma_t, so it is exact to 1e-16 / 1e-4 / sigma at best.
    ours = angles.predict_x(z_t, y_target, phi_t, plain)
    assert torch.allclose(ours, x_target, rtol=1e-8, atol=1e-9 * float(x_target.abs().max()))
    fast = angles.loss_and_grad(
        student(z_t, None), y_target, phi_t, parameterization, weight
    ).per_image
    assert torch.allclose(fast, loss, rtol=1e-6)


@seed(0)
@settings(max_examples=50, deadline=None, database=None)
@given(**CASES)
def test_rollout_target_and_loss(**case):
    check(**case)


@pytest.mark.slow
@seed(1)
@settings(max_examples=2000, deadline=None, database=None)
@given(**CASES)
def test_rollout_target_and_loss_many(**case):
    check(**case)


@pytest.mark.parametrize("parameterization", ["x", "v"])
def test_one_student_step_lands_where_two_teacher_steps_do(parameterization):
    """The defining property of the target (Algorithm 2), without any reference formula."""
    g = torch.Generator().manual_seed(0)
    teacher = Affine(parameterization, 1, 20.0, g)
    for num_steps in (2, 64, 8192):
        i = torch.arange(1, num_steps, max(1, num_steps // 7))
        u = (i.double() + 1) / num_steps
        phi = teacher.schedule.phi
        phi_t, phi_mid, phi_s = phi(u), phi(u - 0.5 / num_steps), phi(u - 1 / num_steps)
        z_t = torch.randn(len(i), *SHAPE, generator=g, dtype=torch.float64)
        out_t = teacher(z_t, None)
        z_mid = angles.ddim_step(z_t, out_t, phi_t, phi_mid, parameterization).z
        out_mid = teacher(z_mid, None)
        z_s = angles.ddim_step(z_mid, out_mid, phi_mid, phi_s, parameterization).z
        y = angles.target(z_t, out_t, out_mid, phi_t, phi_mid, i == 0, parameterization)
        assert torch.allclose(
            angles.ddim_step(z_t, y, phi_t, phi_s, parameterization).z, z_s, atol=1e-12
        )
        x_hat = angles.predict_x(z_t, y, phi_t, parameterization)
        assert torch.allclose(ddim_to(z_t, x_hat, phi_t, phi_s), z_s, atol=1e-11)


@pytest.mark.parametrize("weight", typing.get_args(LossWeight))
def test_weights_in_v_space_are_bounded(weight):
    phi = CosineSchedule().phi(torch.linspace(0, 1, 8193))
    w = angles.loss_weight(phi, "v", weight)
    assert w.min() > 0
    assert w.max() <= 1, f"{weight} is {w.max():g} in v: divide it by that, at most 1 is allowed"
    snr = (phi.cos() / phi.sin()) ** 2
    published = {
        "constant": (torch.ones_like(snr), "1"),
        "snr": (snr, "SNR"),
        "snr_trunc": (snr.clamp(min=1), "max(SNR, 1)"),
        "v_mse": (snr + 1, "SNR+1"),
    }
    assert weight in published, f"add {weight} here, with its weight of the error in x"
    on_x, formula = published[weight]
    assert torch.allclose(angles.loss_weight(phi, "x", weight), on_x, rtol=1e-10)
    assert torch.allclose(angles.loss_weight(phi, "eps", weight), on_x / snr, rtol=1e-10)
    assert LOSS_WEIGHTS[weight].on_x() == formula
    levels = zip(snr.tolist(), on_x.tolist(), strict=True)
    assert all(LOSS_WEIGHTS[weight].at(s) == pytest.approx(w, rel=1e-10) for s, w in levels)


def test_every_weight_has_its_terms():
    assert list(LOSS_WEIGHTS) == list(typing.get_args(LossWeight))
