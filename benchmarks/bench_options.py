"""What each option of the engine does to a distillation update, beside none of them.

Whole updates, captured on a GPU: those with the option and without it in one process, their
repeats interleaved. The speed-up is the ratio of medians, above 1 where the option pays.
"""

import dataclasses
import gc
import statistics

import pytest
import torch
from bench_update import Engine, seconds_per_update
from harness import ROWS

from pdfast.config import Config, EngineConfig, load_config

GPU = torch.cuda.is_available()
CASES = ["cifar10", "digits"] if GPU else ["digits"]
REPEATS, UPDATES = 11, 4
STEPS = 64  # of the student
OPTIONS = {
    "pipeline_teacher": {"pipeline_teacher": True},
    "tabulate_film": {"tabulate_film": True},
    "pipeline_teacher, tabulate_film": {"pipeline_teacher": True, "tabulate_film": True},
    "teacher_stream": {"teacher_stream": True},
    "pipeline_teacher, teacher_stream": {"pipeline_teacher": True, "teacher_stream": True},
    "compile": {"compile": True},
    "accumulate 2": {"accumulate": 2},
    "checkpoint": {"checkpoint": True},
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
}
ON_GPU = {"teacher_stream", "pipeline_teacher, teacher_stream", "tf32"}
SLOW = {"compile"}  # to begin: not with --quick, and on a CPU with --compile alone


def with_options(config: Config, options: dict[str, object]) -> Config:
    """The config with options of [engine], [distill] or its own set."""
    own = {name: value for name, value in options.items() if name == "precision"}
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    engine = {name: value for name, value in options.items() if name in names}
    loop = {name: value for name, value in options.items() if name not in names | set(own)}
    return dataclasses.replace(
        config,
        engine=dataclasses.replace(config.engine, **engine),
        distill=dataclasses.replace(config.distill, **loop),
        **own,
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_option(case, option, benchmark, device, request):
    """Medians of interleaved repeats of a few updates each, with the option and without."""
    quick = request.config.getoption("--quick")
    config, updates = load_config(case), 1 if quick else UPDATES
    config = dataclasses.replace(config, engine=EngineConfig())  # all of them off
    row = {"op": "options of a distillation update", "who": option, "seconds": None, "bytes": 0}
    row |= {"shape": f"{case}, batch {config.distill.batch}", "kind": "options"}
    request.config.stash[ROWS].append(row)
    compiling = not quick and request.config.getoption("--compile")
    if option in ON_GPU and not GPU:
        row["absent"] = "needs a GPU"
    elif option in SLOW and not compiling:
        row["absent"] = "left out: --compile times it"
    if "absent" in row:
        pytest.skip(row["absent"])
    row["absent"] = "failed"
    size, channels = config.model.image_size, config.model.channels
    shape = (1000, size, size, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    each = {"base": {}, "seconds": OPTIONS[option]}
    # Two at a time: a captured update keeps its activations' memory.
    made = {
        name: Engine(with_options(config, options), "distill", images, steps=STEPS)
        for name, options in each.items()
    }
    times = {name: [] for name in made}

    def repeat():
        for name, one in made.items():
            times[name].append(seconds_per_update(one, updates, device))

    benchmark.group = f"options {case}"
    benchmark.pedantic(repeat, rounds=1 if quick else REPEATS, warmup_rounds=0 if quick else 1)
    for name, measured in times.items():
        row[name] = statistics.median(measured if quick else measured[1:])
    row["rounds"] = 1 if quick else REPEATS
    del row["absent"]
    made.clear()
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
