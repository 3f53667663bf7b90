"""Two processes by torchrun: the bits of one, one writer, one message, and one end."""

import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pair import Pair
from torchrun import ALARM, LIMIT, finish, lost, run, start

import pdfast
from pdfast import launch
from pdfast.config.schema import Config, dump_config
from pdfast.config.serialization import from_table
from pdfast.console.progress import Screen
from pdfast.distributed import board, collectives, joining, signals
from pdfast.distributed.device import choose_device
from pdfast.distributed.heartbeat import ProcessLost
from pdfast.errors import UsageError
from pdfast.models.model import Model
from pdfast.training.model_run import ModelRun

# The command line, in a process that leaves a note when it begins to sample.
WATCHED = f"""
import os, pathlib, signal, sys
from pdfast.models import model
from pdfast.__main__ import main

signal.alarm({ALARM})

def noted(*args, real=model.denoised, **kwargs):
    note = pathlib.Path("sampling-" + os.environ["RANK"])
    note.with_suffix(".tmp").write_text(str(os.getpid()))
    note.with_suffix(".tmp").rename(note)
    return real(*args, **kwargs)

model.denoised = noted
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with a report, whose teacher and student are untrained."""
    from conftest import TINY

    table = dict(TINY, eval={"steps": [4], "baseline_steps": 2, "num": 150})
    table["distill"] = dict(TINY["distill"], rounds=1)
    config = from_table(Config, table)
    with ModelRun(
        tmp_path_factory.mktemp("one") / "run", config, Screen(quiet=True)
    ).start() as made:
        torch.manual_seed(0)
        made.save_model(Model(config.model), made.teacher_dir)
        made.save_model(Model(config.model, steps=4), made.round_dir(1))
    pdfast.evaluate(made.path, threads=1, quiet=True)
    return made.path


# ------------------------------------------------------------------------------------------
# One process


def test_alone_nothing_happens():
    tensor = torch.ones(3)
    with collectives.session("cpu", 0) as device:
        assert device == torch.device("cpu")
        collectives.all_reduce(tensor)
        collectives.broadcast([tensor])
        collectives.barrier()
        assert (collectives.rank(), collectives.size()) == (0, 1)
        assert collectives.largest(7) == 7
        assert collectives.from_first(lambda: (1, 2)) == (1, 2)
        assert collectives.together(lambda: "x") == "x"
        assert list(collectives.dealt(3)) == [0, 1, 2]
    assert torch.equal(tensor, torch.ones(3))


@pytest.fixture
def as_one_of(monkeypatch):
    """Act as if torchrun had started this process as one of several."""

    def act(size, local=0):
        values = ("1", str(size), str(local), "localhost", "1")
        for name, value in zip(launch.VARIABLES, values, strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(size))

    return act


def test_the_device_of_each_process(monkeypatch, as_one_of):
    gpus = [torch.device("cuda", k) for k in range(4)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [choose_device(name) for name in ("cuda:3", "auto")] == [gpus[3], gpus[0]]
    as_one_of(4, local=2)
    assert choose_device("auto") == choose_device("cuda") == gpus[2]
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no device 'tpu'"):
        choose_device("tpu")
    with pytest.raises(UsageError, match=r"--device cuda:0 is one GPU for all processes"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"4 processes on this machine, but torch sees 2 GPUs"):
        choose_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_one_that_ends_while_the_others_connect(monkeypatch, as_one_of):
    def closed(*_, **__):
        raise RuntimeError("Gloo connectFullMesh failed with ... Connection closed by peer")

    as_one_of(2)
    monkeypatch.setattr(board, "store", dist.HashStore)
    monkeypatch.setattr(joining, "_meet", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", closed)
    told = pytest.raises(ProcessLost, match="process 1 of 2: another process")
    with told, collectives.session("cpu", 1):
        pytest.fail("went on alone")


def test_a_batch_that_cannot_be_shared(monkeypatch, tiny):
    collectives.check_batch(tiny, "train", "distill")
    monkeypatch.setattr(collectives, "size", lambda: 3)
    message = r"train\.batch 4 cannot be shared evenly by 3 processes: use 3"
    with pytest.raises(UsageError, match=message):
        collectives.check_batch(tiny, "train")
    monkeypatch.setattr(collectives, "size", lambda: 8)
    with pytest.raises(UsageError, match=r"distill\.batch 4 .* use 8"):
        collectives.check_batch(tiny, "distill")


# ------------------------------------------------------------------------------------------
# Two processes, started once, that run one script after the other

FUNCTIONS = """
import json, os, sys, time, torch
from pdfast.distributed import collectives as d
from pdfast.errors import PdfastError, Stopped, UsageError

def error_of(function, *args):
    try:
        return function(*args)
    except PdfastError as error:
        # Where it arose, what is raised has the traceback of that.
        return [type(error).__name__, str(error), error.exit_code, str(error.__cause__)]

def fail():
    raise UsageError("the first does not like it")

def fail_on_1():
    if os.environ["RANK"] == "1":
        raise Stopped(15, "kept")
    time.sleep(0.2)

for session in range(2):  # one after the other
    with d.session("auto", 1) as device:
        rank, out = d.rank(), {}
        out["size"] = d.size()
        total = torch.tensor([1.0, 10.0]) * (rank + 1)
        d.all_reduce(total)
        out["total"] = total.tolist()
        mixed = [
            torch.full((2, 3, 4, 4), float(rank + 1)).to(memory_format=torch.channels_last),
            torch.arange(4) * (rank + 1),
            torch.arange(6.0).reshape(2, 3).T + rank,
            torch.full((5,), rank + 1, dtype=torch.bfloat16),
        ]
        d.broadcast(mixed)
        out["broadcast"] = [float(t.sum()) for t in mixed]
        out["largest"] = [d.largest(int(rank == 1)), d.largest(0), d.largest(15 * rank)]
        # Process 0 works alone: what it calls waits for nobody.
        out["first"] = d.from_first(lambda: [rank, d.size(), d.largest(1), "\\u00e9"])
        out["none"] = d.from_first(lambda: None)
        out["nested"] = d.from_first(lambda: d.from_first(lambda: 0.1))
        out["error"] = error_of(d.from_first, fail)
        out["together"] = d.together(lambda: rank)
        out["error of 1"] = error_of(d.together, fail_on_1)
        whole = torch.randint(0, 256, (11, 2, 2, 3), generator=torch.manual_seed(0)).byte()
        mine = [whole[4 * k : 4 * k + 4] for k in d.dealt(3)]
        out["gather"] = torch.equal(d.gather(mine, 11, 4), whole)
        few = [whole[:3]] if rank == 0 else []
        out["few"] = torch.equal(d.gather(few, 3, 4), whole[:3])
        few = [whole[:3] / 7.0] if rank == 0 else []  # as of a custom network: float32
        out["floats"] = torch.equal(d.gather(few, 3, 4), whole[:3] / 7.0)
        count = 1 if rank else 3
        mine = [torch.full((count, 2), rank + 0.5), torch.full((count,), rank, dtype=torch.int64)]
        both = [[t.tolist() for t in part] for part in d.to_first(mine, [3, 1])]
        alone = [[t.tolist() for t in part] for part in d.to_first([] if rank else mine, [3])]
        out["to first"] = [both, alone]
        d.barrier()
    out["after"] = [d.rank(), d.size()]
    open(f"{session}-{rank}.json", "w").write(json.dumps(out))
"""


COMMANDS = """
import sys
from pdfast.__main__ import main

sample = ["sample", sys.argv[1] + "/teacher", "--steps=3", "--num=150", "--threads=1"]
sys.exit(main([*sample, "--out=two.npz"]) or main(["eval", sys.argv[1], "--threads=1"]))
"""

WRITES = """
import os, sys, time
from pathlib import Path
from PIL import Image
import torch
from pdfast.distributed import collectives, signals
from pdfast.distillation.opening import opened_run
from pdfast.config.schema import load_config
from pdfast.models.model import Model
from pdfast.console.progress import Screen

config = load_config("tiny.toml")
def opened():
    return opened_run(config, "run", Screen(False), "auto", device)

with collectives.session("cpu", 1) as device:
    with opened() as (run, data):
        model = Model(config.model)
        assert not run.has(run.teacher_dir)
        for update in (4, 8, 12):
            run.log(round=0, update=update, loss=float(collectives.rank()))
        for update in (3, 5, 8):
            tensors = {"weights.safetensors": {"w": torch.full((3,), 10.0 * update)}}
            run.save_state(0, update, 1.0, tensors)
        newest = run.path / "state" / "round-00-update-000000008"
        collectives.from_first((newest / "state.json").unlink)
    with opened() as (run, data):
        table, tensors = run.load_state(0)
        assert table["update"] == 5 and tensors["weights.safetensors"]["w"].tolist() == [50.0] * 3
        run.save_model(model, run.teacher_dir, seed=0)
        assert run.has(run.teacher_dir)
        run.rewind_metrics(0, 8)
        run.save_picture(Image.new("L", (4, 4)), "one.png")
        assert run.has_picture("one.png") and not run.has_picture("two.png")
        assert [m["update"] for m in run.metrics()] == [4, 8]
        assert run.load_state(1) is None and run.students() == {}
        run.clear_states(0)
        run.screen.say(f"pids {os.getpid()}")
"""


SCRIPTS = {"functions": FUNCTIONS, "writes": WRITES, "commands": COMMANDS}  # the last one exits
ONE_BY_ONE = """
import os
from pathlib import Path

top = Path.cwd()
for name in NAMES:
    os.chdir(top / name)
    if os.environ["RANK"] == "0":
        print(f"=== {name}", flush=True)
    exec((top / f"{name}.py").read_text(), {})
"""


class Together(NamedTuple):
    """Results of two processes."""

    folder: Path
    """Folder with a folder for each script."""
    outputs: dict[str, str]
    """Output of each script."""
    report: dict
    """Report of the run, as one process wrote it."""


@pytest.fixture(scope="module")
def together(run_dir, tmp_path_factory):
    from conftest import TINY

    folder = tmp_path_factory.mktemp("together")
    for name, script in SCRIPTS.items():
        (folder / f"{name}.py").write_text(script)
        (folder / name).mkdir()
    (folder / "writes" / "tiny.toml").write_text(dump_config(from_table(Config, TINY)))
    (folder / "one_by_one.py").write_text(f"NAMES = {list(SCRIPTS)}\n{ONE_BY_ONE}")
    report = json.loads((run_dir / "report.json").read_text())
    for name in ("report.json", "report.md", "report.png"):
        (run_dir / name).unlink()
    output, _, codes, errors = run(folder, "one_by_one.py", run_dir)
    assert codes == {}, errors
    parts = [part.split("\n", 1) for part in output.split("=== ")[1:]]
    return Together(folder, dict(parts), report)


def test_the_functions(together):
    for session in range(2):
        for rank in range(2):
            out = json.loads((together.folder / f"functions/{session}-{rank}.json").read_text())
            firsts = [[[0.5, 0.5]] * 3, [0, 0, 0]]
            words = "the first does not like it", "stopped by SIGTERM; kept"
            causes = [words[0], "None"] if rank == 0 else ["None", words[1]]
            assert out == {
                "size": 2,
                "total": [3.0, 30.0],
                "broadcast": [96.0, 6.0, 15.0, 5.0],
                "largest": [1, 0, 15],
                "first": [0, 1, 1, "\u00e9"],
                "none": None,
                "nested": 0.1,
                "error": ["UsageError", words[0], 2, causes[0]],
                "together": rank,
                "error of 1": ["Stopped", words[1], 143, causes[1]],
                "gather": True,
                "few": True,
                "floats": True,
                "to first": [[firsts, [[[1.5, 1.5]], [1]]], [firsts]] if rank == 0 else [[], []],
                "after": [0, 1],
            }


def test_samples_and_distances_are_the_same(together, run_dir):
    output, folder = together.outputs["commands"], together.folder / "commands"
    assert output.startswith("150 images in 3 steps (seed 0): two.npz\n")
    two = np.load(folder / "two.npz")["arr_0"]
    one = pdfast.load(run_dir / "teacher").sample_images(150, 3)
    assert two.shape == (150, 8, 8, 1)
    assert np.array_equal(two, one.numpy())
    assert json.loads((run_dir / "report.json").read_text()) == together.report
    assert (run_dir / "report.md").is_file()
    assert (run_dir / "report.png").is_file()
    assert output.count("resampled data (floor") == output.count("report: ") == 1
    assert sorted(p.name for p in folder.iterdir()) == ["two.npz", "two.npz.json"]
    assert json.loads((folder / "two.npz.json").read_text())["images"] == 150
    assert not list(run_dir.rglob(".*"))


def test_only_the_first_writes_and_speaks(together):
    output, run_ = together.outputs["writes"], together.folder / "writes" / "run"
    assert output.count("2 processes, each on cpu (1 threads)") == 2
    assert output.count("pids ") == 1
    log = (run_ / "log.txt").read_text()
    assert [log.count(text) for text in ("pids ", "2 processes, ", "is set aside as")] == [1, 2, 1]
    assert output.count("state.json is missing: round-00-update-000000008 is set aside as") == 1
    lines = (run_ / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"round": 0, "update": update, "loss": 0.0} for update in (4, 8)
    ]
    made = {str(p.relative_to(run_)) for p in run_.rglob("*")}
    assert made == {
        "config.toml",
        "log.txt",
        "metrics.jsonl",
        "samples",
        "samples/one.png",
        "teacher",
        "teacher/config.json",
        "teacher/manifest.json",
        "teacher/model.safetensors",
    }


def test_what_must_be_alike_is_compared(tmp_path):
    def member(rank):
        with collectives.session("cpu", 1):
            collectives.check_alike("numbers", "1 2 3")
            collectives.check_alike("numbers", "1 2 3" + rank * " 4")

    with Pair(tmp_path, member) as pair:
        assert pair.codes() == [2, 2], pair.said()
        message = "process 1 has numbers 1 2 3 4, but process 0 has 1 2 3: give all the same"
        assert [pair.raised(rank) for rank in range(2)] == [message] * 2


def test_processes_with_and_without_a_gpu_are_refused(tmp_path):
    def member(rank):
        joining.join(torch.device("cuda" if rank else "cpu"), lambda: None, 60)

    with Pair(tmp_path, member) as pair:
        assert pair.codes() == [2, 2], pair.said()
        for rank in range(2):
            assert pair.raised(rank).startswith("GPUs are seen by 1 of the 2 processes: pass")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["distill", "--roundz", "3"], "--roundz is no option"),  # before the processes meet
        (["distill", "--config=tiny.toml", "--train.batch=5"], "train.batch 5 cannot be shared"),
    ],
)
def test_a_mistake_is_told_once(tmp_path, tiny_toml, args, message):
    output, said, codes, errors = run(tmp_path, "-m", "--", "pdfast", *args)
    assert len(said) == 1, errors
    assert message in said[0]
    assert 2 in codes.values()  # torchrun may end the other process while it starts
    assert set(codes.values()) <= {2, -signal.SIGTERM}
    assert output == ""
    assert errors.count("Traceback") == 1  # torchrun's own
    assert not (tmp_path / "runs").exists()


def end_one(run_dir, tmp_path, rank, signum):
    """Send a signal to one process while both sample; return the output and exit statuses.

    The samples would take hours, so an end at all shows that both heard the signal.
    """
    (tmp_path / "watched.py").write_text(WATCHED)
    args = ["sample", run_dir / "teacher", "--steps=1000000", "--num=128", "--threads=1"]
    running = start(tmp_path, "watched.py", "--", *args, "--out=never.npz")
    notes = [tmp_path / f"sampling-{n}" for n in range(2)]
    try:
        deadline = time.monotonic() + LIMIT
        while not all(note.is_file() for note in notes):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(int(notes[rank].read_text()), signum)
    except BaseException:
        running.terminate()
        raise
    _, said, codes, _ = finish(running)
    assert not (tmp_path / "never.npz").exists()
    return said, codes


@pytest.mark.parametrize(
    ("rank", "signum"),
    [(1, signal.SIGTERM), pytest.param(0, signal.SIGINT, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_stops_both(run_dir, tmp_path, rank, signum):
    said, codes = end_one(run_dir, tmp_path, rank, signum)
    assert codes == {0: 128 + signum, 1: 128 + signum}
    assert said == [f"pdfast: stopped by {signum.name}; nothing was written"]


def test_a_killed_process_ends_the_other(run_dir, tmp_path):
    said, codes = end_one(run_dir, tmp_path, 0, signal.SIGKILL)
    assert codes == {0: -signal.SIGKILL, 1: 1}
    assert said == [lost(1)]


HELD_UP = f"""
import os, pathlib, signal, time
from pdfast.distributed import collectives, heartbeat

signal.alarm({ALARM})
heartbeat.GRACE = 1.0
signal.signal(signal.SIGTERM, lambda *_: None)
first_is_in = pathlib.Path("first-is-in")
with collectives.session("cpu", 1):
    if collectives.rank() == 0:
        first_is_in.touch()
    while collectives.rank() == 0 or not first_is_in.exists():
        time.sleep(0.1)  # as if waiting for a GPU that waits for the other's
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_cannot_notice_is_ended(tmp_path):
    (tmp_path / "held_up.py").write_text(HELD_UP)
    _, said, codes, errors = run(tmp_path, "held_up.py")
    assert codes == {0: 1, 1: -signal.SIGKILL}, errors
    assert said == [lost(0)]


def test_a_signal_while_waiting_is_not_lost(monkeypatch, handlers):
    """It may come while this process waits for the others' number, which is still 0."""
    signals.install()
    words = [0, None]

    def largest(number):
        word = words.pop(0)
        if word is None:
            return number
        signal.raise_signal(signal.SIGTERM)
        return word

    monkeypatch.setattr(collectives, "largest", largest)
    assert not signals.requested()
    assert signals.requested()
