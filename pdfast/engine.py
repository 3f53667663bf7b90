"""The optimizer loop that `train` and `distill` share; only the objective differs."""

import dataclasses
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
from pdfast.config import Head, LoopConfig
from pdfast.data import Dataset
from pdfast.draws import Draws, Stream
from pdfast.errors import PdfastError
from pdfast.method import Loss, Noised, adamw, add_noise
from pdfast.model import Model
from pdfast.peers import apex_adamw
from pdfast.progress import Task
from pdfast.run import Run
from pdfast.schedule import CosineSchedule

PENDING = "pending.safetensors"  # in a saved state: losses not yet logged


@dataclass(frozen=True)
class Batch:
    """Which batch of images and draws; an objective makes it with `noised`."""

    data: Dataset
    size: int
    seed: int
    round_: int
    flip: bool
    dtype: torch.dtype
    """The networks'."""
    update: int = 0
    held: bool = False
    """Of the streams of the held batch."""

    def noised(
        self, schedule: CosineSchedule, num_steps: int, head: Head | None = None
    ) -> tuple[Noised, Tensor | None]:
        """The batch at N times (0: continuous), and its labels; `head`: with the data's target."""
        noised = add_noise(
            self.data.images.permute(0, 3, 1, 2),
            (schedule.a, schedule.b),
            num_steps,
            seed=self.seed,
            round_=self.round_,
            update=self.update,
            num=self.size,
            flip=self.flip,
            head=head,
            net_dtype=self.dtype,
            held=self.held,
        )
        return noised, None if self.data.labels is None else self.data.labels[noised.chosen]


class Problem(NamedTuple):
    """What an objective makes of one batch."""

    out: Tensor
    """Raw output of the model in training, with its graph."""
    loss: Loss
    """Its loss, and the gradient to start from."""


Objective = Callable[[Model, Batch], Problem]


class Optimizer:
    """AdamW with gradient clipping, the learning-rate schedule, and averaged weights.

    Weights, gradients, moments and averages are one buffer each; the model's parameters and their
    gradients become views of theirs.
    """

    ALIGN = 16  # numbers that a parameter's place is a multiple of, for wide loads and stores

    def __init__(self, model: Model, cfg: LoopConfig, implementation: str = "pdfast") -> None:
        """`implementation`: as PeersConfig.optimizer."""
        self.cfg = cfg
        self._adamw = apex_adamw if implementation == "apex" else adamw
        self._params = dict(model.net.named_parameters())
        self._starts, end = [], 0
        for p in self._params.values():
            self._starts.append(end)
            end += -(-p.numel() // self.ALIGN) * self.ALIGN
        zeros = torch.zeros(end, dtype=model.dtype, device=model.device)
        self.weights, self.grads = zeros, torch.zeros_like(zeros)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(zeros), torch.zeros_like(zeros)
        grads = self._views(self.grads)
        for name, view in self._views(self.weights).items():
            p = self._params[name]
            view.copy_(p.detach())
            p.data, p.grad = view, grads[name]
        self.ema = self.weights.clone() if cfg.ema_decay else None
        self.rate = torch.zeros(1, dtype=torch.float64, device=model.device)
        self.steps = torch.zeros(1, dtype=torch.int64, device=model.device)

    def _views(self, buffer: Tensor) -> dict[str, Tensor]:
        """A buffer's parts by name, each in the shape and strides of its parameter."""
        parts = zip(self._params.items(), self._starts, strict=True)
        return {name: buffer.as_strided(p.shape, p.stride(), at) for (name, p), at in parts}

    def lr(self, update: int) -> float:
        """Learning rate of update 0, 1, ..."""
        rise = min(1.0, (update + 1) / self.cfg.warmup) if self.cfg.warmup else 1.0
        fall = 1.0 - update / self.cfg.updates if self.cfg.anneal == "linear" else 1.0
        return self.cfg.lr * rise * fall

    def step(self, update: int) -> Tensor:
        """Apply the gradients; returns their norm before clipping."""
        self.rate.fill_(self.lr(update))
        self.steps.add_(1)
        norm = self._adamw(
            self.weights,
            self.grads,
            self.exp_avg,
            self.exp_avg_sq,
            self.ema,
            None,
            self.rate,
            self.steps,
            max_norm=self.cfg.grad_clip,
            weight_decay=self.cfg.weight_decay,
            ema_decay=self.cfg.ema_decay,
        )
        self.grads.zero_()
        return norm

    def finish(self) -> None:
        """Leave the model with its averaged weights, where they are kept, and no gradients."""
        if self.ema is not None:
            self.weights.copy_(self.ema)
        for p in self._params.values():
            p.grad = None

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the optimizer and of the weights, by file."""
        moments = {"step": self.steps}
        for key, buffer in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            moments |= {f"{key}.{name}": view for name, view in self._views(buffer).items()}
        files = {
            "weights.safetensors": self._views(self.weights),
            "moments.safetensors": moments,
        }
        if self.ema is not None:
            files["ema.safetensors"] = self._views(self.ema)
        return files

    def load(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `state` gave."""
        for file, tensors in self.state().items():
            for name, tensor in tensors.items():
                if name not in files.get(file, {}):
                    raise PdfastError(
                        f"the saved state has no {name} in {file}: another version of pdfast "
                        "wrote it; go on with that one, or remove the state/ folder of the run to "
                        "begin the phase again"
                    )
                tensor.copy_(files[file][name])


def update(
    model: Model, objective: Objective, optimizer: Optimizer, batch: Batch, k: int
) -> tuple[Tensor, Tensor]:
    """One whole update, number k: (mean loss, gradient norm), both scalars on the device."""
    out, loss = objective(model, batch)
    out.backward(loss.grad_out)  # type: ignore[no-untyped-call]
    return loss.per_image.mean(), optimizer.step(k)


@torch.no_grad()
def held_loss(model: Model, objective: Objective, batch: Batch) -> float:
    """Mean loss of the model as it samples (no dropout) on one batch."""
    return float(objective(model.eval(), batch).loss.per_image.mean())


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
    held = Batch(data, cfg.batch, config.seed, round_, flip, model.dtype, held=True)
    dropout = Draws(config.seed, Stream.DROPOUT, round_)
    optimizer = Optimizer(model, cfg, config.peers.optimizer)
    loss_start = held_loss(model, objective, held)
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
            batch = dataclasses.replace(held, update=k, held=False)
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
    optimizer.finish()
    loss_end = held_loss(model, objective, held)
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
