"""Progressive distillation in angles: the arithmetic of an update outside the networks.

With alpha = cos(phi) and sigma = sin(phi), v = alpha eps - sigma x, and a DDIM step from phi to
phi' is the rotation z' = cos(phi - phi') z - sin(phi - phi') v. Every quantity of Algorithm 2
(Salimans & Ho 2022) is then a linear combination of z_t and network outputs, with one coefficient
per image. The published formulas in x-space subtract nearly equal numbers; these do not. The
coefficients are computed in float64, the combinations in z_t's dtype.

A network predicts y: x-hat, eps-hat or v-hat; from the two outputs of x_eps, y = v = alpha eps-hat
- sigma x-hat. Losses and targets are computed in the space of y, where no output is divided by a
small number. `reference.py` has the formulas as published.

An update consists of four fused ops, each beside its PyTorch reference in kernels/: `add_noise`,
`ddim_step`, then `distill_loss` (`data_loss` in training on data), and the optimizer's `adamw`.

Shapes: phi (B,), images (B, C, H, W), raw outputs (B, C or 2C, H, W).
"""

from torch import Tensor

from pdfast.config.names import Parameterization
from pdfast.kernels.adamw import AdamWHyperparameters, adamw
from pdfast.kernels.add_noise import (
    Noised,
    NoiseOptions,
    add_noise,
    diffuse,
)
from pdfast.kernels.angles import combine, per_image
from pdfast.kernels.ddim_step import ddim_step
from pdfast.kernels.distill_loss import (
    Loss,
    data_loss,
    distill_loss,
    loss_and_grad,
    loss_weight,
    target,
)
from pdfast.kernels.parameterizations import PREDICTIONS

__all__ = [
    "AdamWHyperparameters",
    "Loss",
    "NoiseOptions",
    "Noised",
    "adamw",
    "add_noise",
    "combine",
    "data_loss",
    "ddim_step",
    "diffuse",
    "distill_loss",
    "loss_and_grad",
    "loss_weight",
    "per_image",
    "predict_x",
    "prediction",
    "target",
]


def prediction(out: Tensor, phi: Tensor, parameterization: Parameterization) -> Tensor:
    """Return the prediction y of a raw output: x-hat, eps-hat, or v-hat (for v and x_eps).

    Args:
        out: Raw network output (B, C or 2C, H, W).
        phi: Angles in radians (B,).
        parameterization: What the network predicts.

    Returns:
        y (B, C, H, W).
    """
    return PREDICTIONS[parameterization].of(out, phi)


def predict_x(z: Tensor, out: Tensor, phi: Tensor, parameterization: Parameterization) -> Tensor:
    """Return the x-hat of a raw output at z, unclipped (Salimans & Ho 2022, section 4).

    Args:
        z: Noisy images (B, C, H, W).
        out: Raw network output (B, C or 2C, H, W).
        phi: Angles in radians (B,).
        parameterization: What the network predicts.

    Returns:
        x-hat (B, C, H, W).
    """
    return PREDICTIONS[parameterization].x(z, prediction(out, phi, parameterization), phi)
