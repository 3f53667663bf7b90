"""Plans: rounds of any ratio, resumed runs, and a plan that differs from the run's."""

import dataclasses

import pytest
import torch
from engine_cases import changed
from run_cases import stop_after

import pdfast
from pdfast.config.schema import Config, DistillConfig
from pdfast.errors import Stopped, UsageError
from pdfast.trackers import Axis

PLANS = {
    "tract": {"rounds": "4,1", "second": "student"},
    "training": {"rounds": "8,4,1", "first": "data", "second": "student"},
    "data": {"rounds": 2, "first": "data"},
    "huber": {"rounds": 2, "loss": "huber", "huber_c": 0.1, "round_lr": ((2, 3e-3),)},
}


def run(config, out):
    return pdfast.distill(config, out=out, quiet=True)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_run_and_extended_to_the_same_bits(tiny, tmp_path, name):
    """Run one round fewer first, then the whole plan."""
    config = changed(tiny, distill=PLANS[name])
    student = run(config, tmp_path / "whole")
    steps = list(config.distill.plan)
    assert student.steps == steps[-1]
    made = sorted(p.name for p in (tmp_path / "whole").glob("round-*-steps-*[0-9]"))
    assert made == [f"round-{k + 1:02d}-steps-{n:04d}" for k, n in enumerate(steps)]
    rounds = config.distill.rounds
    shorter = rounds - 1 if isinstance(rounds, int) else "8," + ",".join(map(str, steps[:-1]))
    run(changed(config, distill={"rounds": shorter}), tmp_path / "parts")
    again = run(config, tmp_path / "parts")
    assert all(torch.equal(again.weights()[k], t) for k, t in student.weights().items())
    plain = run(tiny, tmp_path / "plain")
    assert not all(torch.equal(plain.weights()[k], t) for k, t in student.weights().items())


@pytest.mark.parametrize("plans", [(3, 2), ("4,2,1", "4,2")])
def test_a_run_stopped_in_a_round_goes_on_by_a_shorter_plan_and_the_longer_again(
    tiny, tmp_path, monkeypatch, plans
):
    longer, shorter = (
        changed(tiny, distill={"rounds": plan, "updates": 6, "round_updates": ((1, 6), (2, 6))})
        for plan in plans
    )
    longer, shorter = (dataclasses.replace(config, save_every=2) for config in (longer, shorter))
    expected = run(longer, tmp_path / "straight")
    stop_after(monkeypatch, tiny.train.updates + 6 + 6 + 3)
    with pytest.raises(Stopped):
        run(longer, tmp_path / "run")
    monkeypatch.undo()
    assert run(shorter, tmp_path / "run").steps == 2
    assert list((tmp_path / "run" / "state").glob("round-03-*"))
    found = run(longer, tmp_path / "run")
    assert all(torch.equal(found.weights()[k], t) for k, t in expected.weights().items())


def test_a_plan_of_fewer_rounds_has_a_place_for_lines_of_more():
    for rounds in (2, "128,64"):
        config = Config(distill=DistillConfig(start_steps=256, rounds=rounds))
        assert Axis(config).point({"round": 4, "steps": 16, "distance": 1.0}).step > 0


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (
            {"rounds": "4,1"},
            {"rounds": "2,1"},
            r"steps of the 4-step round 8 \(now \(it is not in the plan",
        ),
        ({"rounds": "4,2"}, {"rounds": "2"}, "must be a number of halvings"),
        ({"rounds": "4,1"}, {"second": "teacher"}, "merges 4 steps in one"),
        (
            {"rounds": "2,1"},
            {"rounds": "4,2,1"},
            r"steps of the 2-step round 8 \(now 4\)",
        ),
        (
            {"rounds": "4,1"},
            {"round_lr": ((4, 1e-4),)},
            r"distill.lr of the 4-step round \(as distill.lr\) \(now 0.0001\)",
        ),
        (
            {"rounds": "4,1"},
            {"round_ema_decay": ((1, 0.5),)},
            "distill.ema_decay of the 1-step round",
        ),
        ({"rounds": "4,1"}, {"loss": "huber"}, r"distill.loss 'l2' \(now 'huber'\)"),
        ({"rounds": "4,1"}, {"first": "data"}, r"distill.first 'teacher' \(now 'data'\)"),
    ],
)
def test_a_run_goes_on_by_its_own_plan_alone(tiny, tmp_path, then, now, message):
    begun = changed(tiny, distill={"second": "student", "updates": 1} | then)
    run(begun, tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        run(changed(begun, distill=now), tmp_path / "run")


def test_the_second_step_is_the_students_own(tiny, tmp_path):
    """Two rounds that halve, with the teacher's or the student's second step."""
    found = []
    for second in ("teacher", "student"):
        config = changed(tiny, distill={"rounds": 1, "second": second})
        found.append(run(config, tmp_path / second).weights())
    assert any(not torch.equal(t, found[1][k]) for k, t in found[0].items())
    assert dataclasses.replace(tiny.distill).second == "teacher"
