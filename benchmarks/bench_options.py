"""The effect of each engine option on a distillation update.

Updates are whole, and captured on a GPU. Each option has a process of its own, in which repeats
with and without the option alternate. The speed-up is the ratio of medians; above 1 the option
pays.
"""

import statistics

import pytest
import torch
from harness import ROWS
from one_update import LIMIT, Job, config_of, in_a_process

GPU = torch.cuda.is_available()
CASES = ["cifar10", "digits"] if GPU else ["digits"]
REPEATS, UPDATES = 11, 4
STEPS = 64  # sampling steps of the student
OPTIONS = {
    "pipeline_teacher": {"pipeline_teacher": True},
    "tabulate_film": {"tabulate_film": True},
    "pipeline_teacher, tabulate_film": {"pipeline_teacher": True, "tabulate_film": True},
    "teacher_stream": {"teacher_stream": True},
    "pipeline_teacher, teacher_stream": {"pipeline_teacher": True, "teacher_stream": True},
    "compile": {"compiled": True},
    "accumulate 2": {"accumulate": 2},
    "checkpoint": {"checkpoint": True},
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
}
ON_GPU = {"teacher_stream", "pipeline_teacher, teacher_stream", "tf32"}
SLOW = {"compile"}  # options that take long to begin: only with --compile
QUICK = {"pipeline_teacher, tabulate_film", "accumulate 2", "bf16"}  # options that --quick times
BASE = "without"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.timeout(LIMIT + 60)
def test_option(case, option, benchmark, request):
    """Time alternating repeats of a few updates each, with the option and without; take medians."""
    quick = request.config.getoption("--quick")
    row = {"op": "options of a distillation update", "who": option, "seconds": None, "bytes": 0}
    row |= {"shape": f"{case}, batch {config_of(case).distill.batch}", "kind": "options"}
    request.config.stash[ROWS].append(row)
    if option in ON_GPU and not GPU:
        row["absent"] = "needs a GPU"
    elif option in SLOW and not request.config.getoption("--compile"):
        row["absent"] = "left out: --compile times it"
    elif quick and option not in QUICK | SLOW:
        row["absent"] = "left out: --quick"
    if "absent" in row:
        pytest.skip(row["absent"])
    row["absent"] = "failed"
    own = {"who": "pdfast"}
    job = Job(
        case=case,
        phase="distill",
        num_steps=STEPS,
        variants={BASE: own, option: own | OPTIONS[option]},
        repeats=1 if quick else REPEATS,
        updates=1 if quick else UPDATES,
        engine_defaults=True,
        look=False,
    )
    benchmark.group = f"processes of options, {case}"
    outcome = benchmark.pedantic(lambda: in_a_process(job), rounds=1)
    for reason in outcome.failed.values():
        row["absent"] = f"failed: {reason}"
    assert not outcome.failed
    measured = {name: found["times"] for name, found in outcome.measured.items()}
    row |= {"base": statistics.median(measured[BASE]), "rounds": len(measured[option])}
    row["seconds"] = statistics.median(measured[option])
    del row["absent"]
