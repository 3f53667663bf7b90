"""Images held out of training: never drawn, and averaged by the held-out loss."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from engine_cases import changed
from run_cases import metrics, stop_after

import pdfast
from pdfast import reference
from pdfast.cli.main import main
from pdfast.config.schema import dump_config
from pdfast.diffusion.rng import Draws, Stream
from pdfast.distillation.teacher import new_model
from pdfast.distributed.signals import Stopped
from pdfast.errors import PdfastError, UsageError
from pdfast.kernels import philox
from pdfast.storage import digests
from pdfast.trackers.follow import Lines
from pdfast.training import batch, holdout

NUM, HELD_OUT, STEP = 24, 6, 10
CLASSES = 3


@pytest.fixture
def held(tiny, tmp_path):
    """A run with classes on images that show their number: all pixels of image k are 10 k."""
    images = np.broadcast_to(np.uint8(STEP) * np.arange(NUM, dtype=np.uint8), (8, 8, 1, NUM))
    labels = np.arange(NUM) * CLASSES // NUM
    np.savez(tmp_path / "set.npz", images=images.transpose(3, 0, 1, 2), labels=labels)
    return changed(
        tiny,
        data={"source": str(tmp_path / "set.npz"), "holdout": HELD_OUT},
        model={"num_classes": CLASSES, "label_dropout": 0.25},
        train={"batch": 16},
        distill={"batch": 16, "updates": 12},
        eval={"steps": (2,), "baseline_steps": 2, "num": 8},
    )


@pytest.fixture
def seen(monkeypatch):
    """{(round, whether drawn for an update): numbers of the images} that the networks received.

    Found by their pixels; it also checks their labels.
    """
    found, real = {}, batch.Batch.noised

    def noised(self, grid, num_steps, parameterization=None, merged=0):
        draw, condition = real(self, grid, num_steps, parameterization, merged)
        pixels = (real(self, grid, num_steps, "x", merged)[0].y[:, 0, 0, 0] + 1) * 127.5
        numbers = (pixels / STEP).round().long()
        told = condition.label >= 0
        assert torch.equal(condition.label[told], (numbers * CLASSES // NUM)[told])
        found.setdefault((self.round_, not self.fixed), []).extend(numbers.tolist())
        return draw, condition

    monkeypatch.setattr(batch.Batch, "noised", noised)
    return found


def inputs_of(config, images, round_):
    """Return x, the words, and eps of the held-out images, each at its position."""
    update = torch.zeros(1, dtype=torch.int64)
    words = philox.words(philox.key_of(config.seed, Stream.FIXED, round_), update, 0, len(images))
    noise = philox.key_of(config.seed, Stream.FIXED_NOISE, round_)
    eps = philox.normal(noise, update, 0, len(images), (1, 8, 8)).double()
    x = (torch.tensor(images) * STEP / 127.5 - 1).double()
    return x[:, None, None, None].expand(-1, 1, 8, 8), words, eps


def trained_loss(config, model, images):
    """Return a teacher's mean loss on the images of these numbers, by the published formulas."""
    x, words, eps = inputs_of(config, images, 0)
    u, label = philox.uniform_of(words[:, 2], words[:, 3]), torch.tensor(images) * CLASSES // NUM
    weight = config.train.loss_weight
    return float(reference.training_loss(model, x, eps, u, weight, label).detach().mean())


def distilled_loss(config, student, teacher, images, round_):
    """Return a student's mean loss likewise."""
    steps = config.distill.steps_after(round_)
    x, words, eps = inputs_of(config, images, round_)
    i, label = philox.index_below(words[:, 2], steps), torch.tensor(images) * CLASSES // NUM
    weight = config.distill.loss_weight
    losses, _ = reference.distillation_loss(student, teacher, x, eps, i, steps, weight, label)
    return float(losses.detach().mean())


@pytest.mark.parametrize("engine", [{}, {"data": "stream", "pipeline_teacher": True}], ids=str)
def test_what_is_held_out_is_never_drawn_and_the_loss_is_of_all_of_it(
    held, seen, engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "HELD_OUT_BATCH", 4)  # so that it takes two batches
    config, out = changed(held, engine=engine), tmp_path / "run"
    pdfast.distill(config, out=out, quiet=True)
    drawn = {number for (_, for_update), all_ in seen.items() if for_update for number in all_}
    rest = sorted(set(range(NUM)) - drawn)
    assert len(rest) == HELD_OUT
    for (_, for_update), numbers in seen.items():
        assert set(numbers) == drawn if for_update else set(numbers) <= {*drawn, *rest}
    assert {round_ for round_, _ in seen} == {0, 1, 2}

    lines = metrics(out)
    assert not [key for line in lines for key in line if key.startswith("fixed_batch")]
    ends = {line["round"]: line for line in lines if "held_out_loss_end" in line}
    starts = {line["round"]: line["held_out_loss"] for line in lines if line.get("update") == 0}
    assert starts == {r: line["held_out_loss_start"] for r, line in ends.items()}
    models = [
        pdfast.load(out / name).double()
        for name in ("teacher", "round-01-steps-0004", "round-02-steps-0002")
    ]
    first = new_model(config, torch.device("cpu")).double()
    assert starts[0] == pytest.approx(trained_loss(config, first, rest), rel=1e-5)
    end = trained_loss(config, models[0], rest)
    assert ends[0]["held_out_loss_end"] == pytest.approx(end, rel=1e-5)
    for round_ in (1, 2):
        before, after = models[round_ - 1], models[round_]
        for model, found in ((before, "start"), (after, "end")):
            expected = distilled_loss(config, model, before, rest, round_)
            assert ends[round_][f"held_out_loss_{found}"] == pytest.approx(expected, rel=1e-4)

    report = (out / "report.md").read_text()
    assert "| held-out loss, start | end |" in report
    assert "the mean over all images that are held out of training" in report
    assert f"{NUM} images, {HELD_OUT} of them held out (data.holdout)" in report
    facts = json.loads((out / "report.json").read_text())["facts"]
    assert (facts["reference_images"], facts["reference_held_out"]) == (NUM, HELD_OUT)
    images = torch.from_numpy(np.load(config.data.source)["images"])
    assert facts["reference_sha256"] == digests.digest({"images": images})  # of the whole set


def test_which_images_are_held_out():
    """Those with the smallest draws; fewer are the first of more, and another seed has others."""
    population = 70_000  # more than are drawn together
    words = Draws(3, Stream.HOLDOUT).words(0, 0, population)[:, :2].tolist()
    expected = sorted(range(population), key=lambda k: words[k])
    assert holdout.drawn(1000, population, 3).tolist() == expected[:1000]
    assert holdout.drawn(10, population, 3).tolist() == expected[:10]
    others = set(holdout.drawn(1000, population, 4).tolist())
    assert len(others & set(expected[:1000])) < 40  # 14 by chance
    tenths = np.bincount(np.array(expected[:1000]) * 10 // population, minlength=10)
    assert tenths.min() > 60
    assert tenths.max() < 140


def test_a_run_without_any_is_watched_on_a_fixed_batch_of_what_it_trains_on(
    held, seen, tmp_path, capsys
):
    config = changed(held, data={"holdout": 0})
    pdfast.train(config, out=tmp_path / "run")
    assert set(seen[0, True]) == set(range(NUM))
    assert len(seen[0, False]) == 2 * config.train.batch  # before and after
    (end,) = (line for line in metrics(tmp_path / "run") if "fixed_batch_loss_end" in line)
    shown = f"fixed-batch loss {end['fixed_batch_loss_start']:.4g} -> "
    assert shown in capsys.readouterr().out
    for _ in range(2):
        report = (tmp_path / "run" / "report.md").read_text()
        assert "| fixed-batch loss, start | end |" in report
        assert f"| {end['fixed_batch_loss_end']:.3g} |" in report
        assert "The fixed-batch loss is of a fixed batch of training images" in report
        assert "held-out" not in report
        pdfast.evaluate(tmp_path / "run", config=held, quiet=True)  # which would hold some out


def test_the_screen_says_what_is_held_out(held, tmp_path, capsys, monkeypatch):
    """And a run does not resume with another number."""
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stopped):
            pdfast.train(held, out=tmp_path / "run")
    shown = capsys.readouterr().out
    assert "24 images of " in shown
    assert ", as 8x8 grey, 6 of them held out of training" in shown
    assert "12 updates, 18 images" in shown
    monkeypatch.setattr("pdfast.distributed.signals._requested", 0)
    with pytest.raises(UsageError, match=r"was started with data\.holdout 6 \(now 5\)"):
        pdfast.train(changed(held, data={"holdout": 5}), out=tmp_path / "run", quiet=True)
    pdfast.train(held, out=tmp_path / "run")
    assert "teacher: held-out loss " in capsys.readouterr().out


def test_the_forecast_and_too_many(held, tmp_path, capsys, handlers):
    path = tmp_path / "held.toml"
    path.write_text(dump_config(held))
    assert main(["distill", "--config", str(path), "--dry-run"]) == 0
    assert "images: 24, 6 of them held out of training" in capsys.readouterr().out
    for flags in (["--dry-run"], ["--out", str(tmp_path / "run")]):
        arguments = ["train", "--config", str(path), "--data.holdout", "24", *flags]
        assert main(arguments) == 2
        said = "pdfast: data.holdout 24 leaves no image to train on: the set has 24\n"
        assert capsys.readouterr().err == said
    assert main(["train", "--config", str(path), "--data.holdout=-1"]) == 2
    assert "data.holdout must be 0 (none) or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_samples_of_ones_own_are_held_out_too(tiny, seen, tmp_path):
    network = pdfast.Network(Linear(), shape=(8, 8), num_classes=CLASSES)
    numbers = torch.arange(NUM)
    samples = (numbers[:, None, None] * STEP / 127.5 - 1).expand(NUM, 8, 8)
    config = changed(tiny, data={"holdout": HELD_OUT}, train={"batch": 32})
    out = tmp_path / "run"
    pdfast.train(
        config, network=network, data=(samples, numbers * CLASSES // NUM), out=out, quiet=True
    )
    assert len(set(seen[0, True])) == NUM - HELD_OUT
    assert sorted(seen[0, False]) == sorted(2 * [*set(range(NUM)) - set(seen[0, True])])


class Linear(torch.nn.Module):
    """A small custom network, by class."""

    def __init__(self):
        super().__init__()
        self.map, self.classes = torch.nn.Linear(65, 64), torch.nn.Embedding(CLASSES, 64)

    def forward(self, z, logsnr, label):
        h = torch.cat([z.flatten(1), logsnr[:, None] / 10], dim=1)
        return (self.map(h) + self.classes(label)).view(z.shape)


def test_a_failure_names_the_images_that_were_drawn(held, seen, tmp_path):
    config = changed(held, train={"lr": 1e30, "grad_clip": 0.0, "warmup": 0, "max_skipped": 3})
    with pytest.raises(PdfastError, match="not finite 3 times in a row"):
        pdfast.train(config, out=tmp_path / "run", quiet=True)
    (path,) = (tmp_path / "run").glob("not-finite-*/not-finite.json")
    named = [k for drawn in json.loads(path.read_text())["images"].values() for k in drawn]
    assert named == seen[0, True][-len(named) :]


# ------------------------------------------------------------------------------------------
# Metrics of 0.1.0, which called the fixed batch "held"


@pytest.fixture
def former(straight, tmp_path):
    """A finished run with the names that 0.1.0 wrote."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace("fixed_batch_loss", "held_loss"))
    assert "held_loss_end" in (run / "metrics.jsonl").read_text()
    return run


def test_a_run_of_former_names_is_reported_and_gone_on_with(former, straight, tiny):
    def rounds(run):
        return re.findall(r"## Rounds.*", (run / "report.md").read_text(), re.DOTALL)

    pdfast.evaluate(former, quiet=True)
    assert rounds(former) == rounds(straight)
    shutil.rmtree(former / "round-02-steps-0002")
    config = dataclasses.replace(tiny, distill=dataclasses.replace(tiny.distill, rounds=3))
    pdfast.distill(config, out=former, quiet=True)
    (table,) = rounds(former)
    assert [line.split(" | ")[0] for line in table.splitlines()[4:8]] == [
        "| 0",
        "| 1",
        "| 2",
        "| 3",
    ]


def test_trackers_show_former_names_as_todays(former, straight):
    assert Lines(former / "metrics.jsonl").fresh() == Lines(straight / "metrics.jsonl").fresh()
    assert Lines(former / "metrics.jsonl").all() == Lines(straight / "metrics.jsonl").all()
