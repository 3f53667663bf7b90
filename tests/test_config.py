"""Configs: TOML in and out, and one clear sentence for each mistake."""

import pytest

from pdfast.config import (
    Config,
    DistillConfig,
    NetConfig,
    config_names,
    dump_config,
    from_table,
    load_config,
)
from pdfast.errors import UsageError


def test_the_promised_configs_exist():
    assert {"digits", "fashion_mnist", "cifar10", "imagenet64", "lsun128"} == set(config_names())


@pytest.mark.parametrize("name", config_names())
def test_round_trip(name, tmp_path):
    config = load_config(name)
    assert config.name == name
    (tmp_path / "c.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.toml") == config


@pytest.mark.parametrize("name", config_names())
def test_each_config_opens_with_its_command(name):
    from pdfast.config import CONFIG_DIR

    first = (CONFIG_DIR / f"{name}.toml").read_text().splitlines()[0]
    assert first.startswith("# pdfast distill")


def test_published_hyper_parameters():
    cifar, imagenet, lsun = (load_config(n) for n in ("cifar10", "imagenet64", "lsun128"))
    assert (cifar.model.head, imagenet.model.head, lsun.model.head) == ("x", "both", "both")
    assert {c.train.loss_weight for c in (cifar, imagenet, lsun)} == {"snr_trunc"}
    assert (cifar.train.lr, cifar.distill.lr, cifar.train.weight_decay) == (2e-4, 5e-5, 1e-3)
    assert (imagenet.train.lr, imagenet.distill.lr, imagenet.train.weight_decay) == (3e-4, 1e-4, 0)
    assert (cifar.distill.start_steps, imagenet.distill.start_steps) == (8192, 1024)
    for config in (cifar, imagenet, lsun):
        assert config.distill.ema_decay == config.distill.weight_decay == 0
        assert config.distill.anneal == "linear"
        assert [config.distill.updates_of(n) for n in (8, 4, 2, 1)] == [50_000] * 2 + [100_000] * 2
        assert config.data.horizontal_flip
    assert not load_config("digits").data.horizontal_flip


def test_rounds_halve_exactly_and_the_last_two_get_double():
    distill = DistillConfig(updates=10, rounds=13, round_updates=((4, 7),))
    assert [distill.steps_after(r) for r in range(1, 14)] == [8192 >> r for r in range(1, 14)]
    assert [distill.updates_of(n) for n in (8, 4, 2, 1)] == [10, 7, 20, 20]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": {"chh": 3}}, "unknown key 'model.chh'; did you mean 'model.ch'?"),
        ({"model": {"ch": "x"}}, "model.ch must be a whole number, not 'x'"),
        ({"model": {"ch": 1.5}}, "model.ch must be a whole number, not 1.5"),
        ({"model": {"ch": True}}, "model.ch must be a whole number"),
        ({"model": {"head": "w"}}, "model.head must be one of x, eps, v, both"),
        ({"model": {"ch_mult": 3}}, "model.ch_mult must be a list"),
        ({"model": {"ch_mult": []}}, "model.ch_mult must hold at least one"),
        ({"model": 3}, "model must be a table"),
        ({"model": {"groups": 7}}, "model.groups 7 does not divide a width of 256 channels"),
        ({"model": {"image_size": 30}}, "cannot be halved 2 times"),
        ({"model": {"num_heads": 3}}, "model.num_heads does not divide a width of 256"),
        ({"model": {"num_heads": 0}}, "set one of model.num_heads and model.head_dim"),
        ({"model": {"dropout": 1.0}}, "model.dropout must be in [0, 1)"),
        ({"model": {"channels": 2}}, "model.channels must be 1 (grey) or 3 (colour)"),
        ({"model": {"logsnr_min": 30.0}}, "model.logsnr_min must be below"),
        ({"train": {"lr": -1.0}}, "train.lr must be 0 or more"),
        ({"train": {"lr": float("nan")}}, "train.lr must be 0 or more"),
        ({"train": {"updates": 0}}, "train.updates must be at least 1"),
        ({"distill": {"ema_decay": 1.0}}, "distill.ema_decay must be in [0, 1)"),
        ({"distill": {"rounds": 14}}, "14 rounds cannot halve 8192 steps exactly"),
        ({"distill": {"start_steps": 1000, "rounds": 4}}, "use at most 3 rounds"),
        ({"distill": {"round_updates": {"5": 1}}}, "names 5 steps, which no round"),
        ({"distill": {"round_updates": {"a": 1}}}, "whole numbers as keys"),
        ({"distill": {"loss_weight": "snr", "rounds": 13}}, "snr weight is 2e-9"),
        ({"eval": {"steps": [0]}}, "eval.steps must all be at least 1"),
        ({"seed": -1}, "seed must be in 0 .."),
        ({"name": "a/b"}, "name must be a plain folder name"),
    ],
)
def test_mistakes_are_named(table, message):
    with pytest.raises(UsageError) as error:
        from_table(Config, table)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_snr_weight_is_fine_before_the_one_step_round():
    DistillConfig(loss_weight="snr", rounds=12)


def test_norm_widths_are_those_of_the_net():
    import torch

    from pdfast.unet import GroupNormSiLU, UNet

    for name in config_names():
        cfg = load_config(name).model
        with torch.device("meta"):
            net = UNet(cfg)
        widths = {m.num_channels for m in net.modules() if isinstance(m, GroupNormSiLU)}
        assert widths == cfg.norm_widths()
    odd = NetConfig(ch=24, ch_mult=(1, 3), groups=8, image_size=8, attn_resolutions=())
    with torch.device("meta"):
        net = UNet(odd)
    assert odd.norm_widths() == {
        m.num_channels for m in net.modules() if isinstance(m, GroupNormSiLU)
    }
