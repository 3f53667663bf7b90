"""A phase's losses for metrics.jsonl and the screen, its saved states, and its failure."""

import math
import time
from collections import deque
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from pdfast.console.progress import Task, short
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives, memory
from pdfast.errors import PdfastError
from pdfast.kernels.add_noise import NoiseOptions, draw_indices
from pdfast.runs.run import Run
from pdfast.training.batch import shuffled_by
from pdfast.training.optimizer import Optimizer

LAG = 4  # updates until a reading is waited for: more than a GPU's queue may hold


class Reading(NamedTuple):
    """The values of one log line, which the GPU may still be computing."""

    done: int
    """Updates made or skipped so far."""
    updates: int
    """Updates since the line before."""
    lr: float
    rate: float
    """Updates per second."""
    values: Tensor
    """float64 (4,), host: sum of losses, gradient norm, updates skipped, the last in a row."""
    arrived: torch.cuda.Event | None
    """Recorded when `values` are on the host; None on a CPU."""


def begin(
    run: Run, round_: int, title: str, optimizer: Optimizer, losses: dict[str, float]
) -> tuple[int, float]:
    """Resume from the run's saved state of a phase, if there is one.

    Otherwise a round that keeps moments (distill.keep_moments) begins with those of the round
    before.

    Args:
        run: The run.
        round_: Round of the distillation; 0 for the teacher's training.
        title: Name of the phase, for the screen.
        optimizer: Where the state is loaded.
        losses: The watched loss before the first update, for metrics.jsonl.

    Returns:
        Number of the first update to make, and the time at which a phase without a break would have
        begun, by time.perf_counter.
    """
    first, start, resumed = 0, time.perf_counter(), run.load_state(round_)
    if resumed is None:
        if optimizer.earlier is not None and round_ > 1:
            optimizer.load_moments(run.load_moments(round_ - 1))
        run.rewind_metrics(round_, -1)
        run.log(round=round_, update=0, **losses)
    else:
        table, tensors = resumed
        first, start = int(table["update"]), start - float(table["seconds"])
        run.rewind_metrics(round_, first)
        run.screen.say(f"{title}: resuming from update {first}")
        optimizer.load(tensors)
    collectives.broadcast(optimizer.tensors())
    return first, start


class PhaseLog:
    """Logs a line every `log_every` updates, without waiting for the device, and saves states.

    Updates whose loss or gradient is not finite are skipped on the device. They are counted here,
    and `max_skipped` in a row end the run with a PdfastError. A directory then holds the phase as
    it was before them, in the form of a state, and the images that they saw.
    """

    def __init__(
        self,
        run: Run,
        round_: int,
        title: str,
        optimizer: Optimizer,
        task: Task,
        *,
        start: float,
        num_steps: int,
        data: Dataset,
    ) -> None:
        """Begin to log.

        Args:
            run: The run.
            round_: Round of the distillation; 0 for the teacher's training.
            title: Name of the phase, for the screen.
            optimizer: The optimizer of the updates.
            task: The phase's progress on the screen.
            start: Time at which the phase began, by time.perf_counter.
            num_steps: Sampling steps of the model, for the report of a failure.
            data: The set, for the report of a failure.
        """
        self.run, self.round, self.title, self.task = run, round_, title, task
        self.optimizer, self.cfg, self.start = optimizer, optimizer.cfg, start
        self.num_steps, self.data = num_steps, data
        self._waiting: deque[Reading] = deque()
        self._first = int(optimizer.done)
        self._last, self._skipped = optimizer.logged.tolist()
        # `logged` and `loss_sum` before the last skipped updates, if their row spans lines.
        self._before: tuple[list[int], float] | None = None
        self._since = time.perf_counter()

    def take(self, done: int) -> None:
        """Begin to read the loss since the last line, and the norm, after `done` updates."""
        optimizer = self.optimizer
        numbers = optimizer.loss_sum, optimizer.norm, *optimizer.skipped.unbind()
        values = torch.stack([number.double() for number in numbers])
        optimizer.loss_sum.zero_()
        optimizer.logged[0].fill_(done)
        optimizer.logged[1].copy_(optimizer.skipped[0])
        arrived = None
        if values.is_cuda:
            host = torch.empty(4, dtype=torch.float64, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        count, here = done - self._last, done - max(self._first, self._last)
        self._last = done
        self._waiting.append(
            Reading(done, count, optimizer.lr(done - 1), here / seconds, values, arrived)
        )

    def glance(self) -> None:
        """Show the last update's loss beside a new bar, which has no line to show yet."""
        if self.task.has_bar and not self._waiting and self._last <= self._first:
            self.task.note(f"loss {float(self.optimizer.loss):.4g}")

    def write(self, done: int, wait: bool = False) -> None:
        """Log the readings taken at least LAG updates ago; with `wait`, all of them.

        What is logged depends only on `done`, not on the GPU's speed: several processes must log at
        the same point.

        Raises:
            PdfastError: Too many updates in a row were skipped.
        """
        while self._waiting:
            reading = self._waiting[0]
            if reading.arrived is not None:
                if not wait and done < reading.done + LAG:
                    return
                reading.arrived.synchronize()
            self._waiting.popleft()
            self._write(reading)

    def settled(self, done: int) -> bool:
        """Return whether the last update was made, not skipped; wait for the device.

        Raises:
            PdfastError: Too many updates in a row were skipped.
        """
        self.write(done, wait=True)
        in_a_row = int(self.optimizer.skipped[1])
        if in_a_row >= self.cfg.max_skipped:
            self._fail()
        return in_a_row == 0

    def save(self) -> int:
        """Save the phase, for resuming, and return the update. Call `settled` before.

        If updates are being skipped, it saves the phase as it was before them: they come again.
        """
        update, files = self._state()
        self.run.save_state(self.round, update, time.perf_counter() - self.start, files)
        return update

    def _state(self) -> tuple[int, dict[str, dict[str, Tensor]]]:
        """Return (update, tensors) as before the latest consecutive skipped updates."""
        optimizer = self.optimizer
        total, in_a_row = optimizer.skipped.tolist()
        update, files = int(optimizer.done) - in_a_row, optimizer.state()
        if in_a_row:
            logged, loss_sum = [self._last, self._skipped], float(optimizer.loss_sum)
            if update < self._last:
                assert self._before is not None  # no phase begins among skipped updates
                logged, loss_sum = self._before
            files["moments.safetensors"] |= {
                "step": torch.tensor([update]),
                "skipped": torch.tensor([total - in_a_row, 0]),
                "logged": torch.tensor(logged),
                "loss_sum": torch.tensor(loss_sum, dtype=torch.float64),
            }
        return update, files

    def _write(self, reading: Reading) -> None:
        done, lr = reading.done, reading.lr
        loss_sum, norm = reading.values[:2].tolist()
        total, in_a_row = map(int, reading.values[2:].tolist())
        since, skipped = done - reading.updates, total - self._skipped
        if 0 < in_a_row <= reading.updates:
            self._before = [since, self._skipped], loss_sum
        self._skipped = total
        made = reading.updates - skipped
        loss = loss_sum / made if made else None
        grad_norm = None if in_a_row else norm
        images_per_s = reading.rate * self.cfg.batch
        megabytes = round(memory_mb(self.optimizer.weights.device))
        self.run.log(
            round=self.round,
            update=done,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            **({"skipped": skipped} if skipped else {}),
            images_per_s=round(images_per_s, 1),
            memory_mb=megabytes,
        )
        rate = self.task.rate()
        shown, of_last = (
            "none" if value is None else f"{value:.{digits}g}"
            for value, digits in ((loss, 4), (grad_norm, 3))
        )
        self.task.note(f"loss {shown}  {short(rate, 3)} updates/s")
        self.run.screen.progress(
            f"{self.title}: update {done}/{self.cfg.updates}  loss {shown}  "
            f"grad norm {of_last}  lr {lr:.2e}  {images_per_s:.0f} images/s  "
            f"{megabytes} MB  ETA {(self.cfg.updates - done) / rate:.0f} s"
        )
        if skipped:
            self.run.screen.warn(
                f"{self.title}: update {done}/{self.cfg.updates}  ({skipped} "
                f"update{'s' if skipped > 1 else ''} skipped: loss or gradient not finite)"
            )
        if in_a_row >= self.cfg.max_skipped:
            self._fail()

    def _fail(self) -> NoReturn:
        """Save what repeats the failure, and end the run."""
        optimizer, seed, most = self.optimizer, self.run.config.seed, self.cfg.max_skipped
        update, files = self._state()
        numbers, rows = range(update, update + most), self.data.trained
        rows = None if rows is None else rows.cpu()
        options = NoiseOptions(
            seed=seed,
            round_=self.round,
            num=self.cfg.batch,
            population=len(self.data),
            shuffled_by=shuffled_by(self.run.config, self.cfg),
        )
        drawn = [draw_indices(options, k, rows).tolist() for k in numbers]
        last = {"loss": float(optimizer.loss), "grad_norm": float(optimizer.norm)}
        name = f"round-{self.round:02d}-update-{update:09d}"
        table = {
            "round": self.round,
            "steps": self.num_steps,
            "update": update,
            "skipped": most,
            "seed": seed,
            "batch": self.cfg.batch,
            "images": dict(zip(map(str, numbers), drawn, strict=True)),
            "lr": {str(k): optimizer.lr(k) for k in numbers},
            "last": {"update": int(optimizer.done) - 1}
            | {key: value if math.isfinite(value) else str(value) for key, value in last.items()},
            "repeat": f"copy this directory to state/{name} of the run and run the same command",
        }
        seconds = time.perf_counter() - self.start
        path = self.run.save_failure(self.round, update, seconds, files, table)
        raise PdfastError(
            f"{self.title}: after update {update} the loss or the gradient was not finite {most} "
            f"times in a row; {path} holds what repeats it; start again with a lower learning rate "
            "and another --out (finished models and saved states are whole)"
        )


def check_watched(title: str, update: int, loss: float) -> None:
    """Raise PdfastError unless the watched loss, before or after a phase, is finite."""
    if math.isfinite(loss):
        return
    if update:
        raise PdfastError(
            f"{title}: the loss is no longer finite at update {update}; start again with a lower "
            "learning rate and another --out (finished models are whole)"
        )
    raise PdfastError(
        f"{title}: the loss of the initial model is not finite; start from another model, with "
        "another --out, or pass --precision fp32 if it is not set yet"
    )


def memory_mb(device: torch.device) -> float:
    """Return the memory in MB: the GPU's peak allocation, or this process's own memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return memory.own() / 1e6
