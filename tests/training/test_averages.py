"""Averaged weights: their warm-up, and the note on the share of the first weights in them."""

import math

import pytest
from engine_cases import changed
from run_cases import weights

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import Config, DistillConfig, TrainConfig, config_names, load_config
from pdfast.training import averages
from pdfast.training.optimizer import Optimizer


def product(cfg: TrainConfig, updates: int) -> float:
    """Multiply the decays after the first update, one by one."""
    share = 1.0
    for k in range(1, updates):
        share *= min(cfg.ema_decay, (1 + k) / (10 + k)) if cfg.ema_warmup else cfg.ema_decay
    return share


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.05, 0.1, 0.5, 0.9, 0.995, 0.9999])
def test_the_share_is_the_product_of_the_decays(decay, warmup):
    cfg = TrainConfig(ema_decay=decay, ema_warmup=warmup)
    for updates in (1, 2, 3, 9, 10, 85, 100, 2000, 100_000):
        found = averages.initial_share(cfg, updates)
        assert found == pytest.approx(product(cfg, updates), rel=1e-9, abs=1e-300)


def test_shares_worth_knowing():
    plain, warmed = TrainConfig(ema_warmup=False), TrainConfig()
    assert averages.initial_share(plain, 300) == pytest.approx(math.exp(-0.0299), abs=1e-4)
    assert averages.initial_share(plain, 800_000) < 1e-30
    assert averages.initial_share(warmed, 300) < 1e-12
    assert averages.initial_share(warmed, 10**8) == 0
    assert averages.initial_share(DistillConfig(ema_warmup=False), 300) == 0  # no averages


@pytest.mark.parametrize("name", config_names())
def test_no_config_leaves_the_first_weights_in_its_averages(name):
    config = load_config(name)
    assert averages.share_note(config.train, config.train.updates) == ""


def config_of(tiny: Config, **train: object) -> Config:
    few = {"steps": (2,), "baseline_steps": 2}
    return changed(tiny, train={"updates": 40, **train}, eval=few)


def trained_averages(config, path, monkeypatch):
    """Return a training's averages, and their average by hand from the weights of every update."""
    seen, real = [], Optimizer.step

    def watched(self):
        real(self)
        seen.append(self.weights.clone())

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", watched)
        model = pdfast.train(config, out=path, quiet=True)
    cfg, expected = config.train, seen[0].double()
    for k, new in enumerate(seen[1:], 1):
        decay = min(cfg.ema_decay, (1 + k) / (10 + k)) if cfg.ema_warmup else cfg.ema_decay
        expected = decay * expected + (1 - decay) * new.double()
    return Optimizer(model, cfg).weights.double(), expected, seen


@pytest.mark.parametrize("warmup", [False, True])
def test_a_training_saves_the_average_of_its_updates(tiny, tmp_path, monkeypatch, warmup, capsys):
    """Without a warm-up they are still the first weights, and a note says so."""
    config = config_of(tiny, ema_decay=0.999, ema_warmup=warmup)
    found, expected, seen = trained_averages(config, tmp_path / "run", monkeypatch)
    moved = (seen[-1] - seen[0]).double().norm()
    assert (found - expected).norm() <= 1e-5 * moved
    share = 1 - float((found - seen[0]).norm() / moved)  # of the way, not covered yet
    assert share > 0.9 if not warmup else share < 0.3
    said = capsys.readouterr().err
    expected_share = averages.initial_share(config.train, 40)
    assert expected_share == pytest.approx(0.999**39 if not warmup else 0.0, abs=1e-6)
    note = (
        "warning: teacher: 96.2% of the averaged weights, which become the model, are still those "
        "of the first update (ema_decay 0.999, 40 updates): set train.ema_warmup, or lower "
        "train.ema_decay to 0.888\n"
    )
    assert said == ("" if warmup else note)
    assert (tmp_path / "run" / "teacher").is_dir()
    assert weights(tmp_path / "run" / "teacher").keys()


def test_the_fixes_that_are_named_are_some(tiny):
    cfg = config_of(tiny, ema_decay=0.888, ema_warmup=False).train
    assert averages.share_note(cfg, 40) == ""
    assert averages.share_note(changed(tiny, train={"ema_decay": 0.9999}).train, 40) == ""
    assert averages.share_note(TrainConfig(), 3).endswith(
        "first update (ema_decay 0.9999, 3 updates): make more updates"
    )


def test_skipped_updates_are_not_counted(tiny, tmp_path, monkeypatch, capsys):
    real, count = Optimizer.step, iter(range(100))

    def injected(self):
        if next(count) % 2 == 0:
            self.loss.fill_(float("nan"))
        real(self)

    monkeypatch.setattr(Optimizer, "step", injected)
    config = config_of(tiny, ema_decay=0.9, ema_warmup=False)
    pdfast.train(config, out=tmp_path / "run", quiet=True)
    said = capsys.readouterr().err
    assert "warning: teacher: 13.5% of the averaged weights" in said
    assert "(ema_decay 0.9, 20 updates)" in said


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_dry_run_says_what_would_be_left(command, tiny_toml, capsys):
    few = ["--config", str(tiny_toml), "--train.updates", "300", "--train.ema-decay", "0.9999"]
    few += ["--distill.ema-decay", "0.99", "--distill.no-ema-warmup"]
    few += ["--distill.start-steps", "16"]  # to 4: without the rounds with twice the updates
    assert main([command, "--dry-run", "--threads", "1", *few]) == 0
    said = capsys.readouterr().out
    rounds = "warning: round 1, round 2: 95.1% of the averaged weights"
    assert (rounds in " ".join(said.split())) == (command == "distill")
    assert "teacher: 97.1%" not in said
    assert main([command, "--dry-run", "--train.no-ema-warmup", *few]) == 0
    assert "warning: teacher: 97.1% of the averaged weights" in capsys.readouterr().out
