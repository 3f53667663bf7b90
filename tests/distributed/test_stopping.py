"""Calls from Python that are asked to stop: the state is saved, the caller's handlers restored."""

import os
import shutil
import signal
import threading

import pytest
from run_cases import assert_same_run

import pdfast
from pdfast.distributed import signals
from pdfast.errors import UsageError
from pdfast.evaluation import sweep
from pdfast.evaluation.report import write
from pdfast.training import loop

ENGINE = loop.update
WAIT = 60  # seconds for another thread that only has to send a signal


def of_the_callers(signum, frame):
    raise AssertionError(f"signal {signum} came to the caller's handler")


@pytest.fixture(autouse=True)
def handlers():
    """Handlers of the caller, which every call restores; the test ends with default ones."""
    mine = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: of_the_callers}
    mine |= {signal.SIGUSR1: of_the_callers, signal.SIGHUP: signal.SIG_IGN}
    before = {signum: signal.signal(signum, handler) for signum, handler in mine.items()}
    yield mine
    now = {signum: signal.getsignal(signum) for signum in mine}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert now == mine
    assert signals._requested == 0


def sent(*signums):
    """Have another thread send signals to this process, and wait until they have arrived."""
    asked, done = threading.Event(), threading.Event()

    def send():
        assert asked.wait(WAIT)
        for signum in signums:
            os.kill(os.getpid(), signum)
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        asked.set()
        assert done.wait(WAIT)
    finally:
        thread.join()


def at_update(monkeypatch, number, act):
    """Call `act` during update `number`, counted from 1."""
    count = iter(range(1, 1000))

    def counted(*args):
        if next(count) == number:
            act()
        return ENGINE(*args)

    monkeypatch.setattr(loop, "update", counted)


def update_saved(run):
    return max(path.name for path in (run / "state").iterdir())


# ------------------------------------------------------------------------------------------
# Signals


def test_ctrl_c_in_training_and_in_a_round(straight, tiny, tmp_path, monkeypatch):
    """Then the same call ends at the bits of an undisturbed one."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_update(patch, 7, lambda: sent(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="by SIGINT; teacher is saved at update 7; the"):
            pdfast.train(tiny, out=run, quiet=True)
    assert update_saved(run) == "round-00-update-000000007"
    with monkeypatch.context() as patch:
        at_update(patch, 5 + 3, lambda: sent(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match=r"round 1/2 \(4 steps\) is saved at update 3"):
            pdfast.distill(tiny, out=run, quiet=True)
    assert update_saved(run) == "round-01-update-000000003"
    pdfast.distill(tiny, out=run, quiet=True)
    assert_same_run(straight, run)


def test_sigterm(tiny, tmp_path, monkeypatch):
    at_update(monkeypatch, 3, lambda: sent(signal.SIGTERM))
    with pytest.raises(pdfast.Stopped, match="stopped by SIGTERM; teacher is saved at") as stopped:
        pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    assert (stopped.value.signum, stopped.value.exit_code) == (signal.SIGTERM, 143)
    assert isinstance(stopped.value, pdfast.PdfastError)
    assert update_saved(tmp_path / "run") == "round-00-update-000000003"


def unsampled(straight, run):
    """Return a copy of a finished run, whose evaluation begins anew."""
    return shutil.copytree(straight, run, ignore=shutil.ignore_patterns("eval-state"))


@pytest.mark.parametrize(
    ("signum", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, pdfast.Stopped)]
)
def test_in_an_evaluation(straight, tmp_path, monkeypatch, signum, kind):
    """The old report stays, samples are kept, and the same call writes the same."""
    run = unsampled(straight, tmp_path / "run")
    before = (run / "report.json").read_text()
    real = sweep.EvalState.keep

    def keep(self, *args):
        real(self, *args)
        sent(signum)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.EvalState, "keep", keep)
        with pytest.raises(kind, match="finished models are whole; the same command resumes"):
            pdfast.evaluate(run, quiet=True)
    assert len(list(run.glob("eval-state/*/samples-*"))) == 1
    assert (run / "report.json").read_text() == before
    pdfast.evaluate(run, quiet=True)
    assert (run / "report.json").read_text() == before
    assert not list(run.glob("eval-state/*/samples-*"))


def test_a_signal_that_comes_twice_at_once_is_one(tiny, tmp_path, monkeypatch, capfd):
    """As from GNU timeout, which signals its child and then its group."""
    at_update(monkeypatch, 7, lambda: sent(signal.SIGINT) or sent(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="by SIGINT; teacher is saved at update 7"):
        pdfast.train(tiny, out=tmp_path / "run", quiet=True)
    assert update_saved(tmp_path / "run") == "round-00-update-000000007"
    assert capfd.readouterr().err == (
        "SIGINT: stopping after the current step (a second signal or Ctrl-C ends it at once)\n"
    )


def test_the_second_ctrl_c_is_not_waited_for(tiny, tmp_path, monkeypatch, capfd):
    """Both arrive within one update, after which the first would be heard."""
    monkeypatch.setattr(signals, "TOGETHER", 0.0)  # as if the second came later
    at_update(monkeypatch, 7, lambda: sent(signal.SIGINT) or sent(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as interrupt:
        pdfast.train(tiny, out=tmp_path / "run", quiet=True)
    assert str(interrupt.value) == ""  # Python's own
    assert capfd.readouterr().err.endswith("second signal: ended at once\n")
    assert update_saved(tmp_path / "run") == "round-00-update-000000005"
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_second_sigterm_goes_to_the_callers_handler(tiny, tmp_path, monkeypatch):
    """At once; a default handler would end the process, as in a command."""
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    at_update(monkeypatch, 7, lambda: sent(signal.SIGTERM) or sent(signal.SIGTERM))
    with pytest.raises(AssertionError, match="signal 15 came to the caller's handler"):
        pdfast.train(tiny, out=tmp_path / "run", quiet=True)
    assert update_saved(tmp_path / "run") == "round-00-update-000000005"


def test_a_signal_that_comes_too_late_is_the_callers(straight, tmp_path, monkeypatch):
    """After the work's last poll, the report is written and the signal not lost."""
    run = shutil.copytree(straight, tmp_path / "run")
    (run / "report.json").unlink()
    real = write.as_json

    def as_json(*args):
        sent(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(write, "as_json", as_json)
    with pytest.raises(KeyboardInterrupt):
        pdfast.evaluate(run, quiet=True)
    assert (run / "report.json").read_text() == (straight / "report.json").read_text()


def test_a_signal_beside_an_error_is_the_callers(tiny, tmp_path, monkeypatch):
    def fail():
        sent(signal.SIGINT)
        raise RuntimeError("of the update")

    at_update(monkeypatch, 2, fail)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        pdfast.train(tiny, out=tmp_path / "run", quiet=True)
    assert str(interrupt.value.__context__) == "of the update"


def test_whose_handlers_are_there(tiny, tmp_path, monkeypatch, handlers):
    """During a call, and after one that ends well, is refused, or fails; ignored stays ignored."""
    seen = []

    def look():
        seen.append({signum: signal.getsignal(signum) for signum in handlers})

    def fail():
        look()
        raise RuntimeError("of the update")

    with monkeypatch.context() as patch:
        at_update(patch, 2, look)
        pdfast.train(tiny, out=tmp_path / "run", quiet=True)
        assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
        at_update(patch, 2, fail)
        with pytest.raises(RuntimeError, match="of the update"):
            pdfast.train(tiny, out=tmp_path / "other", quiet=True)
        assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        at_update(patch, 2, look)
        pdfast.train(tiny, out=tmp_path / "third", quiet=True)
        signal.signal(signal.SIGUSR1, of_the_callers)
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])
    mine = {signum for signum, handler in seen[0].items() if handler is signals._on_signal}
    assert mine == {signal.SIGINT, signal.SIGTERM}
    assert seen[1] == seen[0]
    mine = {signum for signum, handler in seen[2].items() if handler is signals._on_signal}
    assert mine == {signal.SIGTERM, signal.SIGUSR1}
    assert seen[2][signal.SIGINT] is signal.SIG_IGN
    with pytest.raises(UsageError):
        pdfast.evaluate(tmp_path / "absent")


# ------------------------------------------------------------------------------------------
# stop=


def in_a_thread(call):
    """Make a call in a thread that is not the main one; return its result, or raise its error."""
    found = []

    def run():
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_stop_from_another_thread(straight, tiny, tmp_path, monkeypatch, handlers):
    """Such a call touches no handler, and ignores a signal to the main thread."""
    run, asked = tmp_path / "run", threading.Event()

    def act():
        assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
        monkeypatch.setattr(signals, "_requested", signal.SIGTERM)
        asked.set()

    with monkeypatch.context() as patch:
        at_update(patch, 7, act)
        given = {"out": run, "quiet": True, "threads": 1, "stop": asked.is_set}
        stopped = in_a_thread(lambda: pdfast.distill(tiny, **given))
    monkeypatch.setattr(signals, "_requested", 0)
    assert type(stopped) is pdfast.Stopped
    assert str(stopped) == (
        "stopped as stop() asked; teacher is saved at update 7; the same command resumes from there"
    )
    assert (stopped.signum, stopped.exit_code) == (0, 1)
    assert update_saved(run) == "round-00-update-000000007"
    again = in_a_thread(lambda: pdfast.distill(tiny, out=run, quiet=True, threads=1))
    assert again.steps == 2
    assert_same_run(straight, run)


def test_a_thread_does_not_hear_signals(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_requested", signal.SIGTERM)
    model = in_a_thread(lambda: pdfast.train(tiny, out=tmp_path / "run", quiet=True, threads=1))
    assert isinstance(model, pdfast.Model)
    monkeypatch.setattr(signals, "_requested", 0)


def test_stop_is_asked_at_every_update_and_at_every_step(tiny, straight, tmp_path, monkeypatch):
    """In the main thread too; and not after the call."""
    made, real = [], loop.update
    monkeypatch.setattr(loop, "update", lambda *args: made.append(1) or real(*args))
    with pytest.raises(pdfast.Stopped, match="teacher is saved at update 5"):
        pdfast.train(tiny, out=tmp_path / "run", quiet=True, stop=lambda: len(made) == 5)
    assert len(made) == 5
    run = unsampled(straight, tmp_path / "other")
    asked = iter(range(10**6))
    pdfast.evaluate(run, quiet=True, stop=lambda: next(asked) < 0)
    times = next(asked)
    shutil.rmtree(run / "eval-state")
    assert times > 2 + 4 + 8 + 2 + 4  # sampling steps of teacher and students
    with pytest.raises(pdfast.Stopped, match=r"as stop\(\) asked; finished models are whole"):
        pdfast.evaluate(run, quiet=True, stop=lambda: next(asked) == times + 15)
    pdfast.evaluate(run, quiet=True)
    assert next(asked) == times + 16


def test_an_error_of_stop_is_the_callers(tiny, tmp_path):
    with pytest.raises(ZeroDivisionError):
        pdfast.train(tiny, out=tmp_path / "run", quiet=True, stop=lambda: 1 / 0)
    with pytest.raises(UsageError, match="stop must be a function without arguments that returns"):
        pdfast.train(tiny, out=tmp_path / "run", quiet=True, stop=True)
    assert not (tmp_path / "run").exists()
