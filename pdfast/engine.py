"""The optimizer loop that `train` and `distill` share; only the objective differs."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast import signals
from pdfast.config import LoopConfig
from pdfast.data import Dataset, to_float
from pdfast.draws import Draws, Stream, index_below
from pdfast.errors import PdfastError
from pdfast.method import loss_and_grad
from pdfast.model import Model
from pdfast.progress import Task
from pdfast.run import Run

PENDING = "pending.safetensors"  # in a saved state: losses not yet logged


class Batch(NamedTuple):
    """One batch of draws."""

    x: Tensor
    """Images, float (B, C, H, W) in [-1, 1]."""
    label: Tensor | None
    """Classes, int64 (B,), of a class-conditional model."""
    eps: Tensor
    """Standard normal, like x."""
    time: Tensor
    """Two random 32-bit words per image, int64 (B, 2), from which the objective draws its time."""


class Problem(NamedTuple):
    """What an objective asks of one batch: `out` should predict `y_target`."""

    out: Tensor
    """Raw output of the model in training, with its graph."""
    y_target: Tensor
    """In the space of the head; see method.py."""
    phi: Tensor
    """Angles, float64 (B,)."""


Objective = Callable[[Model, Batch], Problem]


def draw_batch(
    data: Dataset,
    size: int,
    update: int,
    seed: int,
    round_: int,
    flip: bool,
    dtype: torch.dtype = torch.float32,
    held: bool = False,
) -> Batch:
    """The batch of one update, a function of its arguments alone; `held`: of another stream."""
    device = data.images.device
    streams = (Stream.HELD, Stream.HELD_NOISE) if held else (Stream.BATCH, Stream.NOISE)
    words = Draws(seed, streams[0], round_, device).words(update, 0, size)
    index = index_below(words[:, 0], len(data))
    x = to_float(data.images[index]).to(dtype)
    if flip:
        mirrored = (words[:, 1] & 1).bool()[:, None, None, None]
        x = torch.where(mirrored, x.flip(3), x)
    noise = Draws(seed, streams[1], round_, device)
    eps = noise.normal(update, 0, size, (x.shape[1], x.shape[2], x.shape[3])).to(dtype)
    label = None if data.labels is None else data.labels[index]
    return Batch(x, label, eps, words[:, 2:4])


class Optimizer:
    """AdamW with gradient clipping, the learning-rate schedule, and averaged weights."""

    def __init__(self, model: Model, cfg: LoopConfig) -> None:
        self.cfg = cfg
        self.names = [name for name, _ in model.net.named_parameters()]
        self.params: list[Tensor] = list(model.net.parameters())
        self.adamw = torch.optim.AdamW(
            self.params, lr=cfg.lr, betas=(0.9, 0.999), weight_decay=cfg.weight_decay, fused=True
        )
        self.ema = [p.detach().clone() for p in self.params] if cfg.ema_decay else []

    def lr(self, update: int) -> float:
        """Learning rate of update 0, 1, ..."""
        rise = min(1.0, (update + 1) / self.cfg.warmup) if self.cfg.warmup else 1.0
        fall = 1.0 - update / self.cfg.updates if self.cfg.anneal == "linear" else 1.0
        return self.cfg.lr * rise * fall

    def step(self, update: int) -> Tensor:
        """Apply the gradients; returns their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.params, self.cfg.grad_clip or float("inf"), foreach=True
        )
        self.adamw.param_groups[0]["lr"] = self.lr(update)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.ema:
            decay = self.cfg.ema_decay if update else 0.0  # the first average is the weights
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, self.params, 1.0 - decay)
        return norm

    def use_average(self) -> None:
        """Replace the weights by their average, where one is kept."""
        with torch.no_grad():
            for p, average in zip(self.params, self.ema, strict=bool(self.ema)):
                p.copy_(average)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the optimizer and of the weights, by file."""
        moments = {}
        for name, p in zip(self.names, self.params, strict=True):
            for key, value in self.adamw.state[p].items():
                moments[f"{key}.{name}"] = value
        files = {
            "weights.safetensors": dict(zip(self.names, self.params, strict=True)),
            "moments.safetensors": moments,
        }
        if self.ema:
            files["ema.safetensors"] = dict(zip(self.names, self.ema, strict=True))
        return files

    def load(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `state` gave."""
        with torch.no_grad():
            for name, p in zip(self.names, self.params, strict=True):
                p.copy_(files["weights.safetensors"][name])
                moments = files["moments.safetensors"]
                # The fused kernel walks memory, so the moments must be laid out as the weights.
                self.adamw.state[p] = {
                    "step": moments[f"step.{name}"].to(p.device),
                    "exp_avg": torch.empty_like(p).copy_(moments[f"exp_avg.{name}"]),
                    "exp_avg_sq": torch.empty_like(p).copy_(moments[f"exp_avg_sq.{name}"]),
                }
            for name, average in zip(self.names, self.ema, strict=bool(self.ema)):
                average.copy_(files["ema.safetensors"][name])


def update(
    model: Model, objective: Objective, optimizer: Optimizer, batch: Batch, k: int
) -> tuple[Tensor, Tensor]:
    """One whole update, number k: (mean loss, gradient norm), both scalars on the device."""
    out, y_target, phi = objective(model, batch)
    loss = loss_and_grad(out.detach(), y_target, phi, model.head, optimizer.cfg.loss_weight)
    out.backward(loss.grad_out)  # type: ignore[no-untyped-call]
    return loss.per_image.mean(), optimizer.step(k)


@torch.no_grad()
def held_loss(model: Model, objective: Objective, cfg: LoopConfig, batch: Batch) -> float:
    """Mean loss of the model as it samples (no dropout) on one batch."""
    problem = objective(model.eval(), batch)
    return float(loss_and_grad(*problem, model.head, cfg.loss_weight).per_image.mean())


@dataclass(frozen=True)
class FitResult:
    """What a phase did."""

    loss_start: float
    """Loss on the held batch before the first update."""
    loss_end: float
    """The same after the last, with the averaged weights where there are any."""
    seconds: float
    """Time that the updates took, over all resumptions."""

    def as_metrics(self) -> dict[str, float]:
        """The line of metrics that ends a phase."""
        return {
            "held_loss_start": self.loss_start,
            "held_loss_end": self.loss_end,
            "seconds": round(self.seconds, 1),
        }


class PhaseLog:
    """Losses of a phase on their way to metrics.jsonl and to the screen."""

    def __init__(self, run: Run, round_: int, title: str, cfg: LoopConfig, task: Task) -> None:
        self.run, self.round, self.title, self.cfg, self.task = run, round_, title, cfg, task
        self.pending: list[Tensor] = []  # losses since the last line, scalars on the device
        self._since = time.perf_counter()

    def write(self, done: int, norm: Tensor, lr: float, device: torch.device) -> None:
        """One line after `done` updates; the loss is the mean since the last line."""
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        loss, grad_norm = float(torch.stack(self.pending).mean()), float(norm)
        images_per_s = len(self.pending) * self.cfg.batch / seconds
        self.pending, memory = [], round(memory_mb(device))
        self.run.log(
            round=self.round,
            update=done,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            images_per_s=round(images_per_s, 1),
            memory_mb=memory,
        )
        rate = self.task.rate()
        self.task.note(f"loss {loss:.4g}  {rate:.3g} updates/s")
        if self.run.screen.plain:
            self.run.screen.say(
                f"{self.title}: update {done}/{self.cfg.updates}  loss {loss:.4g}  "
                f"grad norm {grad_norm:.3g}  lr {lr:.2e}  {images_per_s:.0f} images/s  "
                f"{memory} MB  ETA {(self.cfg.updates - done) / rate:.0f} s"
            )


def fit(
    model: Model,
    objective: Objective,
    cfg: LoopConfig,
    data: Dataset,
    run: Run,
    round_: int,
    title: str,
) -> FitResult:
    """Train `model` in place for `cfg.updates` updates, resuming from the run's saved state.

    Raises Stopped, with the state saved, when a signal came; PdfastError when the loss is no
    longer finite.
    """
    config, flip = run.config, run.config.data.horizontal_flip
    held = draw_batch(data, cfg.batch, 0, config.seed, round_, flip, model.dtype, held=True)
    dropout = Draws(config.seed, Stream.DROPOUT, round_)
    optimizer = Optimizer(model, cfg)
    loss_start = held_loss(model, objective, cfg, held)
    start, first, resumed = time.perf_counter(), 0, run.load_state(round_)
    if resumed is None:
        run.rewind_metrics(round_, -1)
        run.log(round=round_, update=0, held_loss=loss_start)
    else:
        first, start = int(resumed[0]["update"]), start - float(resumed[0]["seconds"])
        run.rewind_metrics(round_, first)
        run.screen.say(f"{title}: going on from update {first}")

    gpus = [model.device] if model.device.type == "cuda" else []
    with (
        run.screen.task(title, cfg.updates, first) as task,
        torch.random.fork_rng(devices=gpus, enabled=model.cfg.dropout > 0),
    ):
        log = PhaseLog(run, round_, title, cfg, task)
        if resumed is not None:
            optimizer.load(resumed[1])
            log.pending = list(resumed[1][PENDING]["losses"].to(model.device))
        model.train()
        for k in range(first, cfg.updates):
            if model.cfg.dropout:
                torch.manual_seed(dropout.torch_seed(k))
            batch = draw_batch(data, cfg.batch, k, config.seed, round_, flip, model.dtype)
            loss, norm = update(model, objective, optimizer, batch, k)
            log.pending.append(loss)
            task.advance()
            done, stopping = k + 1, signals.requested()
            logging = done % config.log_every == 0 or done == cfg.updates
            saving = stopping or (done % config.save_every == 0 and done < cfg.updates)
            if (logging or saving) and not (math.isfinite(loss) and math.isfinite(norm)):
                raise not_finite(title, done)
            if logging:
                log.write(done, norm, optimizer.lr(k), model.device)
            if saving:
                pending = {"losses": torch.stack(log.pending) if log.pending else torch.empty(0)}
                seconds = time.perf_counter() - start
                run.save_state(round_, done, seconds, {**optimizer.state(), PENDING: pending})
            if stopping:
                raise signals.stop(f"{title} is saved at update {done}; run it again to go on")
    seconds = time.perf_counter() - start
    optimizer.use_average()
    loss_end = held_loss(model, objective, cfg, held)
    if not math.isfinite(loss_end):
        raise not_finite(title, cfg.updates)
    return FitResult(loss_start, loss_end, seconds)


def not_finite(title: str, done: int) -> PdfastError:
    """The error that ends a phase which has diverged."""
    return PdfastError(
        f"{title}: the loss is no longer finite at update {done}; start again with a lower "
        "learning rate and another --out (finished models are whole)"
    )


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
