"""What a run's pieces take on the device at hand: a few updates, network calls and distances.

The updates are the engine's own, of networks with their initial weights and of made-up images of
the right shape, neither of which changes how long they take. Nothing is written. A piece that would
take too long is timed on a part of the batch, and where that is too much, or the memory is not
there, it is counted: by its floating-point operations, at the rate of those that were timed.
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
from pdfast.models.guidance import guided
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.training import precision
from pdfast.training.batch import open_batch
from pdfast.training.cuda_graph import Replay
from pdfast.training.image_stream import is_streamed
from pdfast.training.optimizer import Optimizer
from pdfast.training.update import Objective, update
from pdfast.training.validation import loss_of

clock = time.perf_counter
SECONDS = 4.0  # of what is timed, about, where the pieces are short; each by its share of the run
LEAST = 0.3  # seconds of a piece
LIMIT = 30.0  # seconds of all timing, about, where they are long
ONCE = 5.0  # seconds, at most, that the first try of a piece may be expected to take
SLOWER = 8.0  # than a large product at the same FLOP/s: small networks
IMAGES = 4096  # made up, at most
LANES = 16  # batches that may be sampled beside each other, if the model does that
WIDTH = 512  # features of a distance that is timed, at most; beyond, it goes with their cube
FREE = 0.8  # of the memory that is free


@dataclass(frozen=True)
class Timed:
    """A piece of work."""

    seconds: float
    """Each."""
    num: int = 0
    """How many were timed; 0: none was, the seconds are counted."""
    part: tuple[int, int] = (1, 1)
    """Images of those that it has, that were timed."""
    begin: float = 0.0
    """Seconds that a phase of such updates takes beside them."""


@dataclass
class Costs:
    """What each piece takes."""

    updates: dict[Update, Timed] = field(default_factory=dict)
    calls: dict[Net, Timed] = field(default_factory=dict)
    distance: float = 0.0
    feature: float = 0.0
    """Of one image, in a distance."""
    rate: float = 0.0
    """FLOP/s that counted pieces were given."""
    spent: float = 0.0
    """Seconds that the timing took."""

    def of(self, stage: Stage) -> float:
        """Seconds of a phase."""
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
    """What the plan's pieces take here, in at most some LIMIT seconds.

    `counts`: of each kind of update in the plan. `rate`: FLOP/s of a large product. `teacher`: the
    network of one from elsewhere. Without `timed` all is counted.
    """
    start, costs, trained = clock(), Costs(rate=rate), teacher or config.model.unguided()
    bench = Bench(config, device, images, trained)
    kinds = {stage.update: stage for stage in plan if stage.loop is not None}
    nets = dict.fromkeys(net for stage in plan for net, num in stage.calls.items() if num)
    # What the whole run takes of each, by FLOPs.
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
    for kind in sorted(kinds, key=lambda k: -shares[k]):  # should time run out
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
    """FLOPs of the network for an image: a backward pass takes twice those of a forward pass."""
    cfg = config.train if kind == "train" else config.distill
    passes = {"train": 3, "fit": 4}.get(kind, 5) + cfg.checkpoint
    return count.total.flops / passes / cfg.batch


class Bench:
    """Does pieces of a run and times them."""

    def __init__(
        self, config: Config, device: torch.device, images: int, teacher: NetConfig
    ) -> None:
        """`teacher`: the network of the run's first teacher."""
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
        """Of work done so many times, with what it leaves a GPU to do."""
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
        """(seconds each, how many) of work, done again and again for as long as is given."""
        total, done, times = 0.0, 0, 1
        while total < given:
            total += self.seconds(work, times)
            done += times
            # As many as are left, as far as is known: a GPU is not waited for one by one.
            times = max(1, min(done, int((given - total) * done / max(total, 1e-9))))
        return total / done, done

    # -- updates ---------------------------------------------------------------------------

    def update(self, stage: Stage, count: Count, rate: float, given: float) -> Timed | None:
        """An update of a phase, on as much of its batch as can be done in the seconds given.

        `rate`: FLOP/s of a large product. None where a single image takes too long, or the memory
        is not there.
        """
        cfg = stage.loop
        assert cfg is not None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what the piece before it had is free
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
        """On `size` images of the batch's."""
        part = cfg if size == cfg.batch else replace(cfg, batch=size, accumulate=1)

        def whole(seconds: float) -> float:
            """Of the whole batch: the optimizer's step does not depend on the images."""
            if size == cfg.batch:
                return seconds
            step = min(self.seconds(phase.step), seconds / 2)
            return step + (seconds - step) * cfg.batch / size

        # Twice, for what is done for the first time in a process takes longer.
        with self._phase(stage, part) as phase:
            first = self.seconds(phase.once)
            if first > SECONDS:  # long enough to know
                return Timed(whole(first), 1, (size, cfg.batch))
        start = clock()
        with self._phase(stage, part) as phase:
            begin = clock() - start + phase.watched
            each, num = self._mean(phase.once, given)
            begin = begin if size == cfg.batch else 0.0
            return Timed(whole(each), num, (size, cfg.batch), begin)

    @contextlib.contextmanager
    def _phase(self, stage: Stage, cfg: LoopConfig) -> Iterator["Phase"]:
        """A phase as `engine.fit` begins it, up to its first update."""
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
        """What learns, and from what."""
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
        """Whether there is memory for updates of so many images of the batch."""
        share = 1.0 if size == cfg.batch else size * cfg.accumulate / cfg.batch
        memory = count.memory
        return sum(memory.state.values()) + memory.activations * share < FREE * free(self.device)

    # -- samples ---------------------------------------------------------------------------

    @torch.no_grad()
    def call(self, net: Net, expected: float, given: float) -> Timed:
        """A network call for SAMPLE_BATCH samples, which is expected to take so many seconds."""
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
        """Seconds of a distance, and of an image's features and their part in it."""
        detector = without_network(self.data)
        images = self.data.images[: min(256, detector.batch)]
        found: Any = detector.extract(images).values
        moments = Moments()
        moments.add(found)
        feature = self.seconds(lambda: moments.add(detector.extract(images).values)) / len(images)
        width = min(WIDTH, found.shape[1])
        eye = torch.eye(width, dtype=torch.float64, device=found.device)
        some = Gaussian(eye[0], eye + 1 / width)
        frechet_distance(some, some)  # the root of the first one is kept
        seconds = self.seconds(lambda: frechet_distance(some, some))
        return seconds * (found.shape[1] / width) ** 3, feature


@dataclass(frozen=True)
class Phase:
    """One that has begun."""

    once: Callable[[], None]
    """One more update."""
    step: Callable[[], None]
    """The optimizer's alone."""
    watched: float
    """Seconds of the loss that is watched, which is taken at the end too."""


def free(device: torch.device) -> float:
    """Bytes of memory that are free on the device; of a CPU where the system does not say, all."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")
