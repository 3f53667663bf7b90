"""A finished run started again: nothing is repeated that need not be."""

import json
import shutil

import pytest
import torch
from conftest import TINY
from engine_cases import changed

import pdfast
from pdfast.cli.main import main
from pdfast.console.log import LOG
from pdfast.data.dataset import Dataset
from pdfast.evaluation import evaluate
from pdfast.evaluation.report import plots, write
from pdfast.models import checkpoint
from pdfast.models.model import SAMPLE_BATCH
from pdfast.models.unet import UNet
from pdfast.storage import files

CALLS = 2 + 4 + 8  # the teacher's calls for one batch at each number of steps
OF_STUDENTS = 2 + 4
assert TINY["eval"]["num"] <= SAMPLE_BATCH


@pytest.fixture
def work(monkeypatch):
    """Records network calls and plots until it is cleared."""
    done, forward, plot = [], UNet.forward, write.plot_distances

    def called(*args, **options):
        done.append("call")
        return forward(*args, **options)

    def plotted(*args):
        done.append("plot")
        return plot(*args)

    monkeypatch.setattr(UNet, "forward", called)
    monkeypatch.setattr(write, "plot_distances", plotted)
    monkeypatch.setattr(plots, "plot_distances", plotted)
    return done


@pytest.fixture
def run(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


def times(run):
    """Return the modification time and content of every file except the log."""
    found = {path for path in run.rglob("*") if path.is_file() and path.name != LOG}
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


def test_nothing_is_done_again(tiny, run, work, capsys):
    before = times(run)
    for again in (
        lambda: pdfast.distill(tiny, out=run),
        lambda: pdfast.distill(tiny, out=run, resume="strict"),
        lambda: pdfast.evaluate(run),
    ):
        made = again()
        assert work == []
        assert times(run) == before
        output = " ".join(capsys.readouterr().out.split())
        assert f"report: {run}/report.html, {run}/report.md: up to date" in output
        assert "FD-pixel" not in output
        assert made is None or made.steps == 2


def test_nor_by_the_command(tiny_toml, run, work, capsys, handlers):
    before = times(run)
    command = ["--config", str(tiny_toml), "--out", str(run), "--threads", "1"]
    assert main(["distill", *command]) == 0
    assert work == []
    assert times(run) == before


def test_nor_a_training(tiny, tmp_path, work):
    short = changed(tiny, train={"updates": 1, "ema_decay": 0.0}, eval={"baseline_steps": 2})
    pdfast.train(short, out=tmp_path / "run", quiet=True)
    before = times(tmp_path / "run")
    work.clear()
    pdfast.train(short, out=tmp_path / "run", quiet=True)
    assert work == []
    assert times(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.png", "report.html", "both"])
@pytest.mark.parametrize("harm", ["missing", "altered"])
def test_what_is_missing_or_altered_is_made_again_without_sampling(tiny, run, work, name, harm):
    """From saved figures; each model is called once, for its fingerprint."""
    before = times(run)
    path = run / ("samples/compare.png" if name == "both" else name)
    path.unlink() if harm == "missing" else path.write_bytes(path.read_bytes()[:-1])
    pdfast.distill(tiny, out=run, quiet=True)
    assert work.count("call") == 3
    assert work.count("plot") == 1
    assert (run / "report.json").read_bytes() == before["report.json"][1]
    assert path.read_bytes() == before[str(path.relative_to(run))][1]
    work.clear()
    pdfast.distill(tiny, out=run, quiet=True)
    assert work == []


def resaved(run):
    """Replace the student of the last round."""
    path = run / "round-02-steps-0002"
    manifest, model = files.read_manifest(path), pdfast.load(path)
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.5)
    checkpoint.save_model(model, path, round=manifest["round"], seed=manifest["seed"])


def lengthened(run):
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + json.dumps({"round": 2, "extra": 1}) + "\n")


def other_data(monkeypatch):
    real = evaluate.load_dataset

    def mirrored(*args):
        data = real(*args)
        return Dataset(data.images.flip(2).contiguous(), data.labels, data.shape)

    monkeypatch.setattr(evaluate, "load_dataset", mirrored)


ALL = 3 + CALLS + OF_STUDENTS
CHANGES = {
    "nothing": (lambda run, patch: {}, 0),
    "a model": (lambda run, patch: resaved(run), 3 + 2),
    "the data": (lambda run, patch: other_data(patch), ALL),
    "the metrics": (lambda run, patch: lengthened(run), 3),
    "the version": (lambda run, patch: patch.setattr(files, "__version__", "0.0.1"), 3),
    "the report's format": (lambda run, patch: patch.setattr(write, "FORMAT", "0"), 3),
    "the number of samples": (lambda run, patch: {"num": 63}, ALL),
    "the steps": (lambda run, patch: {"steps": (2, 4, 3)}, 3 + 3),
    "the baseline": (lambda run, patch: {"baseline_steps": 9}, 3 + 9),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_report_is_made_again_when_what_it_is_of_changes(tiny, run, work, monkeypatch, what):
    """The network calls are one for each model's fingerprint, and those for new samples."""
    before = (run / "report.html").stat().st_mtime_ns
    change, calls = CHANGES[what]
    config = changed(tiny, eval=change(run, monkeypatch) or {})

    def again():
        if what == "the data":  # a run is not resumed with other data
            return pdfast.evaluate(run, quiet=True, other_data=True)
        return pdfast.distill(config, out=run, quiet=True)

    again()
    assert work.count("call") == calls
    assert work.count("plot") == bool(calls)
    assert ((run / "report.html").stat().st_mtime_ns != before) == bool(calls)
    work.clear()
    again()
    assert work == []


def test_two_evaluations_in_turn_keep_their_figures(run, work):
    reports = {}
    for turn in range(4):
        steps = (2, 3) if turn % 2 else (2, 4)
        pdfast.evaluate(run, steps=steps, quiet=True)
        found = (run / "report.json").read_bytes()
        assert reports.setdefault(steps, found) == found
        assert work.count("call") == [0, 3 + 3 - 1, 3, 3 - 1][turn]
        work.clear()


def test_more_rounds_sample_what_is_new(tiny, run, work):
    pdfast.distill(tiny, rounds=3, out=run, quiet=True)
    found = json.loads((run / "report.json").read_text())
    assert set(found["student"]) == {"1", "2", "4"}
    evaluated = work.count("call")
    work.clear()
    pdfast.distill(tiny, rounds=3, out=run, quiet=True)
    assert work == []
    shutil.rmtree(run / "eval-state")
    (run / "report.json").unlink()
    pdfast.distill(tiny, rounds=3, out=run, quiet=True)
    again = work.count("call")  # the calls of all evaluations
    assert again == 4 + 1 + CALLS + OF_STUDENTS + 1
    assert json.loads((run / "report.json").read_text()) == found
    assert evaluated > 4 + 1 + 1


def test_a_report_that_is_cut_short_is_not_taken_for_whole(tiny, run, work, monkeypatch):
    """Killed after writing the report's files, before their record."""

    class Killed(BaseException):
        """An error that nothing catches."""

    def killed(*args):
        raise Killed

    longer = changed(tiny, eval={"steps": (2, 4, 3)})
    with monkeypatch.context() as patch:
        patch.setattr(write.Record, "keep", killed)
        with pytest.raises(Killed):
            pdfast.distill(longer, out=run, quiet=True)
    assert "3" in json.loads((run / "report.json").read_text())["teacher"]
    pdfast.distill(tiny, out=run, quiet=True)
    assert "3" not in json.loads((run / "report.json").read_text())["teacher"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"made_of": 3, "files": []}', "same, other files", "same, no files"],
)
def test_a_damaged_record_is_none(tiny, run, work, content):
    path = run / "eval-state" / "report.json"
    table = json.loads(path.read_text())
    if content.startswith("same"):
        table["files"] = {"\0": "", "../x": ""} if "other" in content else {}
        content = json.dumps(table)
    path.write_text(content)
    pdfast.distill(tiny, out=run, quiet=True)
    assert work.count("plot") == 1
    work.clear()
    pdfast.distill(tiny, out=run, quiet=True)
    assert work == []


def test_a_finished_round_whose_picture_is_gone_gets_it_again(tiny, run, work):
    (run / "samples" / "round-02-steps-0002.png").unlink()
    pdfast.distill(tiny, out=run, quiet=True)
    assert work.count("call") == 8 + 2  # the teacher's row and the student's
    assert (run / "samples" / "round-02-steps-0002.png").is_file()
    assert work.count("plot") == 0


def test_the_figures_of_one_model_are_kept_too(run, tmp_path, work):
    for calls in (1 + 2, 1):
        pdfast.evaluate(run / "teacher", steps=(2,), out=tmp_path / "e", quiet=True)
        assert work.count("call") == calls
        work.clear()
