"""Whole runs of seconds: resume to the bit, more rounds, reports written twice the same."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import pdfast
from pdfast import checkpoint, engine, signals
from pdfast.errors import PdfastError, Stopped, UsageError

TIMING = {"images_per_s", "memory_mb", "seconds"}


def metrics(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def weights(path):
    return checkpoint.load_model(path).state_dict()


def assert_same_run(a, b):
    assert metrics(a) == metrics(b)
    for name in ("teacher", "round-01-steps-0004", "round-02-steps-0002"):
        theirs = weights(b / name)
        assert all(torch.equal(v, theirs[k]) for k, v in weights(a / name).items())
    assert (a / "report.json").read_text() == (b / "report.json").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """One undisturbed run."""
    from conftest import TINY

    from pdfast.config import Config, from_table

    path = tmp_path_factory.mktemp("straight") / "run"
    pdfast.distill(from_table(Config, TINY), out=path, quiet=True)
    return path


def test_run_directory(straight):
    assert {p.name for p in straight.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "report.json",
        "report.md",
        "report.png",
        "samples",
        "teacher",
        "round-01-steps-0004",
        "round-02-steps-0002",
    }
    assert {p.name for p in (straight / "samples").iterdir()} == {
        "compare.png",
        "round-01-steps-0004.png",
        "round-02-steps-0002.png",
    }
    report = json.loads((straight / "report.json").read_text())
    assert set(report) == {"metric", "floor", "floor_std", "images", "teacher", "student"}
    assert report["metric"] == "FD-pixel"
    assert report["images"] == 64
    assert set(report["teacher"]) == {"2", "4", "8"}
    assert set(report["student"]) == {"2", "4"}
    logged = metrics(straight)
    assert [m["update"] for m in logged if m["round"] == 0 and "loss" in m] == [4, 8, 12]
    needed = {"round", "update", "loss", "grad_norm", "lr"}
    assert all(needed <= set(m) for m in logged if "loss" in m)
    ends = [m for m in logged if "held_loss_end" in m]
    assert [m["round"] for m in ends] == [0, 1, 2]
    assert ends[0]["held_loss_end"] < ends[0]["held_loss_start"]
    assert [m["round"] for m in logged if "distance" in m] == [0, 1, 2]
    assert checkpoint.load_model(straight / "round-02-steps-0002").steps == 2


def test_report_is_the_same_when_eval_writes_it_again(straight, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    for name in ("report.json", "report.md", "report.png"):
        (copy / name).unlink()
    pdfast.evaluate(copy, quiet=True)
    assert (copy / "report.json").read_text() == (straight / "report.json").read_text()
    assert (copy / "report.md").is_file()
    assert (copy / "report.png").is_file()


def stop_after(monkeypatch, updates):
    """Ask the run to stop after so many updates, as a signal would."""
    real, count = engine.update, iter(range(1, 1000))

    def counted(*args):
        if next(count) == updates:
            monkeypatch.setattr(signals, "_requested", signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(engine, "update", counted)


@pytest.mark.parametrize("updates", [1, 5, 7, 13, 15, 24])
def test_a_stopped_run_resumes_to_the_bit(straight, tiny, tmp_path, monkeypatch, updates):
    """In the teacher's phase, in rounds, at and between saved states and log lines."""
    with monkeypatch.context() as patch:
        stop_after(patch, updates)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM; .* is saved at update") as stopped:
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert stopped.value.exit_code == 143
    pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")
    assert not (tmp_path / "run" / "state").exists()


def test_two_interruptions_and_a_killed_update(straight, tiny, tmp_path, monkeypatch):
    """A crash without warning goes back to the last saved state; its later metrics are dropped."""
    real, count = engine.update, iter(range(1, 1000))

    def crashing(*args):
        if next(count) == 9:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "update", crashing)
        with pytest.raises(KeyboardInterrupt):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert metrics(tmp_path / "run")[-1]["update"] == 8
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")


def test_more_rounds_go_on_and_leave_the_others(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    before = (copy / "round-02-steps-0002" / "manifest.json").read_text()
    student = pdfast.distill(tiny, rounds=3, out=copy, quiet=True)
    assert student.steps == 1
    assert (copy / "round-03-steps-0001" / "model.safetensors").is_file()
    assert (copy / "round-02-steps-0002" / "manifest.json").read_text() == before
    report = json.loads((copy / "report.json").read_text())
    assert set(report["student"]) == {"1", "2", "4"}
    assert set(report["teacher"]) == {"1", "2", "4", "8"}
    config = (copy / "config.toml").read_text()
    pdfast.evaluate(copy, steps=(2,), quiet=True)
    report = json.loads((copy / "report.json").read_text())
    assert set(report["student"]) == {"1", "2"}
    assert (copy / "config.toml").read_text() == config


def test_another_config_is_refused(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    other = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, lr=0.5))
    with pytest.raises(UsageError, match=r"was started with train\.lr 0\.001 \(now 0\.5\): choose"):
        pdfast.distill(other, out=copy, quiet=True)
    assert_same_run(straight, copy)


def test_a_teacher_from_elsewhere(straight, tiny, tmp_path):
    pdfast.distill(tiny, teacher=straight / "teacher", out=tmp_path / "run", quiet=True)
    for name in ("teacher", "round-02-steps-0002"):
        theirs = weights(straight / name)
        assert all(torch.equal(v, theirs[k]) for k, v in weights(tmp_path / "run" / name).items())
    with pytest.raises(UsageError, match="already has another teacher"):
        pdfast.distill(
            dataclasses.replace(
                tiny, distill=dataclasses.replace(tiny.distill, start_steps=4, rounds=1)
            ),
            teacher=straight / "round-01-steps-0004",
            out=make_run_with_teacher(straight, tmp_path / "other"),
            quiet=True,
        )
    with pytest.raises(UsageError, match=r"distilled to 4 steps: pass --distill\.start-steps 4"):
        pdfast.distill(
            tiny, teacher=straight / "round-01-steps-0004", out=tmp_path / "third", quiet=True
        )
    wider = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, ch=16))
    with pytest.raises(UsageError, match=r"has model\.ch 8, but the config asks for 16"):
        pdfast.distill(wider, teacher=straight / "teacher", out=tmp_path / "fourth", quiet=True)


def make_run_with_teacher(straight, path):
    path.mkdir()
    shutil.copytree(straight / "teacher", path / "teacher")
    text = (straight / "config.toml").read_text()
    text = text.replace("start_steps = 8", "start_steps = 4").replace("rounds = 2", "rounds = 1")
    (path / "config.toml").write_text(text)
    return path


def test_a_refused_teacher_leaves_nothing_behind(straight, tiny, tmp_path):
    for teacher in (straight / "round-01-steps-0004", tmp_path / "nowhere"):
        with pytest.raises(UsageError):
            pdfast.distill(tiny, teacher=teacher, out=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_a_line_of_metrics_cut_short_is_forgotten(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "upd')
    pdfast.distill(tiny, out=copy, quiet=True)
    assert_same_run(straight, copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    lines[3] = "garbage"
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(PdfastError, match=r"metrics\.jsonl, line 4, is damaged"):
        pdfast.distill(tiny, out=copy, quiet=True)


def test_updates_of_rounds_not_begun_may_change(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)

    def with_updates(*pairs):
        changed = dataclasses.replace(tiny.distill, round_updates=pairs, rounds=3)
        return dataclasses.replace(tiny, distill=changed)

    with pytest.raises(UsageError, match=r"updates of the 4-step round 6 \(now 9\)"):
        pdfast.distill(with_updates((4, 9)), out=copy, quiet=True)
    assert pdfast.distill(with_updates((1, 3)), out=copy, quiet=True).steps == 1


def test_an_interrupted_teacher_does_not_fix_the_rounds(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    other = dataclasses.replace(tiny, distill=dataclasses.replace(tiny.distill, lr=2e-3, rounds=1))
    assert pdfast.distill(other, out=tmp_path / "run", quiet=True).steps == 4


def test_a_state_left_after_its_model_goes(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    (copy / "state" / "round-02-update-000000005").mkdir(parents=True)
    pdfast.distill(tiny, out=copy, quiet=True)
    assert not (copy / "state").exists()


def test_a_folder_with_other_things_is_not_touched(tiny, tmp_path):
    mine = tmp_path / "project" / "teacher" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(UsageError, match="is not empty and holds no run: choose another --out"):
        pdfast.distill(tiny, out=tmp_path / "project", quiet=True)
    assert [p for p in (tmp_path / "project").rglob("*") if p.is_file()] == [mine]


def test_a_model_without_its_manifest_is_not_made_again(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    for name in ("round-01-steps-0004", "teacher"):
        manifest = copy / name / "manifest.json"
        content = manifest.read_text()
        manifest.unlink()
        for command in (lambda: pdfast.distill(tiny, out=copy, quiet=True),):
            with pytest.raises(PdfastError, match=r"manifest\.json is missing: restore it"):
                command()
        assert (copy / name / "model.safetensors").is_file()
        manifest.write_text(content)
    assert_same_run(straight, copy)


def test_weights_that_have_blown_up_are_not_saved(tiny, tmp_path):
    train = dataclasses.replace(tiny.train, updates=1, lr=1e30, warmup=0, grad_clip=0.0)
    with pytest.raises(PdfastError, match="no longer finite at update 1"):
        pdfast.train(dataclasses.replace(tiny, train=train), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "teacher").exists()
    pdfast.train(tiny, out=tmp_path / "run", quiet=True)  # nothing was made, so nothing is fixed


def test_train_alone(straight, tiny, tmp_path):
    pdfast.train(tiny, out=tmp_path / "run", quiet=True)
    theirs = weights(straight / "teacher")
    ours = weights(tmp_path / "run" / "teacher")
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["student"] == {}
    pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert checkpoint.load_model(tmp_path / "run" / "round-02-steps-0002").steps == 2


def test_the_saved_config_repeats_the_run(straight, tmp_path):
    pdfast.distill(straight / "config.toml", out=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")


def test_dropout_and_flip_and_classes_resume_too(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, horizontal_flip=True),
        model=dataclasses.replace(tiny.model, dropout=0.3, num_classes=10, head="x"),
        distill=dataclasses.replace(tiny.distill, rounds=1),
    )
    pdfast.distill(config, out=tmp_path / "a", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stopped):
            pdfast.distill(config, out=tmp_path / "b", quiet=True)
    pdfast.distill(config, out=tmp_path / "b", quiet=True)
    for name in ("teacher", "round-01-steps-0004"):
        theirs = weights(tmp_path / "a" / name)
        assert all(torch.equal(v, theirs[k]) for k, v in weights(tmp_path / "b" / name).items())
    assert checkpoint.load_model(tmp_path / "a" / "round-01-steps-0004").cfg.dropout == 0
    assert checkpoint.load_model(tmp_path / "a" / "teacher").cfg.dropout == 0.3


def test_a_damaged_state_falls_back_to_the_one_before(
    straight, tiny, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_after(patch, 11)  # states at 5, 10 and 11; two are kept
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    states = sorted((tmp_path / "run" / "state").iterdir())
    assert [s.name for s in states] == [f"round-00-update-{n:09d}" for n in (10, 11)]
    (states[1] / "weights.safetensors").write_bytes(b"cut")
    pdfast.distill(tiny, out=tmp_path / "run")
    output = capsys.readouterr().out
    assert "weights.safetensors is damaged" in output
    assert "going on from update 10" in output
    assert_same_run(straight, tmp_path / "run")


def test_no_whole_state_is_an_error_not_a_new_start(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    (state,) = (tmp_path / "run" / "state").iterdir()
    (state / "manifest.json").unlink()
    with pytest.raises(PdfastError, match=r"no saved state .* is whole: remove that folder"):
        pdfast.distill(tiny, out=tmp_path / "run", quiet=True)


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    wild = dataclasses.replace(
        tiny, train=dataclasses.replace(tiny.train, lr=1e30, grad_clip=0.0, warmup=0)
    )
    with pytest.raises(PdfastError, match="no longer finite at update 4; start again with a lower"):
        pdfast.distill(wild, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "teacher").exists()


def test_the_cost_of_a_jump_is_a_warning(straight, tiny, tmp_path, monkeypatch, capsys):
    from pdfast.frechet import Judge

    values = iter([1.0, 1.1, 2.0])
    monkeypatch.setattr(Judge, "judge", lambda *a: next(values, 1.0))
    pdfast.distill(tiny, out=tmp_path / "run")
    output = capsys.readouterr().out
    assert "warning: round 2: the distance jumped from 1.1 to 2" in output
    assert "round 1: the distance" not in output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_saves_and_exits(tiny_toml, tmp_path, signum):
    command = [sys.executable, "-m", "pdfast", "distill", "--config", str(tiny_toml)]
    command += ["--out", str(tmp_path / "run"), "--train.updates", "100000", "--threads", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob("state/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signum)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signum
    assert errors.count("\n") == 1
    assert f"pdfast: stopped by {signum.name}; teacher is saved at update" in errors
    (newest, *_) = sorted((tmp_path / "run" / "state").iterdir(), reverse=True)
    tensors, tables, _ = checkpoint.read(newest)
    assert tables["state.json"]["update"] > 0
    assert set(tensors) >= {"weights.safetensors", "moments.safetensors", "ema.safetensors"}


def test_a_signal_while_sampling_ends_the_report(straight, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    before = (copy / "report.json").read_text()
    monkeypatch.setattr(signals, "_requested", signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        pdfast.evaluate(copy, quiet=True)
    assert stopped.value.exit_code == 130
    assert (copy / "report.json").read_text() == before
