"""Rounds that merge any number of steps: the general target, and its optimum."""

import dataclasses

import pytest
import torch
from engine_cases import batch_of_numbers, digits, random_model
from mixture_cases import MEANS, SCHEDULES, STD, Affine, OneGaussian, of_time
from torch import nn

import pdfast
from pdfast import reference
from pdfast.config.schema import Config, DistillConfig, EvalConfig
from pdfast.diffusion import wrappers
from pdfast.diffusion.angles import ddim_step, distill_loss
from pdfast.diffusion.samplers import ddim_to
from pdfast.diffusion.schedules import CosineSchedule, TableSchedule, phi_of
from pdfast.diffusion.wrappers import FlowMatching
from pdfast.distillation.objectives import Rollout
from pdfast.training.batch import open_batch

PLANS = [(1, 8), (2, 4), (4, 1), (3, 5), (2, 2)]  # N and r
TABLE = TableSchedule(torch.linspace(6, -6, 16))


@pytest.mark.parametrize(("num_steps", "merged"), PLANS)
@pytest.mark.parametrize("first", ["teacher", "data"])
@pytest.mark.parametrize("parameterization", ["x", "v", "x_eps"])
def test_loss_and_gradient_are_the_references(tiny, parameterization, first, num_steps, merged):
    net = dataclasses.replace(tiny.model, parameterization=parameterization)
    teacher, student = (random_model(net, seed, torch.float64) for seed in (0, 1))
    batch, _ = open_batch(tiny, dataclasses.replace(tiny.distill, batch=12), digits(), teacher, 1)
    options = {"first": first, "second": "student", "merged": merged}
    rollout = Rollout(teacher, num_steps, "snr_trunc", **options)
    out, loss = rollout(student, batch)
    found = torch.autograd.grad(out, list(student.parameters()), loss.grad_out)

    draw, _ = rollout._noised(batch)
    u = (draw.phi_t - teacher.schedule.b) / teacher.schedule.a
    k = (u * num_steps * merged).round().long() - 1
    alpha, sigma = (f(draw.phi_t)[:, None, None, None] for f in (torch.cos, torch.sin))
    x = digits().images[draw.chosen].permute(0, 3, 1, 2)
    x = (x.float() / 127.5 - 1).double()
    eps = (draw.z_t - alpha * x) / sigma
    per_image, _ = reference.merging_loss(
        student, None if first == "data" else teacher, x, eps, k, num_steps, merged, "snr_trunc"
    )
    torch.testing.assert_close(loss.per_image, per_image, rtol=1e-9, atol=0)
    expected = torch.autograd.grad(per_image.mean(), list(student.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9 * float(theirs.abs().max()))


class StepsInOne(nn.Module):
    """A student that jumps from each of a teacher's times to the end of its segment."""

    def __init__(self, teacher, num_steps, merged):
        super().__init__()
        self.teacher, self.fine, self.merged = teacher, num_steps * merged, merged

    def forward(self, z, logsnr, label):
        schedule = self.teacher.schedule
        k = (self.fine * schedule.u(logsnr)).round() - 1
        first = k // self.merged * self.merged  # first step of the segment
        phi, z_now, phi_now = phi_of(logsnr), z, phi_of(logsnr)
        x = self.x_hat(z, phi)
        for step in range(self.merged):
            here = (k - step >= first)[:, None]
            x_now = self.x_hat(z_now, phi_now)
            after = schedule.phi((k - step).clamp(min=1e-6) / self.fine)
            x = torch.where(here, x_now, x)
            z_now = torch.where(here, ddim_to(z_now, x_now, phi_now, after), z_now)
            phi_now = torch.where(here[:, 0], after, phi_now)
        ratio = (phi_now.sin() / phi.sin())[:, None]
        jump = (z_now - ratio * z) * (phi.sin() / (phi - phi_now).sin())[:, None]
        x = torch.where((first == 0)[:, None], x, jump)
        if self.teacher.parameterization == "x":
            return x
        return (phi.cos()[:, None] * z - x) / phi.sin()[:, None]

    def x_hat(self, z, phi):
        return self.teacher.predict_x_at_angle(z[:, :, None, None], phi)[:, :, 0, 0]


class Scaled(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, z, logsnr, label):
        return 1.1 * self.module(z, logsnr, label)


@pytest.mark.parametrize(("num_steps", "merged"), PLANS)
@pytest.mark.parametrize("parameterization", ["x", "v"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, TABLE], ids=lambda s: type(s).__name__)
def test_the_composition_of_the_teachers_steps_has_no_loss(
    schedule, parameterization, num_steps, merged
):
    of = {"parameterization": parameterization, "schedule": schedule}
    teacher = pdfast.Network(of_time(parameterization), (2,), **of).double()
    exact = StepsInOne(teacher, num_steps, merged)
    student = pdfast.Network(exact, (2,), **of).double()
    x = torch.randn(64, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    rollout = Rollout(teacher, num_steps, "v_mse", second="student", merged=merged)
    assert rollout(student, batch_of_numbers(x)).loss.per_image.max() < 1e-12
    other = pdfast.Network(Scaled(exact), (2,), **of).double()
    assert rollout(other, batch_of_numbers(x)).loss.per_image.max() > 1e-6


@pytest.mark.parametrize("parameterization", ["x", "v"])
def test_of_the_data_the_exact_student_has_no_expected_gradient(parameterization):
    """For Gaussian data, whose posterior given z_t is known. The target is linear in x, so its mean
    is that over the two points one standard deviation from the posterior's mean.
    """
    spread, n, r = 0.6, 2, 4
    schedule = CosineSchedule()
    z_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]

    def slope(phi):
        """E[x | z] / z."""
        alpha, sigma = phi.cos(), phi.sin()
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)

    def y_of(x, z, phi):
        eps = (z - phi.cos() * x) / phi.sin()
        return {"x": x, "eps": eps, "v": phi.cos() * eps - phi.sin() * x}[parameterization]

    def exact(phi, phi_end, to_zero):
        """Return x-hat of the jump equal to k DDIM steps of the ideal teacher from z = 1."""
        z, x = torch.ones_like(phi), None
        k = round(float((phi - schedule.b) / schedule.a) * n * r)
        end = round(float((phi_end - schedule.b) / schedule.a) * n * r)
        for at in range(k, end, -1):
            here, after = (schedule.phi(torch.tensor(j / (n * r))) for j in (at, at - 1))
            x = slope(here) * z
            z = after.cos() * x + after.sin() * (z - here.cos() * x) / here.sin()
        if to_zero:
            return x
        return (z - phi_end.sin() / phi.sin()) * phi.sin() / (phi - phi_end).sin()

    for k in range(n * r):
        phi = schedule.phi(torch.tensor((k + 1) / (n * r)))
        mid, end = (schedule.phi(torch.tensor(j / (n * r))) for j in (k, k // r * r))
        mid, last = (phi if mid == end else mid), k < r
        of_x = exact(phi, end, last)
        out = y_of(of_x * z_t, z_t, phi)
        batch = [t.expand(len(z_t)).contiguous() for t in (phi, mid, end)]
        grads, sizes = [], []
        for sign in (-1, 1):
            deviation = spread * phi.sin() / (phi.cos() ** 2 * spread**2 + phi.sin() ** 2).sqrt()
            y1 = y_of(slope(phi) * z_t + sign * deviation, z_t, phi)
            z_mid = ddim_step(z_t, y1, batch[0], batch[1], parameterization, torch.float64).z_in
            y2 = y_of((exact(mid, end, last) if k % r else slope(mid)) * z_mid, z_mid, mid)
            told = torch.full((len(z_t),), last)
            steps = (z_t, y1, y2, batch[0], batch[1], told)
            grads.append(distill_loss(out, *steps, parameterization, "v_mse", batch[2]).grad_out)
            sizes.append(grads[-1].abs().max())
        assert (grads[0] + grads[1]).abs().max() < 1e-12 * max(1.0, *map(float, sizes))
        assert max(sizes) > 1e-6  # each of the two alone is not 0


@pytest.mark.parametrize(
    ("plan", "first"), [("4,1", "teacher"), ("4,2,1", "teacher"), ("4,1", "data")]
)
def test_an_affine_student_of_a_gaussian_converges_to_the_composition(tmp_path, plan, first):
    schedule = FlowMatching()
    teacher = pdfast.Network(wrappers.from_flow(OneGaussian()), (2,), schedule=schedule).double()
    loop = DistillConfig(start_steps=4, rounds=plan, second="student", first=first, updates=300,
                         fit_updates=200, batch=256, lr=0.05, fit_lr=0.1, loss_weight="v_mse",
                         grad_clip=0.0, anneal="linear")  # fmt: skip
    config = Config(distill=loop, eval=EvalConfig(steps=(1,), baseline_steps=4), log_every=300)
    x = MEANS[0] + STD * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    given = {"student": Affine(schedule), "data": x, "out": tmp_path / "run", "quiet": True}
    student = pdfast.distill(config, teacher=teacher, **given)
    assert student.steps == 1
    expected, found = teacher.sample(64, 4), student.sample(64, 1)
    assert (found - expected).abs().max() < (0.02 if first == "teacher" else 0.1)
    assert (teacher.sample(64, 1) - expected).abs().max() > 0.2


def test_a_teacher_takes_the_second_of_two_steps_alone(tiny):
    teacher = random_model(tiny.model, 0, torch.float32)
    with pytest.raises(ValueError, match="the teacher takes the second of two steps, not of 4"):
        Rollout(teacher, 2, "v_mse", merged=4)
