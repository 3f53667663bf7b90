"""The parameterizations of a network: it predicts y, which is x, eps or v, or x and eps at once.

Each is a class, for PyTorch, and has a branch in the Triton functions below, which compute the
same. The ops know a parameterization by its name alone: to add one, name it in config/names.py, and
write its class and its branches here.

The numbers of an image are float64: its angle phi, with alpha = cos(phi) and sigma = sin(phi), and
every coefficient. y lies in a space where the loss and Algorithm 2's target divide by nothing that
is small; x and eps at once predict y = v.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdfast.kernels.angles import combine, per_image, sincos
from pdfast.kernels.runtime import tl, triton

# ------------------------------------------------------------------------------------------
# PyTorch


class Prediction(ABC):
    """A parameterization. Images are (B, C, H, W), angles and coefficients float64 (B,)."""

    def of(self, out: Tensor, phi: Tensor) -> Tensor:
        """y of a raw output, (B, C, H, W) or (B, 2C, H, W), at angle phi."""
        return out

    @abstractmethod
    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        """y of clean data x and its noise eps: what training on data aims at."""

    @abstractmethod
    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """x-hat of a prediction y at z (section 4)."""

    @abstractmethod
    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of z and y in a DDIM step from phi to phi_next (section 2)."""

    @abstractmethod
    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Coefficients of y1, y2 and z_t in the target of two steps; None: z_t cancels.

        y1 and y2 are of the first and the second step, at phi_t and phi_mid; e is the second step's
        angle, `share` sin(e) / sin(d + e) with d = phi_t - phi_mid. is_last_step, bool (B,), marks
        where the target is y of the second step's x-hat.
        """

    def per_v(self, phi: Tensor) -> Tensor | None:
        """||y - y_target||^2 / ||v - v_target||^2 at one x and one x_target; None: 1."""
        return None

    def gradient(self, error: Tensor, phi: Tensor, c: Tensor) -> Tensor:
        """c (B,) times the gradient of |error|^2 / 2 with respect to the raw output."""
        return per_image(c, error) * error


class X(Prediction):
    """y = x."""

    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        return x

    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        return y

    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        return phi_next.sin() / phi.sin(), (phi - phi_next).sin() / phi.sin()

    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        c_2 = phi_t.sin() / phi_mid.sin() * share
        c_2 = torch.where(is_last_step, torch.ones_like(c_2), c_2)
        return 1 - c_2, c_2, None

    def per_v(self, phi: Tensor) -> Tensor:
        return phi.sin().square()


class Eps(Prediction):
    """y = eps."""

    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        return eps

    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        return combine((1 / phi.cos(), z), (-phi.tan(), y))

    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        return phi_next.cos() / phi.cos(), -(phi - phi_next).sin() / phi.cos()

    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        c_2 = phi_t.cos() / phi_mid.cos() * share
        c_2 = torch.where(is_last_step, phi_mid.tan() / phi_t.tan(), c_2)
        return 1 - c_2, c_2, None

    def per_v(self, phi: Tensor) -> Tensor:
        return phi.cos().square()


class V(Prediction):
    """y = v = alpha eps - sigma x."""

    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        return combine((phi.cos(), eps), (-phi.sin(), x))

    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        return combine((phi.cos(), z), (-phi.sin(), y))

    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        d = phi - phi_next
        return d.cos(), -d.sin()

    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        d, sin_t = phi_t - phi_mid, phi_t.sin()
        c_z = torch.where(is_last_step, -d.sin() * phi_mid.sin() / sin_t, -d.sin() * share)
        c_1 = d.sin() * e.cos() / (d + e).sin()
        c_1 = torch.where(is_last_step, d.sin() * phi_mid.cos() / sin_t, c_1)
        return c_1, torch.where(is_last_step, phi_mid.sin() / sin_t, share), c_z


class XEps(V):
    """y = v of two predictions, x-hat and eps-hat: alpha eps-hat - sigma x-hat (section 4)."""

    def of(self, out: Tensor, phi: Tensor) -> Tensor:
        x_hat, eps_hat = out.chunk(2, dim=1)
        return combine((phi.cos(), eps_hat), (-phi.sin(), x_hat))

    def gradient(self, error: Tensor, phi: Tensor, c: Tensor) -> Tensor:
        of_x = per_image(-phi.sin() * c, error) * error
        of_eps = per_image(phi.cos() * c, error) * error
        return torch.cat([of_x, of_eps], dim=1)


PREDICTIONS: dict[str, Prediction] = {"x": X(), "eps": Eps(), "v": V(), "x_eps": XEps()}


# ------------------------------------------------------------------------------------------
# Triton. `element` numbers one image's, (H, W, C); sin and cos are of its angle.


@triton.jit
def load_prediction(
    out, element, mask, cos, sin, channels: tl.constexpr, parameterization: tl.constexpr
):
    """y, float32, of elements of one image's raw output (H, W, C or 2C); see `Prediction.of`.

    cos and sin are float32. Two streams of x_eps interleave pixel by pixel, so its loads are
    narrow.
    """
    if parameterization == "x_eps":
        x_hat = out + element // channels * (2 * channels) + element % channels
        x_part = tl.load(x_hat, mask=mask, other=0.0).to(tl.float32)
        eps_part = tl.load(x_hat + channels, mask=mask, other=0.0).to(tl.float32)
        y = cos * eps_part - sin * x_part
    else:
        y = tl.load(out + element, mask=mask, other=0.0).to(tl.float32)
    return y


@triton.jit
def prediction_of_data(x, eps, cos, sin, parameterization: tl.constexpr):
    """y, float32, of clean data and its noise; see `Prediction.of_data`."""
    if parameterization == "x":
        y = x
    elif parameterization == "eps":
        y = eps
    else:
        y = cos * eps - sin * x
    return y


@triton.jit
def step_coefficients(phi, phi_next, cos, sin, parameterization: tl.constexpr):
    """float64 coefficients of z and y in a DDIM step; see `Prediction.step_coefficients`."""
    sin_d, cos_d = sincos(phi - phi_next)
    if parameterization == "x":
        sin_next, _ = sincos(phi_next)
        c_z, c_y = sin_next / sin, sin_d / sin
    elif parameterization == "eps":
        _, cos_next = sincos(phi_next)
        c_z, c_y = cos_next / cos, -sin_d / cos
    else:
        c_z, c_y = cos_d, -sin_d
    return c_z, c_y


@triton.jit
def target_coefficients(phi_t, phi_mid, e, is_last_step, cos, sin, parameterization: tl.constexpr):
    """float64 coefficients of y1, y2, z_t in the target; see `Prediction.target_coefficients`.

    Where phi_mid is phi_t they are 1, 0, 0: the first step reaches the end.
    """
    sin_mid, cos_mid = sincos(phi_mid)
    sin_d, cos_d = sincos(phi_t - phi_mid)
    sin_e, cos_e = sincos(e)
    alone = phi_mid == phi_t
    below = tl.where(alone, 1.0, sin_d * cos_e + cos_d * sin_e)  # sin(d + e)
    if parameterization == "x":
        c_2 = tl.where(is_last_step, 1.0, sin * sin_e / (sin_mid * below))
        c_1, c_z = 1.0 - c_2, 0.0 * c_2
    elif parameterization == "eps":
        below = cos_mid * tl.where(is_last_step, sin, below)
        c_2 = cos * tl.where(is_last_step, sin_mid, sin_e) / below
        c_1, c_z = 1.0 - c_2, 0.0 * c_2
    else:
        # One division: each takes registers, of which the loss's loop leaves few.
        per = 1.0 / tl.where(is_last_step, sin, below)
        c_1 = sin_d * tl.where(is_last_step, cos_mid, cos_e) * per
        c_2 = tl.where(is_last_step, sin_mid, sin_e) * per
        c_z = -sin_d * c_2
    # By selection: the formula knows nothing of a step that ends where it begins.
    return tl.where(alone, 1.0, c_1), tl.where(alone, 0.0, c_2), tl.where(alone, 0.0, c_z)


@triton.jit
def target_of(c_1, y1, c_2, y2, c_z, z_t, mask, parameterization: tl.constexpr):
    """The target, float32, of float32 coefficients; z_t is read where it does not cancel."""
    y = c_1 * y1 + c_2 * y2
    if parameterization == "v" or parameterization == "x_eps":
        y += c_z * tl.load(z_t, mask=mask, other=0.0)
    return y


@triton.jit
def weight_in_y(weight, cos, sin, parameterization: tl.constexpr):
    """float64 weight of the squared error in y, of its weight in v; see `Prediction.per_v`."""
    if parameterization == "x":
        weight = weight / (sin * sin)
    elif parameterization == "eps":
        weight = weight / (cos * cos)
    return weight


@triton.jit
def gradient_coefficients(c, cos, sin, parameterization: tl.constexpr):
    """float32 coefficients of the error in the gradients of the output's first and second part."""
    if parameterization == "x_eps":
        first, second = -sin * c, cos * c
    else:
        first, second = c, c
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def store_gradient(
    grad,
    element,
    mask,
    error,
    first,
    second,
    channels: tl.constexpr,
    parameterization: tl.constexpr,
):
    """Store the gradient of one image's raw output (H, W, C or 2C); see `Prediction.gradient`."""
    if parameterization == "x_eps":
        pair = grad + element // channels * (2 * channels) + element % channels
        tl.store(pair, (first * error).to(grad.dtype.element_ty), mask=mask)
        tl.store(pair + channels, (second * error).to(grad.dtype.element_ty), mask=mask)
    else:
        tl.store(grad + element, (first * error).to(grad.dtype.element_ty), mask=mask)
