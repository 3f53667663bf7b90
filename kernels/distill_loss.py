"""distill_loss: from the networks' raw outputs to the loss per image and the student's gradient.

Fused: three predictions, Algorithm 2's target, the weighted squared error, its mean per image and
its closed-form gradient. One program per image loops over its elements and adds up the loss in a
fixed order; each input is read once, each output written once. Bytes per element with networks of
size s: 3 s (out_t, out_mid, out) + 4 (z_t, not read for the heads x and eps, whose target does not
need it) + s (gradient); "both" doubles every s. That is 20 in float32 for v; the eager chain moves
73 (tests/kernels/test_bytes.py counts both). Bound: memory; with one image per program it needs
about as many images as the GPU has multiprocessors, and loses to a split over elements below that.
float16 gradients of a mean over a batch underflow (a student in float16 wants a scaled loss, which
nothing here does); bfloat16 ones do not.

`data_loss` is the same kernel with the target given, for training on data.

Float streams go in 16-byte accesses when H W C divides by 16, but for the raw outputs and the
gradient of "both".
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config.names import LOSS_WEIGHTS, Head, LossWeight
from pdfast.kernels import runtime
from pdfast.kernels.angles import combine, load_prediction, per_image, prediction, sincos
from pdfast.kernels.calls import STEPS
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
    head: Head,
    weight: LossWeight,
    phi_next: Tensor | None = None,
) -> Loss:
    """The student's loss and gradient against the teacher's two steps; see `target`.

    out, out_t and out_mid any float, (B, C or 2C, H, W), of the student and of the teacher at
    phi_t and phi_mid; z_t float32 (or float64), (B, C, H, W); phi_t and phi_mid float64 (B,), as is
    phi_next, where the teacher's second step ends (None: as far from phi_mid as phi_t);
    is_last_step bool (B,). The loss is float32 (float64 where z_t is), the gradient of the dtype
    of out. Raises ValueError or TypeError for other shapes, dtypes or devices.
    """
    runtime.check_choice("head", head, Head)
    runtime.check_choice("weight", weight, LossWeight)
    runtime.check_tensor("z_t", z_t, runtime.STATES)
    batch, channels, *size = z_t.shape
    raw = (batch, 2 * channels if head == "both" else channels, *size)
    runtime.check_tensor("out", out, runtime.FLOATS, raw, z_t)
    runtime.check_tensor("out_t", out_t, runtime.FLOATS, raw, z_t)
    runtime.check_tensor("out_mid", out_mid, runtime.FLOATS, raw, z_t)
    runtime.check_tensor("phi_t", phi_t, (torch.float64,), (batch,), z_t)
    runtime.check_tensor("phi_mid", phi_mid, (torch.float64,), (batch,), z_t)
    if phi_next is not None:
        runtime.check_tensor("phi_next", phi_next, (torch.float64,), (batch,), z_t)
    runtime.check_tensor("is_last_step", is_last_step, (torch.bool,), (batch,), z_t)
    return Loss(
        *distill_loss_op(
            out.detach(), z_t, out_t, out_mid, phi_t, phi_mid, is_last_step, head, weight, phi_next
        )
    )


def data_loss(out: Tensor, y: Tensor, phi: Tensor, head: Head, weight: LossWeight) -> Loss:
    """Loss and gradient of a raw output that should predict y, in the head's space.

    out any float, (B, C or 2C, H, W); y float32 (or float64), (B, C, H, W); phi float64 (B,).
    The loss is of the dtype of y, the gradient of that of out. Raises ValueError or TypeError for
    other shapes, dtypes or devices.
    """
    runtime.check_choice("head", head, Head)
    runtime.check_choice("weight", weight, LossWeight)
    runtime.check_tensor("y", y, runtime.STATES)
    batch, channels, *size = y.shape
    copies = 2 if head == "both" else 1
    runtime.check_tensor("out", out, runtime.FLOATS, (batch, copies * channels, *size), y)
    runtime.check_tensor("phi", phi, (torch.float64,), (batch,), y)
    return Loss(*data_loss_op(out.detach(), y, phi, head, weight))


# ------------------------------------------------------------------------------------------
# References


def target(
    z_t: Tensor,
    out_t: Tensor,
    out_mid: Tensor,
    phi_t: Tensor,
    phi_mid: Tensor,
    is_last_step: Tensor,
    head: Head,
    phi_next: Tensor | None = None,
) -> Tensor:
    """The y that takes a student from z_t, in one step, where the teacher's two steps lead.

    out_t and out_mid are the teacher's raw outputs at (z_t, phi_t) and (z_mid, phi_mid);
    their steps are d = phi_t - phi_mid and e = phi_mid - phi_next, which on the cosine schedule
    (None) is d again; the student's is d + e. `is_last_step` (bool, (B,)) marks
    i = 0, the sampler's last step, which returns x-hat: there the target is the teacher's own
    second x-hat. Equal to Algorithm 2's x-tilde; see reference.py for its published form.
    """
    y1, y2 = prediction(out_t, phi_t, head), prediction(out_mid, phi_mid, head)
    d = phi_t - phi_mid
    if phi_next is None:  # sin d / sin 2d, without a division of small numbers
        e, share = d, 0.5 / d.cos()
    else:
        e = phi_mid - phi_next
        share = e.sin() / (phi_t - phi_next).sin()
    if head in ("x", "eps"):  # z_t cancels: the target is a weighted mean of y1 and y2
        if head == "x":
            w2 = phi_t.sin() / phi_mid.sin() * share
            w2 = torch.where(is_last_step, torch.ones_like(w2), w2)
        else:
            w2 = phi_t.cos() / phi_mid.cos() * share
            w2 = torch.where(is_last_step, phi_mid.tan() / phi_t.tan(), w2)
        return combine((1 - w2, y1), (w2, y2))
    sin_t = phi_t.sin()
    c_z = torch.where(is_last_step, -d.sin() * phi_mid.sin() / sin_t, -d.sin() * share)
    c_1 = d.sin() * e.cos() / (d + e).sin()
    c_1 = torch.where(is_last_step, d.sin() * phi_mid.cos() / sin_t, c_1)
    c_2 = torch.where(is_last_step, phi_mid.sin() / sin_t, share)
    return combine((c_1, y1), (c_2, y2), (c_z, z_t))


def loss_weight(phi: Tensor, head: Head, weight: LossWeight) -> Tensor:
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
    return in_v / {"x": sigma2, "eps": alpha2}.get(head, torch.ones_like(phi))


def loss_and_grad(
    out: Tensor, y_target: Tensor, phi: Tensor, head: Head, weight: LossWeight
) -> Loss:
    """Weighted squared error of a raw output against y_target, and its gradient in closed form."""
    dtype, out = out.dtype, out.to(y_target.dtype)
    error = prediction(out, phi, head) - y_target
    k = loss_weight(phi, head, weight)
    per_image_loss = k.to(error) * error.square().flatten(1).mean(1)
    c = 2 * k / error.numel()
    if head != "both":
        return Loss(per_image_loss, (per_image(c, error) * error).to(dtype))
    grad_x = per_image(-phi.sin() * c, error) * error
    grad_eps = per_image(phi.cos() * c, error) * error
    return Loss(per_image_loss, torch.cat([grad_x, grad_eps], dim=1).to(dtype))


# ------------------------------------------------------------------------------------------
# Registered ops


@torch.library.custom_op("pdfast::distill_loss", mutates_args=())
def distill_loss_op(
    out: Tensor,
    z_t: Tensor,
    out_t: Tensor,
    out_mid: Tensor,
    phi_t: Tensor,
    phi_mid: Tensor,
    is_last_step: Tensor,
    head: str,
    weight: str,
    phi_next: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`distill_loss` of arguments known to be right."""
    if runtime.uses_triton(z_t.device, out.dtype, z_t.dtype, out_t.dtype, out_mid.dtype):
        teacher = (z_t, out_t, out_mid)
        return _launch(out, teacher, phi_t, phi_mid, is_last_step, None, head, weight, phi_next)
    outs = (out_t.to(z_t.dtype), out_mid.to(z_t.dtype))
    y = target(z_t, *outs, phi_t, phi_mid, is_last_step, head, phi_next)  # type: ignore[arg-type]
    return _reference(out, y, phi_t, head, weight)


@distill_loss_op.register_fake
def _distill_outputs(out: Tensor, z_t: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _outputs(out, z_t)


@torch.library.custom_op("pdfast::data_loss", mutates_args=())
def data_loss_op(
    out: Tensor, y: Tensor, phi: Tensor, head: str, weight: str
) -> tuple[Tensor, Tensor]:
    """`data_loss` of arguments known to be right."""
    if runtime.uses_triton(y.device, out.dtype, y.dtype):
        return _launch(out, (None, None, None), phi, None, None, y, head, weight)
    return _reference(out, y, phi, head, weight)


@data_loss_op.register_fake
def _data_outputs(out: Tensor, y: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _outputs(out, y)


def _outputs(out: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return state.new_empty(len(out)), runtime.empty_images(out, out.dtype)


def _reference(
    out: Tensor, y: Tensor, phi: Tensor, head: str, weight: str
) -> tuple[Tensor, Tensor]:
    per_image_loss, grad = _outputs(out, y)
    loss = loss_and_grad(out, y, phi, head, weight)  # type: ignore[arg-type]
    return per_image_loss.copy_(loss.per_image), grad.copy_(loss.grad_out)


def block_of(head: str) -> int:
    """Elements per iteration: twice as many streams leave registers for half."""
    return BLOCK // 2 if head == "both" else BLOCK


def _launch(
    out: Tensor,
    teacher: tuple[Tensor | None, Tensor | None, Tensor | None],
    phi_t: Tensor,
    phi_mid: Tensor | None,
    is_last_step: Tensor | None,
    y: Tensor | None,
    head: str,
    weight: str,
    phi_next: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch; `teacher` is (z_t, out_t, out_mid), or y is the target."""
    terms = LOSS_WEIGHTS[weight]  # type: ignore[index]
    copies = 2 if head == "both" else 1
    images = [None if image is None else runtime.channels_last(image) for image in (*teacher, y)]
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
        head=head,
        w_alpha2=terms.alpha2,
        w_sigma2=terms.sigma2,
        w_max=terms.combined == "max",
        y_given=y is not None,
        blocks=runtime.cdiv(out[0].numel() // copies, block_of(head)),
        block=block_of(head),
        **OPTIONS,
    )
    return loss, grad


# ------------------------------------------------------------------------------------------
# Triton


@triton.jit
def target_coefficients(phi_t, phi_mid, step, is_last_step, sin_t, cos_t, head: tl.constexpr):
    """float64 (c_1, c_2, c_z) of y1, y2 and z_t in the target; `step` is e in `target`."""
    sin_mid, cos_mid = sincos(phi_mid)
    sin_d, cos_d = sincos(phi_t - phi_mid)
    sin_e, cos_e = sincos(step)
    below = sin_d * cos_e + cos_d * sin_e  # sin(d + e)
    if head == "x":
        c_2 = tl.where(is_last_step, 1.0, sin_t * sin_e / (sin_mid * below))
        c_1, c_z = 1.0 - c_2, 0.0 * c_2
    elif head == "eps":
        below = cos_mid * tl.where(is_last_step, sin_t, below)
        c_2 = cos_t * tl.where(is_last_step, sin_mid, sin_e) / below
        c_1, c_z = 1.0 - c_2, 0.0 * c_2
    else:
        # One division: each takes registers, of which the loop below leaves few.
        per = 1.0 / tl.where(is_last_step, sin_t, below)
        c_1 = sin_d * tl.where(is_last_step, cos_mid, cos_e) * per
        c_2 = tl.where(is_last_step, sin_mid, sin_e) * per
        c_z = -sin_d * c_2
    return c_1, c_2, c_z


@triton.jit
def weight_of(sin, cos, head: tl.constexpr, a: tl.constexpr, b: tl.constexpr, larger: tl.constexpr):
    """float64 weight of the squared error in y; see `loss_weight`.

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
    if head == "x":
        k = k / sigma2
    elif head == "eps":
        k = k / alpha2
    return k


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
    head: tl.constexpr,
    w_alpha2: tl.constexpr,
    w_sigma2: tl.constexpr,
    w_max: tl.constexpr,
    y_given: tl.constexpr,
    blocks: tl.constexpr,  # of an image; a count known at run time stops Triton 3.6's interpreter
    block: tl.constexpr,
):
    """Program b: image b, `size` elements in (H, W, C) order; see `distill_loss`."""
    b = tl.program_id(0).to(tl.int64)
    angle = tl.load(phi_t + b)
    sin_t, cos_t = sincos(angle)
    k = weight_of(sin_t, cos_t, head, w_alpha2, w_sigma2, w_max)
    k = k / size
    c = 2 * k / tl.num_programs(0)
    sin, cos = sin_t.to(tl.float32), cos_t.to(tl.float32)
    copies: tl.constexpr = 2 if head == "both" else 1
    image, raw = b * size, b * size * copies
    if not y_given:
        angle_mid, is_last = tl.load(phi_mid + b), tl.load(is_last_step + b) != 0
        step = angle - angle_mid
        if phi_next is not None:
            step = angle_mid - tl.load(phi_next + b)
        c_1, c_2, c_z = target_coefficients(angle, angle_mid, step, is_last, sin_t, cos_t, head)
        c_1, c_2, c_z = c_1.to(tl.float32), c_2.to(tl.float32), c_z.to(tl.float32)
        sin_mid, cos_mid = sincos(angle_mid)
        sin_mid, cos_mid = sin_mid.to(tl.float32), cos_mid.to(tl.float32)
    if head == "both":
        g_x, g_eps = (-sin_t * c).to(tl.float32), (cos_t * c).to(tl.float32)
    else:
        g = c.to(tl.float32)

    total = tl.zeros([block], tl.float32)
    for turn in range(blocks):
        element = turn * block + tl.arange(0, block)
        mask = element < size
        if y_given:
            goal = tl.load(y + image + element, mask=mask, other=0.0)
        else:
            y1 = load_prediction(out_t + raw, element, mask, cos, sin, channels, head)
            y2 = load_prediction(out_mid + raw, element, mask, cos_mid, sin_mid, channels, head)
            goal = c_1 * y1 + c_2 * y2
            if head == "v" or head == "both":
                goal += c_z * tl.load(z_t + image + element, mask=mask, other=0.0)
        error = load_prediction(out + raw, element, mask, cos, sin, channels, head) - goal
        total += error * error
        if head == "both":
            pair = grad + raw + element // channels * (2 * channels) + element % channels
            tl.store(pair, (g_x * error).to(grad.dtype.element_ty), mask=mask)
            tl.store(pair + channels, (g_eps * error).to(grad.dtype.element_ty), mask=mask)
        else:
            tl.store(grad + raw + element, (g * error).to(grad.dtype.element_ty), mask=mask)
    tl.store(loss + b, (k * tl.sum(total)).to(tl.float32))


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
