"""Whole updates timed in a separate process: a failure is reported, and stops nothing else."""

import json

import bench_update
import one_update
import pytest
import torch
from bench_update import EAGER, PROCESSES, VARIANTS, record
from one_update import Job, Outcome, Running, in_a_process

JOB = Job(
    case="digits",
    phase="train",
    num_steps=8,
    variants={
        "broken": {"who": "published", "compiled": "no-such-mode"},
        "theirs": {"who": "published"},
        "ours": {"who": "pdfast", "checkpoint": True},
    },
    repeats=2,
    updates=1,
)


@pytest.fixture
def job(tiny_toml):
    return JOB._replace(case=str(tiny_toml))


def test_what_cannot_run_leaves_the_others_to_be_timed(job, tmp_path, monkeypatch):
    monkeypatch.setattr(one_update, "matmul_rate", lambda device: 1e9)  # seconds for the products
    written, tables = [], {"ours": str(tmp_path / "kernels.tsv")}
    job = Job(**json.loads(json.dumps(job._replace(kernels=tables)._asdict())))
    running = Running(job, torch.device("cpu"), lambda o: written.append(json.dumps(o)))
    outcome = running.run()
    assert set(outcome.failed) == {"broken"}
    assert "no-such-mode" in outcome.failed["broken"]
    assert set(outcome.measured) == {"theirs", "ours"}
    for row in outcome.measured.values():
        assert len(row["times"]) == 2  # the first of three turns is not counted
        assert min(row["times"]) > 0
        assert sum(row["parts"].values()) > 0
        assert row["memory"] > 0
        assert row["matmul"] == 1e9
    assert Outcome(*json.loads(written[-1])) == outcome
    assert Outcome(*json.loads(written[0])) == Outcome({}, outcome.failed)  # unchanged
    lines = (tmp_path / "kernels.tsv").read_text().splitlines()
    assert lines[0].startswith(f"# {job.case}, train: what one update ran")
    assert lines[1] == "ms\tlaunches\tkernel"
    assert any(line.endswith("\tpdfast::group_norm_silu_backward") for line in lines[2:])


def test_what_dies_in_between_is_not_called_measured(job):
    running = Running(job, torch.device("cpu"), lambda outcome: None)
    running.each(running.begin)
    running.made["ours"].update = None  # fails as a broken replay would
    running.each(running.once)
    assert set(running.outcome.failed) == {"broken", "ours"}
    assert len(running.outcome.measured["theirs"]["times"]) == 1


def test_the_end_of_the_process_is_the_reason(job):
    outcome = in_a_process(job._replace(case="no-such-config"))
    assert outcome.measured == {}
    assert set(outcome.failed) == set(job.variants)
    assert all(r.startswith("exit 1: ") and "no-such" in r for r in outcome.failed.values())


@pytest.mark.slow
def test_a_process_measures(job):
    outcome = in_a_process(job)
    assert set(outcome.failed) == {"broken"}
    assert set(outcome.measured) == {"theirs", "ours"}
    assert all(len(row["times"]) == 2 for row in outcome.measured.values())


def test_a_row_of_what_was_measured_and_of_what_failed(monkeypatch):
    monkeypatch.setattr(bench_update, "flops_of", lambda case, phase: 1e9)
    outcome = Outcome({EAGER: {"times": [4.0, 5.0]}, "ours": {"times": [1.0, 2.0]}}, {"c": "why"})
    row = {"who": "ours", "batch": 3, "case": "digits", "phase": "train"}
    record(row, outcome)
    assert (row["seconds"], row["rounds"], row["images_per_s"]) == (1.5, 2, 2.0)
    assert (row["link"], row["flops"]) == ([4.0, 5.0], 1e9)
    row = {"who": "c"}
    record(row, outcome)
    assert row == {"who": "c", "absent": "failed: why"}


def test_all_that_compiles_or_captures_has_its_own_process_and_the_link():
    alone = {who for names in PROCESSES.values() for who in names} - set(PROCESSES["plain"])
    assert alone | set(PROCESSES["plain"]) == set(VARIANTS)
    for name, names in PROCESSES.items():
        assert names[0] == EAGER
        assert name == "plain" or len(names) == 2
    for who in PROCESSES["plain"]:
        assert VARIANTS[who]["who"] == "published"
        assert "compiled" not in VARIANTS[who]
