"""Progressive distillation as published, in plain PyTorch: Algorithms 1 and 2, in x space.

`merging_loss` adds the general case: it contains Algorithm 2, TRACT, (multistep) consistency
distillation and consistency training.

This file is for reading beside the paper (Salimans & Ho 2022) and for checking the fast path. It
shares no function with the fast path and rearranges no formula. It works in any floating-point
dtype, is accurate in float64, and loses digits in float32 (see docs/method.md, "In ten lines").

A model here is any callable (z, logsnr, label) -> raw output with attributes `parameterization`
("x", "eps", "v" or "x_eps") and `logsnr_min`, `logsnr_max`. z is (B, C, H, W); logsnr, u and i are
(B,). A `pdfast.Network` works too: its samples z are (B, *shape), and x-hat is clipped to its own
`clip`. Models with another schedule than the cosine schedule are refused.
"""

import math
from typing import Protocol, assert_never

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pdfast.config.names import LOSS_WEIGHTS, LossWeight


class Denoiser(Protocol):
    """A network, the meaning of its output, and the range of its cosine schedule."""

    parameterization: str
    logsnr_min: float
    logsnr_max: float

    def __call__(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the raw output, (B, C, H, W), or (B, 2C, H, W) for "x_eps"."""


def logsnr_schedule(u: Tensor, logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Tensor:
    """Return logSNR at times u in [0, 1]: the cosine schedule (section 2).

    logSNR = -2 log tan(a u + b), with a and b such that logSNR(0) is `logsnr_max` and logSNR(1)
    `logsnr_min`.

    Args:
        u: Times (B,), of any floating dtype.
        logsnr_min: logSNR at u = 1.
        logsnr_max: logSNR at u = 0.

    Returns:
        logSNR (B,), of u's dtype.
    """
    b = math.atan(math.exp(-0.5 * logsnr_max))
    a = math.atan(math.exp(-0.5 * logsnr_min)) - b
    return -2.0 * torch.log(torch.tan(a * u + b))


def alpha_sigma(logsnr: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) at logSNR (B,), both (B, 1, 1, ...) to multiply z (B, ...).

    alpha = sqrt(sigmoid(logsnr)), sigma = sqrt(sigmoid(-logsnr)).
    """
    logsnr = logsnr.reshape(-1, *[1] * (z.ndim - 1))
    return torch.sqrt(torch.sigmoid(logsnr)), torch.sqrt(torch.sigmoid(-logsnr))


def ends_of(model: Denoiser) -> tuple[float, float]:
    """Return a model's logSNR at u = 1 and at u = 0; raise ValueError unless it is cosine."""
    schedule = getattr(model, "schedule", model)
    if not hasattr(schedule, "logsnr_min") or not hasattr(schedule, "logsnr_max"):
        raise ValueError(
            "pdfast.reference supports only the published cosine schedule, not this model's "
            f"{type(schedule).__name__}: call the model's own sample and predict_x"
        )
    return schedule.logsnr_min, schedule.logsnr_max


def predict(
    model: Denoiser, z: Tensor, logsnr: Tensor, label: Tensor | None, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (x-hat, eps-hat) of a model at z (section 4).

    For x_eps, x-hat is the mean of the direct prediction and the prediction through eps-hat,
    weighted by sigma^2 and alpha^2.

    Args:
        model: The denoiser.
        z: Noisy images (B, C, H, W).
        logsnr: Their noise levels (B,).
        label: Class labels, int64 (B,), or None.
        clip: Whether to clip x-hat, with eps-hat to match: to [-1, 1], or to the interval of the
            model's attribute `clip`, where None means no clipping.

    Returns:
        x-hat and eps-hat, each (B, C, H, W).

    Raises:
        ValueError: The model's parameterization is unknown.
    """
    out = model(z, logsnr, label)
    alpha, sigma = alpha_sigma(logsnr, z)
    if model.parameterization == "x":
        x_hat = out
    elif model.parameterization == "eps":
        x_hat = (z - sigma * out) / alpha
    elif model.parameterization == "v":
        x_hat = alpha * z - sigma * out
    elif model.parameterization != "x_eps":
        raise ValueError(f"no parameterization {model.parameterization!r}: x, eps, v or x_eps")
    else:
        x_direct, eps_direct = out.chunk(2, dim=1)
        x_hat = sigma**2 * x_direct + alpha**2 * (z - sigma * eps_direct) / alpha
    interval = getattr(model, "clip", (-1.0, 1.0)) if clip else None
    if model.parameterization == "eps" and interval is None:
        return x_hat, out
    if interval is not None:
        x_hat = x_hat.clamp(*interval)
    return x_hat, (z - alpha * x_hat) / sigma


def weighted_loss(
    x_hat: Tensor, x_target: Tensor, z: Tensor, logsnr: Tensor, weight: LossWeight
) -> Tensor:
    """Return the loss per image: the mean over pixels of w(logSNR) ||x_target - x_hat||^2.

    The weights w are those of section 4. SNR gives the error in eps, SNR + 1 that in v. Their
    coefficients come from the table that the fast path reads, and tests/diffusion/test_angles.py
    compares that with the published formulas.

    Args:
        x_hat: Predictions (B, C, H, W).
        x_target: Targets (B, C, H, W).
        z: Noisy images (B, C, H, W).
        logsnr: Their noise levels (B,).
        weight: Name of the weight.

    Returns:
        The loss (B,).

    Raises:
        ValueError: The weight is unknown.
    """
    alpha, sigma = alpha_sigma(logsnr, z)
    x_mse = (x_hat - x_target).square().flatten(1).mean(1)
    eps_hat, eps_target = (z - alpha * x_hat) / sigma, (z - alpha * x_target) / sigma
    eps_mse = (eps_hat - eps_target).square().flatten(1).mean(1)
    if weight not in LOSS_WEIGHTS:
        raise ValueError(f"no weight {weight!r}: {', '.join(LOSS_WEIGHTS)}")
    of_eps, of_x, combined = LOSS_WEIGHTS[weight]  # SNR times the error in x is the error in eps
    match combined:
        case "max":
            return torch.maximum(of_eps * eps_mse, of_x * x_mse)
        case "sum":
            return of_eps * eps_mse + of_x * x_mse
        case _:
            assert_never(combined)


def training_loss(
    model: Denoiser,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    weight: LossWeight,
    label: Tensor | None = None,
) -> Tensor:
    """Return the loss per image (B,) of training on data: Algorithm 1.

    Args:
        model: The denoiser in training.
        x: Images (B, C, H, W).
        eps: Their noise (B, C, H, W).
        u: Times (B,) in [0, 1].
        weight: Name of the loss weight.
        label: Class labels, int64 (B,), or None.
    """
    logsnr = logsnr_schedule(u, *ends_of(model))
    alpha, sigma = alpha_sigma(logsnr, x)
    z_t = alpha * x + sigma * eps
    x_hat, _ = predict(model, z_t, logsnr, label)
    return weighted_loss(x_hat, x, z_t, logsnr, weight)


def distillation_loss(
    student: Denoiser,
    teacher: Denoiser,
    x: Tensor,
    eps: Tensor,
    i: Tensor,
    num_steps: int,
    weight: LossWeight,
    label: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss per image (B,) and x_target (B, C, H, W) of a student: Algorithm 2.

    Args:
        student: The denoiser in training.
        teacher: The denoiser whose two steps are the target. No gradient flows to it.
        x: Images (B, C, H, W).
        eps: Their noise (B, C, H, W).
        i: Steps, drawn from {0 .. num_steps - 1}, int64 (B,).
        num_steps: Sampling steps of the student.
        weight: Name of the loss weight.
        label: Class labels, int64 (B,), or None.
    """
    u_t = (i.to(x) + 1.0) / num_steps
    u_mid = u_t - 0.5 / num_steps
    u_s = u_t - 1.0 / num_steps

    def logsnr_at(u: Tensor) -> Tensor:
        return logsnr_schedule(u, *ends_of(teacher))

    logsnr_t, logsnr_mid, logsnr_s = logsnr_at(u_t), logsnr_at(u_mid), logsnr_at(u_s)
    alpha_t, sigma_t = alpha_sigma(logsnr_t, x)
    alpha_mid, sigma_mid = alpha_sigma(logsnr_mid, x)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, x)

    z_t = alpha_t * x + sigma_t * eps
    with torch.no_grad():
        # Two DDIM steps of the teacher.
        x_t, eps_t = predict(teacher, z_t, logsnr_t, label)
        z_mid = alpha_mid * x_t + sigma_mid * eps_t
        x_mid, eps_mid = predict(teacher, z_mid, logsnr_mid, label)
        z_s = alpha_s * x_mid + sigma_s * eps_mid
        x_target = x_of_step(z_t, z_s, logsnr_t, logsnr_s)
        # The sampler's last step returns x-hat itself.
        last = (i == 0).reshape(-1, *[1] * (x.ndim - 1))
        x_target = torch.where(last, x_mid, x_target)

    x_hat, _ = predict(student, z_t, logsnr_t, label)
    return weighted_loss(x_hat, x_target, z_t, logsnr_t, weight), x_target


def x_of_step(z_t: Tensor, z_s: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
    """Return the x-hat (B, C, H, W) whose DDIM step leads from z_t to z_s: Algorithm 2's x-tilde.

    x = (z_s - sigma_s / sigma_t z_t) / (alpha_s - sigma_s / sigma_t alpha_t).
    """
    alpha_t, _ = alpha_sigma(logsnr_t, z_t)
    alpha_s, _ = alpha_sigma(logsnr_s, z_t)
    frac = torch.exp(0.5 * (softplus(logsnr_t) - softplus(logsnr_s)))  # sigma_s / sigma_t
    frac = frac.reshape(-1, *[1] * (z_t.ndim - 1))
    return (z_s - frac * z_t) / (alpha_s - frac * alpha_t)


def merging_loss(
    student: Denoiser,
    teacher: Denoiser | None,
    x: Tensor,
    eps: Tensor,
    k: Tensor,
    num_steps: int,
    merged: int,
    weight: LossWeight,
    label: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss per image (B,) and x_target (B, C, H, W) of a student that merges r steps.

    The student jumps from any time t = (k + 1) / (r N) to the end s = floor(k / r) / N of its
    segment. Its target takes one step from t to m = k / (r N), along the teacher, or without one
    along the image and its noise, and then the student's own jump from m to s, without gradient.
    With a teacher this is TRACT (Berthelot et al. 2023) and multistep consistency distillation
    (Heek et al. 2024); without one it is consistency training (Song et al. 2023). N = 1 jumps from
    every time to 0.

    Args:
        student: The denoiser in training.
        teacher: The denoiser of the first step, or None.
        x: Images (B, C, H, W).
        eps: Their noise (B, C, H, W).
        k: Small steps, drawn from {0 .. rN - 1}, int64 (B,).
        num_steps: Sampling steps N of the student.
        merged: Small steps r that each of them merges.
        weight: Name of the loss weight.
        label: Class labels, int64 (B,), or None.
    """
    ends = ends_of(student)
    i = k // merged
    u_t = (k.to(x) + 1.0) / (num_steps * merged)
    u_mid = k.to(x) / (num_steps * merged)
    u_s = i.to(x) / num_steps
    # Where the first step ends at s there is no second step, and no network is called at u = 0.
    alone = k == i * merged
    logsnr_t, logsnr_s = logsnr_schedule(u_t, *ends), logsnr_schedule(u_s, *ends)
    logsnr_mid = logsnr_schedule(torch.where(alone, u_t, u_mid), *ends)
    alpha_t, sigma_t = alpha_sigma(logsnr_t, x)
    alpha_mid, sigma_mid = alpha_sigma(logsnr_mid, x)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, x)

    z_t = alpha_t * x + sigma_t * eps
    with torch.no_grad():
        x_1, eps_1 = (x, eps) if teacher is None else predict(teacher, z_t, logsnr_t, label)
        z_mid = alpha_mid * x_1 + sigma_mid * eps_1
        x_2, eps_2 = predict(student, z_mid, logsnr_mid, label)
        x_target = x_of_step(z_t, alpha_s * x_2 + sigma_s * eps_2, logsnr_t, logsnr_s)
        images = (-1, *[1] * (x.ndim - 1))
        x_target = torch.where((i == 0).reshape(images), x_2, x_target)
        x_target = torch.where(alone.reshape(images), x_1, x_target)

    x_hat, _ = predict(student, z_t, logsnr_t, label)
    return weighted_loss(x_hat, x_target, z_t, logsnr_t, weight), x_target


@torch.no_grad()
def ddim_sample(
    model: Denoiser, z: Tensor, num_steps: int, clip: bool = True, label: Tensor | None = None
) -> Tensor:
    """Sample by DDIM from noise at u = 1, in `num_steps` steps (section 2).

    Args:
        model: The denoiser.
        z: Noise (B, C, H, W).
        num_steps: Sampling steps N.
        clip: Whether to clip x-hat; see `predict`.
        label: Class labels, int64 (B,), or None.

    Returns:
        x-hat of the last step (B, C, H, W).
    """
    for i in reversed(range(num_steps)):
        u = torch.full((len(z),), (i + 1) / num_steps, dtype=z.dtype, device=z.device)
        logsnr = logsnr_schedule(u, *ends_of(model))
        logsnr_s = logsnr_schedule(u - 1 / num_steps, *ends_of(model))
        x_hat, eps_hat = predict(model, z, logsnr, label, clip)
        alpha_s, sigma_s = alpha_sigma(logsnr_s, z)
        z = alpha_s * x_hat + sigma_s * eps_hat
    return x_hat
