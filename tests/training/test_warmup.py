"""Warm-ups that are too long, attention that does not occur, and teachers far from the data."""

import re

import pytest
from engine_cases import changed

import pdfast
from pdfast.cli.main import main
from pdfast.config.model import NetConfig, attention_note
from pdfast.config.schema import config_names, load_config
from pdfast.evaluation.floor import far_above
from pdfast.training import warmup
from pdfast.training.loop import FitResult


def test_a_warmup_as_long_as_the_training_is_told_with_the_rate_that_it_reaches(tiny):
    config = changed(tiny, train={"updates": 250, "warmup": 1000, "lr": 1e-3})
    reached = max(config.train.rate(k) for k in range(250))
    assert reached == pytest.approx(2.5e-4)
    assert warmup.train_note(config) == (
        "train.warmup 1,000 is not shorter than the 250 updates, so the learning rate reaches at "
        "most 0.00025 instead of train.lr 0.001: set train.warmup to about 25"
    )
    annealed = changed(config, train={"anneal": "linear"})
    most = max(annealed.train.rate(k) for k in range(250))
    assert f"reaches at most {most:.2g} instead of" in warmup.train_note(annealed)
    for enough in (249, 250):  # the last update has the whole rate
        assert warmup.train_note(changed(config, train={"warmup": enough})) == ""
    few = changed(config, train={"updates": 5})
    assert warmup.train_note(few).endswith("set train.warmup to about 1")


def test_rounds_to_few_steps_are_told_of_where_none_is_longer_than_the_warmup(tiny):
    config = changed(tiny, distill={"warmup": 6})  # 6 updates to 4 steps, 12 to 2 steps
    assert warmup.distill_notes(config) == []
    (note,) = warmup.distill_notes(changed(config, distill={"warmup": 13}))
    assert note.startswith("all rounds: distill.warmup 13 is not shorter than")
    some = changed(config, distill={"warmup": 13, "start_steps": 64})  # to 32 and 16 steps
    (note,) = warmup.distill_notes(some)
    assert note.startswith("all rounds to 16 steps or fewer: distill.warmup 13 is not shorter than")
    many = changed(config, distill={"warmup": 13, "start_steps": 8192})
    assert warmup.distill_notes(many) == []  # to 4096 and 2048 steps
    (note,) = warmup.distill_notes(changed(config, distill={"fit_updates": 3}))
    assert note.startswith("the first fit: distill.warmup 6 is not shorter than the 3 updates")


@pytest.mark.parametrize("name", config_names())
def test_no_shipped_config_is_warned_of(name):
    config = load_config(name)
    assert (warmup.train_note(config), warmup.distill_notes(config)) == ("", [])
    assert attention_note(config.model) == ""


def test_attention_at_sizes_that_do_not_occur():
    net = {"image_size": 16, "ch": 32, "ch_mult": (1, 2)}
    assert attention_note(NetConfig(**net, attn_resolutions=(7,))) == (
        "none of model.attn_resolutions [7] occurs (the network's sizes are [16, 8]), so only the "
        "middle of the network has attention: name one of these sizes, or write [] for that"
    )
    for sizes in ((), (8,), (7, 16)):
        assert attention_note(NetConfig(**net, attn_resolutions=sizes)) == ""


def test_a_teacher_far_above_the_floor():
    assert far_above(155.0, 4.1, "FD-pixel at 64 steps", 64) == (
        "the teacher's own FD-pixel at 64 steps, 155, is 38 times the floor, 4.1: it is not "
        "trained enough to be distilled; raise train.updates"
    )
    assert far_above(60.5, 14.7, "distance", 64) == far_above(1.0, 0.0, "distance", 64) == ""
    assert far_above(155.0, 4.1, "distance", 7) == ""  # even a good teacher, in so few steps


def test_a_loss_that_rose_is_told_with_the_rate_to_lower():
    text = FitResult("fixed_batch_loss", 0.1, 0.2, 1.0, 1).text("distill.lr")
    assert text == (
        "fixed-batch loss 0.1 -> 0.2 (it rose: a smaller distill.lr, or a longer distill.warmup, "
        "keeps it lower)"
    )
    for end in (0.1, 0.2 * (1 + 1e-6)):  # lower, and as good as the same
        said = FitResult("fixed_batch_loss", 0.2, end, 1.0, 1).text("train.lr")
        assert said == f"fixed-batch loss 0.2 -> {end:.4g}"


@pytest.mark.usefixtures("handlers")
def test_the_run_and_its_dry_run_say_the_same(tiny_toml, tmp_path, capsys):
    """Also that the teacher is bad, in the rounds, at the end and in the report."""
    flags = ["--config", str(tiny_toml), "--train.warmup", "20", "--model.attn-resolutions", "7"]
    flags += ["--threads", "1", "--rounds", "1", "--eval.num", "0"]
    told = (
        "teacher: train.warmup 20 is not shorter than the 12 up",
        "[7] occurs (the network's sizes",
    )
    assert main(["distill", "--dry-run", *flags]) == 0
    said = capsys.readouterr()
    assert all(f"{text}" in said.out for text in told)
    assert said.err.startswith("timing some updates, for up to ")
    run = tmp_path / "run"
    assert main(["distill", *flags, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert all(said.count(text) == 1 for text in told)
    bad = re.findall(r"warning: the teacher's own ([^,]*), [\d,.]+, is [\d,.]+ times the fl", said)
    assert bad == ["quick distance", "FD-pixel at 8 steps"]
    assert " The teacher's own FD-pixel at 8 steps" in (run / "report.md").read_text()
    pdfast.distill(load_config(run / "config.toml"), out=run)
    assert "quick distance" not in capsys.readouterr().out
