"""A process that stops answering ends the run, in time; one that is busy does not."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
import torchrun
from pair import Pair, variables
from run_cases import assert_same_run

from pdfast.distributed import board, collectives, heartbeat, joining
from pdfast.distributed.heartbeat import BEATS, MISSED, ProcessLost, Silence
from pdfast.errors import UsageError
from pdfast.storage import files


def silent(rank, timeout):
    """Return the message about a silent process of two."""
    return (
        f"process {rank} of 2 does not answer within --timeout {timeout} s: the process, its "
        "machine or the network has stopped; the last saved state is whole, and the same command "
        "resumes from there"
    )


def one_of(monkeypatch, size):
    """Act as process 1 of `size`."""
    for name, value in variables(1, size).items():
        monkeypatch.setenv(name, value)


# ------------------------------------------------------------------------------------------
# One process


def test_silence_is_counted_in_beats_of_who_listens():
    """A suspended job, all of whose processes were silent for hours, therefore continues."""
    silence = Silence([1, 2, 3])
    for _ in range(MISSED):
        silence.heard(2)
        assert silence.beat() is None
    silence.left(1)
    silence.heard(2)
    assert silence.beat() == 3
    silence.left(3)
    assert silence.beat() is None
    silence.left(2)
    assert silence.beat() is None
    assert MISSED + 1 < BEATS  # within the timeout, with some time left for the end


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), 1e7])
def test_a_timeout_that_is_none(timeout):
    told = pytest.raises(UsageError, match=r"timeout must be in 1 .. 1000000 seconds, not")
    with told, collectives.session("cpu", 1, timeout=timeout):
        pytest.fail("went on")


def test_one_that_does_not_start(monkeypatch):
    one_of(monkeypatch, 4)
    store = dist.HashStore()
    message = r"processes 0, 2, 3 of 4 did not start within 0.1 s: find out what delays"
    with pytest.raises(ProcessLost, match=message):
        joining._meet(store, 1, 4, lambda: None, 0.1)
    with pytest.raises(ProcessLost, match="another process of this run has ended"):
        joining._meet(store, 2, 4, lambda: None, 600.0)  # this one comes too late


def test_one_that_stops_while_the_others_connect(monkeypatch):
    one_of(monkeypatch, 2)
    told, ended = [], threading.Event()

    def give_up(error):
        told.append(str(error))
        ended.set()

    monkeypatch.setattr(joining, "give_up", give_up)
    with joining._connecting(0.05):
        assert ended.wait(60)
    with joining._connecting(0.05):
        pass  # in time
    message = "the 2 processes of this run did not connect within 0.05 s: one has stopped, or"
    assert [text[: len(message)] for text in told] == [message]


def test_what_is_said_does_not_wait_for_a_board_that_is_gone(monkeypatch):
    class Gone:
        def add(self, *_):
            threading.Event().wait()

    one_of(monkeypatch, 2)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(board, "store", Gone)
    monkeypatch.setattr(board, "ANSWER", 0.05)
    monkeypatch.setattr(board, "_said", set())
    assert board.first_to_say("it is gone")
    assert not board.first_to_say("it is gone")  # this process has already said it


# ------------------------------------------------------------------------------------------
# Two processes


@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_stops_ends_the_run_and_one_that_works_does_not(tmp_path, stopped):
    """Process 0 holds the store here, which stops with it."""
    timeout = 2

    def work():
        end = time.monotonic() + 1.1 * timeout
        while time.monotonic() < end:
            sum(range(10**5))

    def member(rank):
        with collectives.session("cpu", 1, timeout=timeout):
            if stopped == 0:
                collectives.from_first(work)
            Path(f"ready-{rank}").touch()
            while True:
                collectives.largest(0)

    with Pair(tmp_path, member) as pair:
        pair.until("ready")
        os.kill(pair.pids[stopped], signal.SIGSTOP)
        codes, left = pair.codes(), 1 - stopped
        assert codes[left] == 1, pair.said()
        assert codes[stopped] == -signal.SIGKILL
        assert pair.said()[left] == f"pdfast: {silent(stopped, timeout)}\n"
        assert pair.raised(left) == silent(stopped, timeout)


def test_one_that_is_held_up_elsewhere_is_ended_in_time(tmp_path):
    """As by a GPU that waits for the stopped process's GPU."""

    def member(rank):
        with collectives.session("cpu", 1, timeout=2):
            Path(f"ready-{rank}").touch()
            threading.Event().wait()

    with Pair(tmp_path, member) as pair:
        pair.until("ready")
        os.kill(pair.pids[1], signal.SIGSTOP)
        assert pair.codes() == [1, -signal.SIGKILL]
        assert pair.said() == [f"pdfast: {silent(1, 2)}\n", ""]


def test_one_that_stops_in_leaving(tmp_path):
    """Everything is done and written, but no launcher would end."""

    def member(rank):
        real = heartbeat.Heartbeat.close

        def close(self, word):
            if rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            real(self, word)

        heartbeat.Heartbeat.close = close
        with collectives.session("cpu", 1, timeout=2):
            pass

    with Pair(tmp_path, member) as pair:
        assert pair.codes() == [1, -signal.SIGKILL]
        assert pair.said() == [f"pdfast: {silent(1, 2)}\n", ""]


@pytest.mark.slow
def test_a_job_that_is_stopped_as_a_whole_goes_on(tmp_path):
    """As schedulers do to make room, for longer than the timeout."""
    timeout = 2

    def member(rank):
        with collectives.session("cpu", 1, timeout=timeout):
            Path(f"ready-{rank}").touch()
            while not collectives.largest(int(Path("enough").exists())):
                time.sleep(0.01)

    with Pair(tmp_path, member) as pair:
        pair.until("ready")
        for pid in pair.pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * timeout)
        for pid in pair.pids:
            os.kill(pid, signal.SIGCONT)
        end = time.monotonic() + 2 * timeout  # and is still heard
        while time.monotonic() < end:
            time.sleep(0.1)
        (tmp_path / "enough").touch()
        assert pair.codes() == [0, 0], pair.said()


# The command line, in a process that stops itself in its 7th update if it is the chosen one.
STOPS = f"""
import os, pathlib, signal, sys, time
from pdfast.training import loop
from pdfast.__main__ import main

left = 7
signal.alarm({torchrun.ALARM})

def counted(*args, real=loop.update):
    global left
    left -= 1
    if left == 0 and os.environ["RANK"] == sys.argv[1]:
        pathlib.Path("stopped").write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*args)

loop.update = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_stopped_goes_on_from_its_last_state(tiny_toml, tmp_path):
    """Each process once, by torchrun; then the bits of an undisturbed run."""
    timeout, states = 30, tmp_path / "run" / "state"
    (tmp_path / "stops.py").write_text(STOPS)

    def train(out, stops):
        args = ("train", "--config", tiny_toml, "--threads=1", f"--timeout={timeout}", "--out", out)
        args += ("--eval.steps", 2, "--eval.baseline-steps", 2)
        return torchrun.run(tmp_path, "stops.py", stops, *args)

    for stopped, kept in ((0, [5]), (1, [5, 10])):  # in update 7, and in update 12
        _, said, codes, errors = train("run", stopped)
        since = time.monotonic() - float((tmp_path / "stopped").read_text())
        print(f"torchrun ended {since:.1f} s after the stop")
        assert since < timeout
        assert codes == {stopped: -signal.SIGKILL, 1 - stopped: 1}, errors
        assert said == [f"pdfast: {silent(stopped, timeout)}"]
        names = {f"round-00-update-{update:09d}" for update in kept}
        assert {state.name for state in states.iterdir()} == names
        for name in names:
            files.read(states / name)
    again, straight = (train(out, "none") for out in ("run", "straight"))
    assert again.codes == straight.codes == {}, (again.errors, straight.errors)
    assert "resuming from update 10\n" in again.output
    assert_same_run(tmp_path / "straight", tmp_path / "run")
