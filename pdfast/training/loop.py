"""The loop that `train` and `distill` share; only the objective differs.

Its update is called on a CPU; on a GPU it is captured once per phase as a CUDA graph and replayed,
with the learning rate as its only input.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pdfast.config.schema import Config, LoopConfig
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives, signals
from pdfast.errors import UsageError
from pdfast.models.model import Model
from pdfast.runs.run import Run
from pdfast.runs.watched_loss import WORDS, Watched, watched
from pdfast.training import averages, compilation, precision
from pdfast.training.batch import Batch, held_out_batches, open_batch
from pdfast.training.cuda_graph import Replay
from pdfast.training.optimizer import Optimizer
from pdfast.training.phase_log import PhaseLog, begin, check_watched
from pdfast.training.update import Objective, update


@torch.no_grad()
def fixed_batch_loss(model: Model, objective: Objective, batch: Batch, parts: int) -> float:
    """Mean loss of the model as it samples (no dropout) on one batch."""
    model.eval()
    losses = [objective(model, batch.part(n, parts)).loss.per_image.mean() for n in range(parts)]
    mean = torch.stack(losses).mean() / collectives.size()
    collectives.all_reduce(mean)
    return float(mean)


@torch.no_grad()
def held_out_loss(model: Model, objective: Objective, batches: Iterable[Batch]) -> float:
    """The same on all images of batches that each process has some of."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)  # of losses, of images
    for batch in batches:
        losses = objective(model, batch).loss.per_image.double()
        sums += torch.stack([losses.sum(), torch.ones_like(losses).sum()])
    collectives.all_reduce(sums)
    return float(sums[0] / sums[1])


@dataclass(frozen=True)
class FitResult:
    """What a phase did."""

    watched: Watched
    """Name of the loss that is watched."""
    loss_start: float
    """That loss before the first update."""
    loss_end: float
    """The same after the last, with the averaged weights where there are any."""
    seconds: float
    """Time that the updates took, over all resumptions."""

    def as_metrics(self) -> dict[str, float]:
        """The line of metrics that ends a phase."""
        return {
            f"{self.watched}_start": self.loss_start,
            f"{self.watched}_end": self.loss_end,
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """The losses in words."""
        return f"{WORDS[self.watched]} {self.loss_start:.4g} -> {self.loss_end:.4g}"


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
    dtype = precision.net_dtype(precision.precision_of(config.precision, device))
    optimizer = Optimizer(model, cfg, dtype, config.backends.optimizer)
    model.set_checkpoint(cfg.checkpoint)
    batch, source = open_batch(config, cfg, data, model, round_, optimizer.done)
    name, loss_now = watched(config), loss_of(config, cfg, data, model, objective, round_)
    loss_start = loss_now()
    check_watched(title, 0, loss_start)
    first, start = begin(run, round_, title, optimizer, {name: loss_start})

    with contextlib.ExitStack() as stack:
        task = stack.enter_context(run.screen.task(title, cfg.updates, first))
        stack.enter_context(contextlib.closing(source))
        model.train()
        source.load(first)
        objective.begin(batch)
        work = functools.partial(update, model, objective, optimizer, batch)
        state = [*optimizer.tensors(), *objective.carried]
        nets = [m.net for m in (model, objective.teacher) if m is not None]
        if compilation.chosen(config, nets, device, cfg.updates, work, state, run.screen.say):
            stack.enter_context(compilation.compiled(nets))
        repeat = stack.enter_context(
            contextlib.closing(Replay(work, state, device, config.engine.graph))
        )
        log = PhaseLog(
            run, round_, title, optimizer, task, start=start, num_steps=model.steps, data=data
        )
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
    if note := averages.share_note(cfg, cfg.updates - int(optimizer.skipped[0])):
        run.screen.warn(f"{title}: {note}")
    loss_end = loss_now()
    optimizer.release()
    check_watched(title, cfg.updates, loss_end)
    return FitResult(name, loss_start, loss_end, seconds)


def loss_of(
    config: Config, cfg: LoopConfig, data: Dataset, model: Model, objective: Objective, round_: int
) -> Callable[[], float]:
    """What gives the model's loss on the images held out, or on a fixed batch where none are."""
    if data.held_out is not None:
        return lambda: held_out_loss(
            model, objective, held_out_batches(config, data, model, round_)
        )
    batch, source = open_batch(config, cfg, data, model, round_, fixed=True)
    with contextlib.closing(source):
        source.load(0)
    return lambda: fixed_batch_loss(model, objective, batch, cfg.accumulate)
