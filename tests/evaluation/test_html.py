"""report.html: one file, with the evaluated samples as pictures, and escaped texts."""

import base64
import io
import json
import re
from types import SimpleNamespace

import pytest
import torch
from html_cases import Checked
from PIL import Image

from pdfast.console.progress import short
from pdfast.data.image_grid import grid
from pdfast.evaluation.report.html import Section, View, page
from pdfast.evaluation.report.tables import Report
from pdfast.models import checkpoint

LINKS = ("src", "href", "action", "data")


def views_of(text):
    """Return the views of the slider."""
    return json.loads(re.search(r"^const views = (.*);$", text, re.MULTILINE)[1])


def opened(address):
    kind, data = address.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_run_s_page(straight):
    text = (straight / "report.html").read_text()
    found = Checked(text).found
    linked = {attrs[key] for _, attrs in found for key in LINKS if key in attrs}
    assert all(address.startswith("data:image/png;base64,") for address in linked)
    curve = next(attrs["src"] for _, attrs in found if attrs.get("class") == "curve")
    assert opened(curve).tobytes() == Image.open(straight / "report.png").tobytes()
    assert not any(tag in ("link", "iframe") for tag, _ in found)
    assert "url(" not in text
    slider = next(attrs for tag, attrs in found if attrs.get("type") == "range")
    views = views_of(text)
    assert [view["steps"] for view in views] == [2, 4, 8]
    assert slider["max"] == "2"
    assert views[int(slider["value"])]["steps"] == 2  # the last student's
    report = json.loads((straight / "report.json").read_text())
    for view in views:
        key = str(view["steps"])
        of_student = view["pictures"][1]
        assert f"FD-pixel {report['teacher'][key]:.3f}" in view["captions"][0]
        assert bool(of_student) == (key in report["student"])
        if of_student:
            assert f"FD-pixel {report['student'][key]:.3f}" in view["captions"][1]
    model = checkpoint.load_model(straight / "round-02-steps-0002")
    expected = grid(model.sample_images(64, 2, seed=0), 8)
    shown = opened(views[0]["pictures"][1])
    assert shown.tobytes() == expected.tobytes()
    words = [attrs for tag, attrs in found if tag == "table" and attrs.get("class") == "words"]
    assert len(words) == 2  # how the figures were measured, and the versions
    assert "[distill]" in text
    assert torch.__version__ in text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (99.6, 2, "100"),
        (0.7612, 2, "0.76"),
        (1234.5, 3, "1,230"),
        (718_900, 3, "719,000"),
        (0.00031, 2, "0.00031"),
        (3.14e-7, 2, "3.1e-07"),
    ],
)
def test_numbers_are_short(value, digits, text):
    assert short(value, digits) == text


def test_texts_are_escaped():
    hostile = "</script><script>alert(1)</script>"
    view = View(4, Image.new("L", (2, 2)), None, (hostile, hostile))
    text = page(
        title=hostile,
        summary=hostile,
        views=[view],
        first=8,
        distances=((hostile,), [[hostile]]),
        curve=b"png",
        more=[Section(hostile, ((hostile,), [[hostile]]), hostile)],
        rounds=((hostile,), [[hostile]]),
        note=hostile,
        versions={hostile: hostile},
        config=hostile,
    )
    assert [tag for tag, _ in Checked(text).found].count("script") == 1
    assert views_of(text)[0]["captions"] == [hostile, hostile]


def test_without_pictures_there_is_no_slider():
    text = page(
        title="t",
        summary="s",
        views=[],
        first=4,
        distances=((), []),
        curve=b"png",
        more=[Section("h", None, "")],
        rounds=((), []),
        note="n",
        versions={},
        config="c",
    )
    assert not any(tag in ("script", "input") for tag, _ in Checked(text).found)


def test_the_teacher_at_the_baseline_has_one_row():
    # A student may have the baseline's number of steps, too.
    run = SimpleNamespace(config=SimpleNamespace(eval=SimpleNamespace(baseline_steps=64)))
    images = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    curves = [{k: SimpleNamespace(samples=images) for k in (64, 8)} for _ in range(2)]
    report = Report(run, None, None, images, None, *curves)
    captions = [caption for caption, _ in report.rows()]
    assert captions == [
        "data",
        "teacher, 64 steps",
        "student, 64 steps",
        "teacher, 8 steps",
        "student, 8 steps",
    ]
