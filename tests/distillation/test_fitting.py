"""The first fit, N -> N: v of an eps teacher, and students of another network."""

import dataclasses
import json
import math
import shutil
import typing

import pytest
import torch
from engine_cases import batch_of_numbers, changed, digits, random_model, set_of
from run_cases import assert_same_run, metrics, stop_after
from torch import nn

import pdfast
from pdfast.config.names import Parameterization
from pdfast.config.schema import dump_config
from pdfast.diffusion.angles import combine
from pdfast.diffusion.schedules import CosineSchedule, TableSchedule, logsnr_of, phi_of
from pdfast.distillation import rounds
from pdfast.distillation.objectives import Fit
from pdfast.errors import Stopped, UsageError
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.training.batch import open_batch

STEPS = 8


@pytest.fixture
def tiny(tiny):
    """Return a config with a short evaluation."""
    return changed(tiny, eval={"steps": (2,), "baseline_steps": 2})


def batch_of(config, model, size=64):
    cfg = dataclasses.replace(config.distill, batch=size)
    batch, _ = open_batch(config, cfg, digits(), model, 1)
    return batch


def with_head(model, parameterization):
    """Return a model of the same weights with another parameterization."""
    other = Model(
        dataclasses.replace(model.cfg, parameterization=parameterization), model.steps
    ).to(model.dtype)
    other.net.load_state_dict(model.net.state_dict())
    return other


@pytest.mark.parametrize("parameterization", typing.get_args(Parameterization))
def test_a_student_that_is_its_teacher_has_no_loss(tiny, parameterization):
    config = set_of(tiny, "distill")
    cfg = dataclasses.replace(config.model, parameterization=parameterization)
    teacher, other = (random_model(cfg, seed, torch.float64) for seed in (0, 1))
    batch = batch_of(config, teacher)
    fit = Fit(teacher, STEPS, "snr_trunc")
    assert fit(teacher, batch).loss.per_image.abs().max() == 0
    assert fit(other, batch).loss.per_image.min() > 0


def test_v_of_an_eps_teacher_is_what_the_head_file_says(tiny):
    """v* = alpha eps-hat - sigma x, of the batch's own images and times."""
    config = set_of(tiny, "distill")
    teacher = random_model(
        dataclasses.replace(config.model, parameterization="eps"), 0, torch.float64
    )
    student = with_head(teacher, "v")
    batch = batch_of(config, teacher)
    problem = Fit(teacher, STEPS, "v_mse")(student, batch)
    draw, _ = batch.noised(CosineSchedule().grid(STEPS, teacher.device), STEPS, "x")
    eps_hat = teacher.forward_at_angle(draw.z_in, draw.phi_t)
    target = combine((draw.phi_t.cos(), eps_hat), (-draw.phi_t.sin(), draw.y))
    expected = (problem.out - target).square().flatten(1).mean(1)
    torch.testing.assert_close(problem.loss.per_image, expected, rtol=1e-10, atol=0)


class Gaussian(nn.Module):
    """Return the exact prediction of a parameterization for x ~ N(0, scale^2)."""

    def __init__(self, parameterization, scale):
        super().__init__()
        self.parameterization, self.scale = parameterization, scale

    def forward(self, z, logsnr, label=None):
        phi = phi_of(logsnr)[:, None]
        cos, sin = phi.cos(), phi.sin()
        x_hat = cos * self.scale**2 / (cos.square() * self.scale**2 + sin.square()) * z
        eps_hat = (z - cos * x_hat) / sin
        return {"eps": eps_hat, "v": cos * eps_hat - sin * x_hat}[self.parameterization]


def test_the_exact_v_is_best_for_an_exact_eps_teacher():
    """The gradient of the loss, summed over many draws, is 0 at it, and not at another v."""
    scale, num = 0.5, 200_000
    teacher = pdfast.Network(Gaussian("eps", scale), (1,), parameterization="eps").double()
    x = scale * torch.randn(num, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    batch = batch_of_numbers(x)
    fit = Fit(teacher, STEPS, "v_mse")

    def slope(size):
        """Return the gradient of the mean loss along z at a scale's v, and its standard error."""
        student = pdfast.Network(Gaussian("v", size), (1,)).double()
        loss = fit(student, batch).loss.grad_out.flatten() * num
        along = loss * batch.noised(fit._grid, STEPS)[0].z_t.flatten()
        return float(along.mean()), float(along.std()) / math.sqrt(num)

    mean, error = slope(scale)
    assert abs(mean) < 4 * error
    mean, error = slope(0.6)
    assert abs(mean) > 8 * error


# ------------------------------------------------------------------------------------------
# Whole runs


@pytest.fixture
def eps_teacher(tiny, tmp_path):
    path = tmp_path / "teachers" / "eps"
    checkpoint.save_model(
        random_model(dataclasses.replace(tiny.model, parameterization="eps"), 0, torch.float32),
        path,
    )
    return path


def test_an_eps_teacher_gets_a_first_round_of_the_same_steps(
    tiny, eps_teacher, tmp_path, capsys, monkeypatch
):
    """It is announced, kept in the config, resumed to the bit in and after it, and continued."""
    plain, out = tmp_path / "plain", tmp_path / "run"
    student = pdfast.distill(tiny, teacher=eps_teacher, out=plain)
    assert "cannot be distilled as it is: round 1 moves it to v" in capsys.readouterr().out
    start, updates = tiny.distill.start_steps, tiny.distill.updates
    assert student.parameterization == "v"
    assert student.steps == start >> tiny.distill.rounds
    assert checkpoint.load_model(plain / f"round-01-steps-{start:04d}").parameterization == "v"
    kept = pdfast.load_config(plain / "config.toml")
    assert kept.distill.fit_updates == 4 * updates
    ends = [m for m in metrics(plain) if "fixed_batch_loss_end" in m]
    assert [m["steps"] for m in ends] == [start >> n for n in range(tiny.distill.rounds + 1)]
    assert ends[0]["fixed_batch_loss_end"] < ends[0]["fixed_batch_loss_start"]
    for stop in (2 * updates, 2 * updates + 3):  # in the fit, and then in the next round
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Stopped):
                pdfast.distill(tiny, teacher=eps_teacher, out=out, quiet=True)
    pdfast.distill(kept, out=out, quiet=True)
    assert_same_run(plain, out)


def test_a_student_of_another_network(tiny, straight, tmp_path):
    half = changed(tiny, model={"ch": tiny.model.ch // 2}, distill={"fit_updates": 20})
    student = pdfast.distill(half, teacher=straight / "teacher", out=tmp_path / "run", quiet=True)
    assert student.cfg.ch == tiny.model.ch // 2
    ends = [m for m in metrics(tmp_path / "run") if "fixed_batch_loss_end" in m]
    assert ends[0]["fixed_batch_loss_end"] < ends[0]["fixed_batch_loss_start"]
    assert json.loads((tmp_path / "run" / "teacher" / "config.json").read_text())["model"][
        "ch"
    ] == (tiny.model.ch)


def refused(message, config, **given):
    with pytest.raises(UsageError, match=message):
        pdfast.distill(config, quiet=True, **given)


def test_refusals(tiny, straight, eps_teacher, tmp_path):
    teacher, out = straight / "teacher", tmp_path / "run"
    other = changed(tiny, model={"ch": 16})
    refused("has model.ch 8, but the config asks for 16.*or distill.fit_updates 20000", other,
            teacher=teacher, out=out)  # fmt: skip
    other = changed(tiny, model={"logsnr_max": 15.0}, distill={"fit_updates": 5})
    refused("has model.logsnr_max 20.0, but the config asks for 15.0: pass the config that the "
            "teacher was trained with$", other, teacher=teacher, out=out)  # fmt: skip
    imported = shutil.copytree(teacher, tmp_path / "imported")
    (tmp_path / "imported.toml").write_text("")
    refused(f"asks for 15.0: pass {imported}.toml, which was made for it$", other,
            teacher=imported, out=out)  # fmt: skip
    refused("has model.parameterization 'eps', but the config asks for 'x'",
            changed(tiny, model={"parameterization": "x"}),
            teacher=eps_teacher, out=out)  # fmt: skip
    refused("distill.fit_updates is for students that cannot start as their teacher, and this",
            changed(tiny, distill={"fit_updates": 5}), out=out)  # fmt: skip
    refused("teacher has the config's own network: leave it at 0",
            changed(tiny, distill={"fit_updates": 5}), teacher=teacher, out=out)  # fmt: skip
    refused("so that the first round converts",
            changed(tiny, model={"parameterization": "eps"}),
            teacher=eps_teacher, out=out)  # fmt: skip
    assert not out.exists()


def test_a_run_that_has_another_networks_teacher_needs_the_fit(tiny, straight, tmp_path):
    """Also after the teacher was copied into the run, whose own config is the way back."""
    half = changed(tiny, model={"ch": 4})
    checkpoint.save_model(checkpoint.load_model(straight / "teacher"), tmp_path / "run" / "teacher")
    (tmp_path / "run" / "config.toml").write_text(dump_config(half))
    refused("run/teacher has model.ch 8, but the config asks for 4.*distill.fit_updates", half,
            out=tmp_path / "run")  # fmt: skip
    (tmp_path / "run" / "config.toml").write_text(dump_config(tiny))
    refused("run/teacher has model.ch 8, but the config asks for 4: pass .*run/config.toml to "
            "resume the run, or choose another out$", half, out=tmp_path / "run")  # fmt: skip


def test_an_eps_run_keeps_the_fit_that_it_began_with(tiny, eps_teacher, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, teacher=eps_teacher, out=tmp_path / "run", quiet=True)
    more = changed(tiny, distill={"updates": 7, "rounds": 1})
    pdfast.distill(more, out=tmp_path / "run", quiet=True)
    kept = pdfast.load_config(tmp_path / "run" / "config.toml")
    assert kept.distill.fit_updates == 4 * tiny.distill.updates


# ------------------------------------------------------------------------------------------
# Schedules by table


def linear(steps=1000):
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    return TableSchedule(torch.log(alpha_bar / (1 - alpha_bar)))


def test_a_table_is_its_points_and_its_inverse():
    schedule = linear()
    t = torch.arange(1000)
    u = (t.double() + 1) / 1000
    torch.testing.assert_close(logsnr_of(schedule.phi(u)), schedule.logsnr, rtol=1e-7, atol=1e-7)
    times = torch.rand(1000, dtype=torch.float64) * 0.999 + 0.001
    torch.testing.assert_close(schedule.u(logsnr_of(schedule.phi(times))), times)
    assert (schedule.phi(times.sort().values).diff() >= 0).all()
    grid = schedule.grid(4, torch.device("cpu"))
    torch.testing.assert_close(grid[1:], schedule.phi(torch.arange(1, 9) / 8))


@pytest.mark.parametrize("logsnr", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -math.inf]])
def test_a_table_must_fall(logsnr):
    with pytest.raises(ValueError, match="logsnr must"):
        TableSchedule(torch.tensor(logsnr))


def test_a_teacher_has_no_more_steps_than_its_schedule(tiny):
    model = random_model(tiny.model, 0, torch.float32)
    model.schedule = linear()
    with pytest.raises(UsageError, match=r"steps must be in 1 \.\. 1000, not 1024"):
        model.sample(1, 1024)
    with pytest.raises(UsageError, match=r"the 1000 timesteps .* --distill.start-steps 512"):
        rounds.check_start(model, changed(tiny, distill={"start_steps": 1024}))
    with pytest.raises(UsageError, match=r"eval.steps or eval.baseline_steps 2000 is more than"):
        rounds.check_start(model, changed(tiny, eval={"steps": (2000,)}))


def test_a_round_on_a_table_that_is_the_cosine_schedule(tiny):
    """The loss is that of the cosine schedule, also with angles from a table."""
    config = set_of(tiny, "distill")
    teacher = random_model(config.model, 0, torch.float64)
    cosine = teacher.schedule
    batch = batch_of(config, teacher)
    expected = engine_loss(teacher, batch, config)
    u = torch.arange(1, 2 * STEPS + 1, dtype=torch.float64) / (2 * STEPS)
    teacher.schedule = TableSchedule(logsnr_of(cosine.phi(u)))
    found = engine_loss(teacher, batch, config)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def engine_loss(teacher, batch, config):
    from pdfast.distillation.objectives import Rollout

    losses = []
    for tabulate in (False, True):
        options = dataclasses.replace(config.engine, tabulate_film=tabulate)
        student = random_model(teacher.cfg, 1, torch.float64)
        losses.append(Rollout(teacher, STEPS, "snr_trunc", options)(student, batch).loss.per_image)
    return torch.stack(losses)
