"""Schedules by formula, and one exact denoiser in every convention."""

import json
import math

import pytest
import torch
from engine_cases import batch_of_numbers
from mixture_cases import (
    MEANS,
    SCHEDULES,
    STD,
    Affine,
    Denoiser,
    OneGaussian,
    Velocity,
    of_time,
    posterior_mean,
)
from torch import nn

import pdfast
from pdfast.config.names import OUTPUTS
from pdfast.config.schema import Config, DistillConfig, EvalConfig
from pdfast.diffusion import wrappers
from pdfast.diffusion.samplers import ddim_to
from pdfast.diffusion.schedules import logsnr_of, phi_of
from pdfast.diffusion.wrappers import EDM, CosineSchedule, FlowMatching, LinearVP, TableSchedule
from pdfast.distillation.objectives import Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.errors import UsageError


def exact(kind, schedule=None):
    """Return the denoiser as a Network, through one convention."""
    if kind in OUTPUTS:
        module, parameterization = of_time(kind), kind
    elif kind == "edm":
        module, parameterization = wrappers.from_edm(Denoiser(), 0.0, math.inf), "x"
    else:
        module, parameterization = wrappers.from_flow(Velocity()), "v"
    return pdfast.Network(
        module, (2,), parameterization=parameterization, schedule=schedule
    ).double()


KINDS = ("edm", "flow", *OUTPUTS)


@pytest.mark.parametrize("kind", KINDS)
def test_one_denoiser_in_every_convention(kind):
    logsnr = torch.linspace(-9, 9, 64, dtype=torch.float64)
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double() * 2
    phi = phi_of(logsnr)
    expected = posterior_mean(z / phi.cos()[:, None], phi.tan())
    x_hat = exact(kind).predict_x(z, logsnr)
    torch.testing.assert_close(x_hat, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [FlowMatching(), EDM(), LinearVP()])
def test_samples_do_not_depend_on_the_convention(schedule):
    made = {kind: exact(kind, schedule).sample(64, 16) for kind in ("edm", "flow", "v")}
    for kind in ("flow", "v"):
        torch.testing.assert_close(made[kind], made["edm"], rtol=1e-9, atol=1e-9)
    many = exact("edm", schedule).sample(256, 64)
    nearest = (many[:, None] - MEANS).norm(dim=2).min(1).values
    assert nearest.square().mean() == pytest.approx(2 * STD**2, rel=0.3)


# ------------------------------------------------------------------------------------------
# Schedules


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_is_its_inverse_and_its_description(schedule):
    u = torch.linspace(0.01, 1, 200, dtype=torch.float64)
    phi = schedule.phi(u)
    assert (phi.diff() > 0).all()
    assert phi[-1] > 1.45  # almost pure noise
    torch.testing.assert_close(schedule.u(logsnr_of(phi)), u, rtol=1e-9, atol=1e-9)
    again = wrappers.schedule_from(json.loads(json.dumps(schedule.describe())))
    assert torch.equal(again.phi(u), phi)
    assert again.describe() == schedule.describe()
    grid = schedule.grid(4, torch.device("cpu"))
    if isinstance(grid, torch.Tensor):
        assert torch.equal(grid, schedule.phi(torch.arange(9, dtype=torch.float64) / 8))


def test_formulas():
    """The papers' formulas at a few times."""
    u = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    snr = {name: logsnr_of(s.phi(u)).exp() for name, s in
           {"vp": LinearVP(), "edm": EDM(), "flow": FlowMatching()}.items()}  # fmt: skip
    alpha_bar = torch.exp(-(0.1 * u + 19.9 * u**2 / 2))
    torch.testing.assert_close(snr["vp"], alpha_bar / (1 - alpha_bar))
    sigma = (0.002 ** (1 / 7) + u * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    torch.testing.assert_close(snr["edm"], sigma**-2)
    torch.testing.assert_close(snr["flow"][:2], ((1 - u) / u).square()[:2])
    assert snr["flow"][2] < 1e-30


def test_a_table_survives_its_description():
    table = TableSchedule(torch.linspace(9, -9, 50))
    again = wrappers.schedule_from(json.loads(json.dumps(table.describe())))
    assert torch.equal(again.logsnr, table.logsnr)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearVP(0.0), "0 < beta_min <= beta_max"),
        (lambda: EDM(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: EDM(rho=math.inf), "rho above 0"),
        (lambda: wrappers.schedule_from({"kind": "cosin"}), "schedule.kind must be one of cosine"),
        (lambda: wrappers.schedule_from({"kind": "edm", "rho": "7"}), "schedule.rho must be a num"),
        (lambda: wrappers.schedule_from({"kind": "edm", "rh": 7}), "unknown key 'schedule.rh'"),
        (lambda: wrappers.schedule_from({"kind": "table"}), "schedule.logsnr must be a list"),
        (lambda: wrappers.schedule_from({"kind": "table", "logsnr": [1, 1]}), "falling numbers"),
    ],
)
def test_bad_schedules(make, message):
    with pytest.raises(UsageError, match=message):
        make()


# ------------------------------------------------------------------------------------------
# Distilled


def test_the_exact_teacher_of_a_gaussian_is_distilled_right(tmp_path):
    """One step of the student, an affine map, equals four of the teacher."""
    schedule = FlowMatching()
    module = wrappers.from_flow(OneGaussian())
    teacher = pdfast.Network(module, (2,), schedule=schedule).double()
    loop = DistillConfig(start_steps=4, rounds=2, updates=100, fit_updates=200, batch=64, lr=0.03,
                         fit_lr=0.1, loss_weight="v_mse", grad_clip=0.0)  # fmt: skip
    config = Config(distill=loop, eval=EvalConfig(steps=(1,), baseline_steps=4), log_every=200)
    x = MEANS[0] + STD * torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).double()
    given = {"student": Affine(schedule), "data": x, "out": tmp_path / "run", "quiet": True}
    student = pdfast.distill(config, teacher=teacher, **given)
    assert student.steps == 1
    expected, found = teacher.sample(64, 4), student.sample(64, 1)
    assert (found - expected).abs().max() < 0.02
    assert (teacher.sample(64, 1) - expected).abs().max() > 0.2
    assert (student.net.shift[:3] != 0).all()  # the fit taught the other levels


@pytest.mark.parametrize("ends", [(20.0, -20.0), (-math.inf, math.inf), (-2000.0, 20.0)])
def test_the_ends_of_the_cosine_schedule(ends):
    with pytest.raises(UsageError, match="needs logsnr_min below logsnr_max, and both within"):
        CosineSchedule(*ends)


class TwoStepsInOne(nn.Module):
    """A student whose single step of N ends exactly where two of the teacher end."""

    def __init__(self, teacher, num_steps):
        super().__init__()
        self.teacher, self.num_steps = teacher, num_steps

    def forward(self, z, logsnr, label):
        schedule, n, parameterization = (
            self.teacher.schedule,
            self.num_steps,
            self.teacher.parameterization,
        )
        i = (n * schedule.u(logsnr)).round() - 1
        phi = phi_of(logsnr)
        mid, after = schedule.phi((i + 0.5) / n), schedule.phi(i.clamp(min=1e-6) / n)
        z_mid = ddim_to(z, self.x_hat(z, phi), phi, mid)
        x_mid = self.x_hat(z_mid, mid)
        z_after = ddim_to(z_mid, x_mid, mid, after)

        def each(angle):
            return angle[:, None]

        ratio = each(after.sin() / phi.sin())
        x = (z_after - ratio * z) * each(phi.sin() / (phi - after).sin())
        x = torch.where(each(i == 0), x_mid, x)
        if parameterization == "x":
            return x
        return (each(phi.cos()) * z - x) / each(phi.sin())

    def x_hat(self, z, phi):
        return self.teacher.predict_x_at_angle(z[:, :, None, None], phi)[:, :, 0, 0]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("parameterization", ["x", "v"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, TableSchedule(torch.tensor([3.0, 1, 0.5, -4]))])
def test_the_target_is_where_two_steps_lead(schedule, parameterization, pipelined):
    """On every schedule, also if the two steps differ in angle; the teacher itself has a loss."""
    teacher = pdfast.Network(
        of_time(parameterization), (2,), parameterization=parameterization, schedule=schedule
    ).double()
    n = 2
    student = pdfast.Network(
        TwoStepsInOne(teacher, n), (2,), parameterization=parameterization, schedule=schedule
    ).double()
    x = torch.randn(64, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    batch = batch_of_numbers(x)
    objective = (Pipelined if pipelined else Rollout)(teacher, n, "snr_trunc")
    with torch.no_grad():
        objective.begin(batch)
        exact = objective(student, batch).loss.per_image
        objective.begin(batch)
        itself = objective(teacher, batch).loss.per_image
    assert exact.max() < 1e-18
    assert itself.mean() > 1e-5
