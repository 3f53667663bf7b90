"""The processes of an evaluation share a network's features, with the same bits."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torchrun
from conftest import TINY
from pair import Pair

import pdfast
from pdfast.config.schema import Config, NetConfig
from pdfast.config.serialization import from_table
from pdfast.console.progress import Screen
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.evaluation.detectors.plain import PIXEL
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.resume import EvalState
from pdfast.evaluation.sweep import StepSweep
from pdfast.models.model import Model
from pdfast.training.model_run import ModelRun

# A detector that claims to have a network and records its images; it keeps fewer features than
# images.
DETECTOR = """
import os, torch
from pdfast.evaluation import evaluator, scores
from pdfast.evaluation.detectors.base import Detector, Features

def extract(images):
    with open("seen-" + os.environ.get("RANK", "alone"), "a") as file:
        print(len(images), file=file)
    numbers = images.flatten(1).float() / 255
    values = (numbers @ torch.linspace(-1, 1, 64 * 6).reshape(64, 6).sin()).relu()
    return Features(values, values[:, :4])

detector = Detector(name="fake", metric="FD", extract=extract, batch=7, weights="ab" * 32)
evaluator.open_detector = lambda *_: detector
scores.MOST = 100
"""
EVALUATE = """
import sys, detector
from pdfast.__main__ import main

for run in sys.argv[1:]:
    assert main(["eval", run, "--threads=1"]) == 0
"""
IMAGES, SAMPLES, SETS = 1797, 300, 3  # digits; sets: the teacher at 2 and 4 steps, the student


def batches(of, rank):
    """Return how many of 7 images one of two processes looks at."""
    return len(range(rank, -(-of // 7), 2))


@pytest.fixture
def begun(tmp_path):
    """A run without a report, with an untrained conditional teacher and student."""
    table = dict(TINY, model=TINY["model"] | {"num_classes": 10})
    table |= {"eval": {"steps": [4], "baseline_steps": 2, "num": SAMPLES}}
    table["distill"] = dict(TINY["distill"], rounds=1)
    config = from_table(Config, table)
    with ModelRun(tmp_path / "begun", config, Screen(quiet=True)).start() as made:
        torch.manual_seed(0)
        made.save_model(Model(config.model), made.teacher_dir)
        made.save_model(Model(config.model, steps=4), made.round_dir(1))
    return made.path


def test_figures_are_the_same(begun, tmp_path, monkeypatch):
    """Also after a killed evaluation that saved the first samples of each set."""
    (tmp_path / "detector.py").write_text(DETECTOR)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evaluator.open_detector", "scores.MOST"):  # to be restored after the test
        monkeypatch.setattr(f"pdfast.evaluation.{name}", None)
    __import__("detector")
    del sys.modules["detector"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-alone"))
    shutil.copytree(begun, "alone")
    with monkeypatch.context() as killed:
        for kind, name in ((EvalState, "finish"), (StepSweep, "clear")):
            killed.setattr(kind, name, lambda *_: None)
        pdfast.evaluate("alone", threads=1, quiet=True)
    report = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert report["classes"]["teacher"]["4"]
    assert report["scores"]["student"]["4"]["inception_score"] > 1
    shutil.copytree("alone", "left")
    left = sorted(tmp_path.glob("left/eval-state/*/samples-*"))
    assert len(left) == 2 * SETS
    for path in [*left[1::2], tmp_path / "left" / "eval-state" / "report.json"]:
        path.unlink()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-two"))
    _, _, codes, errors = torchrun.run(tmp_path, "evaluate.py", "begun", "left")
    assert codes == {}, errors
    for name in ("begun", "left"):
        assert json.loads((tmp_path / name / "report.json").read_text()) == report
        assert not list(tmp_path.glob(f"{name}/eval-state/*/samples-*"))
    for rank in range(2):
        seen = (tmp_path / f"seen-{rank}").read_text().split()
        expected = batches(IMAGES, rank) + 2 * SETS * batches(SAMPLES, rank)
        assert len(seen) == expected


def judged():
    """All figures of one model, with each evaluator asked in another order."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6000, 2, 2, 1), generator=draw, dtype=torch.uint8)
    data = Dataset(images, torch.randint(0, 2, (6000,), generator=draw))
    small = {"image_size": 2, "num_classes": 2, "ch_mult": [1], "attn_resolutions": []}
    torch.manual_seed(0)
    model = Model(from_table(NetConfig, TINY["model"] | small))
    orders = itertools.permutations(("distance", "figure", "floor"))
    return [{what: asked(evaluator, model, what) for what in order} for evaluator, order in (
        (Evaluator(data, 70, 0, PIXEL, model=model), order) for order in orders
    )]  # fmt: skip


def asked(evaluator, model, what):
    if what == "distance":
        return evaluator.evaluate(model, 2)[0]
    if what == "figure":
        return evaluator.figure(evaluator.sampled(model, 2, 70)).table()
    return list(evaluator.floor())


def test_processes_agree_in_whatever_order_figures_are_asked_for(tmp_path):
    """Features that only the first process has cached change no collective."""

    def member(rank):
        with collectives.session("cpu", 1):
            Path(f"judged-{rank}").write_text(json.dumps(judged()))

    with Pair(tmp_path, member) as pair:
        assert pair.codes() == [0, 0], pair.said()
    alone = judged()
    assert len(alone) == 6
    assert all(figures == alone[0] for figures in alone)
    assert set(alone[0]["figure"]["classes"]) == {"0", "1"}
    for rank in range(2):
        assert json.loads((tmp_path / f"judged-{rank}").read_text()) == alone
