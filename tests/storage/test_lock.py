"""One process at a time in a run directory; the lock of a dead process is taken over."""

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from pdfast.cli.main import main
from pdfast.console.progress import Screen
from pdfast.errors import PdfastError
from pdfast.runs.run import Run
from pdfast.storage.lock import Lock


def no_warning(text):
    pytest.fail(text)


def test_the_file_says_whose_it_is_and_goes(tmp_path):
    lock = Lock(tmp_path, no_warning)
    owner = json.loads((tmp_path / ".lock").read_text())
    assert owner["pid"] == os.getpid()
    assert owner["host"] == platform.node()
    assert lock.is_ours()
    message = rf"is in use by process {os.getpid()} on {platform.node()} since 20.*: wait for it"
    with pytest.raises(PdfastError, match=message):
        Lock(tmp_path, no_warning)
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())
    Lock(tmp_path, no_warning).release()


def test_two_runs_of_one_process_are_refused_too(tiny, tmp_path):
    with Run(tmp_path / "run", tiny, Screen(quiet=True)).start() as run:
        other = Run(tmp_path / "run", tiny, Screen(quiet=True))
        for take in (other.start, other.open):
            with pytest.raises(PdfastError, match=r"run is in use by process"):
                take()
        run.log(round=0)
    with Run(tmp_path / "run", tiny, Screen(quiet=True)).start():
        pass


def test_a_refused_start_leaves_no_lock(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "_take_up", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "run", tiny, Screen(quiet=True)).start()
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff" * 9000])
def test_a_file_left_over_is_no_lock(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    said = []
    Lock(tmp_path, said.append).release()
    expected = f"{tmp_path}: its last process (an unknown process) ended without releasing the lock"
    assert [text[: len(expected)] for text in said] == [expected] * bool(content)


def test_a_file_removed_between_opening_and_locking(tmp_path, monkeypatch):
    """Its owner unlinks the file at the end; only the file with that name may be locked."""
    first, real = Lock(tmp_path, no_warning), fcntl.flock

    def late(file, how):
        if first._file is not None:
            first.release()
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = Lock(tmp_path, no_warning)
    assert second.is_ours()
    with pytest.raises(PdfastError, match="is in use by process"):
        Lock(tmp_path, no_warning)


def test_never_two_at_once(tmp_path):
    """Processes that take and release the lock in a tight loop count to their common sum."""
    count = tmp_path / "count"
    count.write_text("0")
    children = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            left = 40
            try:
                while left:
                    try:
                        lock = Lock(tmp_path, lambda text: None)
                    except PdfastError:
                        continue
                    count.write_text(str(int(count.read_text()) + 1))
                    left -= 1
                    lock.release()
            finally:  # whatever it met, it must not go on as a second pytest
                os._exit(left)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert count.read_text() == "120"
    assert [p.name for p in tmp_path.iterdir()] == ["count"]


def test_a_file_system_without_locks(tiny, tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said, screen = [], Screen(quiet=True)
    screen.warn = said.append
    with Run(tmp_path / "run", tiny, screen).start() as run:
        run.log(round=0)
    assert len(said) == 1
    assert "its file system has no locks (no locks available)" in said[0]
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.usefixtures("handlers")
def test_a_second_process_and_a_dead_owner(tiny_toml, tmp_path, capsys):
    args = ["--config", str(tiny_toml), "--out", str(tmp_path / "run"), "--threads", "1"]
    first = [sys.executable, "-m", "pdfast", "train", *args, "--train.updates", "1000000"]
    with subprocess.Popen(first, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout.readline().startswith("pdfast ")  # said with the lock in hand
            before = (tmp_path / "run" / "config.toml").read_text()
            for command in (["train", *args], ["distill", *args], ["eval", args[3]]):
                assert main(command) == 1
                said = capsys.readouterr().err
                assert f"is in use by process {owner.pid} on {platform.node()} since" in said
                assert said.count("\n") == 1
            assert (tmp_path / "run" / "config.toml").read_text() == before
        finally:
            owner.send_signal(signal.SIGKILL)
    assert (tmp_path / "run" / ".lock").is_file()
    assert main(["train", *args, "--train.updates", "1000000", "--resume", "never"]) == 2
    capsys.readouterr()
    assert main(["eval", args[3]]) != 0  # no teacher yet
    said = capsys.readouterr().out
    assert f"its last process (process {owner.pid} on {platform.node()} since" in said
    assert "ended without releasing the lock; taking over" in said
    assert not (tmp_path / "run" / ".lock").exists()
