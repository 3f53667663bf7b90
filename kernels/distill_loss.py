"""distill_loss: from the networks' raw outputs to the loss per image and the student's gradient.

Fused: three predictions, the target of two steps, the weighted squared error, its mean per image
(or the pseudo-Huber loss of that) and the closed-form gradient. One program per image loops over
its elements and adds up the loss in a fixed order; each input is read once, each output written
once. Bytes per element with networks of size s: 3 s (out_t, out_mid, out) + 4 (z_t, not read for x
and eps, whose target does not need it) + s (gradient); x_eps doubles every s. That is 20 in float32
for v; the eager chain moves 73 (tests/kernels/test_bytes.py counts both). The pseudo-Huber gradient
needs the image's sum first: the loop then runs a second time, over inputs that the caches hold.
Bound: memory; with one image per program it needs about as many images as the GPU has
multiprocessors, and loses to a split over elements below that. float16 gradients of a mean over a
batch underflow (a student in float16 wants a scaled loss, which nothing here does); bfloat16 ones
do not.

`data_loss` is the same kernel with the target given, for training on data.

Float streams go in 16-byte accesses when H W C divides by 16, but for the raw outputs and the
gradient of x_eps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config.names import LOSS_WEIGHTS, OUTPUTS, LossWeight, Parameterization
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
# Few programs, so registers are there: left alone, the assembler spills to fit more programs.
OPTIONS = {"num_warps": 8, "maxnreg": 96}


class Loss(NamedTuple):
    """Result of `distill_loss`, `data_loss` and their references."""

    per_image: Tensor
    """(B,), the weighted mean over pixels of each image."""
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
    """The student's loss and gradient against two steps; see `target`.

    out, out_t and out_mid any float, (B, C or 2C, H, W), of the student and of what takes the first
    and the second step, at phi_t and phi_mid; out_t may be y itself, (B, C, H, W). z_t float32 (or
    float64), (B, C, H, W); phi_t and phi_mid float64 (B,), as is phi_next, where the second step
    ends (None: as far from phi_mid as phi_t); is_last_step bool (B,). `huber_c` above 0 asks for
    the pseudo-Huber loss, see `loss_and_grad`. The loss is float32 (float64 where z_t is), the
    gradient of the dtype of out. Raises ValueError or TypeError for other shapes, dtypes or
    devices.
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
    """Loss and gradient of a raw output that should predict y.

    out any float, (B, C or 2C, H, W); y float32 (or float64), (B, C, H, W); phi float64 (B,);
    `huber_c` as in `distill_loss`. The loss is of the dtype of y, the gradient of that of out.
    Raises ValueError or TypeError for other shapes, dtypes or devices.
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
    """Raise ValueError for what is no c of the pseudo-Huber loss."""
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
    """The y that takes a student from z_t, in one step, where two steps lead.

    out_t and out_mid are the raw outputs that the steps are taken by, at (z_t, phi_t) and
    (z_mid, phi_mid); out_t may be y itself, of z_t's shape. The steps are d = phi_t - phi_mid and
    e = phi_mid - phi_next, by default (None) d again; the student's is d + e. `is_last_step`
    (bool, (B,)) marks steps to s = 0, where the sampler returns x-hat: there the target is
    y of the second step's x-hat. Where phi_mid is phi_t, the first step alone reaches s, and the
    target is y1. With the teacher's two equal steps it is Algorithm 2's x-tilde; see reference.py
    for its published form.
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
    alone = phi_mid == phi_t  # by selection: the formula may divide 0 by 0 there
    c_1, c_2 = c_1.masked_fill(alone, 1.0), c_2.masked_fill(alone, 0.0)
    of_z_t = () if c_z is None else ((c_z.masked_fill(alone, 0.0), z_t),)
    return combine((c_1, y1), (c_2, y2), *of_z_t)


def loss_weight(phi: Tensor, parameterization: Parameterization, weight: LossWeight) -> Tensor:
    """Weight (B,) of ||y - y_target||^2 that equals the published weight of ||x - x_target||^2.

    LOSS_WEIGHTS has it as one of ||v - v_target||^2, which is ||x - x_target||^2 / sigma^2 and
    ||eps - eps_target||^2 / alpha^2.
    """
    sigma2, alpha2 = phi.sin().square(), phi.cos().square()
    a, b, combined = LOSS_WEIGHTS[weight]
    if combined == "max":
        in_v = torch.maximum(a * alpha2, b * sigma2)
    elif a == b:  # alpha^2 + sigma^2 is 1, without rounding
        in_v = torch.full_like(phi, a)
    else:
        in_v = a * alpha2 + b * sigma2
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
    """Loss of a raw output against y_target, per image, and its mean's gradient in closed form.

    The loss is e, the weighted mean squared error, or with huber_c = c > 0 the pseudo-Huber loss
    sqrt(e + c^2) - c (Song & Dhariwal 2023, with e in place of the squared norm), whose gradient is
    that of e divided by 2 sqrt(e + c^2).
    """
    predicts, dtype = PREDICTIONS[parameterization], out.dtype
    error = predicts.of(out.to(y_target.dtype), phi) - y_target
    k = loss_weight(phi, parameterization, weight)
    per_image_loss = k.to(error) * error.square().flatten(1).mean(1)
    c = 2 * k / error.numel()
    if huber_c:
        e = per_image_loss.double()
        root = (e + huber_c**2).sqrt()
        per_image_loss = (e / (root + huber_c)).to(error)  # root - c, without its cancellation
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
    """`distill_loss` of arguments known to be right."""
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
    """`data_loss` of arguments known to be right."""
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
    """Elements per iteration: twice as many streams leave registers for half."""
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
    """One launch; `steps` are (z_t, out_t, out_mid), or y is the target.

    `angles`: phi_t, phi_mid, phi_next and is_last_step.
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
        w_max=terms.combined == "max",
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
    """float64 weight of the squared error in v; see `loss_weight`.

    A term whose coefficient is 0 makes no code.
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
    out,
    out_t,
    out_mid,
    y,
    z_t,
    image,
    element,
    mask,
    cos,
    sin,
    cos_mid,
    sin_mid,
    c_1,
    c_2,
    c_z,
    channels: tl.constexpr,
    copies: tl.constexpr,
    parameterization: tl.constexpr,
    of_first: tl.constexpr,
    y_given: tl.constexpr,
):
    """Prediction minus target, float32, of elements of the image that begins at `image`."""
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
    out,
    z_t,
    out_t,
    out_mid,
    y,
    phi_t,
    phi_mid,
    phi_next,
    is_last_step,
    loss,
    grad,
    size,
    channels: tl.constexpr,
    copies: tl.constexpr,
    parameterization: tl.constexpr,
    w_alpha2: tl.constexpr,
    w_sigma2: tl.constexpr,
    w_max: tl.constexpr,
    y_given: tl.constexpr,
    y1_given: tl.constexpr,
    huber_c: tl.constexpr,
    blocks: tl.constexpr,  # of an image; a count known at run time stops Triton 3.6's interpreter
    block: tl.constexpr,
):
    """Program b: image b, `size` elements in (H, W, C) order; see `distill_loss`."""
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
