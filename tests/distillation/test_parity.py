"""The published implementation's own numbers, through reference.py and through the v-space path.

float64, relative error at most 1e-9.
"""

import golden
import pytest
import torch

from pdfast import reference
from pdfast.diffusion import angles
from pdfast.interop.google.published import views
from pdfast.kernels.parameterizations import PREDICTIONS

TOL = 1e-9
N_STEPS = (8192, 64, 1)


@pytest.mark.parametrize("base", ["x", "x_eps"])
def test_unet(base):
    out = golden.model("student", base)(golden.value("unet/z"), golden.value("unet/logsnr"))
    assert golden.relative(out, golden.value(f"unet/{base}/out")) < TOL


def test_schedule():
    u, logsnr = golden.value("schedule/t"), golden.value("schedule/logsnr")
    from pdfast.diffusion.schedules import CosineSchedule, logsnr_of

    assert golden.relative(reference.logsnr_schedule(u), logsnr) < TOL
    assert golden.relative(logsnr_of(CosineSchedule().phi(u)), logsnr) < TOL


@pytest.fixture(
    scope="module", params=[(h, n) for h in golden.PARAMETERIZATIONS for n in N_STEPS], ids=str
)
def case(request):
    parameterization, num_steps = request.param
    teacher, student = (
        golden.model("teacher", parameterization),
        golden.model("student", parameterization),
    )
    return golden.Case(parameterization, num_steps, teacher, student)


def test_rollout_and_target(case):
    case.check_rollout(TOL)


@pytest.mark.parametrize("weight", golden.WEIGHTS)
def test_reference_loss(case, weight):
    loss, x_target = reference.distillation_loss(
        case.student, case.teacher, case.x, case.eps, case.i, case.num_steps, weight
    )
    assert golden.relative(x_target, case.golden("x_target")) < TOL
    expected = case.golden(f"{weight}/loss")
    assert ((loss - expected).abs() / expected).max() < TOL
    check_gradients(case, weight, loss.mean())


@pytest.mark.parametrize("weight", golden.WEIGHTS)
def test_v_space_loss(case, weight):
    out = case.student.forward_at_angle(case.z_t, case.phi_t)
    loss = angles.loss_and_grad(out, case.y_target, case.phi_t, case.parameterization, weight)
    expected = case.golden(f"{weight}/loss")
    assert ((loss.per_image - expected).abs() / expected).max() < TOL
    check_gradients(case, weight, out, loss.grad_out)


def check_gradients(case, weight, root, grad=None):
    """Return the norm of the whole gradient, and the parameters in the golden file."""
    case.student.zero_grad()
    root.backward(grad)
    grads = {name: p.grad for name, p in case.student.net.named_parameters()}
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
    expected = case.golden(f"{weight}/grad_norm")
    assert abs(norm - expected) / expected < TOL
    keys = golden.grad_keys(f"{case.key}/{weight}")
    assert len(keys) == 2
    published = views(case.student.cfg, grads)
    for key in keys:
        assert golden.relative(published[key], case.golden(f"{weight}/grad/{key}")) < TOL


def test_closed_form_gradient_is_autograds(case):
    out = case.student.forward_at_angle(case.z_t, case.phi_t).detach().requires_grad_()
    for weight in golden.WEIGHTS:
        loss = angles.loss_and_grad(out, case.y_target, case.phi_t, case.parameterization, weight)
        (expected,) = torch.autograd.grad(loss.per_image.mean(), out)
        assert golden.relative(loss.grad_out, expected) < 1e-13


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("parameterization", golden.PARAMETERIZATIONS)
def test_ddim(parameterization, steps, clip):
    student, z = golden.model("student", parameterization), golden.value("unet/z")
    expected = golden.value(f"ddim/{parameterization}/K{steps}/{clip}/samples")
    fast = student.sample(3, steps, noise=z, clip=clip == "clip")
    assert golden.relative(fast, expected) < TOL
    assert golden.relative(reference.ddim_sample(student, z, steps, clip == "clip"), expected) < TOL


@pytest.mark.parametrize("weight", golden.WEIGHTS)
@pytest.mark.parametrize("parameterization", golden.PARAMETERIZATIONS)
def test_continuous_time_loss(parameterization, weight):
    student, x = golden.model("student", parameterization), golden.value("data/x")
    u, eps = (
        golden.value(f"train/{parameterization}/u"),
        golden.value(f"train/{parameterization}/eps"),
    )
    expected = golden.value(f"train/{parameterization}/{weight}/loss")
    loss = reference.training_loss(student, x, eps, u, weight)
    assert ((loss - expected).abs() / expected).max() < TOL
    phi = student.schedule.phi(u)
    out = student.forward_at_angle(angles.diffuse(x, eps, phi), phi)
    y_target = PREDICTIONS[parameterization].of_data(x, eps, phi)
    fast = angles.loss_and_grad(out, y_target, phi, parameterization, weight).per_image
    assert ((fast - expected).abs() / expected).max() < TOL


@pytest.mark.parametrize("num_steps", [8192, 64, 1])
@pytest.mark.parametrize("parameterization", golden.PARAMETERIZATIONS)
def test_first_and_last_i_against_reference(parameterization, num_steps):
    """i = 0 and i = N - 1, which are only partly in the golden file."""
    teacher, student = (
        golden.model("teacher", parameterization),
        golden.model("student", parameterization),
    )
    x, eps = golden.value("data/x"), golden.value(f"distill/{parameterization}/N64/eps")
    i = torch.tensor([0, num_steps - 1, 0])
    loss, x_target = reference.distillation_loss(student, teacher, x, eps, i, num_steps, "v_mse")
    phi_t = teacher.schedule.phi((i + 1) / num_steps)
    phi_mid = teacher.schedule.phi((i + 0.5) / num_steps)
    z_t = angles.diffuse(x, eps, phi_t)
    with torch.no_grad():
        out_t = teacher.forward_at_angle(z_t, phi_t)
        out_mid = teacher.forward_at_angle(
            angles.ddim_step(z_t, out_t, phi_t, phi_mid, parameterization).z, phi_mid
        )
    y_target = angles.target(z_t, out_t, out_mid, phi_t, phi_mid, i == 0, parameterization)
    x_fast = golden.x_of(y_target, z_t, phi_t, parameterization)
    assert golden.relative_per_image(x_fast, x_target).max() < TOL
    fast = angles.loss_and_grad(
        student.forward_at_angle(z_t, phi_t), y_target, phi_t, parameterization, "v_mse"
    ).per_image
    assert ((fast - loss).abs() / loss).max() < TOL
