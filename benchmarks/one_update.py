"""Whole updates timed alternately, in a process of their own, so that faults do not spread.

    python benchmarks/one_update.py JOB.json RESULT.json

A job names a config, a phase, and the trainers to time: "published" or "pdfast", with options. The
result holds each trainer's measurements, or the reason of its failure, by name. It is rewritten
after each step, so that a process that dies leaves its results so far.
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
    """The updates that one process times, as in its JSON file."""

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
    """Whether to omit the config's [engine]."""
    look: bool = True
    """Whether to measure the time by part, and memory, too."""
    kernels: dict[str, str] = {}  # noqa: RUF012  # never changed
    """Files for the tables of the kernels of one update, by name of the trainer."""


class Outcome(NamedTuple):
    """Results of a job."""

    measured: dict[str, dict[str, Any]]
    failed: dict[str, str]
    """Reasons why a trainer was not timed, by name."""


def config_of(case: str) -> Config:
    """Load a named config, or "medium"."""
    return from_table(Config, {"model": MEDIUM}) if case == "medium" else load_config(case)


def maker(job: Job, options: Options, images: torch.Tensor) -> Callable[[], Trainer]:
    """Return the function that makes a trainer."""
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
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_update(one: Trainer, updates: int, device: torch.device) -> float:
    """Return the mean wall time of an update, over a few."""
    wait(device)
    start = time.perf_counter()
    for _ in range(updates):
        one.update()
    wait(device)
    return (time.perf_counter() - start) / updates


def own_bytes(make: Callable[[], Trainer], device: torch.device) -> tuple[Trainer, int]:
    """Make a trainer and its first updates; return it and the bytes that it holds between them."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    one = make()
    for _ in range(2):
        one.update()
    wait(device)
    return one, torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0


def gpu_peak(one: Trainer, held: int, device: torch.device) -> int:
    """Return the most bytes during an update, including those held between updates."""
    before = torch.cuda.memory_allocated(device) - held
    torch.cuda.reset_peak_memory_stats(device)
    one.update()
    wait(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return getattr(one, "peak", peak)  # a replay allocates nothing


class Running:
    """A job in progress, and its results so far."""

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
        """Run a step for each trainer that has not failed."""
        for who in self.make:
            if who not in self.outcome.failed:
                try:
                    step(who)
                except Exception as error:  # a compiler fails, memory runs out
                    text = " ".join(str(error).split())[:200]
                    self.outcome.failed[who] = f"{type(error).__name__}: {text}"
                    self.made.pop(who, None)
                self.write(self.outcome)

    def begin(self, who: str) -> None:
        """Make a trainer, and check that its numbers are live."""
        self.made[who], self.held[who] = own_bytes(self.make[who], self.device)
        live.check(self.made[who].gradients())
        self.outcome.measured[who] = {"times": []}

    def once(self, who: str) -> None:
        """Time one repeat."""
        seconds = seconds_per_update(self.made[who], self.job.updates, self.device)
        self.outcome.measured[who]["times"].append(seconds)

    def look(self, who: str) -> None:
        """Measure time by part, and memory."""
        one, row = self.made[who], self.outcome.measured[who]
        live.check(one.gradients())  # still live, and finite
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
        """Measure the peak of an update on a CPU, with a new trainer; not of a compiled one."""
        if not self.job.variants[who].get("compiled"):
            self.outcome.measured[who]["memory"] = cpu_peak(self.make[who])

    def run(self) -> Outcome:
        """Run the job; the first of several repeats does not count."""
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
    """Return the names of the device and of PyTorch's version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, PyTorch {torch.__version__}"


def in_a_process(job: Job) -> Outcome:
    """Time a job in a new interpreter; if that dies, the failure's reason is how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "job.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(job._asdict()))
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # The command line sets it for itself; see pdfast/cli/main.py.
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
    """Run a job in this process."""
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
