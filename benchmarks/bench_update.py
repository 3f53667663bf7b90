"""Whole updates of training and distillation: pdfast beside the published algorithm, four ways.

(a) the published algorithm in eager PyTorch, float32 (TF32 allowed), default layout;
(b) the same under bf16 autocast, channels-last; (c) the same as (b) with compiled networks;
(d) pdfast's engine. Same network, batch and config, side by side in one process, their repeats
interleaved. On a CPU (b) is left out, and (c) is (a) compiled. (c) is there with --compile alone.
"""

import copy
import functools
import gc
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from harness import ROWS
from parts import cpu_peak, matmul_rate, peak_rate, time_by_part
from published import Phase, Published

from pdfast import engine, numerics
from pdfast.batch import open_batch
from pdfast.config import Config, load_config
from pdfast.counting import count_update
from pdfast.data import Dataset
from pdfast.distillation import remove_dropout
from pdfast.kernels.group_norm_silu import reference
from pdfast.model import Model
from pdfast.op_counter import OPTIMIZER
from pdfast.optimizer import Optimizer
from pdfast.rollout import rollout
from pdfast.tables import from_table
from pdfast.training import DataObjective, new_model
from pdfast.unet import GroupNormSiLU

GPU = torch.cuda.is_available()
CASES = ["cifar10", "medium", "digits"] if GPU else ["digits"]
REPEATS = 11
STEPS = 512  # of the student
MEDIUM = {"image_size": 32, "channels": 3, "ch": 64, "emb_ch": 256, "ch_mult": [1, 2, 2]}
MEDIUM |= {"num_res_blocks": 2, "attn_resolutions": [8], "groups": 32}
EAGER, AUTOCAST, COMPILED, OURS = "(a) eager", "(b) bf16 autocast", "(c) compiled", "(d) pdfast"
OWN_NORMS = "(d), PyTorch's norms"


class Engine:
    """pdfast's own updates, as Published has them."""

    def __init__(
        self, config: Config, phase: Phase, images: torch.Tensor, norm=None, steps: int = STEPS
    ) -> None:
        """`norm` replaces group_norm_silu; `steps` of the student."""
        cfg, device = getattr(config, phase), images.device
        on_gpu = device.type == "cuda"
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        precision = numerics.set_up(config.precision, device)
        model, objective = new_model(config, device), DataObjective(cfg.loss_weight)
        if phase == "distill":
            remove_dropout(model)
            teacher = numerics.lowered(copy.deepcopy(model).eval(), precision)
            use_norm(teacher, norm)
            if config.engine.compile:
                teacher.net.compile(dynamic=False)
            objective = rollout(teacher, steps, cfg, config.engine)
        use_norm(model.train(), norm)
        self.optimizer = Optimizer(model, cfg, numerics.net_dtype(precision))
        model.net.checkpoint = cfg.checkpoint
        if config.engine.compile:
            model.net.compile(dynamic=False)
        data, state = Dataset(images, None), self.optimizer
        batch, _ = open_batch(config, cfg, data, model, 1, state.done)
        name_for_the_profiler(state)
        objective.begin(batch)
        work = functools.partial(engine.update, model, objective, state, batch)
        self.repeat = engine.Replay(work, [*state.tensors(), *objective.carried], device)
        if on_gpu:
            self.peak = torch.cuda.max_memory_allocated(device) - before  # of the capture

    def update(self) -> torch.Tensor:
        """The engine's update; returns the mean loss."""
        self.optimizer.rate.fill_(self.optimizer.cfg.lr)
        self.repeat()
        return self.optimizer.loss


def use_norm(model: Model, norm: Callable | None) -> None:
    """Have the model's norms run as `norm`, where one is given."""
    for module in model.modules():
        if isinstance(module, GroupNormSiLU) and norm is not None:
            module.op = norm


def name_for_the_profiler(optimizer: Optimizer) -> None:
    """Put the optimizer's step under its part's name."""
    step = optimizer.step

    def named() -> None:
        with torch.profiler.record_function(OPTIMIZER):
            step()

    optimizer.step = named


def config_of(case: str) -> Config:
    """A named config, or "medium"."""
    return from_table(Config, {"model": MEDIUM}) if case == "medium" else load_config(case)


def variants(
    config: Config, phase: Phase, images: torch.Tensor, quick: bool, compiling: bool
) -> tuple[dict[str, Callable[[], Published | Engine]], dict[str, str]]:
    """How to make what is timed, by name; and what is left out, with the reason."""
    make = {EAGER: lambda: Published(config, phase, images, STEPS)}
    absent = {}
    if images.device.type == "cuda":
        make[AUTOCAST] = lambda: Published(config, phase, images, STEPS, autocast=True)
        compiled = {"autocast": True, "compiled": "max-autotune"}
    else:
        absent[AUTOCAST] = "left out on a CPU, which few have bf16 units for"
        compiled = {"compiled": "default"}
    if compiling and not quick:
        make[COMPILED] = lambda: Published(config, phase, images, STEPS, **compiled)
    else:
        absent[COMPILED] = "left out: --compile times it, after a minute or two of compiling"
    make[OURS] = lambda: Engine(config, phase, images)
    if quick:
        absent[OWN_NORMS] = "left out: --quick"
    else:
        make[OWN_NORMS] = lambda: Engine(config, phase, images, reference)
    return make, absent


def wait(device: torch.device) -> None:
    """Until the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_update(one, updates: int, device: torch.device) -> float:
    """Wall time of each of a few updates."""
    wait(device)
    start = time.perf_counter()
    for _ in range(updates):
        one.update()
    wait(device)
    return (time.perf_counter() - start) / updates


def own_bytes(make: Callable, device: torch.device, warm: int) -> tuple:
    """(what `make` makes, after `warm` updates; bytes that it holds between updates)."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    one = make()
    for _ in range(warm):
        one.update()
    wait(device)
    return one, torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0


@pytest.mark.parametrize("phase", ["distill", "train"])
def test_update(case, phase, benchmark, device, request):
    """Median of interleaved repeats of a few updates each."""
    quick = request.config.getoption("--quick")
    compiling = request.config.getoption("--compile")
    torch.compiler.reset()  # of what an earlier test compiled
    config, updates = config_of(case), 1 if quick else 4 if case == "cifar10" else 8
    cfg, net = getattr(config, phase), config.model
    shape = (1000, net.image_size, net.image_size, net.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    make, absent = variants(config, phase, images, quick, compiling)
    base = {"op": f"update, {phase}", "shape": f"{case}, batch {cfg.batch}", "bytes": 0}
    base |= {"case": case, "phase": phase, "batch": cfg.batch, "kind": "update"}
    rows, made, times, held = {}, {}, {}, {}
    for who in [EAGER, AUTOCAST, COMPILED, OURS, OWN_NORMS]:
        rows[who] = {**base, "who": who, "seconds": None, "absent": absent.get(who, "failed")}
        request.config.stash[ROWS].append(rows[who])
    for who in make:
        try:  # a compiler that fails, or memory that does not do, leaves the others to be timed
            made[who], held[who] = own_bytes(make[who], device, 0 if quick else 2)
            times[who] = []
        except Exception as error:
            rows[who]["absent"] = f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}"
    assert OURS in made

    def repeat():
        for who, one in made.items():
            times[who].append(seconds_per_update(one, updates, device))

    benchmark.group = f"update {case} {phase}"
    benchmark.pedantic(repeat, rounds=1 if quick else REPEATS, warmup_rounds=0 if quick else 1)
    flops = count_update(config, phase, "cpu", kernels=True).total.flops
    for who, measured in times.items():
        measured = measured if quick else measured[1:]
        rows[who] |= {"seconds": statistics.median(measured), "rounds": len(measured)}
        rows[who]["times"] = measured
        rows[who] |= {"flops": flops, "images_per_s": cfg.batch / statistics.median(measured)}
        rows[who] |= {"datasheet": peak_rate(device), "matmul": matmul_rate(device)}
        rows[who]["parts"] = time_by_part(made[who].update, 1 if quick else 4, device)
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device) - held[who]
            torch.cuda.reset_peak_memory_stats(device)
            made[who].update()
            peak = torch.cuda.max_memory_allocated(device) - before
            rows[who]["memory"] = getattr(made[who], "peak", peak)  # a replay allocates nothing
    made.clear()
    gc.collect()
    if device.type == "cpu":
        for who in set(times) - {COMPILED} if not quick else ():  # which would compile again
            rows[who]["memory"] = cpu_peak(make[who])
    if case == "cifar10" and phase == "distill":
        for who in times:
            rows[who]["config"] = case  # whose price the table gives


@pytest.mark.skipif(GPU, reason="measured there")
def test_counted(benchmark, request):
    """Without a GPU: the counts of the paper's CIFAR-10 update."""
    count = benchmark.pedantic(
        lambda: count_update(load_config("cifar10"), "distill", kernels=True, precision="bf16"),
        rounds=1,
    )
    parts = {name: [a.flops, a.bytes, a.launches] for name, a in count.parts.items()}
    row = {"op": "count", "shape": "cifar10, batch 128", "who": "count", "kind": "count"}
    row |= {"seconds": 0, "bytes": 0, "parts": parts, "peak": count.memory.peak}
    request.config.stash[ROWS].append(row)
