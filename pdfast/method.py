"""Progressive distillation in angles: what one update computes around the networks.

With alpha = cos(phi) and sigma = sin(phi), v = alpha eps - sigma x, and a DDIM step from phi to
phi' is the rotation z' = cos(phi - phi') z - sin(phi - phi') v. Every quantity of Algorithm 2
(Salimans & Ho 2022) is then a linear combination of z_t and of network outputs, with one
coefficient per image; no step subtracts nearly equal numbers, as the published x-space formulas
do. The coefficients are computed in float64, the combinations in z_t's dtype.

A head predicts y: x-hat, eps-hat or v-hat; the "both" head's two outputs give
y = v = alpha eps-hat - sigma x-hat. Losses and targets live in the space of y, where no head's
output is divided by a small number. `reference.py` states the same as published.

Shapes: phi (B,), images (B, C, H, W), raw outputs (B, C or 2C, H, W).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config import Head, LossWeight


def per_image(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) in the dtype and on the device of `like`."""
    return coefficient.to(like).reshape(-1, *[1] * (like.ndim - 1))


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of coefficient (B,) times image (B, ...) over the terms."""
    total = per_image(terms[0][0], terms[0][1]) * terms[0][1]
    for coefficient, image in terms[1:]:
        total = torch.addcmul(total, per_image(coefficient, image), image)
    return total


def add_noise(x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
    """z_t = alpha x + sigma eps (section 2)."""
    return combine((phi.cos(), x), (phi.sin(), eps))


def prediction(out: Tensor, phi: Tensor, head: Head) -> Tensor:
    """Raw network output -> y in the head's space: x-hat, eps-hat, or v-hat (v and both)."""
    if head == "both":
        x_hat, eps_hat = out.chunk(2, dim=1)
        return combine((phi.cos(), eps_hat), (-phi.sin(), x_hat))
    return out


def predict_x(z: Tensor, out: Tensor, phi: Tensor, head: Head) -> Tensor:
    """x-hat of a network's raw output at z, unclipped (section 4)."""
    y = prediction(out, phi, head)
    if head == "x":
        return y
    if head == "eps":
        return combine((1 / phi.cos(), z), (-phi.tan(), y))
    return combine((phi.cos(), z), (-phi.sin(), y))


def ddim_step(z: Tensor, out: Tensor, phi: Tensor, phi_next: Tensor, head: Head) -> Tensor:
    """z at angle phi -> z at phi_next < phi along the network's prediction (DDIM, section 2)."""
    y = prediction(out, phi, head)
    d = phi - phi_next
    if head == "x":
        return combine((phi_next.sin() / phi.sin(), z), (d.sin() / phi.sin(), y))
    if head == "eps":
        return combine((phi_next.cos() / phi.cos(), z), (-d.sin() / phi.cos(), y))
    return combine((d.cos(), z), (-d.sin(), y))


def target(
    z_t: Tensor,
    out_t: Tensor,
    out_mid: Tensor,
    phi_t: Tensor,
    phi_mid: Tensor,
    is_last: Tensor,
    head: Head,
) -> Tensor:
    """The y that takes a student from z_t, in one step, where the teacher's two steps lead.

    out_t and out_mid are the teacher's raw outputs at (z_t, phi_t) and (z_mid, phi_mid);
    the student's step has twice the angle d = phi_t - phi_mid. `is_last` (bool, (B,)) marks
    i = 0, the sampler's last step, which returns x-hat: there the target is the teacher's own
    second x-hat. Equal to Algorithm 2's x-tilde; see reference.py for its published form.
    """
    y1, y2 = prediction(out_t, phi_t, head), prediction(out_mid, phi_mid, head)
    d = phi_t - phi_mid
    if head in ("x", "eps"):  # z_t cancels: the target is a weighted mean of y1 and y2
        if head == "x":
            w2 = phi_t.sin() / (2 * phi_mid.sin() * d.cos())
            w2 = torch.where(is_last, torch.ones_like(w2), w2)
        else:
            w2 = phi_t.cos() / (2 * phi_mid.cos() * d.cos())
            w2 = torch.where(is_last, phi_mid.tan() / phi_t.tan(), w2)
        return combine((1 - w2, y1), (w2, y2))
    half = torch.full_like(d, 0.5)
    sin_t = phi_t.sin()
    c_z = torch.where(is_last, -d.sin() * phi_mid.sin() / sin_t, -half * d.tan())
    c_1 = torch.where(is_last, d.sin() * phi_mid.cos() / sin_t, half)
    c_2 = torch.where(is_last, phi_mid.sin() / sin_t, half / d.cos())
    return combine((c_1, y1), (c_2, y2), (c_z, z_t))


def data_target(x: Tensor, eps: Tensor, phi: Tensor, head: Head) -> Tensor:
    """The y of clean data, for training a teacher: x, eps, or v = alpha eps - sigma x."""
    if head == "x":
        return x
    if head == "eps":
        return eps
    return combine((phi.cos(), eps), (-phi.sin(), x))


def loss_weight(phi: Tensor, head: Head, weight: LossWeight) -> Tensor:
    """Weight (B,) of ||y - y_target||^2 that equals the published weight of ||x - x_target||^2.

    As weights of ||v - v_target||^2 = ||x - x_target||^2 / sigma^2 the four are bounded by 1.
    """
    sigma2, alpha2 = phi.sin().square(), phi.cos().square()
    in_v = {
        "constant": sigma2,
        "snr": alpha2,
        "snr_trunc": torch.maximum(alpha2, sigma2),
        "v_mse": torch.ones_like(phi),
    }[weight]
    return in_v / {"x": sigma2, "eps": alpha2}.get(head, torch.ones_like(phi))


class Loss(NamedTuple):
    """Result of `loss_and_grad`."""

    per_image: Tensor
    """(B,), the weighted mean over pixels of each image."""
    grad_out: Tensor
    """Gradient of the batch mean with respect to the raw output, in its shape and dtype."""


def loss_and_grad(
    out: Tensor, y_target: Tensor, phi: Tensor, head: Head, weight: LossWeight
) -> Loss:
    """Weighted squared error of a raw output against y_target, and its gradient in closed form."""
    error = prediction(out, phi, head) - y_target
    k = loss_weight(phi, head, weight)
    per_image_loss = k.to(error) * error.square().flatten(1).mean(1)
    c = 2 * k / error.numel()
    if head != "both":
        return Loss(per_image_loss, per_image(c, error) * error)
    grad_x = per_image(-phi.sin() * c, error) * error
    grad_eps = per_image(phi.cos() * c, error) * error
    return Loss(per_image_loss, torch.cat([grad_x, grad_eps], dim=1))
