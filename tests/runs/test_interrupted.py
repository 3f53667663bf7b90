"""Runs that are killed or stopped, then resumed, have the bits of uninterrupted ones."""

import json
import random
import re
import shutil
import signal

import pytest
from conftest import TINY
from run_cases import assert_same_run, assert_same_tensors, metrics

from pdfast.config.schema import Config, dump_config
from pdfast.config.serialization import from_table
from pdfast.errors import PdfastError
from pdfast.storage import files

WRITES = ("write", "torn")
EVERY_KIND = ("write", "update", "poll")

# 40 updates and more of each phase, and a sampler that costs little.
LONG = TINY | {
    "save_every": 10,
    "train": TINY["train"] | {"updates": 44},
    "distill": TINY["distill"] | {"start_steps": 8, "rounds": 2, "updates": 44},
    "eval": {"steps": [2], "baseline_steps": 2, "num": 2},
}
# All that a run writes, and little else.
SHORT = LONG | {
    "model": TINY["model"] | {"ch_mult": [1], "attn_resolutions": []},
    "log_every": 2,
    "save_every": 2,
    "train": TINY["train"] | {"updates": 5, "batch": 2},
    "distill": TINY["distill"] | {"start_steps": 4, "rounds": 1, "updates": 3, "batch": 2},
}
# Two rounds that choose among averages, and the second of which begins with the first's moments;
# the student takes the second step of its targets.
KEEPING = SHORT | {
    "distill": SHORT["distill"]
    | {"rounds": "4,2,1", "second": "student", "loss": "huber", "huber_c": 0.1}
    | {"ema_decays": [0.3, 0.9], "keep_moments": True},
    "eval": {"steps": [1], "baseline_steps": 1, "num": 2},
}


class Runs:
    """Runs of one config in one folder."""

    def __init__(self, server, folder, table):
        self.server, self.folder, self.table = server, folder, table
        (folder / "tiny.toml").write_text(dump_config(from_table(Config, table)))

    def distill(self, out, **event):
        arguments = ("distill", "--config", "tiny.toml", "--out", out, "--threads", 1)
        return self.server.call(self.folder, *arguments, **event)

    def snapshots(self, out, folder, kinds):
        """Do a whole run; return copies of what a kill at each event of these kinds would leave."""
        ended = self.distill(out, kinds=kinds, snapshots=folder)
        assert ended.code == 0
        total = sum(ended.events[kind] for kind in kinds)
        assert len(list(folder.iterdir())) == total
        return [Runs(self.server, folder / str(k), self.table) for k in range(1, total + 1)]

    def killed(self, out, **event):
        assert self.distill(out, signum=signal.SIGKILL, **event).code == -signal.SIGKILL

    def stopped(self, out, **event):
        ended = self.distill(out, signum=signal.SIGTERM, **event)
        assert ended.code == 128 + signal.SIGTERM, ended
        assert ended.errors.count("\n") == 2  # that it was heard, and what was saved
        return ended

    def straight(self):
        ended = self.distill("straight")
        assert ended.code == 0
        return ended.events


@pytest.fixture
def long(server, tmp_path):
    return Runs(server, tmp_path, LONG)


@pytest.fixture
def short(server, tmp_path):
    return Runs(server, tmp_path, SHORT)


@pytest.fixture
def keeping(server, tmp_path):
    return Runs(server, tmp_path, KEEPING)


def state_of(run):
    """Return the newest saved state."""
    return max((run / "state").iterdir())


@pytest.mark.parametrize("phase", ["train", "distill"])
@pytest.mark.parametrize("killed_at", [21, pytest.param(27, marks=pytest.mark.slow)])
def test_twenty_updates_a_kill_and_twenty_more(long, phase, killed_at):
    """Weights, moments, averages and metrics equal those of 40 straight updates."""
    before = 0 if phase == "train" else LONG["train"]["updates"]
    update = {"kinds": ["update"]}
    long.stopped("straight", number=before + 40, **update)
    long.killed("run", number=before + killed_at, **update)
    ended = long.stopped("run", number=20, **update)
    assert "resuming from update 20" in ended.output
    straight, run = long.folder / "straight", long.folder / "run"
    assert state_of(run).name.endswith("000000040")
    assert_same_tensors(state_of(straight), state_of(run))
    assert metrics(straight) == metrics(run)


@pytest.mark.slow
def test_a_kill_on_either_side_of_a_round_boundary(long):
    """Killed in round 1 and again in round 2; stopped in round 2, where both are compared."""
    update = {"kinds": ["update"]}
    teacher, round_ = LONG["train"]["updates"], LONG["distill"]["updates"]
    long.stopped("straight", number=teacher + round_ + 35, **update)
    long.killed("run", number=teacher + 33, **update)  # from update 30 of round 1
    long.killed("run", number=round_ - 30 + 15, **update)  # from update 10 of round 2
    long.stopped("run", number=25, **update)
    straight, run = long.folder / "straight", long.folder / "run"
    assert state_of(run).name == "round-02-update-000000035"
    assert_same_tensors(state_of(straight), state_of(run))
    assert_same_tensors(straight / "round-01-steps-0004", run / "round-01-steps-0004")
    assert metrics(straight) == metrics(run)


def phase_of(run):
    """Return where a killed run was: its models, moments and states."""
    first, second = (any(run.glob(f"round-0{k}-*/manifest.json")) for k in (1, 2))
    moments = sorted(int(p.parent.name[-2:]) for p in run.glob("state/moments-*/manifest.json"))
    states = max((p.parent.name[6:8] for p in run.glob("state/round-*/manifest.json")), default="")
    return first, second, tuple(moments), states


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("each", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kept_moments_and_averages_wherever_a_run_is_killed(keeping, tmp_path_factory, each):
    """Once in each part of a run: within rounds, and around each model, moments and states."""
    killed = keeping.snapshots("run", tmp_path_factory.mktemp("kept"), WRITES)
    straight, groups = keeping.folder / "straight", {}
    (keeping.folder / "run").rename(straight)
    for place in killed:
        groups.setdefault(phase_of(place.folder / "run"), []).append(place)
    between = {
        (False, False, (1,), "01"): "the moments are there, the model that they belong to is not",
        (True, False, (1,), "01"): "the round is finished, its last state still there",
        (True, False, (1,), ""): "and gone",
        (True, False, (1,), "02"): "the second round is begun",
        (True, False, (1, 2), "02"): "its moments are there, its model is not",
    }
    assert groups.keys() >= between.keys()
    for where in between if each > 1 else list(between)[::2]:
        for place in groups[where][:: max(1, len(groups[where]) // each)][:each]:
            assert place.distill("run").code == 0, where
            assert_same_run(straight, place.folder / "run")
    lines = metrics(straight)
    assert {"chosen", "distance_raw", "distance_0.3", "distance_0.9"} <= lines[-2].keys()


def test_a_round_is_made_again_from_the_moments_before_it_and_not_without(keeping):
    keeping.straight()
    run = keeping.folder / "straight"
    moments = sorted(p.name for p in (run / "state").iterdir())
    assert moments == ["moments-round-01", "moments-round-02"]
    before = (run / "round-01-steps-0002" / "model.safetensors").read_bytes()
    second = run / "round-02-steps-0001"
    weights = (second / "model.safetensors").read_bytes()
    shutil.rmtree(second)
    assert keeping.distill("straight").code == 0
    assert (second / "model.safetensors").read_bytes() == weights
    shutil.rmtree(second)
    shutil.rmtree(run / "state" / "moments-round-01")
    ended = keeping.distill("straight")
    assert ended.code == 1
    assert ended.errors == (
        "pdfast: round 2 begins with the moments of round 1 (distill.keep_moments), and "
        "straight/state/moments-round-01 is missing: restore it, remove all rounds in straight to "
        "have them made again, or choose another --out\n"
    )
    assert not (run / "round-02-steps-0001").exists()
    shutil.copytree(run, keeping.folder / "again")
    shutil.rmtree(keeping.folder / "again" / "round-01-steps-0002")
    assert keeping.distill("again").code == 0
    again = keeping.folder / "again"
    assert (again / "round-01-steps-0002" / "model.safetensors").read_bytes() == before
    shutil.rmtree(again / "round-02-steps-0001")
    shutil.rmtree(again / "state" / "moments-round-01")
    (again / "state" / "moments-round-02").rename(again / "state" / "moments-round-01")
    ended = keeping.distill("again")
    assert ended.code == 1
    assert "state.json has round 2, where 1 belongs: round 2 begins with these" in ended.errors


def test_a_kill_in_the_evaluation(short):
    polls = short.straight()["poll"]
    short.killed("run", kinds=["poll"], number=polls - 2)
    assert not (short.folder / "run" / "report.json").exists()
    assert short.distill("run").code == 0
    assert_same_run(short.folder / "straight", short.folder / "run")


def newest_whole(run):
    """Return the update to resume from: that of the newest state that passes its checks."""
    states = sorted((run / "state").glob("round-*"), reverse=True) if run.is_dir() else []
    for state in states:
        try:
            files.read(state)
        except PdfastError:
            continue
        round_, update = (int(state.name.split("-")[k]) for k in (1, 3))
        finished = "teacher" if round_ == 0 else f"round-{round_:02d}-*"
        return None if list(run.glob(f"{finished}/manifest.json")) else update
    return None


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("half", [0, 1])
def test_killed_at_every_step_of_the_write_path(short, tmp_path_factory, half):
    """The run resumes from the newest whole state, and ends with the bits of the straight run.

    One run records what a kill at each step would leave on the disk; at five steps this is compared
    with a real SIGKILL. Every eighth resumes to the end; for the others the first update suffices.
    """
    kept = short.snapshots("run", tmp_path_factory.mktemp("kept"), WRITES)
    straight, total, resumed = short.folder / "straight", len(kept), 0
    (short.folder / "run").rename(straight)
    assert total > 100
    for number in range(20 + half, total, total // 5):
        short.killed("run", kinds=WRITES, number=number)
        assert on_disk(short.folder / "run") == on_disk(kept[number - 1].folder / "run")
        shutil.rmtree(short.folder / "run")
    for number in range(1 + half, total + 1, 2):
        killed = kept[number - 1]
        run = killed.folder / "run"
        newest = newest_whole(run)
        stop = {"signum": signal.SIGTERM, "kinds": ["update"], "number": 1}
        ended = killed.distill("run", **({} if number // 2 % 8 == 0 else stop))
        assert ended.code in (0, 128 + signal.SIGTERM), (number, ended)
        assert newest is None or f"resuming from update {newest}\n" in ended.output, number
        resumed += newest is not None
        if ended.code == 0:
            assert_same_run(straight, run)
        shutil.rmtree(killed.folder)
    print(f"{total} steps, {resumed} of every second with a state to go on from")
    assert resumed > total / 8


def on_disk(run):
    """Return the names in a run, without process ids, and the bytes of models and states."""
    found = {}
    for path in (path for path in run.rglob("*") if path.is_file()):
        name = re.sub(r"/\.[-\w]+\.(tmp|old)\.", r"/.OWNER.\1.", str(path.relative_to(run.parent)))
        timed = "eval-state" in name  # what is kept there has the seconds that it took
        found[name] = path.read_bytes() if path.suffix == ".safetensors" and not timed else b""
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_thirty_random_moments(short, signum):
    """In training, sampling, evaluation and saving; a state saved at that time is whole."""
    events = short.straight()
    draw, said = random.Random(0), []
    for _ in range(30):
        kind = draw.choice(EVERY_KIND)
        # After the last poll come the report's files, and the run ends well.
        most = events["heard" if kind == "write" else kind]
        event = {"kinds": [kind], "number": draw.randint(1, most)}
        run = short.folder / "run"
        if signum == signal.SIGKILL:
            short.killed("run", **event)
        else:
            said.append(short.stopped("run", **event).errors)
        for state in (run / "state").glob("round-*"):
            files.read(state)
        assert short.distill("run").code == 0
        assert_same_run(short.folder / "straight", run)
        shutil.rmtree(run)
    for what in ("teacher is saved", "round 1/1 (2 steps) is saved", "finished models are whole"):
        assert signum == signal.SIGKILL or any(what in line for line in said), said


@pytest.mark.parametrize("number", [1, 3])
def test_a_signal_leaves_the_last_report_whole(short, number):
    events = short.straight()
    before = (short.folder / "straight" / "report.json").read_text()
    command = ("eval", "straight", "--steps", 1, 2, "--threads", 1)
    ended = short.server.call(
        short.folder, *command, signum=signal.SIGINT, kinds=["poll"], number=number
    )
    assert ended.code == 128 + signal.SIGINT, (events, ended)
    assert (short.folder / "straight" / "report.json").read_text() == before


def test_a_hangup_right_after_the_first_signal_is_no_second_one(short):
    """The end of a login session sends SIGTERM and SIGHUP together."""
    event = {"kinds": ["update"], "number": 3, "then": int(signal.SIGHUP)}
    ended = short.stopped("run", **event)
    assert "teacher is saved at update 3" in ended.errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_other_signals_that_ask_to_stop(short, signum):
    ended = short.distill("run", signum=signum, kinds=["update"], number=3)
    assert ended.code == 128 + signum
    assert f"stopped by {signum.name}; teacher is saved at update 3" in ended.errors


def test_the_second_signal_ends_it_at_once(short):
    """Both come in the first update, which alone would delay the first until its end."""
    ended = short.server.call(
        short.folder, "distill", "--config", "tiny.toml", "--out", "run", "--threads", 1,
        signum=signal.SIGTERM, kinds=["update"], number=3, then=int(signal.SIGTERM),
        apart=2,
    )  # fmt: skip
    assert ended.code == -signal.SIGTERM
    assert ended.errors.endswith("second signal: ended at once\n")
    assert json.loads((state_of(short.folder / "run") / "state.json").read_text())["update"] == 2
