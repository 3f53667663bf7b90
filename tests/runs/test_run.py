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
from run_cases import assert_same_run, kept, metrics, stop_after, weights

import pdfast
from pdfast.console.progress import Screen
from pdfast.distributed import signals
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.models import checkpoint
from pdfast.storage import files
from pdfast.training import loop


def test_run_directory(straight):
    assert {p.name for p in straight.iterdir()} == {
        "config.toml",
        "eval-state",
        "log.txt",
        "metrics.jsonl",
        "report.json",
        "report.html",
        "report.md",
        "report.png",
        "report-evaluations.png",
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
    assert set(report) == {
        "metric", "floor", "floor_std", "images", "facts", "teacher", "student", "evaluations",
    }  # fmt: skip
    assert report["metric"] == "FD-pixel"
    assert report["images"] == 64
    assert set(report["teacher"]) == {"2", "4", "8"}
    assert set(report["student"]) == {"2", "4"}
    logged = metrics(straight)
    assert [m["update"] for m in logged if m["round"] == 0 and "loss" in m] == [4, 8, 12]
    needed = {"round", "update", "loss", "grad_norm", "lr"}
    assert all(needed <= set(m) for m in logged if "loss" in m)
    ends = [m for m in logged if "fixed_batch_loss_end" in m]
    assert [m["round"] for m in ends] == [0, 1, 2]
    assert ends[0]["fixed_batch_loss_end"] < ends[0]["fixed_batch_loss_start"]
    assert [m["round"] for m in logged if "distance" in m] == [0, 1, 2]
    assert checkpoint.load_model(straight / "round-02-steps-0002").steps == 2


def test_report_is_the_same_when_eval_writes_it_again(straight, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    for name in ("report.json", "report.md", "report.png", "report.html"):
        (copy / name).unlink()
    shutil.rmtree(copy / "eval-state")
    pdfast.evaluate(copy, quiet=True)
    assert (copy / "report.json").read_text() == (straight / "report.json").read_text()
    assert (copy / "report.md").is_file()
    assert (copy / "report.html").is_file()
    assert (copy / "report.png").is_file()


@pytest.mark.parametrize("updates", [5, 7, 15, 24])
def test_a_stopped_run_resumes_to_the_bit(straight, tiny, tmp_path, monkeypatch, updates):
    """In the teacher's phase and in rounds, at and between saved states and log lines."""
    with monkeypatch.context() as patch:
        stop_after(patch, updates)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM; .* is saved at update") as stopped:
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert stopped.value.exit_code == 143
    pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")
    assert not (tmp_path / "run" / "state").exists()


def test_two_interruptions_and_a_killed_update(straight, tiny, tmp_path, monkeypatch):
    """After a kill the run resumes from the last saved state; later metrics are dropped."""
    real, count = loop.update, iter(range(1, 1000))

    def crashing(*args):
        if next(count) == 9:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", crashing)
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
    with pytest.raises(
        UsageError, match=r"was started with train\.lr 0\.001 \(now 0\.5\): "
    ) as error:
        pdfast.distill(other, out=copy, quiet=True)
    assert str(error.value).endswith(
        f": to continue it as it was, pass config {copy}/config.toml and out {copy}; to use the "
        f"new value, choose another out, or delete {copy} and start over"
    )
    assert_same_run(straight, copy)


def test_another_value_of_the_rounds_may_keep_the_teacher(straight, tiny, tmp_path):
    """The advice of the message works: the config continues the run, or new rounds begin."""
    copy = shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(copy / "round-02-steps-0002")
    other = dataclasses.replace(tiny, distill=dataclasses.replace(tiny.distill, lr=0.5))
    with pytest.raises(UsageError, match=r"was started with distill\.lr .*") as error:
        pdfast.distill(other, out=copy, quiet=True)
    assert str(error.value).endswith(
        f"or delete {copy} ({copy}/round-* and {copy}/state alone, to keep the teacher) and start "
        "over"
    )
    pdfast.distill(copy / "config.toml", out=copy, quiet=True)
    assert_same_run(straight, copy)
    for path in copy.glob("round-*"):
        shutil.rmtree(path)
    before = (copy / "teacher" / "model.safetensors").read_bytes()
    pdfast.distill(other, out=copy, quiet=True)
    assert (copy / "teacher" / "model.safetensors").read_bytes() == before


def test_a_round_that_is_no_longer_in_the_plan_is_named(straight, tiny, tmp_path, capsys):
    copy = shutil.copytree(straight, tmp_path / "run")
    pdfast.distill(tiny, rounds=1, out=copy)
    last = copy / "round-02-steps-0002"
    assert (
        "round 2 is no longer in the plan (distill.rounds), and is not used; its model is kept in "
        f"{last}\n"
    ) in capsys.readouterr().out
    assert last.is_dir()


def test_a_teacher_stored_as_float16_is_the_same_on_resume(straight, tiny, tmp_path):
    # The run keeps it as float32, which has another fingerprint.
    half = tmp_path / "half"
    pdfast.save(pdfast.load(straight / "teacher"), half, half=True)
    one = dataclasses.replace(tiny, distill=dataclasses.replace(tiny.distill, rounds=1))
    pdfast.distill(one, teacher=half, out=tmp_path / "run", quiet=True)
    pdfast.distill(tiny, teacher=half, out=tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "round-02-steps-0002").is_dir()
    with pytest.raises(UsageError, match="already has another teacher"):
        pdfast.distill(tiny, teacher=straight / "teacher", out=tmp_path / "run", quiet=True)


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
    with pytest.raises(UsageError, match=r"distilled to 4 steps: pass distill\.start_steps 4"):
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


def test_metrics_that_are_gone_are_missed(straight, tiny, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=run, quiet=True)
    (run / "metrics.jsonl").unlink()
    capsys.readouterr()
    pdfast.distill(tiny, out=run, quiet=True)
    said = f"warning: {run}/metrics.jsonl lacks what round 0 logged up to update 5: it was removed"
    assert " ".join(capsys.readouterr().err.split()).count(said) == 1
    assert kept(run, "*/model.safetensors") == kept(straight, "*/model.safetensors")
    assert metrics(run) == metrics(straight)[-len(metrics(run)) :]


def test_updates_of_rounds_not_begun_may_change(straight, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)

    def with_updates(*pairs):
        changed = dataclasses.replace(tiny.distill, round_updates=pairs, rounds=3)
        return dataclasses.replace(tiny, distill=changed)

    with pytest.raises(UsageError, match=r"updates of the 4-step round 6 \(now 9\)"):
        pdfast.distill(with_updates((4, 9)), out=copy, quiet=True)
    more = dataclasses.replace(tiny, distill=dataclasses.replace(tiny.distill, updates=9))
    with pytest.raises(UsageError, match=r"was started with distill\.updates 6 \(now 9\): to"):
        pdfast.distill(more, out=copy, quiet=True)
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
    with pytest.raises(UsageError, match=r"is not empty and holds no run: choose another out$"):
        pdfast.distill(tiny, out=tmp_path / "project", quiet=True)
    assert [p for p in (tmp_path / "project").rglob("*") if p.is_file()] == [mine]


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
        model=dataclasses.replace(tiny.model, dropout=0.3, num_classes=10, parameterization="x"),
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


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    wild = dataclasses.replace(
        tiny, train=dataclasses.replace(tiny.train, lr=1e30, grad_clip=0.0, warmup=0)
    )
    message = "after update 1 the loss or the gradient was not finite 10 times in a row; .*a lower"
    with pytest.raises(PdfastError, match=message):
        pdfast.distill(wild, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "teacher").exists()


def test_the_cost_of_a_jump_is_a_warning(straight, tiny, tmp_path, monkeypatch, capsys):
    from pdfast.evaluation.evaluator import Evaluator

    values = iter([1.0, 1.1, 2.0])
    monkeypatch.setattr(
        Evaluator,
        "evaluate",
        lambda *_: (next(values, 1.0), torch.zeros(64, 8, 8, 1, dtype=torch.uint8)),
    )
    pdfast.distill(tiny, out=tmp_path / "run")
    output = capsys.readouterr().out
    assert "warning: round 2: the distance jumped from 1.1 to 2" in output
    assert "round 1: the distance" not in output


def test_a_real_signal_saves_and_exits(tiny_toml, tmp_path):
    command = [sys.executable, "-m", "pdfast", "distill", "--config", str(tiny_toml)]
    command += ["--out", str(tmp_path / "run"), "--train.updates", "100000", "--threads", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            while not list((tmp_path / "run").glob("state/*")) and run.poll() is None:
                time.sleep(0.05)
            run.send_signal(signal.SIGTERM)
            _, errors = run.communicate()
        finally:
            run.kill()
    assert run.returncode == 128 + signal.SIGTERM
    assert errors.count("\n") == 2  # that it was heard, and what was saved
    assert "pdfast: stopped by SIGTERM; teacher is saved at update" in errors
    (newest, *_) = sorted((tmp_path / "run" / "state").iterdir(), reverse=True)
    tensors, tables, _ = files.read(newest)
    assert tables["state.json"]["update"] > 0
    assert set(tensors) >= {"weights.safetensors", "moments.safetensors", "ema.safetensors"}


def test_a_signal_while_sampling_ends_the_report(straight, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    before = (copy / "report.json").read_text()
    monkeypatch.setattr(signals, "_requested", signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        pdfast.evaluate(copy, quiet=True)
    assert stopped.value.exit_code == 143
    assert (copy / "report.json").read_text() == before


def test_the_types_of_arguments_are_checked_before_anything_is_made(tiny, straight, tmp_path):
    out = tmp_path / "run"
    for arguments, message in (
        ({"rounds": 2.0}, "distill.rounds must be a whole number or a string, not 2.0"),
        ({"rounds": "2"}, r"must be a number of halvings, or the steps of each .*, not '2'"),
        ({"out": 3}, "out must be a path, not 3"),
        ({"out": "a\0b"}, "out must be a path, not"),
    ):
        with pytest.raises(UsageError, match=message):
            pdfast.distill(tiny, **({"out": out} | arguments), quiet=True)
    for arguments, message in (
        ({"steps": 4}, "eval.steps must be a list"),
        ({"steps": (2.5,)}, r"eval.steps\[0\] must be a whole number"),
        ({"precision": "fp8"}, "precision must be one of"),
    ):
        with pytest.raises(UsageError, match=message):
            pdfast.evaluate(straight, **arguments, quiet=True)
    assert not out.exists()


def test_a_teacher_does_not_come_into_a_run_that_another_one_began(
    tiny, straight, tmp_path, monkeypatch
):
    message = "has rounds or saved states, but not of .*: omit teacher and put back"
    begun = tmp_path / "begun"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=begun, quiet=True)
    states = sorted(p.name for p in (begun / "state").iterdir())
    with pytest.raises(UsageError, match=message):
        pdfast.distill(tiny, teacher=straight / "teacher", out=begun, quiet=True)
    assert sorted(p.name for p in (begun / "state").iterdir()) == states
    bereft = tmp_path / "bereft"
    shutil.copytree(straight, bereft)
    shutil.rmtree(bereft / "teacher")
    with pytest.raises(UsageError, match=message):
        pdfast.distill(tiny, teacher=straight / "teacher", out=bereft, quiet=True)
    assert not (bereft / "teacher").exists()


def test_who_asked_for_quiet_is_warned_on_stderr(capsys):
    screen = Screen(quiet=True)
    screen.say("all is well")
    screen.warn("it is not")
    assert capsys.readouterr() == ("", "warning: it is not\n")


def test_samples_that_are_not_finite_are_no_pictures(straight):
    model = pdfast.load(straight / "teacher")
    model.net.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(PdfastError, match="samples hold numbers that are not finite"):
        model.sample_images(2, 2)
