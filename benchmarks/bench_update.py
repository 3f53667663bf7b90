"""Whole updates of training and distillation: pdfast and the published algorithm, several ways.

(a) is the published algorithm in eager PyTorch, float32 (TF32 allowed), default layout; (b) is the
same under bf16 autocast, channels-last; (c) and (d) are (b) compiled, or (a) on a CPU; (e) is
pdfast; (f) is pdfast with engine.compile; (g) is pdfast with PyTorch's norms. Network, batch and
config are the same. A CPU skips (b); --compile adds (c), (d) and (f).

Each that compiles or captures has a process of its own, in which its repeats alternate with those
of (a). So a fault affects no other, and the compared times were measured together.
"""

import functools
import statistics
from pathlib import Path

import pytest
import torch
from harness import ROWS
from one_update import LIMIT, Job, Outcome, config_of, in_a_process

from pdfast.config.schema import load_config
from pdfast.cost.counting import count_update

GPU = torch.cuda.is_available()
CASES = ["cifar10", "medium", "digits"] if GPU else ["digits"]
REPEATS, STEPS = 11, 512  # STEPS: sampling steps of the student
EAGER, AUTOCAST = "(a) eager", "(b) bf16 autocast"
REDUCED, TUNED = "(c) compiled, reduce-overhead", "(d) compiled, max-autotune"
OURS, OURS_COMPILED, OWN_NORMS = "(e) pdfast", "(f) pdfast, compiled", "(g) pdfast, PyTorch's norms"
BEST = {"autocast": True} if GPU else {}
VARIANTS = {
    EAGER: {"who": "published"},
    AUTOCAST: {"who": "published", "autocast": True},
    REDUCED: {"who": "published", **BEST, "compiled": "reduce-overhead"},
    TUNED: {"who": "published", **BEST, "compiled": "max-autotune"},
    OURS: {"who": "pdfast"},
    OURS_COMPILED: {"who": "pdfast", "compiled": True},
    OWN_NORMS: {"who": "pdfast", "torch_norms": True},
}
# Variants that share a process, by the name of its test; every process also runs (a),
# so that processes can be compared.
PROCESSES = {
    "plain": [EAGER, AUTOCAST],
    "pdfast": [EAGER, OURS],
    "norms": [EAGER, OWN_NORMS],
    "pdfast-compiled": [EAGER, OURS_COMPILED],
    "reduce-overhead": [EAGER, REDUCED],
    "max-autotune": [EAGER, TUNED],
}


def absent(who: str, quick: bool, compiling: bool) -> str:
    """Return why a variant is not timed; empty if it is."""
    if who == AUTOCAST and not GPU:
        return "left out on a CPU: few have bf16 units"
    if who == TUNED and not GPU:
        return "left out on a CPU, where it takes longest"
    if VARIANTS[who].get("compiled") and not compiling:
        return "left out: --compile times it, after a minute or more of compiling"
    return "left out: --quick" if who == OWN_NORMS and quick else ""


def record(row: dict, outcome: Outcome) -> None:
    """Add to a row the measurement with the times of (a), or the reason why it is missing."""
    if row["who"] in outcome.failed:
        row["absent"] = f"failed: {outcome.failed[row['who']]}"
        return
    row |= outcome.measured[row["who"]]
    row |= {"seconds": statistics.median(row["times"]), "rounds": len(row["times"])}
    row |= {"images_per_s": row["batch"] / row["seconds"]}
    row["flops"] = flops_of(row["case"], row["phase"])
    row["link"] = outcome.measured.get(EAGER, {}).get("times")


@functools.cache
def flops_of(case: str, phase: str) -> float:
    """Return the floating-point operations of an update."""
    return count_update(config_of(case), phase, "cpu", kernels=True).total.flops


@pytest.mark.parametrize("phase", ["distill", "train"])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.timeout(LIMIT + 60)
def test_update(case, process, phase, benchmark, request):
    """Time alternating repeats of a few updates; pytest-benchmark's time is the whole process's."""
    option = request.config.getoption
    quick, batch = option("--quick"), getattr(config_of(case), phase).batch
    base = {"op": f"update, {phase}", "shape": f"{case}, batch {batch}", "bytes": 0}
    base |= {"case": case, "phase": phase, "batch": batch, "kind": "update", "seconds": None}
    rows = {}
    for who in PROCESSES[process]:
        reason = absent(who, quick, option("--compile"))
        rows[who] = {**base, "who": who, "absent": reason or "failed"}
        if who != EAGER or process == "plain":
            request.config.stash[ROWS].append(rows[who])
    timed = [who for who in rows if not absent(who, quick, option("--compile"))]
    if process != "plain" and len(timed) == 1:
        pytest.skip(rows[PROCESSES[process][-1]]["absent"])
    tables = {}
    if (folder := option("--kernels")) and process.startswith("pdfast"):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"kernels-{case}-{phase}{process.removeprefix('pdfast')}.tsv"
        tables = {PROCESSES[process][-1]: str(Path(folder, name).resolve())}
    updates = 1 if quick else 4 if case == "cifar10" else 8
    job = Job(
        case=case,
        phase=phase,
        num_steps=STEPS,
        variants={who: VARIANTS[who] for who in timed},
        repeats=1 if quick else REPEATS,
        updates=updates,
        kernels=tables,
    )
    benchmark.group = f"processes of updates, {case}"
    outcome = benchmark.pedantic(lambda: in_a_process(job), rounds=1)
    for who in timed:
        record(rows[who], outcome)
        if case == "cifar10" and phase == "distill":
            rows[who]["config"] = case  # the table gives its price
    assert not outcome.failed


@pytest.mark.skipif(GPU, reason="measured there")
def test_counted(benchmark, request):
    """Count the paper's CIFAR-10 update, without a GPU."""
    count = benchmark.pedantic(
        lambda: count_update(load_config("cifar10"), "distill", kernels=True, precision="bf16"),
        rounds=1,
    )
    parts = {name: [a.flops, a.bytes, a.launches] for name, a in count.parts.items()}
    row = {"op": "count", "shape": "cifar10, batch 128", "who": "count", "kind": "count"}
    row |= {"seconds": 0, "bytes": 0, "parts": parts, "peak": count.memory.peak}
    request.config.stash[ROWS].append(row)
