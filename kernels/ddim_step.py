"""ddim_step: a DDIM step along a network's raw output, and the next network's input.

Fused: the prediction, the rotation, the rounding to the network's dtype. For D elements per image
and networks of s bytes per element, one pass moves 4 (z) + s (out; 2s for x_eps) + 4 (z_next) + s
(z_in, unless s is 4) bytes per element. In float32 the eager chain of v moves 28 (product 8,
addcmul 12, casts of `out` and of z_next 2 s + 12) and the kernel 12. Bound: memory, above a few
hundred kB; below it, the launch. Coefficients, per image, are float64: on GPUs with little float64
arithmetic (consumer cards) they cost microseconds a launch. Loses: no known case; every version
needs at least one launch. Not differentiable: it steps along a frozen teacher.

Float streams go in 16-byte accesses when H W C divides by 16, except the raw output of x_eps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config.names import OUTPUTS, Parameterization
from pdfast.kernels import runtime
from pdfast.kernels.angles import combine, sincos
from pdfast.kernels.calls import STEPS
from pdfast.kernels.library import LIBRARY, define
from pdfast.kernels.parameterizations import PREDICTIONS, load_prediction, step_coefficients
from pdfast.kernels.registry import Op, Stage, register
from pdfast.kernels.runtime import tl, triton

BLOCK = 1024


class Step(NamedTuple):
    """Result of `ddim_step`."""

    z: Tensor
    """State at the next angle, (B, C, H, W), of the dtype of the state before the step."""
    z_in: Tensor
    """z in the network's dtype; the tensor `z` itself if the dtypes are the same."""


def ddim_step(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    parameterization: Parameterization,
    net_dtype: torch.dtype | None = None,
) -> Step:
    """Take a DDIM step from angle `phi` to `phi_next` along the network's prediction (DDIM).

    Args:
        z: State (B, C, H, W), float32 or float64.
        out: Raw network output at z, (B, C, H, W) or for x_eps (B, 2C, H, W), of any floating
            dtype.
        phi: Angles of z in radians, float64 (B,).
        phi_next: Angles where the step ends, float64 (B,), below `phi`.
        parameterization: What the network predicts.
        net_dtype: Dtype of the next network's input; None: the dtype of z.

    Returns:
        The state at `phi_next`, of z's dtype, and the same in `net_dtype`.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, a device or the parameterization is wrong.
    """
    runtime.check_choice("parameterization", parameterization, Parameterization)
    runtime.check_tensor("z", z, runtime.STATES)
    batch, channels, *size = z.shape
    copies = OUTPUTS[parameterization].copies
    runtime.check_tensor("out", out, runtime.FLOATS, (batch, copies * channels, *size), z)
    runtime.check_tensor("phi", phi, (torch.float64,), (batch,), z)
    runtime.check_tensor("phi_next", phi_next, (torch.float64,), (batch,), z)
    net_dtype = net_dtype or z.dtype
    z_next, z_in = ddim_step_op(z, out.detach(), phi, phi_next, parameterization, net_dtype)
    return Step(z_next, z_in if net_dtype != z.dtype else z_next)


def ddim_step_reference(
    z: Tensor, out: Tensor, phi: Tensor, phi_next: Tensor, parameterization: Parameterization
) -> Tensor:
    """Compute the step in plain PyTorch, in the dtype of z; differentiable."""
    predicts = PREDICTIONS[parameterization]
    y = predicts.of(out.to(z.dtype), phi)
    c_z, c_y = predicts.step_coefficients(phi, phi_next)
    return combine((c_z, z), (c_y, y))


@define()
def ddim_step_op(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    parameterization: str,
    net_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Run `ddim_step` on checked arguments; z_in is empty where it would repeat z."""
    z_next, z_in = _outputs(z, net_dtype)
    if not runtime.uses_triton(z.device, z.dtype, out.dtype, net_dtype):
        z_next.copy_(ddim_step_reference(z, out, phi, phi_next, parameterization))  # type: ignore[arg-type]
        return z_next, z_in.copy_(z_next) if z_in.numel() else z_in
    batch, channels, size = len(z), z.shape[1], z[0].numel()
    runtime.launch(
        ddim_step_kernel,
        (batch, runtime.cdiv(size, BLOCK)),
        z.device,
        runtime.channels_last(z),
        runtime.channels_last(out),
        phi.contiguous(),
        phi_next.contiguous(),
        z_next,
        z_in,
        size,
        channels=channels,
        copies=out.shape[1] // channels,
        parameterization=parameterization,
        writes_z_in=z_in.numel() > 0,
        block=BLOCK,
    )
    return z_next, z_in


@torch.library.register_fake(ddim_step_op, lib=LIBRARY)
def _outputs_of(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    parameterization: str,
    net_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return _outputs(z, net_dtype)


def _outputs(z: Tensor, net_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z_next = runtime.empty_images(z, z.dtype)
    return z_next, z.new_empty(0) if net_dtype == z.dtype else runtime.empty_images(z, net_dtype)


@triton.jit
def ddim_step_kernel(
    z,  # states (B, H, W, C), float32
    out,  # raw network output at z, (B, H, W, C or 2C), of any floating dtype
    phi,  # angles of z, float64 (B,)
    phi_next,  # angles where the step ends, float64 (B,)
    z_next,  # output: states at phi_next (B, H, W, C), float32
    z_in,  # output: z_next in the network's dtype; unused where `writes_z_in` is false
    size,  # elements of an image's state, H W C
    channels: tl.constexpr,  # C
    copies: tl.constexpr,  # channels of `out` per channel of z: 2 for x_eps, else 1
    parameterization: tl.constexpr,  # what the network predicts
    writes_z_in: tl.constexpr,  # whether to write z_in
    block: tl.constexpr,  # elements of a program
):
    """Step `block` elements of image b, in (H, W, C) order, in program (b, tile)."""
    b = tl.program_id(0).to(tl.int64)
    angle, angle_next = tl.load(phi + b), tl.load(phi_next + b)
    sin, cos = sincos(angle)
    c_z, c_y = step_coefficients(angle, angle_next, cos, sin, parameterization)

    element = tl.program_id(1) * block + tl.arange(0, block)
    mask = element < size
    raw = out + b * size * copies
    y = load_prediction(
        raw, element, mask, cos.to(tl.float32), sin.to(tl.float32), channels, parameterization
    )
    z_here = tl.load(z + b * size + element, mask=mask, other=0.0)
    result = c_z.to(tl.float32) * z_here + c_y.to(tl.float32) * y
    tl.store(z_next + b * size + element, result, mask=mask)
    if writes_z_in:
        in_net = result.to(z_in.dtype.element_ty)
        tl.store(z_in + b * size + element, in_net, mask=mask)


register(
    Op(
        name="ddim_step",
        stage=Stage.TEACHER,
        op=ddim_step_op,
        kernels=(ddim_step_kernel,),
        kind=STEPS,
    )
)
