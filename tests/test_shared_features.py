"""Features that take a network are shared by the processes of an evaluation, to the same bits."""

import json
import shutil
import sys

import pytest
import torch
import torchrun
from conftest import TINY

import pdfast
from pdfast.config import Config
from pdfast.eval_state import EvalState
from pdfast.evaluation import Meter
from pdfast.model import Model
from pdfast.progress import Screen
from pdfast.run import Run
from pdfast.tables import from_table

# A detector that passes for one with a network, and notes what it looks at; fewer features are
# kept than there are images.
DETECTOR = """
import os, torch
from pdfast import judge, scores
from pdfast.detectors.base import Detector, Features

def extract(images):
    with open("seen-" + os.environ.get("RANK", "alone"), "a") as file:
        print(len(images), file=file)
    numbers = images.flatten(1).float() / 255
    values = (numbers @ torch.linspace(-1, 1, 64 * 6).reshape(64, 6).sin()).relu()
    return Features(values, values[:, :4])

detector = Detector(name="fake", metric="FD", extract=extract, batch=7, weights="ab" * 32)
judge.open_detector = lambda *_: detector
scores.MOST = 100
"""
EVALUATE = """
import sys, detector
from pdfast.__main__ import main

for run in sys.argv[1:]:
    assert main(["eval", run, "--threads=1"]) == 0
"""
IMAGES, SAMPLES, SETS = 1797, 300, 3  # the digits; of the teacher in 2 and 4 steps, of the student


def batches(of, rank):
    """How many of 7 images a process of two looks at."""
    return len(range(rank, -(-of // 7), 2))


@pytest.fixture
def begun(tmp_path):
    """A run without a report, of a conditional teacher and student as they were born."""
    table = dict(TINY, model=TINY["model"] | {"num_classes": 10})
    table |= {"eval": {"steps": [4], "baseline_steps": 2, "num": SAMPLES}}
    table["distill"] = dict(TINY["distill"], rounds=1)
    config = from_table(Config, table)
    with Run.start(tmp_path / "begun", config, Screen(quiet=True)) as made:
        torch.manual_seed(0)
        made.save_model(Model(config.model), made.teacher_dir)
        made.save_model(Model(config.model, steps=4), made.round_dir(1))
    return made.path


def test_figures_are_the_same(begun, tmp_path, monkeypatch):
    """Also where an evaluation that was killed has left the first samples of each set."""
    (tmp_path / "detector.py").write_text(DETECTOR)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("judge.open_detector", "scores.MOST"):  # which are as they were after the test
        monkeypatch.setattr(f"pdfast.{name}", None)
    __import__("detector")
    del sys.modules["detector"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-alone"))
    shutil.copytree(begun, "alone")
    with monkeypatch.context() as killed:
        for kind, name in ((EvalState, "finish"), (Meter, "clear")):
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
