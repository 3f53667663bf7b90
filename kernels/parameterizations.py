"""The parameterizations of a network: it predicts y, which is x, eps or v, or x and eps at once.

Each one is a class, for PyTorch, and a branch in the Triton functions below, which compute the
same. The ops know a parameterization only by its name. To add one, name it in config/names.py, and
write its class and its branches here.

The numbers of an image are float64: its angle phi, with alpha = cos(phi) and sigma = sin(phi), and
every coefficient. y is chosen so that the loss and Algorithm 2's target never divide by a small
number; a network that predicts x and eps at once has y = v.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdfast.kernels.angles import combine, per_image, sincos
from pdfast.kernels.runtime import tl, triton

# ------------------------------------------------------------------------------------------
# PyTorch


class Prediction(ABC):
    """A parameterization.

    Images are (B, C, H, W); angles (radians) and coefficients are float64 (B,).
    """

    def of(self, out: Tensor, phi: Tensor) -> Tensor:
        """Return the y of a raw output, (B, C, H, W) or (B, 2C, H, W), at angle phi."""
        return out

    @abstractmethod
    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        """Return the y of clean data x with noise eps: the target of training on data."""

    @abstractmethod
    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """Return the x-hat of a prediction y at z (paper, section 4)."""

    @abstractmethod
    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of z and y in a DDIM step from phi to phi_next."""

    @abstractmethod
    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the coefficients of y1, y2 and z_t in the target of two steps.

        Args:
            phi_t: Angles of z_t, where y1 is predicted.
            phi_mid: Angles where the first step ends and y2 is predicted.
            e: Angle of the second step.
            share: sin(e) / sin(d + e), with d = phi_t - phi_mid.
            is_last_step: Whether the target is the y of the second step's x-hat, bool (B,).

        Returns:
            The three coefficients; the last is None where z_t cancels.
        """

    def per_v(self, phi: Tensor) -> Tensor | None:
        """Return ||y - y_target||^2 / ||v - v_target||^2 for equal x and x_target; None: 1."""
        return None

    def gradient(self, error: Tensor, phi: Tensor, c: Tensor) -> Tensor:
        """Return c (B,) times the gradient of |error|^2 / 2 by the raw output."""
        return per_image(c, error) * error


class X(Prediction):
    """y = x."""

    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        """Return x."""
        return x

    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """Return y, which is x-hat."""
        return y

    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        """Return sin(phi_next) / sin(phi) and sin(phi - phi_next) / sin(phi)."""
        return phi_next.sin() / phi.sin(), (phi - phi_next).sin() / phi.sin()

    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return 1 - c_2, c_2 and None: c_2 is share sigma_t / sigma_mid, in the last step 1."""
        c_2 = phi_t.sin() / phi_mid.sin() * share
        c_2 = torch.where(is_last_step, torch.ones_like(c_2), c_2)
        return 1 - c_2, c_2, None

    def per_v(self, phi: Tensor) -> Tensor:
        """Return sigma^2."""
        return phi.sin().square()


class Eps(Prediction):
    """y = eps."""

    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        """Return eps."""
        return eps

    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """Return x-hat = (z - sigma eps) / alpha."""
        return combine((1 / phi.cos(), z), (-phi.tan(), y))

    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos(phi_next) / cos(phi) and -sin(phi - phi_next) / cos(phi)."""
        return phi_next.cos() / phi.cos(), -(phi - phi_next).sin() / phi.cos()

    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return 1 - c_2, c_2 and None.

        c_2 is share alpha_t / alpha_mid, and tan(phi_mid) / tan(phi_t) in the last step.
        """
        c_2 = phi_t.cos() / phi_mid.cos() * share
        c_2 = torch.where(is_last_step, phi_mid.tan() / phi_t.tan(), c_2)
        return 1 - c_2, c_2, None

    def per_v(self, phi: Tensor) -> Tensor:
        """Return alpha^2."""
        return phi.cos().square()


class V(Prediction):
    """y = v = alpha eps - sigma x."""

    def of_data(self, x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
        """Return v = alpha eps - sigma x."""
        return combine((phi.cos(), eps), (-phi.sin(), x))

    def x(self, z: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """Return x-hat = alpha z - sigma v."""
        return combine((phi.cos(), z), (-phi.sin(), y))

    def step_coefficients(self, phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos(phi - phi_next) and -sin(phi - phi_next)."""
        d = phi - phi_next
        return d.cos(), -d.sin()

    def target_coefficients(
        self, phi_t: Tensor, phi_mid: Tensor, e: Tensor, share: Tensor, is_last_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return c_1, c_2 and -sin(d) c_2, with d = phi_t - phi_mid.

        c_1 is sin(d) cos(e) / sin(d + e) and c_2 is share; in the last step they are
        sin(d) alpha_mid / sigma_t and sigma_mid / sigma_t.
        """
        d, sin_t = phi_t - phi_mid, phi_t.sin()
        c_z = torch.where(is_last_step, -d.sin() * phi_mid.sin() / sin_t, -d.sin() * share)
        c_1 = d.sin() * e.cos() / (d + e).sin()
        c_1 = torch.where(is_last_step, d.sin() * phi_mid.cos() / sin_t, c_1)
        return c_1, torch.where(is_last_step, phi_mid.sin() / sin_t, share), c_z


class XEps(V):
    """y = v of x-hat and eps-hat: alpha eps-hat - sigma x-hat (paper, section 4)."""

    def of(self, out: Tensor, phi: Tensor) -> Tensor:
        """Return alpha eps-hat - sigma x-hat of the two halves of `out`."""
        x_hat, eps_hat = out.chunk(2, dim=1)
        return combine((phi.cos(), eps_hat), (-phi.sin(), x_hat))

    def gradient(self, error: Tensor, phi: Tensor, c: Tensor) -> Tensor:
        """Return the gradient of both halves: -sigma c error, then alpha c error."""
        of_x = per_image(-phi.sin() * c, error) * error
        of_eps = per_image(phi.cos() * c, error) * error
        return torch.cat([of_x, of_eps], dim=1)


PREDICTIONS: dict[str, Prediction] = {"x": X(), "eps": Eps(), "v": V(), "x_eps": XEps()}


# ------------------------------------------------------------------------------------------
# Triton. `element` numbers an image's elements in (H, W, C) order; sin and cos are of its angle.


@triton.jit
def load_prediction(
    out, element, mask, cos, sin, channels: tl.constexpr, parameterization: tl.constexpr
):
    """Return y, float32, of elements of one image's raw output; see `Prediction.of`.

    The two predictions of x_eps interleave pixel by pixel, so their loads are narrow.

    Args:
        out: The image's raw output (H, W, C or 2C), of any floating dtype.
        element: Elements to load.
        mask: Which of them exist.
        cos: Cosine of the angle, float32.
        sin: Sine of the angle, float32.
        channels: C.
        parameterization: What the network predicts.
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
    """Return y, float32, of clean data x and its noise eps; see `Prediction.of_data`."""
    if parameterization == "x":
        y = x
    elif parameterization == "eps":
        y = eps
    else:
        y = cos * eps - sin * x
    return y


@triton.jit
def step_coefficients(phi, phi_next, cos, sin, parameterization: tl.constexpr):
    """Return the coefficients of z and y in a DDIM step, float64.

    See `Prediction.step_coefficients`; cos and sin are of phi, float64.
    """
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
    """Return the coefficients of y1, y2 and z_t in the target, float64.

    See `Prediction.target_coefficients`; cos and sin are of phi_t, float64. Where phi_mid is phi_t
    the coefficients are 1, 0, 0: the first step reaches the end.
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
        # One division only: each takes registers, which are scarce in the loss's loop.
        per = 1.0 / tl.where(is_last_step, sin, below)
        c_1 = sin_d * tl.where(is_last_step, cos_mid, cos_e) * per
        c_2 = tl.where(is_last_step, sin_mid, sin_e) * per
        c_z = -sin_d * c_2
    # By selection: the formula does not hold for a step of length 0.
    return tl.where(alone, 1.0, c_1), tl.where(alone, 0.0, c_2), tl.where(alone, 0.0, c_z)


@triton.jit
def target_of(c_1, y1, c_2, y2, c_z, z_t, mask, parameterization: tl.constexpr):
    """Return the target, float32, from float32 coefficients; z_t is read unless it cancels."""
    y = c_1 * y1 + c_2 * y2
    if parameterization == "v" or parameterization == "x_eps":
        y += c_z * tl.load(z_t, mask=mask, other=0.0)
    return y


@triton.jit
def weight_in_y(weight, cos, sin, parameterization: tl.constexpr):
    """Return the weight of the squared error in y, float64, given its weight in v.

    See `Prediction.per_v`; cos and sin are float64.
    """
    if parameterization == "x":
        weight = weight / (sin * sin)
    elif parameterization == "eps":
        weight = weight / (cos * cos)
    return weight


@triton.jit
def gradient_coefficients(c, cos, sin, parameterization: tl.constexpr):
    """Return the coefficients of the error in the gradients of the output's two parts, float32.

    c, cos and sin are float64; where the output has one part, both coefficients are c.
    """
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
    """Store the gradient of one image's raw output; see `Prediction.gradient`.

    Args:
        grad: Output: the image's gradient (H, W, C or 2C), of any floating dtype.
        element: Elements to store.
        mask: Which of them exist.
        error: Prediction minus target, float32.
        first: Coefficient of the error in the output's first part, float32.
        second: Coefficient in the second part, float32.
        channels: C.
        parameterization: What the network predicts.
    """
    if parameterization == "x_eps":
        pair = grad + element // channels * (2 * channels) + element % channels
        tl.store(pair, (first * error).to(grad.dtype.element_ty), mask=mask)
        tl.store(pair + channels, (second * error).to(grad.dtype.element_ty), mask=mask)
    else:
        tl.store(grad + element, (first * error).to(grad.dtype.element_ty), mask=mask)
