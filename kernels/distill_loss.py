"""distill_loss: from the networks' raw outputs to the loss per image and the student's gradient.

Fused: three predictions, the target of two steps, the weighted squared error, its mean per image
(or the pseudo-Huber loss of that mean) and the closed-form gradient. One program per image loops
over its elements and adds up the loss in a fixed order; each input is read once, each output
written once. Bytes per element with networks of size s: 3 s (out_t, out_mid, out) + 4 (z_t, not
read for x and eps, whose target does not need it) + s (gradient); x_eps doubles every s. That is 20
in float32 for v; the eager chain moves 73 (tests/kernels/test_bytes.py counts both). The
pseudo-Huber gradient needs the image's sum first, so the loop runs a second time, over inputs that
are then in the caches. Bound: memory. With one image per program, it needs about as many images as
the GPU has multiprocessors. Loses: with fewer images, to a split over elements.

float16 gradients of a mean over a batch underflow: a student in float16 would need a scaled loss,
which pdfast does not have. bfloat16 gradients do not underflow.

`data_loss` is the same kernel with the target given, for training on data.

Float streams go in 16-byte accesses when H W C divides by 16, except the raw outputs and the
gradient of x_eps.
"""

import math
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from pdfast.config.names import LOSS_WEIGHTS, OUTPUTS, Combined, LossWeight, Parameterization
from pdfast.kernels import runtime
from pdfast.kernels.angles import combine, sincos
from pdfast.kernels.calls import STEPS
from pdfast.kernels.library import LIBRARY, define
from pdfast.kernels.parameterizations import (
    PREDICTIONS,
    gradient_coefficients,
    load_prediction,
    store_gradient,
    target_coefficients,
    target_of,
    weight_in_y,
)
from pdfast.kernels.registry import Op, Stage, register
from pdfast.kernels.runtime import tl, triton

BLOCK = 2048
# There are few programs, so registers are plentiful; unasked, the assembler spills to fit more.
OPTIONS = {"num_warps": 8, "maxnreg": 96}
LARGER: dict[Combined, bool] = {"sum": False, "max": True}  # see `weight_in_v`


class Loss(NamedTuple):
    """Result of `distill_loss`, `data_loss` and their references."""

    per_image: Tensor
    """Weighted mean over the elements of each image, (B,)."""
    grad_out: Tensor
    """Gradient of the batch mean with respect to the raw output, in its shape and dtype."""


def distill_loss(
    out: Tensor,
    z_t: Tensor,
    out_t: Tensor,
    out_mid: Tensor,
    phi_t: Tensor,
    phi_mid: Tensor,
    is_last_step: Tensor,
    parameterization: Parameterization,
    weight: LossWeight,
    phi_next: Tensor | None = None,
    huber_c: float = 0.0,
) -> Loss:
    """Return the student's loss and gradient against the target of two steps; see `target`.

    Args:
        out: The student's raw output, (B, C, H, W) or for x_eps (B, 2C, H, W), of any floating
            dtype.
        z_t: Noisy images (B, C, H, W), float32 or float64.
        out_t: Raw output at phi_t of the network that takes the first step, like `out`; or its y
            itself, (B, C, H, W).
        out_mid: Raw output at phi_mid of the network that takes the second step, like `out`.
        phi_t: Angles of z_t in radians, float64 (B,).
        phi_mid: Angles where the first step ends, float64 (B,).
        is_last_step: Whether the student's step ends at s = 0, bool (B,).
        parameterization: What the networks predict.
        weight: Name of the loss weight.
        phi_next: Angles where the second step ends, float64 (B,); None: as far from phi_mid as
            phi_t.
        huber_c: c of the pseudo-Huber loss, see `loss_and_grad`; 0: squared error.

    Returns:
        The loss, float32 (float64 where z_t is float64), and the gradient, of the dtype of `out`.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, a device, a name or `huber_c` is wrong.
    """
    check_huber_c(huber_c)
    runtime.check_choice("parameterization", parameterization, Parameterization)
    runtime.check_choice("weight", weight, LossWeight)
    runtime.check_tensor("z_t", z_t, runtime.STATES)
    batch, channels, *size = z_t.shape
    raw = (batch, OUTPUTS[parameterization].copies * channels, *size)
    runtime.check_tensor("out", out, runtime.FLOATS, raw, z_t)
    is_y = isinstance(out_t, Tensor) and out_t.shape == z_t.shape
    runtime.check_tensor("out_t", out_t, runtime.FLOATS, z_t.shape if is_y else raw, z_t)
    runtime.check_tensor("out_mid", out_mid, runtime.FLOATS, raw, z_t)
    runtime.check_tensor("phi_t", phi_t, (torch.float64,), (batch,), z_t)
    runtime.check_tensor("phi_mid", phi_mid, (torch.float64,), (batch,), z_t)
    if phi_next is not None:
        runtime.check_tensor("phi_next", phi_next, (torch.float64,), (batch,), z_t)
    runtime.check_tensor("is_last_step", is_last_step, (torch.bool,), (batch,), z_t)
    return Loss(
        *distill_loss_op(
            out.detach(),
            z_t,
            out_t,
            out_mid,
            phi_t,
            phi_mid,
            is_last_step,
            parameterization,
            weight,
            phi_next,
            huber_c,
        )
    )


def data_loss(
    out: Tensor,
    y: Tensor,
    phi: Tensor,
    parameterization: Parameterization,
    weight: LossWeight,
    huber_c: float = 0.0,
) -> Loss:
    """Return the loss and gradient of a raw output that should predict y.

    Args:
        out: Raw output, (B, C, H, W) or for x_eps (B, 2C, H, W), of any floating dtype.
        y: Target (B, C, H, W), float32 or float64.
        phi: Angles in radians, float64 (B,).
        parameterization: What the network predicts.
        weight: Name of the loss weight.
        huber_c: c of the pseudo-Huber loss, see `loss_and_grad`; 0: squared error.

    Returns:
        The loss, of the dtype of y, and the gradient, of the dtype of `out`.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, a device, a name or `huber_c` is wrong.
    """
    runtime.check_choice("parameterization", parameterization, Parameterization)
    runtime.check_choice("weight", weight, LossWeight)
    check_huber_c(huber_c)
    runtime.check_tensor("y", y, runtime.STATES)
    batch, channels, *size = y.shape
    copies = OUTPUTS[parameterization].copies
    runtime.check_tensor("out", out, runtime.FLOATS, (batch, copies * channels, *size), y)
    runtime.check_tensor("phi", phi, (torch.float64,), (batch,), y)
    return Loss(*data_loss_op(out.detach(), y, phi, parameterization, weight, huber_c))


def check_huber_c(huber_c: float) -> None:
    """Raise ValueError unless `huber_c`, c of the pseudo-Huber loss, is finite and at least 0."""
    if not 0.0 <= huber_c < math.inf:
        raise ValueError(f"huber_c must be finite and at least 0, not {huber_c}")


# ------------------------------------------------------------------------------------------
# References


def target(
    z_t: Tensor,
    out_t: Tensor,
    out_mid: Tensor,
    phi_t: Tensor,
    phi_mid: Tensor,
    is_last_step: Tensor,
    parameterization: Parameterization,
    phi_next: Tensor | None = None,
) -> Tensor:
    """Return the y that takes a student from z_t, in one step, to where two steps lead.

    The steps are d = phi_t - phi_mid and e = phi_mid - phi_next; the student's step is d + e. With
    the teacher's two equal steps this is Algorithm 2's x-tilde; reference.py has its published
    form.

    Args:
        z_t: Noisy images (B, C, H, W).
        out_t: Raw output of the first step, at (z_t, phi_t); or its y itself, of z_t's shape.
        out_mid: Raw output of the second step, at (z_mid, phi_mid).
        phi_t: Angles of z_t in radians, float64 (B,).
        phi_mid: Angles where the first step ends, float64 (B,). Where they equal phi_t, the first
            step alone reaches s, and the target is y1.
        is_last_step: Whether the step ends at s = 0, bool (B,). The sampler returns x-hat there,
            so the target is the y of the second step's x-hat.
        parameterization: What the networks predict.
        phi_next: Angles where the second step ends, float64 (B,); None: e = d.

    Returns:
        The target (B, C, H, W).
    """
    predicts = PREDICTIONS[parameterization]
    y1 = out_t if out_t.shape == z_t.shape else predicts.of(out_t, phi_t)
    y2 = predicts.of(out_mid, phi_mid)
    d = phi_t - phi_mid
    if phi_next is None:  # sin d / sin 2d, without a division of small numbers
        e, share = d, 0.5 / d.cos()
    else:
        e = phi_mid - phi_next
        share = e.sin() / (phi_t - phi_next).sin()
    c_1, c_2, c_z = predicts.target_coefficients(phi_t, phi_mid, e, share, is_last_step)
    alone = phi_mid == phi_t  # select, do not multiply: the formula may divide 0 by 0 there
    c_1, c_2 = c_1.masked_fill(alone, 1.0), c_2.masked_fill(alone, 0.0)
    of_z_t = () if c_z is None else ((c_z.masked_fill(alone, 0.0), z_t),)
    return combine((c_1, y1), (c_2, y2), *of_z_t)


def loss_weight(phi: Tensor, parameterization: Parameterization, weight: LossWeight) -> Tensor:
    """Return the weight (B,) of ||y - y_target||^2 that equals the published weight of the x-loss.

    The published weights are of ||x - x_target||^2. LOSS_WEIGHTS expresses them as weights of
    ||v - v_target||^2 = ||x - x_target||^2 / sigma^2 = ||eps - eps_target||^2 / alpha^2.

    Args:
        phi: Angles in radians, (B,).
        parameterization: What the networks predict, y.
        weight: Name of the published weight (paper, section 4).

    Returns:
        The weights, (B,), of phi's dtype.
    """
    sigma2, alpha2 = phi.sin().square(), phi.cos().square()
    a, b, combined = LOSS_WEIGHTS[weight]
    match combined:
        case "max":
            in_v = torch.maximum(a * alpha2, b * sigma2)
        case "sum" if a == b:  # alpha^2 + sigma^2 = 1, without rounding
            in_v = torch.full_like(phi, a)
        case "sum":
            in_v = a * alpha2 + b * sigma2
        case _:
            assert_never(combined)
    per_v = PREDICTIONS[parameterization].per_v(phi)
    return in_v if per_v is None else in_v / per_v


def loss_and_grad(
    out: Tensor,
    y_target: Tensor,
    phi: Tensor,
    parameterization: Parameterization,
    weight: LossWeight,
    huber_c: float = 0.0,
) -> Loss:
    """Return the loss per image against y_target, and the gradient of its mean, in closed form.

    The loss is e, the weighted mean squared error. With huber_c = c > 0 it is the pseudo-Huber loss
    sqrt(e + c^2) - c (Song & Dhariwal 2023, with e in place of the squared norm), whose gradient is
    that of e divided by 2 sqrt(e + c^2).

    Args:
        out: Raw output, (B, C, H, W) or for x_eps (B, 2C, H, W), of any floating dtype.
        y_target: Target (B, C, H, W), float32 or float64.
        phi: Angles in radians, float64 (B,).
        parameterization: What the network predicts.
        weight: Name of the loss weight.
        huber_c: c of the pseudo-Huber loss; 0: squared error.

    Returns:
        The loss, of the dtype of y_target, and the gradient, of the dtype of `out`.
    """
    predicts, dtype = PREDICTIONS[parameterization], out.dtype
    error = predicts.of(out.to(y_target.dtype), phi) - y_target
    k = loss_weight(phi, parameterization, weight)
    per_image_loss = k.to(error) * error.square().flatten(1).mean(1)
    c = 2 * k / error.numel()
    if huber_c:
        e = per_image_loss.double()
        root = (e + huber_c**2).sqrt()
        per_image_loss = (e / (root + huber_c)).to(error)  # root - c, without cancellation
        c = c / (2 * root)
    return Loss(per_image_loss, predicts.gradient(error, phi, c).to(dtype))


# ------------------------------------------------------------------------------------------
# Registered ops


@define()
def distill_loss_op(
    out: Tensor,
    z_t: Tensor,
    out_t: Tensor,
    out_mid: Tensor,
    phi_t: Tensor,
    phi_mid: Tensor,
    is_last_step: Tensor,
    parameterization: str,
    weight: str,
    phi_next: Tensor | None = None,
    huber_c: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run `distill_loss` on checked arguments."""
    if runtime.uses_triton(z_t.device, out.dtype, z_t.dtype, out_t.dtype, out_mid.dtype):
        steps = (z_t, out_t, out_mid)
        angles = (phi_t, phi_mid, phi_next, is_last_step)
        return _launch(out, steps, angles, None, parameterization, weight, huber_c)
    outs = (out_t.to(z_t.dtype), out_mid.to(z_t.dtype))
    y = target(z_t, *outs, phi_t, phi_mid, is_last_step, parameterization, phi_next)  # type: ignore[arg-type]
    return _reference(out, y, phi_t, parameterization, weight, huber_c)


@torch.library.register_fake(distill_loss_op, lib=LIBRARY)
def _distill_outputs(out: Tensor, z_t: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _outputs(out, z_t)


@define()
def data_loss_op(
    out: Tensor, y: Tensor, phi: Tensor, parameterization: str, weight: str, huber_c: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Run `data_loss` on checked arguments."""
    if runtime.uses_triton(y.device, out.dtype, y.dtype):
        angles = (phi, None, None, None)
        return _launch(out, (None, None, None), angles, y, parameterization, weight, huber_c)
    return _reference(out, y, phi, parameterization, weight, huber_c)


@torch.library.register_fake(data_loss_op, lib=LIBRARY)
def _data_outputs(out: Tensor, y: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _outputs(out, y)


def _outputs(out: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return state.new_empty(len(out)), runtime.empty_images(out, out.dtype)


def _reference(
    out: Tensor, y: Tensor, phi: Tensor, parameterization: str, weight: str, huber_c: float
) -> tuple[Tensor, Tensor]:
    per_image_loss, grad = _outputs(out, y)
    loss = loss_and_grad(out, y, phi, parameterization, weight, huber_c)  # type: ignore[arg-type]
    return per_image_loss.copy_(loss.per_image), grad.copy_(loss.grad_out)


def block_of(parameterization: str) -> int:
    """Return the elements per iteration: half where twice as many streams need registers."""
    return BLOCK // OUTPUTS[parameterization].copies  # type: ignore[index]


def _launch(
    out: Tensor,
    steps: tuple[Tensor | None, Tensor | None, Tensor | None],
    angles: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    y: Tensor | None,
    parameterization: str,
    weight: str,
    huber_c: float,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel on `steps`, (z_t, out_t, out_mid), or on the target y.

    `angles` are phi_t, phi_mid, phi_next and is_last_step.
    """
    phi_t, phi_mid, phi_next, is_last_step = angles
    terms = LOSS_WEIGHTS[weight]  # type: ignore[index]
    copies = OUTPUTS[parameterization].copies  # type: ignore[index]
    images = [None if image is None else runtime.channels_last(image) for image in (*steps, y)]
    loss = torch.empty(len(out), dtype=torch.float32, device=out.device)
    grad = runtime.empty_images(out, out.dtype)
    runtime.launch(
        distill_loss_kernel,
        (len(out),),
        out.device,
        runtime.channels_last(out),
        *images,
        phi_t.contiguous(),
        None if phi_mid is None else phi_mid.contiguous(),
        None if phi_next is None else phi_next.contiguous(),
        None if is_last_step is None else is_last_step.contiguous().view(torch.uint8),
        loss,
        grad,
        out[0].numel() // copies,
        channels=out.shape[1] // copies,
        copies=copies,
        parameterization=parameterization,
        w_alpha2=terms.alpha2,
        w_sigma2=terms.sigma2,
        w_max=LARGER[terms.combined],
        y_given=y is not None,
        y1_given=copies > 1 and steps[1] is not None and steps[1].shape[1] < out.shape[1],
        huber_c=huber_c,
        blocks=runtime.cdiv(out[0].numel() // copies, block_of(parameterization)),
        block=block_of(parameterization),
        **OPTIONS,
    )
    return loss, grad


# ------------------------------------------------------------------------------------------
# Triton


@triton.jit
def weight_in_v(cos, sin, a: tl.constexpr, b: tl.constexpr, larger: tl.constexpr):
    """Return the weight of the squared error in v, float64; see `loss_weight`.

    In a sum, a term whose coefficient is 0 compiles to nothing.

    Args:
        cos: Cosine of the image's angle, float64.
        sin: Sine of the image's angle, float64.
        a: Coefficient of alpha^2.
        b: Coefficient of sigma^2.
        larger: Whether the weight is the larger of the two terms, not their sum.
    """
    sigma2, alpha2 = sin * sin, cos * cos
    if larger:
        k = tl.maximum(a * alpha2, b * sigma2)
    elif a == b:
        k = tl.full((), a, tl.float64)
    elif a == 0.0:
        k = b * sigma2
    elif b == 0.0:
        k = a * alpha2
    else:
        k = a * alpha2 + b * sigma2
    return k


@triton.jit
def error_at(
    out,  # see `distill_loss_kernel`
    out_t,  # likewise
    out_mid,  # likewise
    y,  # likewise
    z_t,  # likewise
    image,  # offset of the image in a tensor of one copy
    element,  # elements of the image, in (H, W, C) order
    mask,  # which of them exist
    cos,  # cosine of phi_t, float32
    sin,  # sine of phi_t, float32
    cos_mid,  # cosine of phi_mid, float32
    sin_mid,  # sine of phi_mid, float32
    c_1,  # coefficient of y1 in the target, float32
    c_2,  # coefficient of y2, float32
    c_z,  # coefficient of z_t, float32
    channels: tl.constexpr,  # C
    copies: tl.constexpr,  # channels of `out` per channel of the images: 2 for x_eps, else 1
    parameterization: tl.constexpr,  # what the networks predict
    of_first: tl.constexpr,  # what out_t holds: the same, or "v" for y itself
    y_given: tl.constexpr,  # whether y is the target
):
    """Return prediction minus target, float32, at elements of the image."""
    raw = image * copies
    if y_given:
        goal = tl.load(y + image + element, mask=mask, other=0.0)
    else:
        first = out_t + (image if of_first != parameterization else raw)
        y1 = load_prediction(first, element, mask, cos, sin, channels, of_first)
        y2 = load_prediction(
            out_mid + raw, element, mask, cos_mid, sin_mid, channels, parameterization
        )
        goal = target_of(c_1, y1, c_2, y2, c_z, z_t + image + element, mask, parameterization)
    found = load_prediction(out + raw, element, mask, cos, sin, channels, parameterization)
    return found - goal


@triton.jit
def distill_loss_kernel(
    out,  # the student's raw output (B, H, W, C or 2C), of any floating dtype
    z_t,  # noisy images (B, H, W, C), float32; None where y is given
    out_t,  # raw output of the first step, like out, or its y (B, H, W, C); or None
    out_mid,  # raw output of the second step, like out; or None
    y,  # target (B, H, W, C), float32; None: the target of two steps
    phi_t,  # angles of z_t, float64 (B,)
    phi_mid,  # angles where the first step ends, float64 (B,); or None
    phi_next,  # angles where the second step ends, float64 (B,); None: a step like the first
    is_last_step,  # whether the student's step ends at s = 0, uint8 (B,); or None
    loss,  # output: loss per image, float32 (B,)
    grad,  # output: gradient of the mean loss, like out
    size,  # elements of an image, H W C
    channels: tl.constexpr,  # C
    copies: tl.constexpr,  # channels of `out` per channel of the images: 2 for x_eps, else 1
    parameterization: tl.constexpr,  # what the networks predict
    w_alpha2: tl.constexpr,  # coefficient of alpha^2 in the weight of v
    w_sigma2: tl.constexpr,  # coefficient of sigma^2
    w_max: tl.constexpr,  # whether the weight is the larger of the two terms, not their sum
    y_given: tl.constexpr,  # whether y is the target
    y1_given: tl.constexpr,  # whether out_t is y itself, where its shape differs from out's
    huber_c: tl.constexpr,  # c of the pseudo-Huber loss; 0: squared error
    blocks: tl.constexpr,  # of an image; a loop to a run-time count stops Triton 3.6's interpreter
    block: tl.constexpr,  # elements of an iteration
):
    """Compute loss and gradient of image b, in (H, W, C) order, in program b."""
    b = tl.program_id(0).to(tl.int64)
    angle = tl.load(phi_t + b)
    sin_t, cos_t = sincos(angle)
    k = weight_in_y(
        weight_in_v(cos_t, sin_t, w_alpha2, w_sigma2, w_max), cos_t, sin_t, parameterization
    )
    k = k / size
    c = 2 * k / tl.num_programs(0)
    sin, cos = sin_t.to(tl.float32), cos_t.to(tl.float32)
    raw = b * size * copies
    if y_given:
        sin_mid, cos_mid, c_1, c_2, c_z = 0.0, 0.0, 0.0, 0.0, 0.0
    else:
        angle_mid, is_last = tl.load(phi_mid + b), tl.load(is_last_step + b) != 0
        step = angle - angle_mid
        if phi_next is not None:
            step = angle_mid - tl.load(phi_next + b)
        c_1, c_2, c_z = target_coefficients(
            angle, angle_mid, step, is_last, cos_t, sin_t, parameterization
        )
        c_1, c_2, c_z = c_1.to(tl.float32), c_2.to(tl.float32), c_z.to(tl.float32)
        sin_mid, cos_mid = sincos(angle_mid)
        sin_mid, cos_mid = sin_mid.to(tl.float32), cos_mid.to(tl.float32)
    g_1, g_2 = gradient_coefficients(c, cos_t, sin_t, parameterization)

    of_first: tl.constexpr = "v" if y1_given else parameterization
    total = tl.zeros([block], tl.float32)
    for turn in range(blocks):
        element = turn * block + tl.arange(0, block)
        mask = element < size
        error = error_at(
            out, out_t, out_mid, y, z_t, b * size, element, mask, cos, sin, cos_mid, sin_mid, c_1,
            c_2, c_z, channels, copies, parameterization, of_first, y_given,
        )  # fmt: skip
        total += error * error
        if huber_c == 0.0:
            store_gradient(grad + raw, element, mask, error, g_1, g_2, channels, parameterization)
    e = k * tl.sum(total)
    if huber_c == 0.0:
        tl.store(loss + b, e.to(tl.float32))
    else:
        root = tl.sqrt(e + huber_c * huber_c)
        tl.store(loss + b, (e / (root + huber_c)).to(tl.float32))
        g_1, g_2 = gradient_coefficients(c / (2.0 * root), cos_t, sin_t, parameterization)
        for turn in range(blocks):
            element = turn * block + tl.arange(0, block)
            mask = element < size
            error = error_at(
                out, out_t, out_mid, y, z_t, b * size, element, mask, cos, sin, cos_mid, sin_mid,
                c_1, c_2, c_z, channels, copies, parameterization, of_first, y_given,
            )  # fmt: skip
            store_gradient(grad + raw, element, mask, error, g_1, g_2, channels, parameterization)


register(
    Op(
        name="distill_loss",
        stage=Stage.LOSS,
        op=distill_loss_op,
        kernels=(distill_loss_kernel,),
        kind=STEPS,
    )
)
register(
    Op(
        name="data_loss",
        stage=Stage.LOSS,
        op=data_loss_op,
        kernels=(distill_loss_kernel,),
        kind=STEPS,
        beside="distill_loss",
    )
)
