"""The phases of a run, with their numbers of updates, network calls for samples and distances.

The numbers follow from the config alone. `timing.py` measures the cost of each on this device, and
`forecast.py` adds them up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pdfast.config.schema import Config, LoopConfig, NetConfig
from pdfast.distillation import rounds
from pdfast.distillation.choice import IMAGES, steps_compared, teachers_steps
from pdfast.distillation.objectives import MOST_TABULATED
from pdfast.distillation.rounds import MONITOR_STEPS
from pdfast.evaluation.reference_set import CLASS_RESAMPLES, NUM_RESAMPLES
from pdfast.evaluation.report.write import sampled_at
from pdfast.models.model import SAMPLE_BATCH

Update = Literal["train", "fit", "distill", "tabulated"]
"""Kind of an update: of a teacher, of the first fit, of a round, or of a round whose teacher's FiLM
parameters are tabulated."""
Net = Literal["teacher", "student"]


@dataclass(frozen=True)
class Stage:
    """A phase of a run."""

    name: str
    calls: Mapping[Net, int] = field(default_factory=dict)
    """Network calls of SAMPLE_BATCH samples, for sample rows, quick distances and the report."""
    distances: int = 0
    """Number of Frechet distances."""
    judged: int = 0
    """Number of images whose features these distances take."""
    loop: LoopConfig | None = None
    """Config of its updates; None for a phase without updates."""
    update: Update = "train"
    """Kind of its updates, if it has a loop."""
    steps: int = 0
    """Sampling steps of the student that it makes; 0 if it makes none."""

    @property
    def updates(self) -> int:
        """Number of updates."""
        return self.loop.updates if self.loop is not None else 0


def stages(
    config: Config, images: int, *, distill: bool, teacher: NetConfig | None = None
) -> list[Stage]:
    """Return all phases of `train` or `distill`.

    Args:
        config: The run's config.
        images: Number of images of the data set.
        distill: Whether the run distils, or trains a teacher only.
        teacher: Network of a teacher that the run is given, and so does not train.
    """
    loop = None if teacher is not None else config.train
    if not distill:
        return [Stage("teacher", loop=loop), _report(config, images, [])]
    cfg = config.distill
    first = _quick(config, images, "teacher", cfg.start_steps, config.eval.baseline_steps)
    if (
        teacher is None and not config.eval.guidance
    ):  # its own teacher is also compared with a resample of the data
        first = (first[0], first[1] + 1, 2 * first[2])
    found, made = [Stage("teacher", *first, loop=loop)], []
    for round_ in range(1, cfg.num_rounds + 1):
        steps = cfg.steps_after(round_)
        quick = _quick(config, images, "student", steps, min(steps, MONITOR_STEPS))
        kind: Update = "distill"
        if steps == cfg.start_steps:
            kind = "fit"
        elif _is_tabulated(config, steps):
            kind = "tabulated"
        made.append(steps)
        name, own = f"round {round_}", cfg.loop_of(steps)
        calls, distances, judged = quick
        more = _choice(config, steps)
        calls = {net: calls.get(net, 0) + more.get(net, 0) for net in (*calls, *more)}
        found.append(Stage(name, calls, distances, judged, own, kind, steps))
    return [*found, _report(config, images, made)]


def _is_tabulated(config: Config, steps: int) -> bool:
    """Whether the round to `steps` tabulates FiLM parameters, decided as in `rollout`."""
    distill = config.distill
    small = distill.merged(steps) * steps <= MOST_TABULATED and not config.model.num_classes
    return config.engine.tabulate_film and small and "teacher" in (distill.first, distill.second)


def _choice(config: Config, steps: int) -> Mapping[Net, int]:
    """Return the network calls of the choice among EMA weights after the round to `steps`."""
    distill = config.distill
    if not distill.ema_decays:
        return {}
    merged = 1 if steps == distill.start_steps else distill.merged(steps)
    compared, parts = steps_compared(steps), _batches(IMAGES)
    return {
        "teacher": parts * compared * teachers_steps(compared, merged),
        "student": parts * compared * (1 + len(distill.ema_decays)),
    }


def _quick(
    config: Config, images: int, net: Net, steps: int, drawn: int
) -> tuple[Mapping[Net, int], int, int]:
    """Return the cost of a sample row and a quick distance after a round.

    Args:
        config: The run's config.
        images: Number of images of the data set.
        net: The sampled network.
        steps: Sampling steps of the distance, at most MONITOR_STEPS.
        drawn: Sampling steps of the row.

    Returns:
        The network calls, the number of distances, and the number of images they take.
    """
    num = min(rounds.MONITOR_IMAGES, images)
    calls = min(steps, MONITOR_STEPS) * _batches(num)
    if config.model.channels in (1, 3):
        calls += drawn
    return {net: calls}, 1, num


def _report(config: Config, images: int, students: list[int]) -> Stage:
    """Return the phase of the report: its samples and, for detector "pixel", its distances."""
    asked, num = config.eval, config.eval.num or images
    wanted = sampled_at(asked.steps, asked.baseline_steps, students)
    calls: dict[Net, int] = {
        "teacher": sum(wanted.teacher) * _batches(num),
        "student": sum(wanted.student) * _batches(num),
    }
    if asked.detector != "pixel":
        return Stage("report", calls)
    sets = len(wanted.teacher) + len(wanted.student)
    classes = config.model.num_classes
    distances = sets * (1 + classes) + NUM_RESAMPLES + classes * CLASS_RESAMPLES
    return Stage("report", calls, distances, (sets + NUM_RESAMPLES) * num)


def _batches(num: int) -> int:
    return -(-num // SAMPLE_BATCH)
