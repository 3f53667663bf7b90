"""Two processes in training: the updates of one process, and an end that loses nothing."""

import copy
import json
import signal
from pathlib import Path

import pytest
import torch
from engine_cases import changed, digits, flat, objective_of, random_model, run_engine, set_of
from torchrun import ALARM, lost, run

from pdfast.models import checkpoint
from pdfast.storage import files
from pdfast.training.holdout import hold_out

CASES = [("train", torch.float64), ("distill", torch.float32)]
OPTIONS = {"grad_clip": 0.05, "ema_decay": 0.9, "accumulate": 2, "dropout": 0.25}


def trained(tiny, phase, dtype, path):
    """Return (weights at the start, weights after 50 updates) with every option that averages.

    The two processes have different numbers of the held-out images.
    """
    config = changed(set_of(tiny, phase, **OPTIONS), data={"holdout": 70})
    teacher = random_model(config.model, 0, dtype)
    start = random_model(config.model, 1, dtype) if phase == "train" else teacher
    model = copy.deepcopy(start)
    objective = objective_of(phase, getattr(config, phase), teacher)
    data = hold_out(digits(200), 70, config.seed)
    run_engine(config, phase, objective, model, data, path)
    return flat(start), flat(model)


TOGETHER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import torch
from conftest import TINY
from pdfast.distributed import collectives
from pdfast.config.schema import Config
from pdfast.config.serialization import from_table
from test_distributed_training import CASES, trained

with collectives.session("cpu", 1):
    for n, (phase, dtype) in enumerate(CASES):
        path = Path(f"case-{n}")
        weights = trained(from_table(Config, TINY), phase, dtype, path)[1]
        torch.save(weights, f"weights-{n}-{collectives.rank()}.pt")
"""


def test_two_processes_train_as_one(tiny, tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    ended = run(tmp_path, "together.py", *Path(__file__).parents[:2])
    assert ended.codes == {}, ended.errors
    for n, (phase, dtype) in enumerate(CASES):
        start, alone = trained(tiny, phase, dtype, tmp_path / f"alone-{n}")
        first, second = (torch.load(tmp_path / f"weights-{n}-{rank}.pt") for rank in range(2))
        assert torch.equal(first, second)
        apart = (first - alone).norm() / (alone - start).norm()
        print(f"{phase} {dtype} apart {apart:.3g}")
        assert apart <= {torch.float32: 1e-2, torch.float64: 1e-7}[dtype]
        one, two = (tmp_path / f / "metrics.jsonl" for f in (f"alone-{n}", f"case-{n}"))
        one, two = (
            [json.loads(line) for line in path.read_text().splitlines()] for path in (one, two)
        )
        assert len(one) == len(two)
        (of_one,), (of_two,) = (
            [m["held_out_loss"] for m in lines if "held_out_loss" in m] for lines in (one, two)
        )
        assert of_two == pytest.approx(of_one, rel=1e-12 if dtype == torch.float64 else 1e-6)


# The command line, in a process that sends itself a signal after a number of its updates.
STOPPED = f"""
import os, signal, sys
from pdfast.distillation import rounds
from pdfast.training import loop
from pdfast.__main__ import main

rounds.MONITOR_IMAGES = 64  # as in conftest.py
rank, number, left = map(int, sys.argv[1:4])
signal.alarm({ALARM})

def counted(*args, real=loop.update):
    global left
    left -= 1
    if left == 0 and int(os.environ["RANK"]) == rank:
        os.kill(os.getpid(), number)
    return real(*args)

loop.update = counted
sys.exit(main(sys.argv[4:]))
"""
NEVER = 10**6


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_loses_processes_ends_at_the_same_bits(tiny_toml, tmp_path):
    """SIGTERM to one: saved once, both exit 143. SIGKILL to either: not saved, exit 1. Resumed."""
    (tmp_path / "stopped.py").write_text(STOPPED)

    def distill(out, rank, number, after):
        arguments = ("distill", "--config", tiny_toml, "--rounds=1", "--threads=1", "--out", out)
        arguments += ("--eval.steps", 4, "--eval.baseline-steps", 4)
        return run(tmp_path, "stopped.py", rank, int(number), after, *arguments)

    straight = distill("straight", 0, 0, NEVER)
    assert straight.codes == {}, straight.errors
    stopped = distill("run", 1, signal.SIGTERM, 3)
    assert set(stopped.codes.values()) == {143}, stopped.errors
    states = tmp_path / "run" / "state"
    assert [p.name for p in states.iterdir()] == ["round-00-update-000000003"]
    assert len(stopped.said) == 1
    assert "teacher is saved at update 3" in stopped.said[0]
    # In update 7 of the teacher's 12, and in 3 of the student's.
    for rank, after, newest in ((0, 4, "00-update-000000005"), (1, 10, None)):
        killed = distill("run", rank, signal.SIGKILL, after)
        assert killed.codes == {rank: -signal.SIGKILL, 1 - rank: 1}, killed.errors
        assert lost(1 - rank) in killed.said, killed.errors
        if rank:  # process 0, which writes, is still there to report it
            assert lost(0) in (tmp_path / "run" / "log.txt").read_text()
        left = sorted(p.name for p in states.iterdir()) if states.is_dir() else []
        assert newest is None or left[-1] == f"round-{newest}"
        assert {name[-1] for name in left} <= {"3", "5", "0"}  # no state where it was killed
        for name in left:
            files.read(states / name)
    ended = distill("run", 0, 0, NEVER)
    assert ended.codes == {}, ended.errors
    for name in ("teacher", "round-01-steps-0004"):
        expected, got = (
            checkpoint.load_model(tmp_path / run_ / name).state_dict()
            for run_ in ("straight", "run")
        )
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    report = (tmp_path / "run" / "report.json").read_text()
    assert report == (tmp_path / "straight" / "report.json").read_text()
