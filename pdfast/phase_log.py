"""Losses of a phase on their way to metrics.jsonl and to the screen."""

import math
import resource
import sys
import time
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.optimizer import Optimizer
from pdfast.progress import Task
from pdfast.run import Run

LAG = 4  # updates after which a reading is waited for: more than may wait in a GPU's queue


class Reading(NamedTuple):
    """Numbers on their way from the device."""

    done: int
    updates: int
    """That the loss is the sum of."""
    lr: float
    rate: float
    """Updates per second."""
    values: Tensor
    """float64 (2,), host: sum of losses, gradient norm."""
    arrived: torch.cuda.Event | None


class PhaseLog:
    """A line every `log_every` updates; the device is never waited for."""

    def __init__(
        self, run: Run, round_: int, title: str, optimizer: Optimizer, first: int, task: Task
    ) -> None:
        """`first`: the update that this process begins with."""
        self.run, self.round, self.title, self.task = run, round_, title, task
        self.optimizer, self.cfg = optimizer, optimizer.cfg
        self._waiting: deque[Reading] = deque()
        self._first, self._last = first, int(optimizer.logged)
        self._since = time.perf_counter()

    def take(self, done: int) -> None:
        """Begin to read the loss since the last line, and the norm, after `done` updates."""
        optimizer = self.optimizer
        values = torch.stack([optimizer.loss_sum, optimizer.norm.double()])
        optimizer.loss_sum.zero_()
        optimizer.logged.fill_(done)
        arrived = None
        if values.is_cuda:
            host = torch.empty(2, dtype=torch.float64, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        count, here = done - self._last, done - max(self._first, self._last)
        self._last = done
        self._waiting.append(
            Reading(done, count, optimizer.lr(done - 1), here / seconds, values, arrived)
        )

    def write(self, done: int, wait: bool = False) -> None:
        """Log what was taken some updates ago, and has arrived; with `wait`, all.

        What is logged depends on `done` alone, not on the GPU's speed: several processes must log
        at the same point. Raises PdfastError for a loss that is no longer finite.
        """
        while self._waiting:
            reading = self._waiting[0]
            if reading.arrived is not None:
                if not wait and done < reading.done + LAG:
                    return
                reading.arrived.synchronize()
            self._waiting.popleft()
            self._write(reading)

    def check(self, done: int) -> None:
        """Raise PdfastError if the loss is no longer finite; waits for the device."""
        self.write(done, wait=True)
        if not (math.isfinite(self.optimizer.loss_sum) and math.isfinite(self.optimizer.norm)):
            raise not_finite(self.title, done)

    def _write(self, reading: Reading) -> None:
        done, lr = reading.done, reading.lr
        loss, grad_norm = reading.values[0].item() / reading.updates, reading.values[1].item()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise not_finite(self.title, done)
        images_per_s = reading.rate * self.cfg.batch
        memory = round(memory_mb(self.optimizer.weights.device))
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
