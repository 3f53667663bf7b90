"""The update that `train` and `distill` share, and the loop around it; only the objective differs.

An update is one function of tensors that stay where they are. On a CPU it is called; on a GPU it
is captured once per phase as a CUDA graph and replayed, with the learning rate as its only input.
"""

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pdfast import distributed, numerics, signals
from pdfast.batch import Batch, open_batch
from pdfast.config import Config, LoopConfig
from pdfast.data import Dataset
from pdfast.device import side_stream
from pdfast.errors import PdfastError, UsageError
from pdfast.method import Loss
from pdfast.model import Model
from pdfast.optimizer import Optimizer
from pdfast.phase_log import PhaseLog, check_held
from pdfast.run import Run


class Problem(NamedTuple):
    """What an objective makes of one batch."""

    out: Tensor
    """Raw output of the model in training, with its graph."""
    loss: Loss
    """Its loss, and the gradient to start from."""


class Objective(Protocol):
    """What a phase minimises."""

    ahead: int
    """How many updates ahead it draws its batches."""

    carried: Sequence[Tensor]
    """What one call leaves for the next."""

    def begin(self, batch: Batch) -> None:
        """Before the first update of this process, whose batch is given."""

    def __call__(self, model: Model, batch: Batch, /) -> Problem:
        """The model's output and its loss."""


def update(
    model: Model, objective: Objective, optimizer: Optimizer, batch: Batch
) -> tuple[Tensor, Tensor]:
    """One whole update: (mean loss, gradient norm before clipping), both 0-d on the device."""
    parts = optimizer.cfg.accumulate
    share = 1 / (parts * distributed.size())
    for n in range(parts):
        out, loss = objective(model, batch.part(n, parts))
        grad_out = loss.grad_out if share == 1 else loss.grad_out * share
        optimizer.backward(out, grad_out, loss.per_image.mean() * share, first=n == 0)
    optimizer.step()
    return optimizer.loss, optimizer.norm


@torch.no_grad()
def held_loss(model: Model, objective: Objective, batch: Batch, parts: int) -> float:
    """Mean loss of the model as it samples (no dropout) on one batch."""
    model.eval()
    losses = [objective(model, batch.part(n, parts)).loss.per_image.mean() for n in range(parts)]
    mean = torch.stack(losses).mean() / distributed.size()
    distributed.all_reduce(mean)
    return float(mean)


class Replay:
    """Work to be done again and again: called on a CPU, a replayed CUDA graph on a GPU."""

    WARM_UPS = 3  # cuDNN chooses algorithms, Triton compiles
    AHEAD = 2  # replays that may wait in the stream, so that the host hears of a signal in time

    def __init__(
        self,
        work: Callable[[], object],
        state: Iterable[Tensor],
        device: torch.device,
        graph: bool = True,
    ) -> None:
        """`state`: the tensors that `work` changes and reads again; they are left as they were.

        Without `graph` it is called on a GPU too. Raises PdfastError if it cannot be captured.
        """
        self._work, self._graph = work, None
        if device.type != "cuda" or not graph:
            return
        saved = [(tensor, tensor.to("cpu", copy=True)) for tensor in state]
        # Of the capture too: what a stream is given once, workspaces and the nodes that autograd
        # sums gradients in, is then there, and no part of the graph's memory.
        side = side_stream(device, "update")
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UPS):
                work()
        here.wait_stream(side)
        for tensor, before in saved:
            tensor.copy_(before)
        self._graph = torch.cuda.CUDAGraph()
        # A replay allocates nothing: the peak is that of the capture.
        torch.cuda.reset_peak_memory_stats(device)
        try:
            # Other threads may use the device meanwhile: NCCL's, and the one that gathers images.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # which a capture that fails does not put back
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise PdfastError(
                f"the update cannot be captured as a CUDA graph ({str(error).splitlines()[0]}): "
                "set engine.graph to false"
            ) from error
        self._waiting: deque[torch.cuda.Event] = deque()

    def __call__(self) -> None:
        """Do it once more; on a GPU, enqueue it."""
        if self._graph is None:
            self._work()
            return
        if len(self._waiting) == self.AHEAD:
            self._waiting.popleft().synchronize()
        self._graph.replay()
        self._waiting.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        self._waiting[-1].record()

    def close(self) -> None:
        """Give the graph's memory back."""
        self._graph, self._work = None, _closed


def _closed() -> None:
    raise RuntimeError("this work is closed")


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


def check(config: Config, device: torch.device) -> None:
    """Raise UsageError for options of [engine] that the device has no use for."""
    if config.engine.teacher_stream and device.type != "cuda":
        raise UsageError("engine.teacher_stream needs a GPU: leave it off")


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

    Images that are not on the model's device are streamed to it. Raises Stopped, with the state
    saved, when a signal came; PdfastError when the loss is no longer finite, with a directory
    that repeats it where `cfg.max_skipped` updates in a row were skipped.
    """
    config, device = run.config, model.device
    dtype = numerics.net_dtype(numerics.precision_of(config.precision, device))
    optimizer = Optimizer(model, cfg, dtype, config.peers.optimizer)
    model.set_checkpoint(cfg.checkpoint)
    if config.engine.compile:
        model.net.compile(dynamic=False)
    batch, source = open_batch(config, cfg, data, model, round_, optimizer.done)
    held, held_source = open_batch(config, cfg, data, model, round_, held=True)
    with contextlib.closing(held_source):
        held_source.load(0)
    loss_start = held_loss(model, objective, held, cfg.accumulate)
    check_held(title, 0, loss_start)
    first, start = _begin(run, round_, title, optimizer, loss_start)

    with contextlib.ExitStack() as stack:
        task = stack.enter_context(run.screen.task(title, cfg.updates, first))
        stack.enter_context(contextlib.closing(source))
        model.train()
        source.load(first)
        objective.begin(batch)
        work = functools.partial(update, model, objective, optimizer, batch)
        state = [*optimizer.tensors(), *objective.carried]
        repeat = stack.enter_context(
            contextlib.closing(Replay(work, state, device, config.engine.graph))
        )
        images = {"num_steps": model.steps, "num_images": len(data)}
        log = PhaseLog(run, round_, title, optimizer, task, start=start, **images)
        due = False
        for k in range(first, cfg.updates):
            source.load(k + objective.ahead)
            optimizer.rate.fill_(optimizer.lr(k))
            repeat()
            task.advance()
            done, stopping = k + 1, signals.requested()
            if done % config.log_every == 0 or done == cfg.updates:
                log.take(done)
            log.write(done, wait=done == cfg.updates)
            due = (due or done % config.save_every == 0) and done < cfg.updates
            # A state that is due waits for an update that is made: the one before it may be needed.
            if (stopping or due) and (log.settled(done) or stopping):
                saved, due = log.save(), False
            if stopping:
                raise signals.stop(f"{title} is saved at update {saved}; run it again to go on")
    seconds = time.perf_counter() - start
    optimizer.average()
    loss_end = held_loss(model, objective, held, cfg.accumulate)
    optimizer.release()
    check_held(title, cfg.updates, loss_end)
    return FitResult(loss_start, loss_end, seconds)


def _begin(
    run: Run, round_: int, title: str, optimizer: Optimizer, loss_start: float
) -> tuple[int, float]:
    """The first update to be made, after those of a saved state, and when, by time.perf_counter,
    all would have begun without a break.
    """
    first, start, resumed = 0, time.perf_counter(), run.load_state(round_)
    if resumed is None:
        run.rewind_metrics(round_, -1)
        run.log(round=round_, update=0, held_loss=loss_start)
    else:
        table, tensors = resumed
        first, start = int(table["update"]), start - float(table["seconds"])
        run.rewind_metrics(round_, first)
        run.screen.say(f"{title}: going on from update {first}")
        optimizer.load(tensors)
    distributed.broadcast(optimizer.tensors())
    return first, start
