"""`--dry-run`: what a run will take, counted from its updates; no weight is allocated."""

import time
from typing import Any

import torch

from pdfast import numerics, sources
from pdfast.config import Config, NetConfig, dump_config
from pdfast.counting import Count, count_update
from pdfast.holdout import check_holdout
from pdfast.progress import Screen, short

MB = 1e6


def num_images(config: Config) -> int | None:
    """Images of the config's data set; None where it is not there."""
    return sources.count(config.data.source)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Matrix-multiply FLOP/s of the device, the best of a few short runs."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def memory_line(phase: str, count: Count, batch: int, device: torch.device, data: bool) -> str:
    """What an update of a phase holds at its peak; `data`: the data set's size is known."""
    memory = count.memory
    state = dict(memory.state) if data else {**memory.state, "data set": 0}
    sizes = state | {"activations and temporaries": memory.activations}
    on_top = [] if data else ["the data set (not found here)"]
    if device.type == "cuda":
        on_top.append("cuDNN's workspace and CUDA's context")
    else:
        on_top.append("the process itself")
    return (
        f"memory, {phase}: {sum(sizes.values()) / MB:,.0f} MB in an update of batch {batch} = "
        + " + ".join(f"{size / MB:,.1f} {name}" for name, size in sizes.items() if size)
        + f"; on top of that: {' and '.join(on_top)}"
    )


def forecast(
    config: Config,
    device: torch.device,
    screen: Screen,
    distill: bool,
    teacher: NetConfig | None = None,
) -> None:
    """Print the resolved config, parameters, memory, disk, time, and the table of rounds.

    `teacher`: the network of one from elsewhere, which is not trained here.
    """
    screen.say(dump_config(config).rstrip())
    images, holdout = num_images(config), config.data.holdout
    if images is not None:
        check_holdout(holdout, images)
    precision = numerics.set_up(config.precision, device)

    def count(phase: Any) -> Count:
        net = teacher or config.model.unguided()
        return count_update(config, phase, device, num_images=images or 0, teacher=net)

    counts: dict[str, tuple[Count, int]] = {}
    phases: list[tuple[str, Any, Count, int]] = []
    if teacher is None:
        train = count("train")
        counts["training"] = (train, config.train.batch)
        phases.append(("teacher", config.train, train, 0))
    if distill:
        rollout = count("distill")
        counts["distillation"] = (rollout, config.distill.batch)
        fit = count("fit") if config.distill.fit_updates else rollout
        if config.distill.fit_updates:
            counts["the first fit"] = (fit, config.distill.batch)
        for round_ in range(1, config.distill.num_rounds + 1):
            steps = config.distill.steps_after(round_)
            counted = fit if steps == config.distill.start_steps else rollout
            phases.append((f"round {round_}", config.distill.loop_of(steps), counted, steps))
    screen.say("")
    params = phases[0][2].params
    screen.say(f"parameters: {params:,}")
    if holdout and images is not None:
        screen.say(f"images: {images:,}, {holdout:,} of them held out of training")
    for name, (counted, batch) in counts.items():
        screen.say(memory_line(name, counted, batch, device, images is not None))
    states = 3 * (4 if config.train.ema_decay else 3)
    disk = (len(phases) + states) * 4 * params
    screen.say(
        f"disk: at most {disk / MB:,.0f} MB = {len(phases)} models and {states} more copies in "
        "three saved states"
    )
    rate = matmul_rate(device, numerics.net_dtype(precision))
    screen.say(
        f"time on {device}: at least the figures below, which take every counted FLOP at the rate "
        f"of a large {precision} matrix product here ({rate / 1e9:,.0f} GFLOP/s); sampling for "
        "the report comes on top"
    )
    screen.say("")
    screen.say(f"{'':>9} {'steps':>6} {'updates':>9} {'lr':>8} {'images':>12} {'time':>9}")
    total = 0.0
    for name, cfg, counted, steps in phases:
        seconds = cfg.updates * counted.total.flops / rate
        total += seconds
        screen.say(
            f"{name:>9} {steps or '':>6} {cfg.updates:>9,} {cfg.lr:>8.1e} "
            f"{cfg.updates * cfg.batch:>12,} {_lasts(seconds):>9}"
        )
    screen.say(f"{'total':>9} {'':>6} {'':>9} {'':>8} {'':>12} {_lasts(total):>9}")


def _lasts(seconds: float) -> str:
    """A time as people say it."""
    for least, unit, name in ((5400, 3600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{short(seconds / unit, 3)} {name}"
    return f"{short(seconds, 2)} s"
