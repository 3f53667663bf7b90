"""adamw: gradient norm, clipping, AdamW, averaged weights and their rounding, on flat buffers.

Fused into two launches. `sum_of_squares_kernel` writes ordered partial sums; every program of
`adamw_kernel` adds them up again, in the same order, before its share of the update. So the clip
factor needs neither the host nor a third launch. Bytes per parameter: the first launch reads 4
(gradient); the second reads 16 (weight, gradient, two moments) and writes 12, with 8 more for each
average and 2 for a copy in half precision. That makes 32, 42 with one average and a copy, 66 with
four averages and a copy. PyTorch (fused AdamW, clip_grad_norm_, foreach EMA, cast) moves 40, 58 and
94. Bound: memory. Loses: below about 10^5 parameters, to launch overhead, as every kernel does.

An update whose loss or gradient is not finite is skipped. The second launch decides it on the
device, from the partial sums, the loss and the counters, and then writes only the norm and the
counters; no host has to look.

Every float stream goes in 16-byte accesses when the length divides by 16 (pad the buffers; zeros
stay zeros); sums of squares are added up in float64. Buffers may have more than 2^31 elements.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdfast.kernels import runtime
from pdfast.kernels.calls import OPTIMIZER, Call, Launch, bytes_of
from pdfast.kernels.library import LIBRARY, define
from pdfast.kernels.registry import Op, Stage, register
from pdfast.kernels.runtime import tl, triton

BLOCK = 1024
PROGRAMS = 1024  # at most, in each launch; also the most partial sums
COPIES = (torch.bfloat16, torch.float16)
MAX_AVERAGES = 4
ASKED = ("cpu",)  # devices whose numbers the reference may read on the host without waiting


@dataclass(frozen=True, kw_only=True)
class AdamWHyperparameters:
    """The numbers of `adamw` that stay the same in every update.

    Raises:
        ValueError: A number is out of its range.
    """

    max_norm: float
    """Norm to clip the gradient to, as torch.nn.utils.clip_grad_norm_ does; 0: no clipping."""
    beta1: float = 0.9
    """Decay of the first moment, between 0 and 1."""
    beta2: float = 0.999
    """Decay of the second moment, between 0 and 1."""
    eps: float = 1e-8
    """Number added to the denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay: an update subtracts lr * weight_decay times the weight."""
    ema_decays: tuple[float, ...] = ()
    """Decays of the averaged weights, in [0, 1): one for each average, at most 4."""
    max_skipped: int
    """Updates that may be skipped in a row, at least 1; all updates after these are skipped."""
    ema_warmup: bool = False
    """Whether the averages decay by at most (1 + k) / (10 + k) after k earlier updates."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        for name in ("max_norm", "eps", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{name} must be finite and at least 0, not {value}")
        for decay in self.ema_decays:
            if not 0.0 <= decay < 1.0:
                raise ValueError(f"ema_decays must be in [0, 1), not {decay}")
        if len(self.ema_decays) > MAX_AVERAGES:
            raise ValueError(
                f"ema_decays must hold at most {MAX_AVERAGES} decays, not {len(self.ema_decays)}"
            )
        if self.max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, not {self.max_skipped}")


def adamw(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ema: Tensor | None,
    copy: Tensor | None,
    lr: Tensor,
    step: Tensor,
    loss: Tensor,
    skipped: Tensor,
    hyperparameters: AdamWHyperparameters,
    earlier: Tensor | None = None,
) -> Tensor:
    """Make one AdamW update in place (Loshchilov & Hutter 2019), as torch.optim.AdamW does.

    The gradient is first clipped as by torch.nn.utils.clip_grad_norm_. An average of decay d then
    becomes decay ema + (1 - decay) params, where decay is d, or with `ema_warmup`, after k earlier
    updates, min(d, (1 + k) / (10 + k)). The first update sets it to the params.

    An update is skipped if its loss or its gradient norm is not finite, or if the `max_skipped`
    updates before it were skipped. So the device stops changing weights at the same update, however
    late a host looks. A skipped update changes only `skipped`, and is not a step of AdamW: the bias
    correction counts step - skipped[0] + earlier steps, the averages step - skipped[0].

    All tensors lie on one device; the buffers (P, or K, P for K averages) are contiguous.

    Args:
        params: Weights (P,), float32 or float64.
        grads: Their gradients (P,), of params' dtype.
        exp_avg: First moment (P,), of params' dtype.
        exp_avg_sq: Second moment (P,), of params' dtype.
        ema: Averaged weights (K, P), of params' dtype, for K `ema_decays`; or None.
        copy: Written with the new weights (P,), bfloat16 or float16; or None.
        lr: Learning rate, float32 or float64 (1,).
        step: Number of the update, counting from 1, int64 (1,).
        loss: Loss of the update, float32 or float64, (1,) or 0-d.
        skipped: int64 (2,): updates skipped so far, and those skipped in a row until now.
        hyperparameters: The numbers that stay the same.
        earlier: Updates that the moments had before step 1, int64 (1,); None: 0.

    Returns:
        Norm of the gradient before clipping, 0-d, of params' dtype.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: A tensor has the wrong shape or device or is not contiguous, or `ema` is given
            without decays.
    """
    size = max(1, params.numel()) if isinstance(params, Tensor) else 1
    runtime.check_tensor("params", params, runtime.STATES, (size,))
    flat = {"params": params, "grads": grads, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    flat |= {} if ema is None else {"ema": ema}
    decays = hyperparameters.ema_decays
    if ema is not None and not decays:
        raise ValueError("ema needs a decay for each average in ema_decays, which is empty")
    for name, buffer in (flat if copy is None else flat | {"copy": copy}).items():
        dtypes = COPIES if name == "copy" else (params.dtype,)
        shape = (len(decays), size) if name == "ema" else params.shape
        runtime.check_tensor(name, buffer, dtypes, shape, params)
        if not buffer.is_contiguous():
            raise ValueError(f"{name} must be contiguous: pass {name}.contiguous()")
    runtime.check_tensor("lr", lr, runtime.STATES, (1,), params)
    runtime.check_tensor("step", step, (torch.int64,), (1,), params)
    one = () if isinstance(loss, Tensor) and loss.ndim == 0 else (1,)
    runtime.check_tensor("loss", loss, runtime.STATES, one, params)
    runtime.check_tensor("skipped", skipped, (torch.int64,), (2,), params)
    if not skipped.is_contiguous():
        raise ValueError("skipped must be contiguous: pass skipped.contiguous()")
    if earlier is not None:
        runtime.check_tensor("earlier", earlier, (torch.int64,), (1,), params)
    h, buffers = hyperparameters, (params.detach(), grads, exp_avg, exp_avg_sq, ema, copy)
    norm: Tensor = adamw_op(
        *buffers, lr, step, loss.detach(), skipped, h.max_norm, h.beta1, h.beta2, h.eps,
        h.weight_decay, h.ema_decays, h.max_skipped, h.ema_warmup, earlier,
    )  # fmt: skip
    return norm


def adamw_reference(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ema: Tensor | None,
    copy: Tensor | None,
    lr: Tensor,
    step: Tensor,
    loss: Tensor,
    skipped: Tensor,
    hyperparameters: AdamWHyperparameters,
    earlier: Tensor | None = None,
) -> Tensor:
    """Compute `adamw` in plain PyTorch, with a few operations on whole buffers, in place.

    On a CPU it returns early where the update is skipped. On other devices, where reading the flag
    would wait for the device and end a capture, it makes the update and then restores copies.

    The arguments are those of `adamw`.

    Returns:
        Norm of the gradient before clipping, 0-d, of params' dtype.
    """
    h = hyperparameters
    norm: Tensor = torch.linalg.vector_norm(grads)
    made = count_skipped(norm, loss, skipped, h.max_skipped)
    before = []
    if params.device.type in ASKED:
        if not made:
            return norm
    else:
        kept = [b for b in (params, exp_avg, exp_avg_sq, ema, copy) if b is not None]
        before = [(b, b.clone()) for b in kept]
    lr, count = lr.double().reshape(()), (step - skipped[0]).double().reshape(())
    steps = count if earlier is None else count + earlier.reshape(())  # updates of the moments
    if h.max_norm:
        grads = grads * (h.max_norm / (norm + 1e-6)).clamp(max=1.0)
    exp_avg.lerp_(grads, 1 - h.beta1)
    exp_avg_sq.mul_(h.beta2).addcmul_(grads, grads, value=1 - h.beta2)
    step_size, scale = lr / (1 - h.beta1**steps), (1 - h.beta2**steps).rsqrt()
    denominator = exp_avg_sq.sqrt().mul_(scale).add_(h.eps)
    params.mul_(1 - lr * h.weight_decay)
    params.addcdiv_(exp_avg * -step_size, denominator)
    if ema is not None:
        for average, decay in zip(ema, h.ema_decays, strict=True):
            average.lerp_(params, newest_share(count, decay, h.ema_warmup).to(ema.dtype))
    if copy is not None:
        copy.copy_(params)
    for buffer, old in before:
        torch.where(made, buffer, old, out=buffer)
    return norm


def newest_share(count: Tensor, decay: float, warmup: bool) -> Tensor:
    """Return the share of the newest weights in an average after `count` updates.

    Args:
        count: Number of updates, floating-point of any shape; 1 has the share 1.
        decay: Decay of the average.
        warmup: Whether the decay is at most count / (count + 9).

    Returns:
        The share, of the dtype and shape of `count`.
    """
    share = torch.full_like(count, 1.0 - decay)
    if warmup:  # 1 - (1 + k) / (10 + k), where k = count - 1
        share = torch.maximum(share, torch.full_like(count, 9.0) / (count + 9.0))
    return torch.where(count == 1, torch.ones_like(count), share)


def count_skipped(norm: Tensor, loss: Tensor, skipped: Tensor, max_skipped: int) -> Tensor:
    """Return whether an update is made, bool and 0-d; count it in `skipped` if it is not.

    Args:
        norm: Norm of the gradient, 0-d.
        loss: Loss of the update, one element.
        skipped: The counters of `adamw`, int64 (2,), changed in place.
        max_skipped: Updates that may be skipped in a row.
    """
    finite = norm - norm == (loss - loss).reshape(())  # 0 if finite, else NaN; NaN != NaN
    in_a_row = skipped[1]
    made = finite & (in_a_row < max_skipped)
    left_out = ~made
    skipped.add_(left_out)
    in_a_row.mul_(left_out)
    return made


@define("params", "exp_avg", "exp_avg_sq", "ema", "copy", "skipped")
def adamw_op(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ema: Tensor | None,
    copy: Tensor | None,
    lr: Tensor,
    step: Tensor,
    loss: Tensor,
    skipped: Tensor,
    max_norm: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    ema_decays: Sequence[float],
    max_skipped: int,
    ema_warmup: bool = False,
    earlier: Tensor | None = None,
) -> Tensor:
    """Run `adamw` on checked arguments."""
    buffers = (params, grads, exp_avg, exp_avg_sq, ema, copy)
    if not runtime.uses_triton(params.device, params.dtype):
        hyperparameters = AdamWHyperparameters(
            max_norm=max_norm,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            ema_decays=tuple(ema_decays),
            max_skipped=max_skipped,
            ema_warmup=ema_warmup,
        )
        return adamw_reference(*buffers, lr, step, loss, skipped, hyperparameters, earlier)
    size = len(params)
    programs = min(PROGRAMS, runtime.cdiv(size, BLOCK))
    partials = torch.empty(programs, dtype=torch.float64, device=params.device)
    norm = params.new_empty(())
    # A compile-time constant: a loop to a run-time count stops Triton 3.6's interpreter.
    turns = runtime.cdiv(size, programs * BLOCK)
    loop: dict[str, Any] = {"turns": turns, "programs": programs, "block": BLOCK}
    first, second, third, fourth = (*ema_decays, *[0.0] * MAX_AVERAGES)[:MAX_AVERAGES]
    grid, device = (programs,), params.device
    runtime.launch(sum_of_squares_kernel, grid, device, grads, partials, size, **loop)
    runtime.launch(
        adamw_kernel,
        grid,
        device,
        *buffers,
        lr,
        step,
        loss,
        skipped,
        earlier,
        partials,
        norm,
        size,
        max_norm=max_norm,
        max_skipped=max_skipped,
        beta1=beta1,
        beta2=beta2,
        log_beta1=math.log(beta1),
        log_beta2=math.log(beta2),
        eps=eps,
        weight_decay=weight_decay,
        averages=0 if ema is None else len(ema),
        first_decay=first,
        second_decay=second,
        third_decay=third,
        fourth_decay=fourth,
        ema_warmup=ema_warmup,
        most=PROGRAMS,
        **loop,
    )
    return norm


@torch.library.register_fake(adamw_op, lib=LIBRARY)
def _norm_of(params: Tensor, *_: object) -> Tensor:
    return params.new_empty(())


# ------------------------------------------------------------------------------------------
# Triton


@triton.jit
def sum_of_squares_kernel(
    grads,  # gradients (P,), float32
    partials,  # output: sums of squares, float64 (programs,)
    size,  # P
    turns: tl.constexpr,  # blocks of a program
    programs: tl.constexpr,  # number of programs
    block: tl.constexpr,  # elements of a block
):
    """Add up the squares of blocks p, p + programs, ... in program p, and write partial p."""
    total = tl.zeros([block], tl.float64)
    program = tl.program_id(0).to(tl.int64)
    for turn in range(turns):
        element = (turn * programs + program) * block + tl.arange(0, block)
        grad = tl.load(grads + element, mask=element < size, other=0.0).to(tl.float64)
        total += grad * grad
    tl.store(partials + tl.program_id(0), tl.sum(total))


@triton.jit
def _average(ema, place, mask, weight, count, ema_decay: tl.constexpr, ema_warmup: tl.constexpr):
    """Update one of the averages with new weights, at its `place` in `ema`."""
    decay, newest = ema_decay, 1.0 - ema_decay
    if ema_warmup:  # its decay after k = count - 1 updates is (1 + k) / (10 + k)
        decay = tl.minimum(count / (count + 9.0), ema_decay).to(tl.float32)
        newest = tl.maximum(9.0 / (count + 9.0), 1.0 - ema_decay).to(tl.float32)
    average = tl.load(ema + place, mask=mask, other=0.0)
    if ema_decay < 0.5:  # this form is exactly the weights at decay 0
        average = weight - (weight - average) * decay
    else:
        average = average + (weight - average) * newest
    average = tl.where(count == 1.0, weight, average)  # the first update sets the weights
    tl.store(ema + place, average, mask=mask)


@triton.jit
def adamw_kernel(
    weights,  # weights (P,), float32, changed
    grads,  # gradients (P,), float32
    exp_avg,  # first moment (P,), float32, changed
    exp_avg_sq,  # second moment (P,), float32, changed
    ema,  # averaged weights (averages, P), float32, changed; or None
    copy,  # output: the weights in bfloat16 or float16 (P,); or None
    lr,  # learning rate, floating-point (1,)
    step,  # number of the update, from 1, int64 (1,)
    loss,  # loss of the update, floating-point (1,)
    skipped,  # updates skipped in all and in a row, int64 (2,), changed
    earlier,  # updates of the moments before step 1, int64 (1,); or None
    partials,  # sums of squares of the gradients, float64 (programs,)
    norm,  # output: norm of the gradient before clipping, float32, 0-d
    size,  # P
    max_norm: tl.constexpr,  # norm to clip to; 0: no clipping
    max_skipped: tl.constexpr,  # updates that may be skipped in a row
    beta1: tl.constexpr,  # decay of the first moment
    beta2: tl.constexpr,  # decay of the second moment
    log_beta1: tl.constexpr,  # its logarithm, from the host's float64
    log_beta2: tl.constexpr,  # likewise
    eps: tl.constexpr,  # number added to the denominator
    weight_decay: tl.constexpr,  # decoupled weight decay
    averages: tl.constexpr,  # number of averages, 0 .. 4
    first_decay: tl.constexpr,  # decay of the first average
    second_decay: tl.constexpr,  # of the second
    third_decay: tl.constexpr,  # of the third
    fourth_decay: tl.constexpr,  # of the fourth
    ema_warmup: tl.constexpr,  # whether early updates decay less
    turns: tl.constexpr,  # blocks of a program
    programs: tl.constexpr,  # number of programs, and of partial sums
    most: tl.constexpr,  # upper bound of `programs`, a power of 2
    block: tl.constexpr,  # elements of a block
):
    """Update blocks p, p + programs, ... in program p; all programs find the same clip factor."""
    p = tl.arange(0, most)
    squares = tl.load(partials + p, mask=p < programs, other=0.0)
    length = tl.sqrt(tl.sum(squares)).to(tl.float32)
    # Every program reads the counters while the first one writes them. The outcome is the same
    # whether it reads before or after the write. An update that is made leaves `total` and sets
    # `in_a_row` to 0, which is below `max_skipped` like the old value. An update that is skipped
    # because it is not finite depends on neither counter. An update skipped at the limit raises
    # `in_a_row`, which was at the limit already.
    total, in_a_row = tl.load(skipped), tl.load(skipped + 1)
    finite = (tl.abs(length) < float("inf")) & (tl.abs(tl.load(loss)) < float("inf"))
    made = finite & (in_a_row < max_skipped)
    if tl.program_id(0) == 0:
        tl.store(norm, length)
        tl.store(skipped, tl.where(made, total, total + 1))
        tl.store(skipped + 1, tl.where(made, 0, in_a_row + 1))
    if not made:
        return
    count, rate = (tl.load(step) - total).to(tl.float64), tl.load(lr).to(tl.float64)
    steps = count  # updates of the moments
    if earlier is not None:
        steps = count + tl.load(earlier)
    keep = (1.0 - rate * weight_decay).to(tl.float32)
    step_size = (rate / (1.0 - tl.exp(steps * log_beta1))).to(tl.float32)
    scale = (1.0 / tl.sqrt(1.0 - tl.exp(steps * log_beta2))).to(tl.float32)
    if max_norm > 0:
        clip = tl.div_rn(tl.full((), max_norm, tl.float32), length + 1e-6)
        clip = tl.minimum(clip, 1.0)

    program = tl.program_id(0).to(tl.int64)
    for turn in range(turns):
        element = (turn * programs + program) * block + tl.arange(0, block)
        mask = element < size
        grad = tl.load(grads + element, mask=mask, other=0.0)
        if max_norm > 0:
            grad = grad * clip
        m = tl.load(exp_avg + element, mask=mask, other=0.0)
        v = tl.load(exp_avg_sq + element, mask=mask, other=0.0)
        weight = tl.load(weights + element, mask=mask, other=0.0)
        m = m + (grad - m) * (1.0 - beta1)
        v = v * beta2 + grad * grad * (1.0 - beta2)
        weight = weight * keep - tl.div_rn(m * step_size, tl.sqrt_rn(v) * scale + eps)
        tl.store(exp_avg + element, m, mask=mask)
        tl.store(exp_avg_sq + element, v, mask=mask)
        tl.store(weights + element, weight, mask=mask)
        if averages > 0:
            _average(ema, element, mask, weight, count, first_decay, ema_warmup)
        place = element  # int64: up to four times `size` needs it
        if averages > 1:
            place += size
            _average(ema, place, mask, weight, count, second_decay, ema_warmup)
        if averages > 2:
            place += size
            _average(ema, place, mask, weight, count, third_decay, ema_warmup)
        if averages > 3:
            place += size
            _average(ema, place, mask, weight, count, fourth_decay, ema_warmup)
        if copy is not None:
            tl.store(copy + element, weight.to(copy.dtype.element_ty), mask=mask)


def _launches(call: Call) -> list[Launch]:
    """Count two kernels: the clip factor needs all gradients, so they are read a second time."""
    return [Launch(OPTIMIZER, bytes_of(call["grads"])), Launch(OPTIMIZER, call.moved())]


register(
    Op(
        name="adamw",
        stage=Stage.OPTIMIZER,
        op=adamw_op,
        kernels=(sum_of_squares_kernel, adamw_kernel),
        kind=OPTIMIZER,
        rule=_launches,
    )
)
