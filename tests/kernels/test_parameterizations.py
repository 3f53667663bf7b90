"""Predictions of each parameterization, against its definition alone, in float64."""

import typing

import pytest
import torch

from pdfast.config.names import OUTPUTS, Parameterization
from pdfast.kernels.angles import combine
from pdfast.kernels.parameterizations import PREDICTIONS

# Raw output of a network that knows x and eps, as a function of x, eps, alpha and sigma.
DEFINED = {
    "x": lambda x, eps, alpha, sigma: x,
    "eps": lambda x, eps, alpha, sigma: eps,
    "v": lambda x, eps, alpha, sigma: alpha * eps - sigma * x,
    "x_eps": lambda x, eps, alpha, sigma: torch.cat([x, eps], 1),
}
PHI_T = torch.tensor([1.5, 1.2, 0.7, 0.3], dtype=torch.float64)
PHI_MID, PHI_NEXT = 0.9 * PHI_T, 0.75 * PHI_T
close = dict(rtol=1e-12, atol=1e-12)


def alpha_sigma(phi):
    return phi.cos().view(-1, 1, 1, 1), phi.sin().view(-1, 1, 1, 1)


@pytest.fixture(params=typing.get_args(Parameterization))
def case(request):
    """Predictions, definition, and x and eps."""
    g = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 4, 3, 2, 2, generator=g, dtype=torch.float64)
    return PREDICTIONS[request.param], DEFINED[request.param], x, eps


def raw(defined, x, eps, phi):
    return defined(x, eps, *alpha_sigma(phi))


def noised(x, eps, phi):
    alpha, sigma = alpha_sigma(phi)
    return alpha * x + sigma * eps


def test_each_has_all_that_it_needs():
    names = set(typing.get_args(Parameterization))
    assert names == OUTPUTS.keys() == PREDICTIONS.keys() == DEFINED.keys()


def test_the_data_are_what_an_exact_network_predicts(case):
    predicts, defined, x, eps = case
    y = predicts.of(raw(defined, x, eps, PHI_T), PHI_T)
    torch.testing.assert_close(predicts.of_data(x, eps, PHI_T), y, **close)
    torch.testing.assert_close(predicts.x(noised(x, eps, PHI_T), y, PHI_T), x, **close)


def test_an_exact_step_keeps_x_and_eps(case):
    predicts, _, x, eps = case
    y = predicts.of_data(x, eps, PHI_T)
    c_z, c_y = predicts.step_coefficients(PHI_T, PHI_NEXT)
    z = combine((c_z, noised(x, eps, PHI_T)), (c_y, y))
    torch.testing.assert_close(z, noised(x, eps, PHI_NEXT), **close)


@pytest.mark.parametrize("is_last", [False, True])
def test_the_target_leads_where_two_steps_do(case, is_last):
    """Or, in the last step, to the second x-hat; for a teacher that is not exact."""
    predicts, _, x, eps = case
    phi_next = torch.zeros_like(PHI_T) if is_last else PHI_NEXT
    z_t, y1 = noised(x, eps, PHI_T), predicts.of_data(x + 0.3, eps - 0.2, PHI_T)
    c_z, c_y = predicts.step_coefficients(PHI_T, PHI_MID)
    z_mid, y2 = combine((c_z, z_t), (c_y, y1)), predicts.of_data(x - 0.1, eps + 0.5, PHI_MID)
    e = PHI_MID - phi_next
    share = e.sin() / (PHI_T - phi_next).sin()
    last = torch.full_like(PHI_T, is_last, dtype=torch.bool)
    c_1, c_2, c = predicts.target_coefficients(PHI_T, PHI_MID, e, share, last)
    y = combine((c_1, y1), (c_2, y2), *([] if c is None else [(c, z_t)]))
    if is_last:
        torch.testing.assert_close(
            predicts.x(z_t, y, PHI_T), predicts.x(z_mid, y2, PHI_MID), **close
        )
        return
    c_z, c_y = predicts.step_coefficients(PHI_MID, phi_next)
    z_s = combine((c_z, z_mid), (c_y, y2))
    c_z, c_y = predicts.step_coefficients(PHI_T, phi_next)
    torch.testing.assert_close(combine((c_z, z_t), (c_y, y)), z_s, **close)


def test_errors_are_weighed_as_those_in_v_are(case):
    """At one z, for two x."""
    predicts, _, x, eps = case
    z, other = noised(x, eps, PHI_T), x + 0.1
    alpha, sigma = alpha_sigma(PHI_T)
    errors = [
        (kind.of_data(other, (z - alpha * other) / sigma, PHI_T) - kind.of_data(x, eps, PHI_T))
        for kind in (predicts, PREDICTIONS["v"])
    ]
    ours, in_v = (error.square().sum((1, 2, 3)) for error in errors)
    per_v = predicts.per_v(PHI_T)
    expected = torch.ones_like(PHI_T) if per_v is None else per_v
    torch.testing.assert_close(ours / in_v, expected, **close)


def test_the_gradient_is_that_of_the_raw_output(case):
    predicts, defined, x, eps = case
    out = (raw(defined, x, eps, PHI_T) + 0.1).requires_grad_()
    error = predicts.of(out, PHI_T) - predicts.of_data(x, eps, PHI_T)
    c = torch.arange(1.0, 5.0, dtype=torch.float64)
    (c.view(-1, 1, 1, 1) * error.square() / 2).sum().backward()
    torch.testing.assert_close(predicts.gradient(error.detach(), PHI_T, c), out.grad, **close)
