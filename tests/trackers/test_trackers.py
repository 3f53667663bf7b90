"""TensorBoard and W&B have all of a run's points, each once, and do not affect the run."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchrun
from conftest import TINY
from run_cases import assert_same_run, assert_same_tensors
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from tracked import events, history, sessions, shown

import pdfast
from pdfast import trackers
from pdfast.cli.main import main
from pdfast.config.schema import Config
from pdfast.config.serialization import from_table
from pdfast.errors import UsageError
from pdfast.trackers import Axis, tracking
from pdfast.trackers.follow import Follower
from pdfast.trackers.tracking import Tracking
from pdfast.training import loop

BOTH = ("tensorboard", "wandb")
BEFORE = {0: 0, 1: 12, 2: 18}  # updates before the phases of the tiny run, which has 30
END = 30


class BrokenOffError(Exception):
    """Ends a run without a saved state, as SIGKILL would, except that its trackers are closed."""


def at_update(monkeypatch, number, act):
    """Call `act` before update `number` of the run, counted from 1 in this process."""
    real, count = loop.update, iter(range(1, 1000))

    def counted(*args):
        if next(count) == number:
            act()
        return real(*args)

    monkeypatch.setattr(loop, "update", counted)


def breaks():
    raise BrokenOffError


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run interrupted at update 10 of round 2, after lines 4 and 8, that repeats line 8."""
    path, config = tmp_path_factory.mktemp("tracked") / "run", from_table(Config, TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(tracking, "HURRY", tracking.UPLOAD)  # W&B is slow to end a run
        with patch.context() as once:
            at_update(once, BEFORE[2] + 10, breaks)
            with pytest.raises(BrokenOffError):
                pdfast.distill(config, out=path, quiet=True, track=BOTH)
        shutil.copytree(path, path.with_name("broken"))
        pdfast.distill(config, out=path, quiet=True, track=BOTH)
    return path


def logged(run):
    """{name: [(global update, value)]} of metrics.jsonl."""
    found = defaultdict(list)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        round_, _ = values.pop("round"), values.pop("steps", None)
        step = BEFORE[round_] + values.pop(
            "update", (BEFORE | {3: END})[round_ + 1] - BEFORE[round_]
        )
        group = "updates" if "lr" in values else "rounds"
        if group == "updates":
            found["updates/round"].append((step, round_))
        for key, value in values.items():
            found[f"{group}/{key}"].append((step, value))
    return dict(found)


def test_the_run_is_what_it_is_without_them(tracked, straight):
    assert_same_run(straight, tracked)


def test_tensorboard_shows_each_point_once(tracked):
    scalars, images, texts = events(tracked)
    expected = logged(tracked)
    assert len(expected["updates/loss"]) == 8
    assert scalars.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in scalars[tag]] == [step for step, _ in points], tag
        np.testing.assert_allclose([v for _, v in scalars[tag]], [v for _, v in points], 1e-6)
    samples = tracked / "samples"
    names = ("round-01-steps-0004.png", "round-02-steps-0002.png")
    pictures = [(samples / name).read_bytes() for name in names]
    assert images["samples/rounds"] == list(zip((18, END), pictures, strict=True))
    assert images["samples/compare"] == [(END, (samples / "compare.png").read_bytes())]
    assert images["report/distances"] == [(END, (tracked / "report.png").read_bytes())]
    assert "start_steps = 8" in texts["config"][0][1]
    assert "| steps = network calls | teacher | student |" in texts["report"][0][1]
    assert len(list((tracked / "tensorboard").iterdir())) == 1


def test_wandb_has_one_run_of_two_sessions_and_each_point_once(tracked):
    (first, before), (second, after) = sessions(tracked)
    runs = [r.run for records in (before, after) for r in records if r.HasField("run")]
    assert len({run.run_id for run in runs}) == 1
    assert {(run.project, run.display_name) for run in runs} == {("pdfast", "run")}
    assert any("start_steps" in item.value_json for item in runs[0].config.update)
    exits = [r.exit.exit_code for records in (before, after) for r in records if r.HasField("exit")]
    assert exits == [1, 0]
    found = defaultdict(list)
    for step, row in [*history(before), *history(after)]:
        for key, value in row.items():
            if re.fullmatch(r"(updates|rounds)/\w+", key):
                found[key].append((step, value))
    # A line logged before the break and repeated after it keeps its first speed.
    exact = {key for key in found if not key.endswith(("per_s", "_mb", "seconds"))}
    assert len(exact) == 11
    expected = logged(tracked)
    assert found.keys() == expected.keys()
    for key in exact:
        assert found[key] == expected[key]
    assert [step for step, _ in found["updates/loss"]] == [4, 8, 12, 16, 18, 22, 26, END]
    assert history(after)[0][0] == END  # 22 and 26 were logged before the break
    sent = {}
    for folder, records in ((first, before), (second, after)):
        for step, row in history(records):
            sent |= {
                (step, key.removesuffix(".path")): folder / "files" / value
                for key, value in row.items()
                if key.endswith(".path") and "artifact" not in key
            }
    samples = tracked / "samples"
    for key, ours in {
        (18, "samples/rounds"): samples / "round-01-steps-0004.png",
        (END, "samples/rounds"): samples / "round-02-steps-0002.png",
        (END, "samples/compare"): samples / "compare.png",
        (END, "report/page"): tracked / "report.html",
    }.items():
        assert sent.pop(key).read_bytes() == ours.read_bytes()
    table = json.loads(sent.pop((END, "report/distances")).read_text())
    assert table["columns"] == ["steps", "model", "FD-pixel"]
    assert [row[:2] for row in table["data"]][-2:] == [[2, "student"], [4, "student"]]
    assert not sent


def test_a_tracker_that_comes_late_has_all_of_it(tracked, tmp_path):
    """Follow a finished run twice: the second event file keeps the first one's times."""
    run = tmp_path / "run"
    shutil.copytree(tracked, run, ignore=shutil.ignore_patterns("tensorboard"))
    times = []
    for _ in range(2):
        follower = Follower(run, ["tensorboard"], pytest.fail)
        follower.look()
        follower.close(0)
        times.append([event.wall_time for event in shown(run).Scalars("updates/loss")])
    assert times[0] == times[1]
    assert events(run) == events(tracked)


# ------------------------------------------------------------------------------------------
# What goes wrong


SCRIPT = """
import os, signal, sys
from pdfast.training import loop
from pdfast.trackers import tracking
from pdfast.__main__ import main

tracking.HURRY = tracking.UPLOAD
real, count = loop.update, iter(range(1, 1000))

def update(*args):
    if next(count) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(*args)

loop.update = update
code = main(sys.argv[1:])
assert not {"wandb", "tensorboard", "google.protobuf"} & set(sys.modules)
assert sys.excepthook is sys.__excepthook__
sys.exit(code)
"""


@pytest.mark.slow
def test_a_signal_ends_a_tracked_run_as_any_other(tiny_toml, tmp_path):
    arguments = ("train", "--config", tiny_toml, "--out", "run", "--threads", "1")
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments, "--track", *BOTH],
        cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert re.fullmatch(
        r"SIGTERM: .*\npdfast: stopped by SIGTERM; teacher is saved at update 3.*\n", ended.stderr
    )
    begun, data, board, wandb, *rest = ended.stdout.splitlines()
    assert begun.startswith("pdfast ")
    assert data == (
        "data: 1,797 images of digits, as 8x8 grey, none held out, without classes, not mirrored"
    )
    assert board == f"tracking: tensorboard --logdir {tmp_path}/run/tensorboard"
    assert wandb.startswith(f"tracking: wandb sync {tmp_path}/run/wandb/offline-run-")
    assert len(rest) == 1, rest
    ((_, records),) = sessions(tmp_path / "run")
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [143]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "tiny.toml"]


def followers():
    """Return the ids of this process's children that follow a run, and of their children."""

    def children(of):
        return [int(k) for k in Path(f"/proc/{of}/task/{of}/children").read_text().split()]

    mine = [
        k for k in children(os.getpid()) if b"follow" in Path(f"/proc/{k}/cmdline").read_bytes()
    ]
    return mine, [k for of in mine for k in children(of)]


def test_a_tracker_whose_process_is_killed_is_done_without(
    straight, tiny, tmp_path, monkeypatch, capfd
):
    """Kill W&B's own process first, and the follower once W&B's failure is reported."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = []

    def kept(*args):
        made.append(Tracking(*args))
        return made[0]

    def kill(which):
        (number,) = followers()[which]
        os.kill(number, signal.SIGKILL)

    def after_the_first():
        """Wait for the report of the first failure, unless it came with line 4, then kill again."""
        told = "wandb" not in made[0]._left or select.select([made[0]._words], [], [], 100)[0]
        assert told
        kill(0)

    monkeypatch.setattr("pdfast.api.Tracking", kept)
    at_update(monkeypatch, 3, lambda: kill(1))
    at_update(monkeypatch, 7, after_the_first)
    run = tmp_path / "run"
    pdfast.train(tiny, out=run, quiet=True, track=BOTH)
    first, second = capfd.readouterr().err.splitlines()
    end = "; the run itself is not affected"
    assert re.fullmatch(rf"warning: wandb stopped tracking \(.+\){end}", first)
    assert second == f"warning: tensorboard stopped tracking (its process was killed){end}"
    assert_same_tensors(straight / "teacher", run / "teacher")
    assert (run / "report.json").is_file()


class Recorder:
    """A tracker that records its calls, and fails on request."""

    where = "here"

    def __init__(self):
        self.given, self.error = [], None

    def begin(self):
        self.given = []

    def add(self, point):
        self.given.append(point.step)

    def picture(self, name, path, step):
        self.given.append((step, name))

    def report(self, run, step):
        self.given.append((step, "report"))

    def flush(self):
        if self.error:
            raise self.error

    def close(self, code):
        self.given.append(code)


@pytest.fixture
def followed(tracked, tmp_path, monkeypatch):
    """A finished run's metrics and pictures, to be changed, a Recorder, and what is told."""
    recorders = defaultdict(Recorder)
    monkeypatch.setattr("pdfast.trackers.follow.tracker", lambda name, *_: recorders[name])
    for name in ("config.toml", "metrics.jsonl"):
        shutil.copy(tracked / name, tmp_path)
    shutil.copytree(tracked / "samples", tmp_path / "samples")
    told = []
    follower = Follower(tmp_path, ["a", "b"], lambda **word: told.append(word))
    return follower, tmp_path, recorders, told


def test_lines_come_whole_and_those_of_a_round_made_again_in_their_place(followed):
    follower, run, recorders, told = followed
    follower.look()
    whole = [0, 4, 8, 12, 12, 12, 12, 16, 18, 18, 18, (18, "samples/rounds")]
    whole += [18, 22, 26, 30, 30, 30, (30, "samples/compare"), (30, "samples/rounds")]
    given = list(recorders["a"].given)
    assert sorted(map(str, given)) == sorted(map(str, whole))
    assert [x if isinstance(x, int) else x[0] for x in given] == [
        x if isinstance(x, int) else x[0] for x in whole
    ]
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = json.dumps({"round": 2, "distance": 1.0}) + "\n"
    with path.open("a") as file:
        file.write(last[:9])
        file.flush()
        follower.look()
        assert recorders["a"].given == given
        file.write(last[9:])
    follower.look()
    assert recorders["a"].given == [*given, 30]
    again = run / "again"
    again.write_text("".join(line for line in lines if '"round": 1' not in line))
    again.replace(path)
    follower.look()
    steps = [x for x in recorders["a"].given if isinstance(x, int)]
    assert steps == [0, 4, 8, 12, 12, 12, 18, 22, 26, 30, 30, 30]
    with path.open("a") as file:
        file.writelines(line for line in lines if '"round": 1' in line)
    follower.look()
    assert recorders["a"].given == recorders["b"].given == given
    assert not told


def test_one_that_fails_is_told_of_once_and_the_other_goes_on(followed):
    follower, run, recorders, told = followed
    recorders["a"].error = OSError(28, "No space left\non device")
    for _ in range(2):
        follower.look()
    assert told == [{"lost": "a", "why": "[Errno 28] No space left on device"}]
    (run / "report.json").write_text("{}")
    follower.look()
    follower.close(7)
    assert recorders["b"].given[-2:] == [(END, "report"), 7]
    assert follower.where == ["here"]


def test_a_full_disk_ends_tensorboard_alone(tracked, tmp_path):
    run, told = tmp_path / "run", []
    shutil.copytree(tracked, run)
    follower = Follower(run, ["tensorboard"], lambda **word: told.append(word))
    follower.look()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 2, "distance": 1.0}) + "\n")
    with Path("/dev/full").open("wb", buffering=0) as full:
        follower._trackers["tensorboard"]._writer = RecordWriter(full)
        follower.look()
    assert told == [{"lost": "tensorboard", "why": "[Errno 28] No space left on device"}]


def test_wandb_without_a_login_is_one_sentence(tiny_toml, tmp_path, monkeypatch, capsys, handlers):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["train", "--config", str(tiny_toml), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--track", "wandb"]) == 1
    assert capsys.readouterr().err == (
        "pdfast: tracking by wandb cannot start (No API key configured. Use `wandb login` to log "
        "in.): fix that, or set WANDB_MODE=offline, or remove wandb from --track\n"
    )
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("wandb", "track must be a list of trackers (tensorboard, wandb), not 'wandb'"),
        (None, "track must be a list of trackers (tensorboard, wandb), not None"),
        (["wanbd"], "no tracker 'wanbd'; did you mean 'wandb'? (tensorboard, wandb)"),
    ],
)
def test_what_is_no_list_of_trackers_is_refused(tiny, tmp_path, names, said):
    with pytest.raises(UsageError) as caught:
        pdfast.train(tiny, out=tmp_path / "run", track=names)
    assert str(caught.value) == said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", BOTH)
def test_without_the_package_it_is_named(tiny_toml, tmp_path, monkeypatch, capsys, handlers, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    arguments = ["distill", "--config", str(tiny_toml), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--track", name]) == 2
    assert capsys.readouterr().err == (
        f"pdfast: tracking by {name} needs the package {name}: pip install 'pdfast[{name}]'\n"
    )


# ------------------------------------------------------------------------------------------
# Other runs


def test_a_network_of_ones_own_whose_teacher_is_given(tmp_path):
    """A given teacher counts no training updates, and the follower does not need the module."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(13, 12)

        def forward(self, z, logsnr, label):
            h = torch.cat([z.flatten(1), logsnr[:, None] / 10], dim=1)
            return self.linear(h).view(z.shape)

    config = from_table(Config, TINY | {"eval": {"steps": [2], "baseline_steps": 2, "num": 8}})
    data = torch.randn(40, 1, 12, generator=torch.Generator().manual_seed(0))
    out = tmp_path / "run"
    pdfast.distill(config, teacher=Net(), data=data, out=out, quiet=True, track=["tensorboard"])
    scalars, images, _ = events(out)
    assert [step for step, _ in scalars["updates/loss"]] == [4, 6, 10, 14, 18]
    assert [step for step, _ in scalars["rounds/distance"]] == [0, 6, 18]
    assert [step for step, _ in images["samples/rounds"]] == [6, 18]


def test_a_first_fit_counts(tiny):
    config = from_table(Config, TINY | {"distill": TINY["distill"] | {"fit_updates": 100}})
    axis = Axis(config)
    assert axis.point({"round": 1, "update": 3, "loss": 1.0, "lr": 1.0}).step == 3
    assert axis.point({"round": 2, "update": 3, "loss": 1.0, "lr": 1.0}).step == 103
    assert axis.point({"round": 3, "distance": 1.0}).step == 100 + 6 + 12


@pytest.mark.slow
def test_of_several_processes_the_first_alone_tracks(tiny_toml, tmp_path):
    arguments = ("distill", "--config", tiny_toml, "--threads=1", "--out", "run")
    ended = torchrun.run(tmp_path, "-m", "--", "pdfast", *arguments, "--track", "tensorboard")
    assert ended.codes == {}, ended.errors
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    scalars, _, _ = events(tmp_path / "run")
    assert [step for step, _ in scalars["updates/loss"]] == [4, 8, 12, 16, 18, 22, 26, END]
