"""adamw: gradient norm, clipping, AdamW, averaged weights and their rounding, on flat buffers.

Fused into two launches: `sum_of_squares_kernel` leaves ordered partial sums, and every program of
`adamw_kernel` adds these up again, in the same order, before its share of the update; so the clip
factor needs no host and no third launch. Bytes per parameter: 4 (gradient) in the first; in the
second 16 read (weight, gradient, two moments) and 12 written, 8 more for each average, 2 for a copy
in half precision: 32, 42 with one average and a copy, 66 with four. PyTorch (fused AdamW,
clip_grad_norm_, foreach EMA, cast): 40, 58 and 94.
Bound: memory. Loses: below about 10^5 parameters, to launch overhead, as everything does.

An update whose loss or gradient is not finite is left out: the second launch then reads the partial
sums, the loss and the counters, writes the norm and the counters, and no host has to look.

Every float stream goes in 16-byte accesses when the length divides by 16 (pad the buffers; zeros
stay zeros); sums of squares are float64 lanes. Elements beyond 2^31 are reached.
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
PROGRAMS = 1024  # at most, of each launch; so many partial sums
COPIES = (torch.bfloat16, torch.float16)
MAX_AVERAGES = 4
ASKED = ("cpu",)  # devices that the reference may ask for a number without waiting


@dataclass(frozen=True, kw_only=True)
class AdamWHyperparameters:
    """The numbers of `adamw` that no update changes.

    Raises ValueError for one out of its range.
    """

    max_norm: float
    """Norm to clip the gradient to, as torch.nn.utils.clip_grad_norm_ does; 0: not clipped."""
    beta1: float = 0.9
    """Decay of the first moment, between 0 and 1."""
    beta2: float = 0.999
    """Decay of the second moment, between 0 and 1."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.0
    """Decoupled: times the learning rate, it is the share of a weight that goes."""
    ema_decays: tuple[float, ...] = ()
    """Decays of the averaged weights, one for each average that is kept; at most 4."""
    max_skipped: int
    """Updates that may be skipped in a row, at least 1; after these all are."""
    ema_warmup: bool = False
    """After k earlier updates the averages decay by at most (1 + k) / (10 + k)."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        for name in ("max_norm", "eps", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{name} must be finite and at least 0, not {value}")
        for decay in self.ema_decays:
            if not 0.0 <= decay < math.inf:
                raise ValueError(f"ema_decays must be finite and at least 0, not {decay}")
        if len(self.ema_decays) > MAX_AVERAGES:
            raise ValueError(
                f"ema_decays must be at most {MAX_AVERAGES}, not {len(self.ema_decays)}"
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
    """One update in place; returns the gradient's norm before clipping, of the params' dtype, 0-d.

    params, grads and the moments are contiguous float32 (or float64), (P,); `ema`, the averaged
    weights of K `ema_decays`, is the same of shape (K, P), or None; `copy` takes the new weights in
    bfloat16 or float16, or is None. lr and loss, floating, and step, int64, counting from 1, have
    one element; loss may be 0-d. The gradient is clipped as by torch.nn.utils.clip_grad_norm_, and
    the rest is as torch.optim.AdamW (Loshchilov & Hutter 2019). An average of decay d becomes
    decay ema + (1 - decay) params, and params at first, where decay is d, or with `ema_warmup`,
    after k earlier updates, min(d, (1 + k) / (10 + k)).

    skipped, int64 (2,): how many updates were skipped, and how many of them last, in a row. One is
    skipped, and changes nothing but these two, if its loss or its norm is not finite, or if
    `max_skipped` before it were: where it ends does not depend on when a host looks.
    A skipped update is no step of AdamW, whose bias correction counts step - skipped[0] + earlier:
    `earlier`, int64, one element (None: 0), are the updates that the moments had before step 1; the
    averages do not count them. All tensors lie on one device. Raises ValueError or TypeError for
    other shapes, dtypes or devices.
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
            raise ValueError(f"{name} must be contiguous")
    runtime.check_tensor("lr", lr, runtime.STATES, (1,), params)
    runtime.check_tensor("step", step, (torch.int64,), (1,), params)
    one = () if isinstance(loss, Tensor) and loss.ndim == 0 else (1,)
    runtime.check_tensor("loss", loss, runtime.STATES, one, params)
    runtime.check_tensor("skipped", skipped, (torch.int64,), (2,), params)
    if not skipped.is_contiguous():
        raise ValueError("skipped must be contiguous")
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
    """`adamw` in plain PyTorch: a few operations on whole buffers, in place.

    On a CPU it returns before them where it skips; elsewhere, where asking would wait for the
    device and end a capture, it does them on what it then puts back from copies.
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
    steps = count if earlier is None else count + earlier.reshape(())  # that the moments have had
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
    """The share of the newest weights in an average after `count` updates, all at first.

    `count` is floating; the share has its dtype and shape.
    """
    share = torch.full_like(count, 1.0 - decay)
    if warmup:  # 1 - (1 + k) / (10 + k), where k = count - 1
        share = torch.maximum(share, torch.full_like(count, 9.0) / (count + 9.0))
    return torch.where(count == 1, torch.ones_like(count), share)


def count_skipped(norm: Tensor, loss: Tensor, skipped: Tensor, max_skipped: int) -> Tensor:
    """Whether an update is made, bool and 0-d; if not, counted in `skipped`, as `adamw` does."""
    finite = norm - norm == (loss - loss).reshape(())  # 0 if so, NaN if not, which equals nothing
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
    """`adamw` of arguments known to be right."""
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
    # Known when compiled: a count known at run time stops Triton 3.6's interpreter.
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
    grads, partials, size, turns: tl.constexpr, programs: tl.constexpr, block: tl.constexpr
):
    """Program p adds up the squares of blocks p, p + programs, ... and writes partial p."""
    total = tl.zeros([block], tl.float64)
    program = tl.program_id(0).to(tl.int64)
    for turn in range(turns):
        element = (turn * programs + program) * block + tl.arange(0, block)
        grad = tl.load(grads + element, mask=element < size, other=0.0).to(tl.float64)
        total += grad * grad
    tl.store(partials + tl.program_id(0), tl.sum(total))


@triton.jit
def _average(ema, place, mask, weight, count, ema_decay: tl.constexpr, ema_warmup: tl.constexpr):
    """Take new weights into one of the averages, at its place among them."""
    decay, newest = ema_decay, 1.0 - ema_decay
    if ema_warmup:  # its decay after k = count - 1 updates is (1 + k) / (10 + k)
        decay = tl.minimum(count / (count + 9.0), ema_decay).to(tl.float32)
        newest = tl.maximum(9.0 / (count + 9.0), 1.0 - ema_decay).to(tl.float32)
    average = tl.load(ema + place, mask=mask, other=0.0)
    if ema_decay < 0.5:  # exactly the weights at 0
        average = weight - (weight - average) * decay
    else:
        average = average + (weight - average) * newest
    average = tl.where(count == 1.0, weight, average)  # the first is the weights
    tl.store(ema + place, average, mask=mask)


@triton.jit
def adamw_kernel(
    weights,
    grads,
    exp_avg,
    exp_avg_sq,
    ema,
    copy,
    lr,
    step,
    loss,
    skipped,
    earlier,
    partials,
    norm,
    size,
    max_norm: tl.constexpr,
    max_skipped: tl.constexpr,
    beta1: tl.constexpr,
    beta2: tl.constexpr,
    log_beta1: tl.constexpr,
    log_beta2: tl.constexpr,
    eps: tl.constexpr,
    weight_decay: tl.constexpr,
    averages: tl.constexpr,
    first_decay: tl.constexpr,
    second_decay: tl.constexpr,
    third_decay: tl.constexpr,
    fourth_decay: tl.constexpr,
    ema_warmup: tl.constexpr,
    turns: tl.constexpr,
    programs: tl.constexpr,
    most: tl.constexpr,
    block: tl.constexpr,
):
    """Program p updates blocks p, p + programs, ...; per launch each finds the same clip factor."""
    p = tl.arange(0, most)
    squares = tl.load(partials + p, mask=p < programs, other=0.0)
    length = tl.sqrt(tl.sum(squares)).to(tl.float32)
    # The counters are read by every program while the first one writes them. Each finds the same
    # whether it reads before or after: an update that is made sets the second to 0, which is below
    # `max_skipped` as what was there, and leaves the first; one that is skipped for what is not
    # finite needs neither; one that comes too late raises the second, which was at the limit.
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
    steps = count  # that the moments have had
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
        place = element  # 64 bits wide, as four times the size may need
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
    """The clip factor is known when all gradients have been read, which are then read again."""
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
