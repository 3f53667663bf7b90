"""Timing of a run's pieces on this device: a few updates, network calls and distances.

The updates are the engine's own, on networks with their initial weights and on random images of the
right shape, neither of which changes their speed. Nothing is written. An update that would take too
long is timed on a part of its batch. If even that takes too long, or needs more memory than is
free, its time is estimated: its counted FLOPs at the rate of the updates that were timed.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from pdfast.config.schema import Config, LoopConfig, NetConfig
from pdfast.cost.counting import Count
from pdfast.cost.plan import Net, Stage, Update
from pdfast.data.dataset import Dataset
from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.samplers import sample
from pdfast.distillation.objectives import DataObjective, Fit
from pdfast.distillation.pipelined_teacher import rollout
from pdfast.distillation.rounds import remove_dropout
from pdfast.distillation.teacher import new_model
from pdfast.evaluation.detectors.opening import without_network
from pdfast.evaluation.frechet import Gaussian, Moments, frechet_distance
from pdfast.models import backends
from pdfast.models.cuda_graph import Replay
from pdfast.models.guidance import guided
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.training import precision
from pdfast.training.batch import open_batch
from pdfast.training.image_stream import is_streamed
from pdfast.training.optimizer import Optimizer
from pdfast.training.update import Objective, update
from pdfast.training.validation import loss_of

clock = time.perf_counter
SECONDS = 4.0  # of timing, roughly, if pieces are short; divided by their shares of the run
LEAST = 0.3  # seconds of timing for each piece
LIMIT = 30.0  # seconds of all timing, roughly, if pieces are long
ONCE = 5.0  # longest expected time in seconds of a piece that is tried
SLOWER = 8.0  # times that small networks may be slower than a large product of the same FLOPs
IMAGES = 4096  # most random images
LANES = 16  # batches to sample in parallel, for models that do
WIDTH = 512  # most features of a timed distance; the time of more is scaled by their cube
FREE = 0.8  # share of the free memory that an update may take


@dataclass(frozen=True)
class Timed:
    """Time of a piece of work."""

    seconds: float
    """Seconds of one piece."""
    num: int = 0
    """Number of pieces timed; 0 if `seconds` is estimated from counted FLOPs."""
    part: tuple[int, int] = (1, 1)
    """Number of images timed, and number of images of the whole piece."""
    begin: float = 0.0
    """Seconds that a phase of such updates takes in addition to them."""


@dataclass
class Costs:
    """Times of all pieces of a run."""

    updates: dict[Update, Timed] = field(default_factory=dict)
    calls: dict[Net, Timed] = field(default_factory=dict)
    distance: float = 0.0
    """Seconds of a distance, without its images' features."""
    feature: float = 0.0
    """Seconds of one image's features in a distance."""
    rate: float = 0.0
    """FLOP/s assumed for estimated pieces."""
    spent: float = 0.0
    """Seconds that the timing took."""

    def of(self, stage: Stage) -> float:
        """Return the seconds of a phase."""
        seconds = stage.distances * self.distance + stage.judged * self.feature
        seconds += sum(num * self.calls[net].seconds for net, num in stage.calls.items() if num)
        if stage.loop is not None:
            timed = self.updates[stage.update]
            seconds += timed.begin + stage.updates * timed.seconds
        return seconds


def measure(
    config: Config,
    plan: list[Stage],
    counts: Mapping[Update, Count],
    device: torch.device,
    *,
    images: int,
    rate: float,
    teacher: NetConfig | None = None,
    timed: bool = True,
) -> Costs:
    """Time the pieces of a plan on this device, in roughly LIMIT seconds at most.

    Args:
        config: The run's config.
        plan: The phases.
        counts: Counts of each kind of update in the plan.
        device: Device of the run.
        images: Number of images of the data set.
        rate: FLOP/s of a large matrix product.
        teacher: Network of a teacher that the run is given, and so does not train.
        timed: Time the pieces; otherwise all are estimated from the counts.

    Returns:
        The times.
    """
    start, costs, trained = clock(), Costs(rate=rate), teacher or config.model.unguided()
    bench = Bench(config, device, images, trained)
    kinds = {stage.update: stage for stage in plan if stage.loop is not None}
    nets = dict.fromkeys(net for stage in plan for net, num in stage.calls.items() if num)
    # Each piece is timed for as long as its share of the run's FLOPs allows.
    of_call = SAMPLE_BATCH * max(_forward(config, kind, counts[kind]) for kind in kinds)
    shares: dict[Update | Net, float] = {
        net: of_call * sum(stage.calls.get(net, 0) for stage in plan) for net in nets
    }
    for stage in plan:
        if stage.loop is not None:
            flops = stage.updates * counts[stage.update].total.flops
            shares[stage.update] = shares.get(stage.update, 0.0) + flops
    given = {
        piece: max(LEAST, SECONDS * share / sum(shares.values())) for piece, share in shares.items()
    }
    for kind in sorted(kinds, key=lambda k: -shares[k]):  # the largest first, in case time runs out
        if timed and clock() - start < LIMIT / 2:
            found = bench.update(kinds[kind], counts[kind], rate, given[kind])
            costs.updates |= {} if found is None else {kind: found}
    if costs.updates:
        flops = sum(counts[kind].total.flops for kind in costs.updates)
        costs.rate = flops / sum(found.seconds for found in costs.updates.values())
    costs.updates |= {
        kind: Timed(counts[kind].total.flops / costs.rate) for kind in kinds.keys() - costs.updates
    }
    same = trained.without_dropout() == config.model.without_dropout() and not config.eval.guidance
    for net in nets:
        expected, found = of_call / costs.rate, None
        if same and costs.calls:
            found = next(iter(costs.calls.values()))
        elif timed and clock() - start < LIMIT and expected / SAMPLE_BATCH < ONCE:
            found = bench.call(net, expected, given[net])
        costs.calls[net] = found or Timed(expected)
    if timed and any(stage.distances for stage in plan) and clock() - start < LIMIT:
        costs.distance, costs.feature = bench.distance()
    costs.spent = clock() - start
    return costs


def _forward(config: Config, kind: Update, count: Count) -> float:
    """Return a forward pass's FLOPs per image; a backward pass counts as two forward passes."""
    cfg = config.train if kind == "train" else config.distill
    passes = {"train": 3, "fit": 4}.get(kind, 5) + cfg.checkpoint
    return count.total.flops / passes / cfg.batch


class Bench:
    """Runs pieces of a run and times them."""

    def __init__(
        self, config: Config, device: torch.device, images: int, teacher: NetConfig
    ) -> None:
        """Make random images of the data set's shape.

        Args:
            config: The run's config.
            device: Device of the run.
            images: Number of images of the data set.
            teacher: Network of the run's first teacher.
        """
        self.config, self.device, self.teacher = config, device, teacher
        self.precision = precision.precision_of(config.precision, device)
        net = config.model
        shape = (net.image_size, net.image_size, net.channels)
        size = images
        for n in shape:
            size *= n
        num = max(2, min(images, IMAGES))
        generator = torch.Generator().manual_seed(0)
        made = torch.randint(0, 256, (num, *shape), dtype=torch.uint8, generator=generator)
        labels = torch.arange(num) % net.num_classes if net.num_classes else None
        data, streamed = Dataset(made, labels), is_streamed(config.engine.data, size, device)
        self.data = data if streamed else data.to(device)

    def seconds(self, work: Callable[[], object], times: int = 1) -> float:
        """Return the seconds of doing work `times` times, including its work queued on a GPU."""
        self._wait()
        start = clock()
        for _ in range(times):
            work()
        self._wait()
        return clock() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _mean(self, work: Callable[[], object], given: float) -> tuple[float, int]:
        """Repeat work for `given` seconds; return the mean seconds and the number of repeats."""
        total, done, times = 0.0, 0, 1
        while total < given:
            total += self.seconds(work, times)
            done += times
            # The repeats that the remaining time allows, in one go, so that a GPU stays busy.
            times = max(1, min(done, int((given - total) * done / max(total, 1e-9))))
        return total / done, done

    # -- updates ---------------------------------------------------------------------------

    def update(self, stage: Stage, count: Count, rate: float, given: float) -> Timed | None:
        """Time an update of a phase, on as much of its batch as the given seconds allow.

        Args:
            stage: The phase.
            count: The counted update.
            rate: FLOP/s of a large matrix product.
            given: Seconds to spend.

        Returns:
            Seconds of an update of the whole batch; None if the smallest part takes too long or
            does not fit into memory.
        """
        cfg = stage.loop
        assert cfg is not None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # returns the last piece's memory
        expected = count.total.flops / rate
        size = cfg.batch if expected * SLOWER < SECONDS else 1
        if expected * size / cfg.batch > ONCE or not self._fits(count, cfg, size):
            return None
        found = self._update(stage, cfg, size, given)
        while size < cfg.batch:
            more = int(min(given * cfg.batch / max(found.seconds, 1e-9), cfg.batch))
            if more < 2 * size or not self._fits(count, cfg, more):
                break
            size = more
            found = self._update(stage, cfg, size, given)
        return found

    def _update(self, stage: Stage, cfg: LoopConfig, size: int, given: float) -> Timed:
        """Time an update on `size` images of the batch, and scale it to the whole batch."""
        part = cfg if size == cfg.batch else replace(cfg, batch=size, accumulate=1)

        def whole(seconds: float) -> float:
            """Scale to the whole batch all but the optimizer's step, which takes no images."""
            if size == cfg.batch:
                return seconds
            step = min(self.seconds(phase.step), seconds / 2)
            return step + (seconds - step) * cfg.batch / size

        # Timed again in a second phase, since first calls in a process are slower.
        with self._phase(stage, part) as phase:
            first = self.seconds(phase.once)
            if first > SECONDS:  # so long that a slow first call hardly matters
                return Timed(whole(first), 1, (size, cfg.batch))
        start = clock()
        with self._phase(stage, part) as phase:
            begin = clock() - start + phase.watched
            each, num = self._mean(phase.once, given)
            begin = begin if size == cfg.batch else 0.0
            return Timed(whole(each), num, (size, cfg.batch), begin)

    @contextlib.contextmanager
    def _phase(self, stage: Stage, cfg: LoopConfig) -> Iterator["Phase"]:
        """Begin a phase as `training.loop.fit` does, up to its first update."""
        config = self.config
        model, objective = self._problem(stage, cfg)
        dtype = precision.net_dtype(self.precision)
        optimizer = Optimizer(model, cfg, dtype, config.backends.optimizer)
        model.set_checkpoint(cfg.checkpoint)
        with contextlib.ExitStack() as stack:
            batch, source = open_batch(config, cfg, self.data, model, 1, optimizer.done)
            stack.enter_context(contextlib.closing(source))
            seconds = self.seconds(loss_of(config, cfg, self.data, model, objective, 1))
            model.train()
            source.load(0)
            objective.begin(batch)
            work = partial(update, model, objective, optimizer, batch)
            state = [*optimizer.tensors(), *objective.carried]
            repeat = Replay(work, state, self.device, config.engine.graph)
            stack.enter_context(contextlib.closing(repeat))
            self._wait()
            numbers = itertools.count()

            def once() -> None:
                done = next(numbers)
                source.load(done + objective.ahead)
                optimizer.rate.fill_(optimizer.lr(done % cfg.updates))
                repeat()

            yield Phase(once, optimizer.step, seconds)

    def _problem(self, stage: Stage, cfg: LoopConfig) -> tuple[Model, Objective]:
        """Return the model that learns in a phase, and its objective."""
        if stage.update == "train":
            return self._new(self.config.model.unguided()), DataObjective(cfg.loss_weight)
        student = remove_dropout(self._new(self.config.model))
        if stage.update == "fit":
            teacher = precision.cast_to_precision(self._new(self.teacher), self.precision)
            return student, Fit(
                remove_dropout(teacher),
                stage.steps,
                cfg.loss_weight,
                self.config.distill.c_of_huber,
            )
        teacher = remove_dropout(
            precision.cast_to_precision(self._new(self.config.model), self.precision)
        )
        return student, rollout(teacher, stage.steps, self.config.distill, self.config.engine)

    def _new(self, net: NetConfig) -> Model:
        model = new_model(replace(self.config, model=net), self.device)
        return backends.select(model, self.config.backends)

    def _fits(self, count: Count, cfg: LoopConfig, size: int) -> bool:
        """Whether updates of `size` images of the batch fit into the free memory."""
        share = 1.0 if size == cfg.batch else size * cfg.accumulate / cfg.batch
        memory = count.memory
        return sum(memory.state.values()) + memory.activations * share < FREE * free(self.device)

    # -- samples ---------------------------------------------------------------------------

    @torch.no_grad()
    def call(self, net: Net, expected: float, given: float) -> Timed:
        """Time a network call for SAMPLE_BATCH samples.

        Args:
            net: The network.
            expected: Seconds that the call is expected to take.
            given: Seconds to spend.
        """
        model = self._new(self.teacher if net == "teacher" else self.config.model)
        model = guided(
            precision.cast_to_precision(model, self.precision), self.config.eval.guidance
        ).eval()
        num, steps = SAMPLE_BATCH, 2
        while num > 1 and expected * steps * num / SAMPLE_BATCH > SECONDS:
            num //= 2
        z = torch.zeros(num, *model.image_shape, device=self.device, dtype=model.dtype)
        label = torch.zeros(num, dtype=torch.int64, device=self.device)
        told = Conditioning(label if model.num_classes else None)

        batch = partial(sample, model, z, steps, clip=model.clip, conditioning=told)
        with contextlib.closing(model.lanes(LANES)) as lanes:

            def work() -> None:
                lanes.together([batch] * lanes.number)

            seconds, times = self.seconds(work), 1
            if seconds < SECONDS:
                seconds, times = self._mean(work, given)
        calls = steps * lanes.number
        return Timed(seconds / calls * SAMPLE_BATCH / num, calls * times, (num, SAMPLE_BATCH))

    def distance(self) -> tuple[float, float]:
        """Return the seconds of a distance, and those of one image's features and moments."""
        detector = without_network(self.data)
        images = self.data.images[: min(256, detector.batch)]
        found: Any = detector.extract(images).values
        moments = Moments()
        moments.add(found)
        feature = self.seconds(lambda: moments.add(detector.extract(images).values)) / len(images)
        width = min(WIDTH, found.shape[1])
        eye = torch.eye(width, dtype=torch.float64, device=found.device)
        some = Gaussian(eye[0], eye + 1 / width)
        frechet_distance(some, some)  # keeps the matrix root of the first, as in an evaluation
        seconds = self.seconds(lambda: frechet_distance(some, some))
        return seconds * (found.shape[1] / width) ** 3, feature


@dataclass(frozen=True)
class Phase:
    """A phase that has begun."""

    once: Callable[[], None]
    """Make one update."""
    step: Callable[[], None]
    """Make one step of the optimizer."""
    watched: float
    """Seconds of one evaluation of the watched loss, which is also computed at the end."""


def free(device: torch.device) -> float:
    """Return the bytes of free memory of the device; infinity if a CPU's system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")
