"""The loop that `train` and `distill` share; only the objective differs.

Its update is called on a CPU, and captured as a CUDA graph and replayed on a GPU. The inputs of an
update are all that changes from phase to phase: the learning rate, the round and its number of
steps, the weights of student and teacher, the images. They are in tensors that stay in place, so
that one capture serves all rounds of a distillation.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pdfast.config.schema import Config, LoopConfig
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives, signals
from pdfast.errors import AGAIN, UsageError
from pdfast.models.cuda_graph import Replay
from pdfast.models.model import Model
from pdfast.runs.run import Run
from pdfast.runs.watched_loss import WORDS, Watched, watched
from pdfast.training import averages, compilation, precision
from pdfast.training.batch import open_batch, open_images
from pdfast.training.optimizer import Optimizer
from pdfast.training.phase_log import PhaseLog, begin, check_watched
from pdfast.training.update import Objective, evaluations, update
from pdfast.training.validation import loss_of

ROSE = 1.01  # ratio of losses from which one has risen
GLANCE = 10  # updates after which a new bar shows the loss


@dataclass(frozen=True)
class FitResult:
    """Result of a phase."""

    watched: Watched
    """Name of the watched loss."""
    loss_start: float
    """Watched loss before the first update."""
    loss_end: float
    """Watched loss after the last update, of the averaged weights if any are kept."""
    seconds: float
    """Seconds that the updates took, over all resumptions."""
    evaluations: int
    """Network evaluations of the updates; see `update.evaluations`."""
    choice: object = None
    """Result of `choose`."""

    def as_metrics(self) -> dict[str, float]:
        """Return the line of metrics that ends a phase."""
        return {
            f"{self.watched}_start": self.loss_start,
            f"{self.watched}_end": self.loss_end,
            "seconds": round(self.seconds, 1),
            "evaluations": self.evaluations,
        }

    def text(self, rate: str) -> str:
        """Return the watched loss, before and after, in words; if it rose, with the fix.

        Args:
            rate: The key of the phase's learning rate.
        """
        table = rate.partition(".")[0]
        rose = f" (it rose: a smaller {rate}, or a longer {table}.warmup, keeps it lower)"
        return f"{WORDS[self.watched]} {self.loss_start:.4g} -> {self.loss_end:.4g}" + rose * (
            self.loss_end > ROSE * self.loss_start
        )


def check(config: Config, device: torch.device) -> None:
    """Raise UsageError for options of [engine] that the device does not support."""
    if config.engine.teacher_stream and device.type != "cuda":
        raise UsageError("engine.teacher_stream needs a GPU: leave it off")


class Engine:
    """Optimizer, batch and replay of a phase: everything that its updates run on.

    It can serve a later phase with the same update too: `restart` writes the new phase's numbers
    into the existing tensors.
    """

    HOST = frozenset({"updates", "lr"})  # settings of a phase that only the host reads

    def __init__(
        self,
        model: Model,
        objective: Objective,
        cfg: LoopConfig,
        data: Dataset,
        config: Config,
        round_: int,
    ) -> None:
        self.model, self.objective, self.data, self.config = model, objective, data, config
        dtype = precision.net_dtype(precision.precision_of(config.precision, model.device))
        self.optimizer = Optimizer(model, cfg, dtype, config.backends.optimizer)
        model.set_checkpoint(cfg.checkpoint)
        self._phase = torch.tensor(_phase_of(objective, round_), device=model.device)
        self.batch, self.source = open_batch(
            config, cfg, data, model, round_, self.optimizer.done, phase=self._phase
        )
        self.nets = [m.net for m in (model, objective.teacher) if m is not None]
        self._work = functools.partial(update, model, objective, self.optimizer, self.batch)
        self._replay: Replay | None = None
        self._captured: tuple[bool, list[int]] | None = None  # the state that was captured

    def serves(
        self, model: Model, objective: Objective, cfg: LoopConfig, data: Dataset, config: Config
    ) -> bool:
        """Return whether the phase's update is this one, except for what `restart` writes."""
        same = model is self.model and objective is self.objective and data is self.data
        alike = config == self.config and self._settings(cfg) == self._settings(self.optimizer.cfg)
        return same and alike and self.optimizer.released()

    def _settings(self, cfg: LoopConfig) -> tuple[type, dict[str, object]]:
        return type(cfg), {k: value for k, value in vars(cfg).items() if k not in self.HOST}

    def restart(self, cfg: LoopConfig, round_: int) -> None:
        """Continue with a phase that this engine serves, from the student's current weights."""
        self.optimizer.restart(cfg)
        self._phase.copy_(torch.tensor(_phase_of(self.objective, round_)))
        device, into = self.model.device, self.batch.images
        self.source = open_images(self.config, cfg, self.data, device, round_, into=into)

    @functools.cached_property
    def estimate(self) -> compilation.Estimate:
        """Cost and saving of compiling the networks."""
        return compilation.estimate(self._work, self._state())

    def replay(self, compiled: bool) -> Replay:
        """Return the update, captured if needed; `compiled`: whether its networks are compiled."""
        now = compiled, self._places()
        if self._replay is None or self._captured != now:
            self.close()
            device, graph = self.model.device, self.config.engine.graph
            self._replay, self._captured = Replay(self._work, self._state(), device, graph), now
        return self._replay

    def may_stay(self) -> bool:
        """Return whether other work still finds enough memory, on all processes."""
        short = self._replay is not None and not self._replay.may_stay()
        return not collectives.largest(int(short))

    def close(self) -> None:
        """Free the memory of the capture."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def _state(self) -> list[Tensor]:
        return [*self.optimizer.tensors(), *self.objective.carried]

    def _places(self) -> list[int]:
        """Return the addresses of the existing tensors that an update reads."""
        batch, weights = self.batch, [t for net in self.nets for t in net.parameters()]
        buffers = [t for net in self.nets for t in net.buffers()]
        given = [t for t in (batch.images, batch.labels, batch.rows) if t is not None]
        return [t.data_ptr() for t in (*self._state(), *weights, *buffers, *given)]


def _phase_of(objective: Objective, round_: int) -> list[int]:
    """Return the values of `Batch.phase`."""
    return [round_, objective.num_steps, objective.merged]


class Kept:
    """At most one engine, left by a phase for the next one."""

    def __init__(self) -> None:
        self.engine: Engine | None = None

    def take(
        self,
        model: Model,
        objective: Objective,
        cfg: LoopConfig,
        data: Dataset,
        config: Config,
        round_: int,
    ) -> Engine:
        """Return the engine of a phase: the kept one if it serves, else a new one."""
        engine, self.engine = self.engine, None
        if engine is not None and engine.serves(model, objective, cfg, data, config):
            engine.restart(cfg, round_)
            return engine
        if engine is not None:
            engine.close()
            engine = None  # frees its buffers before new ones are made
        return Engine(model, objective, cfg, data, config, round_)

    def drop(self, engine: Engine) -> None:
        """Close a phase's engine, unless it is kept here."""
        if engine is not self.engine:
            engine.close()

    def close(self) -> None:
        """Close the kept engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def fit(
    model: Model,
    objective: Objective,
    cfg: LoopConfig,
    data: Dataset,
    run: Run,
    round_: int,
    title: str,
    kept: Kept | None = None,
    keep: bool = False,
    choose: Callable[[Optimizer], object] = Optimizer.average,
) -> FitResult:
    """Train `model` in place for `cfg.updates` updates, resuming from the run's saved state.

    Args:
        model: The model in training.
        objective: Returns the loss and its gradient.
        cfg: The config's table of the phase.
        data: The set. Images that are not on the model's device are streamed to it.
        run: The run, for its config, states, metrics and screen.
        round_: Round of the distillation; 0 for the teacher's training.
        title: Name of the phase, for the screen.
        kept: Holder of the engine that the phase before left; None: an empty one.
        keep: Whether to leave this phase's engine in `kept`, where memory allows.
        choose: Sets the model's final weights, from the raw weights and the averages.

    Raises:
        PdfastError: The watched loss is not finite, or `cfg.max_skipped` updates in a row were
            skipped; a directory that repeats them is then left.
        Stopped: A signal, or the caller, asked to stop; the state is saved.
    """
    config, device, kept = run.config, model.device, kept or Kept()
    engine = kept.take(model, objective, cfg, data, config, round_)
    optimizer, source = engine.optimizer, engine.source
    name, loss_now = watched(config), loss_of(config, cfg, data, model, objective, round_)
    loss_start = loss_now()
    check_watched(title, 0, loss_start)
    first, start = begin(run, round_, title, optimizer, {name: loss_start})

    with contextlib.ExitStack() as stack:
        task = stack.enter_context(run.screen.task(title, cfg.updates, first))
        stack.enter_context(contextlib.closing(source))
        stack.callback(kept.drop, engine)
        model.train()
        source.load(first)
        objective.begin(engine.batch)
        compiled = compilation.chosen(
            config, engine.nets, device, cfg.updates, lambda: engine.estimate, run.screen.say
        )
        if compiled:
            stack.enter_context(compilation.compiled(engine.nets))
        repeat = engine.replay(compiled)
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
            elif done == first + GLANCE:
                log.glance()
            log.write(done, wait=done == cfg.updates)
            due = (due or done % config.save_every == 0) and done < cfg.updates
            # Save only after an update that is made: a failure needs the state before skipped ones.
            if (stopping or due) and (log.settled(done) or stopping):
                saved, due = log.save(), False
            if stopping:
                raise signals.stop(f"{title} is saved at update {saved}; {AGAIN}")
        if keep and engine.may_stay():
            kept.engine = engine
    if optimizer.earlier is not None:
        taken = time.perf_counter() - start
        run.save_moments(round_, cfg.updates, taken, optimizer.moments())
    choice = choose(optimizer)
    seconds = time.perf_counter() - start
    if note := averages.share_note(cfg, cfg.updates - int(optimizer.skipped[0])):
        run.screen.warn(f"{title}: {note}")
    loss_end = loss_now()
    optimizer.release()
    check_watched(title, cfg.updates, loss_end)
    spent = evaluations(objective, cfg, cfg.updates)
    return FitResult(name, loss_start, loss_end, seconds, spent, choice)
