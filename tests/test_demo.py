"""The numbers that the commands of .ci/run, from `make demo` on, must leave behind."""

import json
from pathlib import Path

import pytest
from PIL import Image

RUN = Path(__file__).parents[1] / "runs" / "digits"

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def report():
    return json.loads((RUN / "report.json").read_text())


def test_teacher(report):
    assert report["metric"] == "FD-pixel"
    assert report["images"] == 1797
    assert report["teacher"]["64"] <= 0.25


def test_four_steps(report):
    assert report["student"]["4"] <= 1.25 * report["teacher"]["64"]
    assert report["student"]["4"] <= 0.35 * report["teacher"]["4"]


def test_two_and_one_step_after_thirteen_rounds(report):
    for steps in ("2", "1"):
        assert report["student"][steps] <= 0.35 * report["teacher"][steps]


def test_a_student_of_half_the_width(report):
    half = json.loads((RUN.parent / "digits_half" / "report.json").read_text())
    assert half["teacher"]["4"] == report["teacher"]["4"]
    assert half["student"]["4"] <= 0.5 * report["teacher"]["4"]


def test_all_is_there():
    names = {p.name for p in RUN.glob("round-*")}
    assert names == {f"round-{r:02d}-steps-{8192 >> r:04d}" for r in range(1, 14)}
    with Image.open(RUN / "samples" / "compare.png") as picture:
        assert picture.width > 300
