"""`--dry-run`: a forecast of a run's time, memory and disk space.

Parameters, memory and disk space are counted. The time of each phase is the sum of its updates and
samples, which are timed on this device where possible and estimated from counted FLOPs otherwise.
Nothing is written.
"""

import math
import os
import sys
import time

import torch

from pdfast.config.model import attention_note
from pdfast.config.schema import Config, NetConfig, dump_config
from pdfast.console.progress import Screen, short
from pdfast.cost import timing
from pdfast.cost.counting import Count, count_update
from pdfast.cost.counting import Phase as CountedPhase
from pdfast.cost.plan import Stage, Update, stages
from pdfast.cost.timing import Costs, Timed
from pdfast.data import sources
from pdfast.data.prepare import cache_folder
from pdfast.errors import UsageError
from pdfast.launch import launched, speaks
from pdfast.models.model import SAMPLE_BATCH
from pdfast.training import averages, warmup
from pdfast.training.holdout import check_holdout
from pdfast.training.precision import net_dtype, set_precision

MB = 1e6
READ = 2**28  # largest file of arrays, in bytes, that is read in order to time the reading
NAMES: dict[Update, str] = {
    "train": "updates of the teacher",
    "fit": "updates of the first fit",
    "distill": "updates of rounds",
    "tabulated": "updates of rounds with tabulated FiLM parameters",
}
COUNTED: dict[Update, CountedPhase] = {
    "train": "train",
    "fit": "fit",
    "distill": "distill",
    "tabulated": "distill",
}
MEMORY = {"train": "training", "distill": "distillation", "fit": "the first fit"}


def num_images(config: Config) -> int | None:
    """Return the number of images of the config's data set; None if the set is not found."""
    return sources.count(config.data)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a matrix product on the device, the best of a few short runs."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def memory_line(phase: str, count: Count, batch: int, device: torch.device, data: bool) -> str:
    """Return a line on the peak memory of a phase's update.

    Args:
        phase: Name of the phase.
        count: The counted update.
        batch: Size of its batch.
        device: Device of the run.
        data: Whether the size of the data set is known.
    """
    sizes = _sizes(count, data)
    return (
        f"memory, {phase}: {sum(sizes.values()) / MB:,.0f} MB for batch {batch} = "
        + " + ".join(f"{size / MB:,.1f} {name}" for name, size in sizes.items() if size)
        + f", and {_on_top(device, data)}"
    )


def _sizes(count: Count, data: bool) -> dict[str, int]:
    """Return the bytes that an update needs, by use; without an unknown data set's."""
    memory = count.memory
    state = dict(memory.state) if data else {**memory.state, "data set": 0}
    return state | {"activations": memory.activations}


def _on_top(device: torch.device, data: bool) -> str:
    """Return what takes memory and is not counted, as a phrase."""
    own = "cuDNN's workspace and CUDA's context" if device.type == "cuda" else "the process itself"
    return own if data else f"the data set (unknown here), {own}"


def forecast(
    config: Config,
    device: torch.device,
    screen: Screen,
    distill: bool,
    teacher: NetConfig | None = None,
    imports: float = 0.0,
) -> None:
    """Print the resolved config, the size of everything, and each phase with its time.

    A summary and the warnings come last, where they are seen.

    Args:
        config: The run's config.
        device: Device of the run.
        screen: Where to print.
        distill: Whether the run distils, or trains a teacher only.
        teacher: Network of a teacher that the run is given, and so does not train.
        imports: Seconds that the process took to start.

    Raises:
        UsageError: `data.holdout` does not fit the number of images; or, after the forecast, the
            run itself would be refused for its data.
    """
    screen.say(dump_config(config).rstrip())
    precision = set_precision(config.precision, device)
    start = time.perf_counter()
    images = num_images(config)
    counting = time.perf_counter() - start
    if images is not None:
        check_holdout(config.data.holdout, images)
    reading, refused = (None, None) if images is None else _reading(config, images)
    plan = stages(config, images or config.eval.num, distill=distill, teacher=teacher)
    counts = _counts(config, plan, device, images, teacher)
    sizes = _say_sizes(config, plan, counts, device, images, screen)
    if images is not None and speaks():
        print(
            f"timing some updates, for up to {timing.LIMIT:.0f} s ...", file=sys.stderr, flush=True
        )
    rate = matmul_rate(device, net_dtype(precision))
    costs = timing.measure(
        config,
        plan,
        counts,
        device,
        images=images or 0,
        rate=rate,
        teacher=teacher,
        timed=images is not None,
    )
    for line in explained(plan, costs, device, images is not None):
        screen.say(line)
    screen.say(f"not included: {', '.join(_left_out(config, device, images, reading))}")
    screen.say("")
    set_up = imports + counting + (reading or 0.0)
    for line in table(plan, costs, set_up):
        screen.say(line)
    lasts = _lasts(set_up + sum(costs.of(stage) for stage in plan))
    least = "" if images is not None else "at least "
    screen.say("")
    screen.say(f"in all, on {device}: {least}{lasts}; {sizes}")
    _warn(config, plan, distill, teacher, screen)
    if refused is not None:
        raise refused
    if images is None and (why := sources.trouble(config.data)):
        if sources.exists(config.data.source):
            raise UsageError(why)
        screen.warn(f"the run itself would be refused: {why}")


def _warn(
    config: Config, plan: list[Stage], distill: bool, teacher: NetConfig | None, screen: Screen
) -> None:
    """Print what the settings may do wrong, as the run itself will."""
    if teacher is None:
        for note in filter(None, (warmup.train_note(config), attention_note(config.model))):
            screen.warn(f"teacher: {note}")
    for note in warmup.distill_notes(config) if distill else []:
        screen.warn(note)
    notes: dict[str, list[str]] = {}
    for stage in plan:
        if stage.loop is not None and (note := averages.share_note(stage.loop, stage.updates)):
            notes.setdefault(note, []).append(stage.name)
    for note, names in notes.items():
        screen.warn(f"{', '.join(names)}: {note}")


def _reading(config: Config, images: int) -> tuple[float | None, UsageError | None]:
    """Measure the reading of the data.

    Returns:
        Its seconds, None if finding out would take long; and the error that the run would end with.
    """
    net = config.model
    size = images * net.image_size**2 * net.channels
    try:
        return sources.seconds(config.data, net, arrays=size <= READ), None
    except UsageError as error:
        return None, error


def _counts(
    config: Config,
    plan: list[Stage],
    device: torch.device,
    images: int | None,
    teacher: NetConfig | None,
) -> dict[Update, Count]:
    """Count one update of each kind in the plan."""
    by_phase: dict[CountedPhase, Count] = {}
    kinds = dict.fromkeys(stage.update for stage in plan if stage.loop is not None)
    for phase in dict.fromkeys(COUNTED[kind] for kind in kinds):
        net = teacher or config.model.unguided()
        by_phase[phase] = count_update(config, phase, device, num_images=images or 0, teacher=net)
    return {kind: by_phase[COUNTED[kind]] for kind in kinds}


def _say_sizes(
    config: Config,
    plan: list[Stage],
    counts: dict[Update, Count],
    device: torch.device,
    images: int | None,
    screen: Screen,
) -> str:
    """Print the parameters, memory and disk space of a run, and return the latter as a phrase."""
    phases = {COUNTED[kind]: count for kind, count in counts.items()}
    params = next(iter(phases.values())).params
    screen.say("")
    screen.say(f"parameters: {params:,}")
    if config.data.holdout and images is not None:
        screen.say(f"images: {images:,}, {config.data.holdout:,} of them held out of training")
    there = images is not None
    for phase in sorted(phases, key=list(MEMORY).index):
        batch = (config.train if phase == "train" else config.distill).batch
        screen.say(memory_line(MEMORY[phase], phases[phase], batch, device, there))
    models = sum(stage.loop is not None for stage in plan)
    states = 3 * (3 + max(len(stage.loop.averages) for stage in plan if stage.loop is not None))
    rounds = sum(stage.loop is not None and stage.update != "train" for stage in plan)
    moments = 2 * rounds if config.distill.keep_moments else 0
    disk = (models + states + moments) * 4 * params / MB
    screen.say(
        f"disk: at most {disk:,.0f} MB = {models} models "
        f"and {states} more copies in three saved states"
        + (f", {moments} in the moments of finished rounds" if moments else "")
    )
    if images is not None and sources.resizes(config.data.source):
        net = config.model
        size = images * net.image_size**2 * net.channels
        screen.say(
            f"disk, once: {math.ceil(size / MB):,} MB of prepared images in {cache_folder()}"
        )
    most = max(sum(_sizes(count, there).values()) for count in phases.values()) / MB
    return f"memory {most:,.0f} MB, plus {_on_top(device, there)}; disk at most {disk:,.0f} MB"


def explained(plan: list[Stage], costs: Costs, device: torch.device, data: bool) -> list[str]:
    """Return lines on how the times were found.

    Args:
        plan: The phases.
        costs: Their costs.
        device: Device of the run.
        data: Whether the data set was found.
    """
    rate = f"{costs.rate / 1e9:,.3g} GFLOP/s"
    if not any(timed.num for timed in costs.updates.values()):
        why = "since one takes too long here, or needs more memory than is free"
        why = why if data else "since the data are not found here"
        return [
            f"time on {device}: the figures below are lower bounds. No update was timed, {why};",
            f"  counted FLOPs are taken at the rate of a large matrix product here ({rate})",
        ]
    pieces = []
    for kind, timed in costs.updates.items():
        num = sum(stage.updates for stage in plan if stage.update == kind)
        pieces.append((num, NAMES[kind], timed))
    alike = len({id(timed) for timed in costs.calls.values()}) == 1
    for net, timed in costs.calls.items():
        nets = costs.calls if alike else (net,)
        num = sum(stage.calls.get(n, 0) for stage in plan for n in nets)
        of = "" if alike else f" of the {net}'s"
        pieces.append((num, f"network calls{of} for {SAMPLE_BATCH} samples", timed))
        if alike:
            break
    return [
        f"time on {device}, by what was timed here in {_lasts(costs.spent)}:",
        *(
            f"  {num:,} {what} at {_lasts(timed.seconds)} ({_how(timed, rate)})"
            for num, what, timed in pieces
        ),
    ]


def _how(timed: Timed, rate: str) -> str:
    """Return how a time was found: counted, or timed on how much of the batch."""
    if not timed.num:
        return f"counted, at {rate}"
    of, all_ = timed.part
    return f"{timed.num} timed" + (f", on {of:,} of its {all_:,} images" if of < all_ else "")


def _left_out(
    config: Config, device: torch.device, images: int | None, reading: float | None
) -> list[str]:
    """Return the parts of a run that the times do not include."""
    left = ["saving"]
    if reading is None:
        left.append("reading the data")
    if images is None and not config.eval.num:
        left.append("samples, as many as there are images")
    if config.eval.detector != "pixel":
        left.append(f"features and distances of {config.eval.detector}")
    if config.engine.compile == "on" or (config.engine.compile == "auto" and device.type == "cuda"):
        left.append("torch.compile, where engine.compile uses it")
    if launched():
        left.append(f"the time saved by {os.environ['WORLD_SIZE']} processes")
    return [*left, "other work on this machine, which would slow all of this down"]


def table(plan: list[Stage], costs: Costs, set_up: float) -> list[str]:
    """Return the lines of a table of all phases, with their total.

    Args:
        plan: The phases.
        costs: Their costs.
        set_up: Seconds from the start of the process to the first phase.
    """
    lines = [f"{'':>9} {'steps':>6} {'updates':>9} {'lr':>8} {'images':>12} {'time':>9}"]

    def line(name: str, seconds: float, stage: Stage | None = None) -> None:
        columns = [""] * 4
        if stage is not None and stage.loop is not None:
            cfg = stage.loop
            images = f"{cfg.updates * cfg.batch:,}"
            columns = [str(stage.steps or ""), f"{cfg.updates:,}", f"{cfg.lr:.1e}", images]
        steps, updates, lr, seen = columns
        lines.append(f"{name:>9} {steps:>6} {updates:>9} {lr:>8} {seen:>12} {_lasts(seconds):>9}")

    total = set_up
    line("set-up", set_up)
    for stage in plan:
        seconds = costs.of(stage)
        total += seconds
        line(stage.name, seconds, stage)
    line("total", total)
    return lines


def _lasts(seconds: float) -> str:
    """Return a duration as text, in a unit that suits it."""
    for least, unit, name in ((5400, 3600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{short(seconds / unit, 3)} {name}"
    return f"{short(seconds, 2)} s" if seconds >= 1 else f"{short(seconds * 1e3, 3)} ms"
