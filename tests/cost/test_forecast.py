"""The forecast of --dry-run: memory, time, and the size of the data set."""

import re
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import changed
from PIL import Image

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import DataConfig, dump_config, load_config
from pdfast.cost import plan, timing
from pdfast.cost.counting import Count, Memory
from pdfast.cost.forecast import explained, memory_line, num_images, table
from pdfast.cost.plan import stages
from pdfast.cost.timing import Costs, Timed
from pdfast.data import sources
from pdfast.data.readers import pictures
from pdfast.data.readers.decoding import threads
from pdfast.distillation import objectives
from pdfast.distillation.choice import choice_evaluations
from pdfast.distillation.objectives import DataObjective, Fit
from pdfast.distillation.rounds import with_fit
from pdfast.errors import UsageError
from pdfast.evaluation import evaluator, reference_set
from pdfast.evaluation.reference_set import CLASS_RESAMPLES
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.training import loop
from pdfast.training.op_counter import Amount


@pytest.fixture
def config():
    return load_config("digits")


def with_source(config, source):
    return replace(config, data=replace(config.data, source=str(source)))


def test_images_are_counted_without_reading_them(config, tmp_path):
    assert num_images(config) == 1797
    np.savez(tmp_path / "set.npz", images=np.zeros((7, 8, 8, 1), np.uint8))
    assert num_images(with_source(config, tmp_path / "set.npz")) == 7
    (tmp_path / "birds" / "wren").mkdir(parents=True)
    for n in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "birds" / "wren" / f"{n}.png")
    (tmp_path / "birds" / "notes.txt").write_text("no image")
    assert num_images(with_source(config, tmp_path / "birds")) == 3


def test_a_set_that_is_not_there_is_said_to_come_on_top(config, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    for name in ("none.npz", "broken.npz", "other.npz", "nowhere"):
        assert num_images(with_source(config, tmp_path / name)) is None
    count = Count({}, Memory({"weights": 3_000_000, "data set": 1_000_000}, 7_000_000), 1)
    known = memory_line("training", count, 8, torch.device("cpu"), data=True)
    assert known.startswith("memory, training: 11 MB for batch 8 = 3.0 weights + 1.0 data set + ")
    assert known.endswith("+ 7.0 activations, and the process itself")
    unknown = memory_line("training", count, 8, torch.device("cuda"), data=False)
    assert unknown.startswith("memory, training: 10 MB for batch 8 = 3.0 weights + 7.0 activations")
    assert ", and the data set (unknown here), cuDNN's workspace" in unknown


# ------------------------------------------------------------------------------------------
# The plan: what a run does, and how its time is added up


@pytest.fixture
def done(monkeypatch):
    """Count what later runs do: updates by kind, network calls by network, distances."""
    found = Counter()

    def counted(module, name, key):
        real = getattr(module, name)

        def call(*args, **kwargs):
            found[key(*args)] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    def kind(model, objective, *_):
        if isinstance(objective, DataObjective):
            return "train"
        if isinstance(objective, Fit):
            return "fit"
        return "distill" if objective._films is None else "tabulated"

    counted(loop, "update", kind)
    counted(Model, "predict_x_at_angle", lambda model, *_: "student" if model.steps else "teacher")
    for module in (evaluator, reference_set):
        counted(module, "frechet_distance", lambda *_: "distances")
    return found


def planned(plan):
    """Return the counts of a plan, in the form of `done`."""
    found = Counter()
    for stage in plan:
        found.update({"distances": stage.distances, stage.update: stage.updates, **stage.calls})
    return +found


def test_the_plan_is_what_a_run_does(tiny, tmp_path, done, monkeypatch):
    """Two halvings from 8 steps; the second teacher has few enough steps to be tabulated."""
    for module in (plan, objectives):
        monkeypatch.setattr(module, "MOST_TABULATED", 4)
    options = {"tabulate_film": True, "pipeline_teacher": True}
    config = changed(tiny, engine=options, eval={"num": 70}, distill={"round_updates": ((2, 9),)})
    pdfast.distill(config, out=tmp_path / "run", quiet=True)
    found = stages(config, 1797, distill=True)
    assert [s.name for s in found] == ["teacher", "round 1", "round 2", "report"]
    assert {"train": 12, "distill": 6, "tabulated": 9}.items() <= done.items()
    # The teacher's distance has that of a resample beside it.
    # The teacher: a sample row and a distance in 8 steps, and 70 samples (two batches) in 2, 4 and
    # 8 steps. Each student: a row and a distance, and 70 samples in 2 and 4 steps.
    assert (done["teacher"], done["student"]) == (8 + 8 + 28, 4 + 4 + 2 + 2 + 12)
    assert done["distances"] == 4 + 5 + 10
    assert planned(found) == done


def test_the_plan_of_a_teacher_alone_and_of_one_from_elsewhere(tiny, straight, tmp_path, done):
    config = changed(tiny, train={"updates": 2}, distill={"updates": 2, "rounds": 1})
    pdfast.train(config, out=tmp_path / "a", quiet=True)
    assert planned(stages(config, 1797, distill=False)) == done
    done.clear()
    pdfast.distill(config, teacher=straight / "teacher", out=tmp_path / "b", quiet=True)
    found = stages(config, 1797, distill=True, teacher=config.model)
    assert planned(found) == done
    assert (found[0].loop, found[0].calls["teacher"]) == (None, 16)


def test_the_plan_of_a_guided_run(guides, tmp_path, done):
    """The run has a first fit, and no class has enough images for a separate distance."""
    config = changed(guides, train={"updates": 2}, distill={"updates": 2, "rounds": 1})
    pdfast.distill(config, out=tmp_path / "run", quiet=True)
    config = with_fit(config, config.model.unguided())
    found = stages(config, 1797, distill=True)
    assert [s.update for s in found if s.loop] == ["train", "fit", "distill"]
    of_classes = 10 * (CLASS_RESAMPLES + len({2, *config.eval.steps}))
    assert planned(found)["distances"] - of_classes == done["distances"]
    del done["distances"]
    assert {key: num for key, num in planned(found).items() if key != "distances"} == done


def test_the_plan_has_the_choice_among_averages(tiny):
    config = changed(tiny, distill={"ema_decays": (0.9, 0.99)})
    plain, chosen = (stages(c, 1797, distill=True) for c in (tiny, config))
    assert (plain[0], plain[-1]) == (chosen[0], chosen[-1])
    for before, after in zip(plain[1:-1], chosen[1:-1], strict=True):
        more = sum(after.calls.values()) - sum(before.calls.values())
        assert more * SAMPLE_BATCH == choice_evaluations(after.steps, 2, 2)


def test_the_sum(tiny):
    costs = Costs(
        {"train": Timed(2.0, begin=0.5), "distill": Timed(3.0, begin=0.25)},
        {"teacher": Timed(7.0), "student": Timed(11.0)},
        distance=13.0,
        feature=0.125,
    )
    found = stages(tiny, 1797, distill=True)
    of_teacher = 12 * 2.0 + 0.5 + (8 + 8) * 7.0 + 2 * (13.0 + 64 * 0.125)
    of_round = 6 * 3.0 + 0.25 + (4 + 4) * 11.0 + 13.0 + 64 * 0.125
    of_report = 14 * 7.0 + 6 * 11.0 + 15 * 13.0 + 15 * 64 * 0.125
    assert [costs.of(stage) for stage in found[:2]] == [of_teacher, of_round]
    assert costs.of(found[-1]) == of_report
    lines = table(found, costs, 1000.0)
    assert lines[1].split() == ["set-up", "16.7", "min"]
    assert lines[2].split() == ["teacher", "12", "1.0e-03", "48", "2.98", "min"]
    assert lines[3].split()[:-2] == ["round", "1", "4", "6", "1.0e-03", "24"]
    total = 1000.0 + sum(costs.of(stage) for stage in found)
    assert lines[-1].split() == ["total", f"{total / 60:.3g}", "min"]


# ------------------------------------------------------------------------------------------
# The timing, on a clock that only the timed pieces advance


class Machine:
    """A fake clock that each update, network call and optimizer step advances."""

    def __init__(self, monkeypatch, *, fixed=0.01, image=0.01, call=0.02):
        self.now, self.first, self.sizes = 0.0, 0.0, []
        # The values of a real run, since this clock costs no time.
        monkeypatch.setattr(timing, "SECONDS", 4.0)
        monkeypatch.setattr(timing, "LEAST", 0.3)
        step = timing.Optimizer.step

        def update(model, objective, optimizer, batch):
            self.sizes.append(optimizer.cfg.batch)
            self.now += image * optimizer.cfg.batch
            optimizer.step()

        def stepped(optimizer):
            self.now += fixed
            step(optimizer)

        alone = threading.Lock()

        def sampled(model, z, steps, **_):
            with alone:  # batches are sampled in parallel
                self.now += call * steps * len(z) / SAMPLE_BATCH

        def watched():
            self.now += 0.125
            return 0.0

        monkeypatch.setattr(timing, "clock", lambda: self.now)
        monkeypatch.setattr(timing, "update", update)
        monkeypatch.setattr(timing, "sample", sampled)
        monkeypatch.setattr(timing, "loss_of", lambda *_: watched)
        monkeypatch.setattr(timing.Optimizer, "step", stepped)


def measured(config, flops=1e9, activations=1000, **options):
    """Return the plan and costs of a distillation whose updates have these counts."""
    found = stages(config, 1797, distill=True)
    memory = Memory({"weights": 1000}, activations)
    counts = dict.fromkeys(("train", "distill"), Count({"nets": Amount(flops)}, memory, 1))
    options = {"images": 1797, "rate": 1e9, **options}
    return found, timing.measure(config, found, counts, torch.device("cpu"), **options)


def test_whole_updates_are_timed_where_they_are_short(tiny, monkeypatch):
    machine = Machine(monkeypatch)
    _, costs = measured(tiny, flops=1e7)
    for kind, timed in costs.updates.items():
        assert timed.seconds == pytest.approx(0.05), kind
        assert timed.part == (4, 4)
        assert timed.num >= timing.LEAST / 0.05
        assert timed.begin == pytest.approx(0.25)  # the loss on the held batch, twice
    assert set(machine.sizes) == {4}
    assert costs.calls["teacher"].seconds == pytest.approx(0.02)
    assert costs.calls["student"] is costs.calls["teacher"]  # both are the same network
    timed = sum(t.num * 0.05 for t in costs.updates.values())
    assert timed < timing.SECONDS + 1
    assert costs.spent == machine.now < timing.SECONDS + 3


def test_long_updates_are_timed_on_a_part_of_the_batch(tiny, monkeypatch):
    """An image takes 2 s and the optimizer's step 1 s, so that one of 64 images is timed."""
    config = changed(tiny, train={"batch": 64}, distill={"batch": 64})
    machine = Machine(monkeypatch, fixed=1.0, image=2.0)
    _, costs = measured(config, flops=100e9)
    assert set(machine.sizes) == {1}
    for timed in costs.updates.values():
        assert timed.seconds == pytest.approx(1.0 + 2.0 * 64)
        assert timed.part == (1, 64)
    assert machine.now < 2 * timing.LIMIT


def test_a_part_grows_with_the_time_there_is(tiny, monkeypatch):
    config = changed(tiny, train={"batch": 64}, distill={"batch": 64})
    machine = Machine(monkeypatch, fixed=0.25, image=0.0625)
    _, costs = measured(config, flops=100e9)
    assert 4 <= max(machine.sizes) < 64
    assert costs.updates["train"].seconds == pytest.approx(0.25 + 4.0)
    assert machine.now < timing.LIMIT


def test_what_there_is_no_time_for_is_counted_by_what_was_timed(tiny, monkeypatch):
    """Timing the rounds' updates first, at 52 s for 1e9 FLOP, leaves no time for the others."""
    machine = Machine(monkeypatch, fixed=4.0, image=12.0)
    found, costs = measured(tiny)
    train, distill = costs.updates["train"], costs.updates["distill"]
    assert distill == Timed(52.0, 1, (1, 4))
    assert train == Timed(52.0)
    assert costs.rate == 1e9 / 52
    lines = explained(found, costs, torch.device("cpu"), True)
    assert "  18 updates of rounds at 52 s (1 timed, on 1 of its 4 images)" in lines
    assert "  12 updates of the teacher at 52 s (counted, at 0.0192 GFLOP/s)" in lines
    assert machine.now < 2 * timing.LIMIT


@pytest.mark.parametrize(
    ("flops", "memory", "timed"), [(1e15, 1e12, True), (1e9, 1500, True), (1e9, 1e12, False)]
)
def test_what_cannot_be_timed_is_counted(tiny, monkeypatch, flops, memory, timed):
    """Updates are too slow, need too much memory, or have no data."""
    machine = Machine(monkeypatch)
    monkeypatch.setattr(timing, "free", lambda device: memory)
    found, costs = measured(tiny, flops=flops, timed=timed)
    assert machine.sizes == []
    assert {t.seconds for t in costs.updates.values()} == {flops / 1e9}
    assert {t.num for t in costs.updates.values()} == {0}
    text = explained(found, costs, torch.device("cpu"), timed)[0]
    assert text.startswith("time on cpu: the figures below are lower bounds. No update was timed, ")
    assert ("since the data are not found here" in text) == (not timed)


# ------------------------------------------------------------------------------------------
# All of it


@pytest.mark.usefixtures("handlers")
def test_a_dry_run_times_real_updates_and_leaves_nothing(tiny_toml, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "SECONDS", 0.4)
    monkeypatch.setattr(timing, "LEAST", 0.05)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    options = ["--engine.pipeline-teacher", "--engine.tabulate-film", "--model.dropout", "0.1"]
    assert main(["distill", "--config", str(tiny_toml), "--dry-run", *options]) == 0
    output = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert re.search(r"12 updates of the teacher at [\d.]+ m?s \(\d+ timed", output)
    assert re.search(r"18 updates of rounds with tab.* at [\d.]+ m?s \(\d+ timed", output)
    assert re.search(r"48 network calls for 64 samples at [\d.]+ m?s \(\d+ timed", output)
    assert "not included: saving, other work on this machine" in output
    rows = re.findall(r"^ *(\S.*?) +.* ([\d.]+) (m?s|min)$", output.split("time\n")[1], re.M)
    unit = {"ms": 1e-3, "s": 1.0, "min": 60.0}
    *parts, total = [float(number) * unit[name] for _, number, name in rows]
    names = ["set-up", "teacher", "round", "round", "report", "total"]
    assert [row[0] for row in rows] == names
    assert total == pytest.approx(sum(parts), rel=0.06)  # each is printed with two digits
    assert total > 0


def test_pictures_are_read_in_part(tmp_path, monkeypatch):
    """Two of six pictures are read, and stand for the others."""
    for n in range(6):
        Image.new("L", (8, 8)).save(tmp_path / f"{n}.png")
    real, read = pictures._open, []

    def slow(*args):
        read.append(args)
        time.sleep(0.05)
        return real(*args)

    monkeypatch.setattr(pictures, "_open", slow)
    monkeypatch.setattr(sources, "FEW", 2)
    net = replace(load_config("digits").model, image_size=8)
    seconds = sources.seconds(DataConfig(source=str(tmp_path)), net)
    assert len(read) == 2
    assert seconds >= 6 * 0.05 / threads()  # on all cores at once
    np.savez(tmp_path / "set.npz", images=np.zeros((7, 8, 8, 1), np.uint8))
    assert sources.seconds(DataConfig(source=str(tmp_path / "set.npz")), net, arrays=False) is None
    assert sources.seconds(DataConfig(source=str(tmp_path / "set.npz")), net) > 0
    with pytest.raises(UsageError, match="has images of 8x8x1, but the config asks for 16x16x1"):
        sources.seconds(DataConfig(source=str(tmp_path / "set.npz")), replace(net, image_size=16))


def forecast_of(tiny, source, capsys, **model):
    """Return exit code, output and errors of a dry run on a source."""
    config = changed(tiny, data={"source": str(source)}, model=model)
    path = Path("c.toml")
    path.write_text(dump_config(config))
    code = main(["train", "--config", str(path), "--dry-run", "--threads", "1"])
    return code, *capsys.readouterr()


@pytest.mark.usefixtures("handlers")
def test_a_dry_run_ends_with_what_the_run_would_refuse(tiny, tmp_path, monkeypatch, capsys):
    """Data that are not here are no error; data that the run would refuse are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    told = {
        "birds": f"data source birds does not exist (looked in {tmp_path})",
        "": "no data: pass --data.source FOLDER_OR_NPZ",
        "YOUR_IMAGES": "data.source is still YOUR_IMAGES: replace it by your folder of images or",
    }
    for source, why in told.items():
        code, said, _ = forecast_of(tiny, source, capsys)
        assert (code, why in said.splitlines()[-1]) == (0, True), said
        assert said.splitlines()[-1].startswith("warning: the run itself would be refused: ")
        assert re.search(
            r"\nin all, on cpu: at least [\d.]+ m?s; memory \d+ MB, plus the data set", said
        )
    (tmp_path / "empty").mkdir()
    for source, why in (
        ("broken.npz", "broken.npz is not a readable"),
        ("empty", "empty holds no images"),
    ):
        code, said, error = forecast_of(tiny, source, capsys)
        assert (code, "in all, on cpu: " in said) == (2, True)
        assert error.splitlines()[-1].startswith(f"pdfast: {why}")
    arrays = {"images": np.zeros((9, 8, 8, 1), np.uint8), "labels": np.arange(9) % 3}
    np.savez(tmp_path / "set.npz", **arrays)
    code, said, error = forecast_of(tiny, "set.npz", capsys, num_classes=2)
    assert code == 2
    assert "in all, on cpu: " in said
    assert error.endswith(
        "pdfast: set.npz has labels from 0 to 2, outside 0 .. 1: set model.num_classes to 3\n"
    )
    code, said, error = forecast_of(tiny, "set.npz", capsys, num_classes=3)
    assert code == 0
    assert error.startswith("timing some updates, for up to 30 s ...")
