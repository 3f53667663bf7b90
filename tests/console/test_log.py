"""log.txt: every printed line, plain, with its time, over resumptions; it never stops the run."""

import dataclasses
import errno
import io
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime

import pytest
import torch
from run_cases import assert_same_run, stop_after

import pdfast
from pdfast.cli.main import main
from pdfast.console import progress
from pdfast.console.log import Log
from pdfast.console.progress import Screen
from pdfast.errors import PdfastError, Stopped
from pdfast.runs.run import Run
from pdfast.training import loop

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d "
NOW = datetime(2026, 3, 1, 12, 30, 5)


def lines(run):
    """Return the lines of a run's log without their times; each is whole."""
    text = (run / "log.txt").read_text("utf-8")
    assert text.endswith("\n")
    found = text.splitlines()
    assert all(re.match(STAMP, line) for line in found)
    assert [line[:25] for line in found] == sorted(line[:25] for line in found)
    return [re.sub(STAMP, "", line, count=1) for line in found]


def without_times(said):
    """Remove measurements of the machine from lines."""
    return [re.sub(r"\d+ images/s.*|in [\d.]+ s|[\d.]+ ms", "", line) for line in said]


@pytest.mark.usefixtures("handlers")
def test_what_the_screen_said_is_in_the_log(tiny_toml, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["distill", "--config", str(tiny_toml), "--out", str(run), "--threads", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert lines(run) == said
    assert sum("update " in line for line in said) >= 5
    assert main(["eval", str(run), "--threads", "1"]) == 0
    assert lines(run) == said + capsys.readouterr().out.splitlines()


def test_quiet_runs_and_resumptions(straight, tiny, tmp_path, monkeypatch, capsys):
    """With quiet=True only warnings are on the screen and everything in the log, run after run."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=run, quiet=True)
    before = lines(run)
    assert before[0].startswith("pdfast 0.")
    assert before[-1] == (
        "pdfast: stopped by SIGTERM; teacher is saved at update 7; the same command resumes from "
        "there"
    )
    pdfast.distill(tiny, out=run, quiet=True)
    said = capsys.readouterr()
    assert said.out == ""
    (warning,) = said.err.splitlines()
    assert warning.startswith("warning: the teacher's own quick distance, ")
    after = lines(run)
    assert after[: len(before)] == before
    assert after[len(before)].startswith("pdfast 0.")
    assert "teacher: resuming from update 7" in after
    assert_same_run(straight, run)
    # Together they have the lines of an uninterrupted run.
    losses = [line for line in without_times(lines(straight)) if ": update " in line]
    assert [line for line in without_times(after) if ": update " in line] == losses


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_progress_bar_is_plain_lines_in_the_log(tiny, straight, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    pdfast.distill(tiny, out=tmp_path / "run")
    shown = sys.stdout.getvalue()
    assert "\x1b[" in shown
    assert "grad norm" not in shown  # the bar shows progress instead
    found = lines(tmp_path / "run")
    assert not any("\x1b" in line for line in found)
    expected = [line.replace(str(straight), str(tmp_path / "run")) for line in lines(straight)]
    # Others may have evaluated that run since, or been refused.
    assert without_times(found) == without_times(expected)[: len(found)]
    assert found[-1].endswith(f"precision: float32, PyTorch {torch.__version__}")


def test_work_that_prints_nothing_else_says_how_far_it_is(tiny, tmp_path, monkeypatch, capsys):
    """Every 30 s, here 0 s, without a terminal."""
    monkeypatch.setattr(progress, "SILENT", 0.0)
    with Screen().task("sampling", 4) as task:
        for _ in range(3):
            task.advance()
    said = capsys.readouterr().out.splitlines()
    assert [re.sub(r"  .*/s  ETA \d+ s$", "", line) for line in said] == [
        f"sampling: {k}/4" for k in (1, 2, 3)
    ]
    monkeypatch.setattr(progress, "SILENT", 60.0)
    screen = Screen()
    with screen.task("sampling", 4) as task:
        monkeypatch.setattr(screen, "_printed", screen._printed - 61)
        task.advance()
        task.advance()  # the first broke the silence
        screen.say("another line")
        task.advance()
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr(progress, "SILENT", 0.0)
    with Screen(quiet=True).task("sampling", 4) as task:
        task.advance()
    assert capsys.readouterr().out == ""
    pdfast.train(tiny, out=tmp_path / "run")
    assert "teacher: 1/" in capsys.readouterr().out
    assert any(line.startswith("teacher: 1/") for line in lines(tmp_path / "run"))


def test_a_new_bar_soon_shows_a_loss(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(loop, "GLANCE", 2)
    notes = []
    monkeypatch.setattr(progress.Task, "note", lambda task, text: notes.append(text))
    pdfast.train(dataclasses.replace(tiny, log_every=5), out=tmp_path / "run")
    assert re.fullmatch(r"loss \d\S*", notes[0])
    assert len([note for note in notes if "updates/s" not in note]) == 1


def test_a_disk_without_room_for_the_log_does_not_end_the_run(straight, tiny, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "round-02-steps-0002")
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to("/dev/full")
    pdfast.distill(tiny, out=run, quiet=True)
    (run / "log.txt").unlink()
    assert_same_run(straight, run)
    message = (
        f"warning: {run}/log.txt cannot be written (no space left on device): the run continues"
    )
    assert " ".join(capfd.readouterr().err.split()).count(message) == 1


def test_a_log_that_cannot_be_opened(straight, tiny, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "log.txt").unlink()
    (run / "log.txt").mkdir()
    pdfast.distill(tiny, out=run, quiet=True)
    assert "log.txt cannot be written (is a directory)" in " ".join(capfd.readouterr().err.split())


def test_a_line_that_a_full_disk_or_a_kill_cut_short_goes(tmp_path, monkeypatch):
    """A half-written line is removed, and the lines after it are whole."""
    path, failures = tmp_path / "log.txt", []
    log = Log(path, failures.append)
    log.write("first", NOW)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, content: real(fd, content[: len(content) // 2]))
        log.write("second", NOW)
        log.write("third", NOW)
    log.write("fourth\nand fifth \x1b[31m \ud800", NOW)
    log.close()
    log.write("after the end", NOW)
    assert lines(tmp_path) == ["first", "fourth", "and fifth \\x1b[31m \\ud800"]
    assert [error.errno for error in failures] == [errno.ENOSPC]
    with path.open("ab") as file:
        file.write(b"2026-03-01 12:3")
    log = Log(path, failures.append)
    log.write("sixth", NOW)
    log.close()
    assert lines(tmp_path)[-2:] == ["and fifth \\x1b[31m \\ud800", "sixth"]


def test_what_is_said_before_there_is_a_run_is_in_its_log(tmp_path, capsys):
    screen = Screen()
    screen.say("early")
    screen.warn("odd")
    screen.open_log(tmp_path / "log.txt")
    screen.say("late")
    screen.close_log()
    screen.say("beyond")
    assert lines(tmp_path) == ["early", "warning: odd", "late"]
    assert capsys.readouterr().out == "early\nwarning: odd\nlate\nbeyond\n"


def test_why_a_run_was_refused_or_failed(straight, tiny, tmp_path, monkeypatch):
    """Foreseen errors are logged as one line; others, and all with --debug, with a traceback."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "teacher" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(PdfastError) as error:
        pdfast.distill(tiny, out=run, quiet=True, resume="strict")
    assert lines(run)[-1] == f"pdfast: {error.value}"
    assert not any("Traceback" in line for line in lines(run))
    monkeypatch.setenv("PDFAST_DEBUG", "1")
    with pytest.raises(PdfastError):
        pdfast.distill(tiny, out=run, quiet=True, resume="strict")
    assert any("Traceback" in line for line in lines(run))
    monkeypatch.delenv("PDFAST_DEBUG")

    def broken(*args):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(loop, "update", broken)
    with pytest.raises(ZeroDivisionError):
        pdfast.distill(tiny, out=tmp_path / "new", quiet=True)
    found = lines(tmp_path / "new")
    assert "Traceback (most recent call last):" in found
    assert found[-1] == "pdfast: unexpected ZeroDivisionError: of nothing (--debug shows where)"


def test_a_folder_with_a_log_alone_is_no_run(tiny, tmp_path):
    """The log is created after the config, so a start that fails before leaves no log."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("mine")
    with pytest.raises(PdfastError, match="is not empty and holds no run"):
        Run(tmp_path / "run", tiny, Screen(quiet=True)).start()
    assert (tmp_path / "run" / "log.txt").read_text() == "mine"


def test_a_removed_run_does_not_come_back_as_a_log(tiny, tmp_path):
    with Run(tmp_path / "run", tiny, Screen(quiet=True)).start() as run:
        shutil.rmtree(run.path)
        run.screen.say("to nobody")
    assert not run.path.exists()


def test_a_line_outlasts_a_kill(tmp_path):
    script = (
        "import os, pathlib, signal, sys; from pdfast.console.progress import Screen; "
        "s = Screen(True); s.open_log(pathlib.Path(sys.argv[1])); s.say('last'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "log.txt"], check=False)
    assert lines(tmp_path) == ["last"]
