"""The results that the commands of .ci/run, starting with `make demo`, must produce."""

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
    # Equal up to rounding, as the numbers of threads may differ.
    assert half["teacher"]["4"] == pytest.approx(report["teacher"]["4"], rel=1e-4)
    assert half["student"]["4"] <= 0.5 * report["teacher"]["4"]


@pytest.fixture(scope="module")
def read_as_asked():
    """Return the fraction of 50 samples per digit that a classifier of real digits recognises."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    import pdfast

    real = load_digits()
    classifier = SVC(C=10).fit(real.data / 16, real.target)
    label = torch.arange(500) % 10

    def share(name, weight, steps):
        model = pdfast.guided(pdfast.load(RUN.parent / "digits_guided" / name), weight)
        images = model.sample(500, steps, seed=1, label=label)
        read = classifier.predict(((images + 1) / 2).flatten(1).numpy())
        return float((torch.from_numpy(read) == label).float().mean())

    return share


STUDENT = "round-07-steps-0004"


def test_four_steps_show_the_class_that_was_asked_for(read_as_asked):
    assert read_as_asked(STUDENT, 0.0, 4) >= 0.95


def test_a_guided_student_has_its_teachers_figure_at_half_the_calls(read_as_asked):
    teacher = read_as_asked("teacher", 1.0, 4)  # 4 guided steps are 8 calls
    assert abs(read_as_asked(STUDENT, 1.0, 4) - teacher) <= 0.02


def test_all_is_there():
    names = {p.name for p in RUN.glob("round-*")}
    assert names == {f"round-{r:02d}-steps-{8192 >> r:04d}" for r in range(1, 14)}
    with Image.open(RUN / "samples" / "compare.png") as picture:
        assert picture.width > 300
