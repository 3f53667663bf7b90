"""Whole updates timed in turns, in a process of their own: a fault of theirs is no one else's.

    python benchmarks/one_update.py JOB.json RESULT.json

A job names a config, a phase, and by name what to time: "published" or "pdfast", with options. The
result holds, by name, what was measured, or why it failed; it is written anew after each step, so
that a process that dies leaves what it had.
"""

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import live
import torch
from engine_update import Engine, with_options
from parts import cpu_peak, matmul_rate, peak_rate, profiled, write_kernels
from published import Phase, Published

import pdfast
from pdfast.config.schema import Config, EngineConfig, load_config
from pdfast.config.serialization import from_table
from pdfast.distributed import memory
from pdfast.kernels.group_norm_silu import eager

ROOT = Path(pdfast.__file__).parents[1]
LIMIT = 900  # seconds of a process; max-autotune takes minutes to compile
MEDIUM = {"image_size": 32, "channels": 3, "ch": 64, "emb_ch": 256, "ch_mult": [1, 2, 2]}
MEDIUM |= {"num_res_blocks": 2, "attn_resolutions": [8], "groups": 32}
IMAGES = 1000

Options = dict[str, Any]
Trainer = Published | Engine


class Job(NamedTuple):
    """The updates that one process times, in the form of its JSON file."""

    case: str
    """A named config, or "medium"."""
    phase: Phase
    num_steps: int
    """Sampling steps of the student, in distillation."""
    variants: dict[str, Options]
    """Trainers by name: {"who": "published"}, with keyword arguments of Published, or {"who":
    "pdfast"}, with "compiled" and "torch_norms" of Engine and options of the config."""
    repeats: int
    updates: int
    """Updates in each repeat."""
    engine_defaults: bool = False
    """Leave the config's [engine] out."""
    look: bool = True
    """Measure parts of the time and memory too."""
    kernels: dict[str, str] = {}  # noqa: RUF012  # never changed
    """Files for the tables of the kernels that one update ran, by name of the trainer."""


class Outcome(NamedTuple):
    """Results of a job."""

    measured: dict[str, dict[str, Any]]
    failed: dict[str, str]
    """Reasons why a trainer was not timed, by name."""


def config_of(case: str) -> Config:
    """A named config, or "medium"."""
    return from_table(Config, {"model": MEDIUM}) if case == "medium" else load_config(case)


def maker(job: Job, options: Options, images: torch.Tensor) -> Callable[[], Trainer]:
    """How to make what is timed."""
    config, options = config_of(job.case), dict(options)
    if job.engine_defaults:
        config = dataclasses.replace(config, engine=EngineConfig())
    if options.pop("who") == "published":
        return lambda: Published(config, job.phase, images, job.num_steps, **options)
    own = {"norm": eager if options.pop("torch_norms", False) else None}
    own["compiled"] = options.pop("compiled", False)
    config = with_options(config, job.phase, options)
    return lambda: Engine(config, job.phase, images, job.num_steps, **own)


def wait(device: torch.device) -> None:
    """Until the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_update(one: Trainer, updates: int, device: torch.device) -> float:
    """Wall time of each of a few updates."""
    wait(device)
    start = time.perf_counter()
    for _ in range(updates):
        one.update()
    wait(device)
    return (time.perf_counter() - start) / updates


def own_bytes(make: Callable[[], Trainer], device: torch.device) -> tuple[Trainer, int]:
    """(what `make` makes, after its first updates; bytes that it holds between updates)."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    one = make()
    for _ in range(2):
        one.update()
    wait(device)
    return one, torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0


def gpu_peak(one: Trainer, held: int, device: torch.device) -> int:
    """The most bytes that an update takes, what is held between updates included."""
    before = torch.cuda.memory_allocated(device) - held
    torch.cuda.reset_peak_memory_stats(device)
    one.update()
    wait(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return getattr(one, "peak", peak)  # a replay allocates nothing


class Running:
    """A job at work, and what has come of it so far."""

    def __init__(self, job: Job, device: torch.device, write: Callable[[Outcome], None]) -> None:
        self.job, self.device, self.write = job, device, write
        self.outcome = Outcome({}, {})
        net = config_of(job.case).model
        shape = (IMAGES, net.image_size, net.image_size, net.channels)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.make = {who: maker(job, options, images) for who, options in job.variants.items()}
        self.made: dict[str, Trainer] = {}
        self.held: dict[str, int] = {}

    def each(self, step: Callable[[str], None]) -> None:
        """Do a step for each that has not failed."""
        for who in self.make:
            if who not in self.outcome.failed:
                try:
                    step(who)
                except Exception as error:  # a compiler that fails, memory that does not do
                    text = " ".join(str(error).split())[:200]
                    self.outcome.failed[who] = f"{type(error).__name__}: {text}"
                    self.made.pop(who, None)
                self.write(self.outcome)

    def begin(self, who: str) -> None:
        """Make it, and see that its numbers are live."""
        self.made[who], self.held[who] = own_bytes(self.make[who], self.device)
        live.check(self.made[who].gradients())
        self.outcome.measured[who] = {"times": []}

    def once(self, who: str) -> None:
        """One repeat."""
        seconds = seconds_per_update(self.made[who], self.job.updates, self.device)
        self.outcome.measured[who]["times"].append(seconds)

    def look(self, who: str) -> None:
        """Where time and memory go."""
        one, row = self.made[who], self.outcome.measured[who]
        live.check(one.gradients())  # still, and finite
        if not self.job.look:
            return
        row |= {"datasheet": peak_rate(self.device), "matmul": matmul_rate(self.device)}
        times = min(4, self.job.updates)
        found = profiled(one.update, times, self.device)
        row["parts"] = found.parts
        if self.device.type == "cuda":
            row["memory"] = gpu_peak(one, self.held[who], self.device)
        if who in self.job.kernels:
            what = f"{self.job.case}, {self.job.phase}: what one update ran, mean of "
            what += (
                f"{min(4, self.job.updates)} under torch.profiler; {who}, {name_of(self.device)}"
            )
            write_kernels(Path(self.job.kernels[who]), what, found.kernels)

    def cpu_memory(self, who: str) -> None:
        """Peak of a CPU's update, made anew; a compiled one is not, which takes long."""
        if not self.job.variants[who].get("compiled"):
            self.outcome.measured[who]["memory"] = cpu_peak(self.make[who])

    def run(self) -> Outcome:
        """All of it; the first of several repeats is not counted."""
        self.each(self.begin)
        for _ in range(self.job.repeats + (self.job.repeats > 1)):
            self.each(self.once)
        for row in self.outcome.measured.values():
            row["times"] = row["times"][-self.job.repeats :]
        self.each(self.look)
        self.made.clear()
        gc.collect()
        if self.job.look and self.device.type == "cpu":
            self.each(self.cpu_memory)
        return self.outcome


def name_of(device: torch.device) -> str:
    """The device and PyTorch's version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, PyTorch {torch.__version__}"


def in_a_process(job: Job) -> Outcome:
    """Time a job in a fresh interpreter; whatever ends that is the reason of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "job.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(job._asdict()))
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # What the command line sets for itself; see pdfast/cli/main.py.
        environment = {"GOMP_SPINCOUNT": "1000", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, __file__, str(asked), str(told)]
        try:
            done = subprocess.run(
                command, env=environment, stderr=subprocess.PIPE, text=True, timeout=LIMIT
            )
            sys.stderr.write(done.stderr)
            end = f"exit {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
            ended_well = done.returncode == 0
        except subprocess.TimeoutExpired:
            end, ended_well = f"stopped after {LIMIT} s", False
        outcome = Outcome(*json.loads(told.read_text())) if told.exists() else Outcome({}, {})
    if not ended_well:
        for who in job.variants:
            outcome.failed.setdefault(who, end)
    for who in outcome.failed:
        outcome.measured.pop(who, None)
    return outcome


def main() -> None:
    """The process itself."""
    memory.keep_freed()  # as the command line does
    asked, told = map(Path, sys.argv[1:])
    job = Job(**json.loads(asked.read_text()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def write(outcome: Outcome) -> None:
        part = told.with_suffix(".part")
        part.write_text(json.dumps(outcome))
        part.replace(told)

    Running(job, device, write).run()


if __name__ == "__main__":
    main()
