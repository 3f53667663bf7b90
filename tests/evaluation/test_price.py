"""Evaluations and seconds of the report's rows, and the plot against them."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from conftest import TINY
from engine_cases import digits, random_model
from guidance_cases import batch, teacher_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import pdfast
from pdfast.config.schema import EngineConfig
from pdfast.distillation.objectives import DataObjective, Fit, Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.evaluation.report.price import PRICE, Line, Panel, plot_price
from pdfast.models.unet import UNet
from pdfast.runs.spent import Account, Spent
from pdfast.training.batch import open_batch
from pdfast.training.update import evaluations

BATCH = TINY["train"]["batch"]
TEACHER = TINY["train"]["updates"] * BATCH * (0 + 3)
FIRST = TINY["distill"]["updates"] * BATCH * (2 + 3)
SECOND = 2 * FIRST  # the round to 2 steps has twice the updates


@pytest.fixture
def passes(monkeypatch):
    """Count images with a forward pass: (without, with) a gradient."""
    found, forward = [0, 0], UNet.forward

    def counted(net, z, *args, **options):
        found[torch.is_grad_enabled()] += len(z)
        return forward(net, z, *args, **options)

    monkeypatch.setattr(UNet, "forward", counted)
    return found


def check_counted(objective, student, drawn, size, passes):
    objective.begin(drawn)
    passes[:] = [0, 0]
    objective(student, drawn)
    assert passes == [objective.evaluations * size, size]


def test_an_objective_says_what_it_evaluates(tiny, passes):
    teacher, student = (random_model(tiny.model, seed, torch.float32) for seed in (0, 1))
    for objective in (
        DataObjective("v_mse"),
        Rollout(teacher, 4, "v_mse"),
        Rollout(teacher, 1, "v_mse", second="student", merged=4),
        Rollout(teacher, 1, "v_mse", first="data", second="student", merged=4),
        Rollout(teacher, 4, "v_mse", first="data"),
        Pipelined(teacher, 4, "v_mse", EngineConfig(pipeline_teacher=True)),
        Fit(teacher, 4, "v_mse"),
    ):
        cfg = dataclasses.replace(tiny.distill, batch=6)
        drawn, source = open_batch(tiny, cfg, digits(), student, 1)
        source.load(0)
        check_counted(objective, student, drawn, 6, passes)


@pytest.mark.parametrize("guides_itself", [False, True])
def test_so_does_the_fit_of_a_guided_student(guides, passes, guides_itself):
    student = random_model(guides.model, 1, torch.float64)
    student.remove_dropout()
    teacher = random_model(guides.model, 0, torch.float64) if guides_itself else teacher_of(guides)
    fit = Fit(teacher.eval(), 8, "v_mse", guides=not guides_itself)
    check_counted(fit, student, batch(guides, student, 6), 6, passes)
    assert fit.evaluations == (1 if guides_itself else 2)


def test_the_backward_pass_counts_two_and_checkpoints_one_more(tiny):
    cfg, objective = dataclasses.replace(tiny.train, batch=10, accumulate=2), DataObjective("snr")
    assert evaluations(objective, cfg, 7) == 7 * 10 * 3
    assert evaluations(objective, dataclasses.replace(cfg, checkpoint=True), 7) == 7 * 10 * 4


def ends(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "seconds" in line]


def test_a_run_says_what_each_row_took(straight):
    assert [line["evaluations"] for line in ends(straight)] == [TEACHER, FIRST, SECOND]
    found = json.loads((straight / "report.json").read_text())["evaluations"]
    assert found == {
        "teacher": dict.fromkeys("248", TEACHER),
        "student": {"2": FIRST + SECOND, "4": FIRST},
    }
    for name, row in (("report.md", r"\| {} \|.*"), ("report.html", r'data-steps="{}">.*')):
        text = (straight / name).read_text()
        assert "evaluations, teacher" in text
        assert "Evaluations: forward passes" in text
        assert "not recorded" not in text
        cells = {k: re.findall(r"[\w.,]+", re.search(row.format(k), text)[0]) for k in (2, 4, 8)}
        assert str(TEACHER) in cells[8]
        assert str(FIRST) in cells[4]
        assert {str(TEACHER), str(FIRST + SECOND)} <= set(cells[2])
    assert f"]({PRICE})" in (straight / "report.md").read_text()
    assert Image.open(straight / PRICE).size > (100, 100)
    assert (straight / "report.html").read_text().count('<img class="curve"') == 2


def test_what_an_older_run_did_not_record_is_not_guessed(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["round"] == 1:  # as from a version without the count; the next round has one
            line.pop("evaluations", None)
    kept = [line for line in lines if line["round"]]  # as with a copied teacher
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    pdfast.evaluate(run, quiet=True)
    found = json.loads((run / "report.json").read_text())
    assert found["evaluations"] == {
        "teacher": dict.fromkeys("248"), "student": dict.fromkeys("24")
    }  # fmt: skip
    text = (run / "report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| 4 |"))
    # Missing are the evaluations of both and the teacher's seconds, not the student's.
    assert [cell.strip() for cell in row.split("|")[6:9]] == ["\u2013"] * 3
    assert row.split("|")[9].strip() != "\u2013"
    assert "\u2013: not recorded" in text
    assert not (run / PRICE).exists()
    assert PRICE not in text


def test_rounds_add_up_and_one_made_again_counts_once():
    lines = [
        {"round": 0, "seconds": 5.0, "evaluations": 50},
        {"round": 1, "steps": 8, "seconds": 1.0, "evaluations": 999},
        {"round": 1, "steps": 8, "distance": 1.0},
        {"round": 1, "steps": 8, "seconds": 1.5, "evaluations": 10},
        {"round": 2, "steps": 2, "seconds": 0.7, "evaluations": 20},
        {"round": 4, "steps": 1, "seconds": 1.0, "evaluations": 40},
    ]
    account = Account(lines)
    assert account.teacher == Spent(50, 5.0)
    assert account.student(8) == Spent(10, 1.5)
    assert account.student(2) == Spent(30, 2.2)
    assert account.student(1) == Spent()  # the third round's line is gone
    assert account.student(3) == Spent()
    assert Account([]).teacher == Spent()


def labels(figure: Figure):
    """Return each panel's labels, their bounding boxes and that of the axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    return [
        (
            [text.get_text() for text in axes.texts],
            [text.get_window_extent(renderer) for text in axes.texts],
            axes.get_window_extent(renderer),
        )
        for axes in figure.axes
    ]


def test_every_point_is_labelled_with_its_steps():
    """Inside the axes; labels of two lines with the same points are on opposite sides."""
    # Six rounds of 40 updates, as for the digits, whose points are close, and longer ones.
    rounds = [(12_800 * k, 0.6, 8192 >> k) for k in range(1, 7)]
    rounds += [(100_000 * k, 0.6 - 0.1 * k, 128 >> k) for k in range(1, 4)]
    quick, final = Line("quick", rounds), Line("report", rounds[-2:], joined=False)
    unknown = Line("unknown", [])
    figure = plot_price([Panel("FD", [quick, final, unknown], [("teacher", 3.0), ("floor", 1.0)])])
    ((texts, boxes, whole),) = labels(figure)
    assert texts == [str(steps) for _, _, steps in [*rounds, *rounds[-2:]]]
    assert all(whole.contains(*box.min) and whole.contains(*box.max) for box in boxes)
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["quick", "report", "teacher", "floor"]
    assert figure.axes[0].get_xscale() == "log"


def test_figures_of_two_kinds_have_a_panel_each():
    panels = [Panel("FD-pixel", [Line("a", [(10, 1.0, 4)])])]
    panels.append(Panel("FID", [Line("b", [(20, 30.0, 2)])]))
    figure = plot_price(panels)
    assert [axes.get_ylabel().split()[0] for axes in figure.axes] == ["FD-pixel", "FID"]
    assert [texts for texts, _, _ in labels(figure)] == [["4"], ["2"]]
