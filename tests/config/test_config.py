"""Configs: TOML in and out, and one clear sentence for each wrong value."""

import dataclasses
import time

import pytest
import torch

from pdfast.config.model import MAX_LIST
from pdfast.config.schema import (
    Config,
    DistillConfig,
    NetConfig,
    config_names,
    dump_config,
    load_config,
)
from pdfast.config.serialization import MAX_TOML, from_table, to_table
from pdfast.errors import UsageError
from pdfast.models.model import Model


def test_the_promised_configs_exist():
    paper = {"cifar10", "imagenet64", "lsun128"}
    digits = {"digits", "digits_half", "digits_guided"}
    assert paper | digits | {"fashion_mnist", "fashion_mnist16", "pictures16"} == set(
        config_names()
    )


@pytest.mark.parametrize("name", config_names())
def test_round_trip(name, tmp_path):
    config = load_config(name)
    assert config.name == name
    (tmp_path / "c.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.toml") == config


@pytest.mark.parametrize("name", config_names())
def test_each_config_opens_with_its_command(name):
    from pdfast.config.schema import CONFIG_DIR

    first = (CONFIG_DIR / f"{name}.toml").read_text().splitlines()[0]
    assert first.startswith("# pdfast distill")


def test_published_hyper_parameters():
    cifar, imagenet, lsun = (load_config(n) for n in ("cifar10", "imagenet64", "lsun128"))
    assert (
        cifar.model.parameterization,
        imagenet.model.parameterization,
        lsun.model.parameterization,
    ) == ("x", "x_eps", "x_eps")
    assert {c.train.loss_weight for c in (cifar, imagenet, lsun)} == {"snr_trunc"}
    assert (cifar.train.lr, cifar.distill.lr, cifar.train.weight_decay) == (2e-4, 5e-5, 1e-3)
    assert (imagenet.train.lr, imagenet.distill.lr, imagenet.train.weight_decay) == (3e-4, 1e-4, 0)
    assert (cifar.distill.start_steps, imagenet.distill.start_steps) == (8192, 1024)
    for config in (cifar, imagenet, lsun):
        assert config.distill.ema_decay == config.distill.weight_decay == 0
        assert (config.train.ema_decay, config.train.ema_warmup) == (0.9999, False)
        assert config.distill.anneal == "linear"
        assert [config.distill.updates_of(n) for n in (8, 4, 2, 1)] == [50_000] * 2 + [100_000] * 2
        assert config.data.horizontal_flip
    assert not load_config("digits").data.horizontal_flip


def test_rounds_halve_exactly_and_the_last_two_get_double():
    distill = DistillConfig(updates=10, rounds=13, round_updates=((4, 7),))
    assert [distill.steps_after(r) for r in range(1, 14)] == [8192 >> r for r in range(1, 14)]
    assert [distill.updates_of(n) for n in (8, 4, 2, 1)] == [10, 7, 20, 20]


def test_a_plan_names_the_steps_of_each_student():
    plan = {"start_steps": 256, "second": "student"}
    for rounds in ("64,16,4,2,1", "256, 64,16,4,2,1"):
        distill = DistillConfig(rounds=rounds, **plan)
        assert distill.plan == (64, 16, 4, 2, 1)
        assert [distill.steps_after(r) for r in range(1, 6)] == [64, 16, 4, 2, 1]
        assert [distill.merged(n) for n in distill.plan] == [4, 4, 4, 2, 2]
    assert DistillConfig(rounds="256,1", **plan).plan == (1,)
    halving = DistillConfig(start_steps=16, rounds="8,4,2")
    assert halving.plan == DistillConfig(start_steps=16, rounds=3).plan
    fitted = DistillConfig(rounds="64,16", fit_updates=5, **plan)
    assert [fitted.steps_after(r) for r in range(1, fitted.num_rounds + 1)] == [256, 64, 16]


def test_rounds_have_rates_and_averages_of_their_own():
    own = {"round_lr": ((8, 1e-3),), "round_ema_decay": ((4, 0.9),), "round_updates": ((8, 7),)}
    distill = DistillConfig(start_steps=16, rounds=2, lr=1e-4, ema_decay=0.5, **own)
    first, last = distill.loop_of(8), distill.loop_of(4)
    assert (first.lr, first.ema_decay, first.updates) == (1e-3, 0.5, 7)
    assert (last.lr, last.ema_decay, last.updates) == (1e-4, 0.9, distill.updates)
    table = to_table(distill)
    assert table["round_lr"] == {"8": 1e-3}
    assert from_table(DistillConfig, table, "distill.") == distill


LINEAR = {"schedule": "linear", "timesteps": 9, "betas": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": {"chh": 3}}, "unknown key 'model.chh'; did you mean 'model.ch'?"),
        ({"model": {"ch": "x"}}, "model.ch must be a whole number, not 'x'"),
        ({"model": {"ch": 1.5}}, "model.ch must be a whole number, not 1.5"),
        ({"model": {"ch": True}}, "model.ch must be a whole number"),
        ({"model": {"parameterization": "w"}}, "parameterization must be one of x, eps, v, x_eps"),
        ({"model": {"ch_mult": 3}}, "model.ch_mult must be a list, such as [1, 2], not 3"),
        (
            {"distill": {"round_updates": 3}},
            "distill.round_updates must be a table of pairs, not 3",
        ),
        ({"model": {"ch_mult": []}}, "model.ch_mult must hold at least one"),
        ({"model": 3}, "model must be a table"),
        ({"model": {"groups": 7}}, "model.groups 7 does not divide a width of 256 channels"),
        ({"model": {"image_size": 30}}, "cannot be halved 2 times"),
        (
            {"model": {"num_heads": 3}},
            "model.num_heads 3 does not divide a width of 256 channels: choose a divisor of 256",
        ),
        ({"model": {"num_heads": 0}}, "set one of model.num_heads and model.head_dim"),
        ({"model": {"dropout": 1.0}}, "model.dropout must be in [0, 1)"),
        ({"model": {"channels": 2}}, "model.channels must be 1 (grey) or 3 (colour)"),
        ({"model": {"logsnr_min": 30.0}}, "model.logsnr_min must be below"),
        ({"model": {"timesteps": 9}}, "model.timesteps is for a schedule by betas"),
        ({"model": {"betas": [0.1, 0.2]}}, "model.betas is for a schedule by betas"),
        ({"model": {"sigmas": [0.002, 80.0, 7.0]}}, "model.sigmas is for the schedule edm"),
        ({"model": {"schedule": "edm"}}, "model.sigmas must be sigma_min, sigma_max and rho"),
        ({"model": {"embedding": "noise"}}, "needs a model.edm.preconditioning"),
        (
            {"model": {"edm": {"preconditioning": "ve"}}},
            "model.edm.preconditioning is for model.schedule edm",
        ),
        (
            {"model": {"edm": {"preconditioning": "vp"}}},
            "model.edm.constants must hold beta_d, beta_min, M with",
        ),
        ({"model": {"edm": {"filter": [1, 2, 1]}}}, "model.edm.filter must hold an even number"),
        (
            {"model": {"groups": 32, "edm": {"group_ch": 100}}},
            "model.edm.group_ch 100 gives 5 groups for a width of 512 channels",
        ),
        ({"model": {"embedding": "timestep"}}, "model.embedding timestep is for a schedule by"),
        ({"model": {"schedule": "linear"}}, "model.timesteps must be in 2 .. 8192 with"),
        ({"model": LINEAR | {"betas": [0.1]}}, "model.betas must hold 2 numbers with"),
        ({"model": LINEAR | {"betas": [0.2, 0.1]}}, "model.betas must rise"),
        (
            {"model": LINEAR | {"betas": [0.1, 1.0]}},
            "model.betas must be in [0, 1) (of trained_betas",
        ),
        ({"model": LINEAR | {"schedule": "trained_betas"}}, "model.betas must hold 9 numbers"),
        ({"model": LINEAR | {"schedule": "squaredcos_cap_v2"}}, "model.betas must hold no numbers"),
        ({"model": LINEAR | {"logsnr_max": 9.0}}, "model.logsnr_max are the cosine schedule's"),
        ({"model": {"norm_eps": 0.0}}, "model.norm_eps must be above 0"),
        ({"model": {"freq_shift": 0}}, "model.freq_shift is for model.embedding timestep"),
        ({"model": {"downsample_padding": 0}}, "model.downsample_padding is for model.resample"),
        ({"model": {"resample": "conv", "downsample_padding": 2}}, "padding must be 0 or 1"),
        ({"train": {"lr": -1.0}}, "train.lr must be 0 or more"),
        ({"train": {"lr": float("nan")}}, "train.lr must be 0 or more"),
        ({"train": {"updates": 0}}, "train.updates must be at least 1"),
        ({"distill": {"ema_decay": 1.0}}, "distill.ema_decay must be in [0, 1)"),
        ({"distill": {"rounds": 14}}, "14 rounds cannot halve 8192 steps exactly"),
        ({"distill": {"start_steps": 1000, "rounds": 4}}, "use at most 3 rounds"),
        ({"distill": {"round_updates": {"5": 1}}}, "names 5 steps, which no round"),
        ({"distill": {"round_updates": {"a": 1}}}, "whole numbers as keys"),
        (
            {"distill": {"loss_weight": "snr", "rounds": 13}},
            "snr weight is 2e-09 at the only noise level of a 1-step sampler, so nothing would be "
            "learned there: set distill.loss_weight to one of constant, snr_trunc, v_mse, or use",
        ),
        ({"distill": {"rounds": "8192"}}, "must be a number of halvings, or the steps of each"),
        ({"distill": {"rounds": "4096,x"}}, "must be a number of halvings, or the steps of each"),
        ({"distill": {"rounds": "4096;2048"}}, "must be a number of halvings, or the steps of"),
        ({"distill": {"rounds": 1.5}}, "distill.rounds must be a whole number or a string"),
        ({"distill": {"rounds": True}}, "distill.rounds must be a whole number or a string"),
        ({"distill": {"rounds": "4096,3"}}, "cannot take 4096 steps to 3: each number must divide"),
        ({"distill": {"rounds": "4096,4096"}}, "cannot take 4096 steps to 4096"),
        ({"distill": {"rounds": "4096,0"}}, "cannot take 4096 steps to 0"),
        ({"distill": {"rounds": ",".join(["1"] * 30)}}, "the steps of 1 to 20 students"),
        ({"distill": {"rounds": "64,16"}}, "merges 128 steps in one from 8192 to 64, and"),
        (
            {"distill": {"rounds": "64,16", "second": "student", "round_updates": {"33": 1}}},
            "distill.round_updates names 33 steps, which no round from 8192 can have",
        ),
        ({"distill": {"round_lr": {"4": -1.0}}}, "round_lr for 4 steps must be 0 or more"),
        ({"distill": {"round_ema_decay": {"4": 1.0}}}, "for 4 steps must be in [0, 1)"),
        ({"distill": {"ema_decays": [0.9, 0.9]}}, "must be at most 4 different decays in (0, 1)"),
        ({"distill": {"ema_decays": [0.9], "ema_decay": 0.9}}, "are both set: list all averages"),
        ({"distill": {"huber_c": 0.0}}, "distill.huber_c must be above 0"),
        ({"distill": {"huber_c": 0.1}}, "distill.huber_c is for distill.loss huber"),
        ({"distill": {"rounds": 64}}, "a plan of one round names its start too, such as 64,4"),
        ({"distill": {"round_lr": {"0": 1.0}}}, "distill.round_lr names 0 steps, which no round"),
        (
            {"distill": {"second": "student"}, "engine": {"pipeline_teacher": True}},
            "set engine.pipeline_teacher to false",
        ),
        (
            {"distill": {"first": "data"}, "engine": {"pipeline_teacher": True}},
            "set engine.pipeline_teacher to false",
        ),
        (
            {"distill": {"first": "data"}, "model": {"guidance": [0.0, 4.0], "num_classes": 3}},
            "distill.first data takes the first step from the data, which have no guidance weight",
        ),
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


def floats():
    """Yield the dotted name of every field of type float."""
    for table in dataclasses.fields(Config):
        if dataclasses.is_dataclass(table.type):
            for field in dataclasses.fields(table.type):
                if field.type is float:
                    yield table.name, field.name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_is_not_finite(value):
    keys = list(floats())
    assert len(keys) > 10
    for table, key in keys:
        with pytest.raises(UsageError, match=rf"{table}\.{key}"):
            from_table(Config, {table: {key: value}})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"seed": 2**64}, "seed must be a number of 64 bits"),
        ({"seed": 16**5000}, "seed must be a number of 64 bits"),
        ({"train": {"lr": 16**5000}}, "lr must be a number, not a number too long to print"),
        ({"train": {"lr": [16**5000]}}, "lr must be a number, not a number too long to print"),
        (
            {"model": {"parameterization": 16**5000}},
            "parameterization must be one of x, eps, v, x_eps",
        ),
        (
            {"model": {"parameterization": "y" * 10**6}},
            "parameterization must be one of x, eps, v, x_eps",
        ),
        ({"model": {"parameterization": [[]]}}, "parameterization must be one of x, eps, v, x_eps"),
        ({"model": {"ch": [[]] * 10**6}}, "model.ch must be a whole number, not [[], [], "),
        ({"m" * 10**6: 1}, "unknown key 'mmm"),
        ({"a\x1b[2Jb\n": 1}, r"unknown key 'a\x1b[2Jb\n'"),
        ({"distill": {"round_updates": {"9" * 5000: 1}}}, "keys, of at most 9 digits"),
        ({"distill": {"round_updates": {"\u0664": 1}}}, "whole numbers as keys"),
        ({"distill": {"round_updates": {"4": 10**8 + 1}}}, "at least 1, at most 100000000"),
        ({"distill": {"round_updates": {"4": 1, "04": 2}}}, "names a round twice"),
        ({"distill": {"rounds": 2**62}}, "rounds (distill.rounds) must be in 1 .. 20"),
        ({"train": {"updates": 10**8 + 1}}, "train.updates must be at most 100000000"),
        ({"train": {"warmup": 10**8 + 1}}, "train.warmup must be at most 100000000"),
        ({"train": {"batch": 2**41}}, "train.batch must be at most 2^40"),
        ({"train": {"batch": 4097, "accumulate": 4097}}, "train.accumulate must be at most 4096"),
        ({"model": {"num_heads": -1, "head_dim": 8}}, "set one of model.num_heads and model.head"),
        ({"save_every": 10**8 + 1}, "save_every must be at least 1, at most 100000000"),
        ({"eval": {"steps": [1] * (MAX_LIST + 1)}}, "eval.steps must hold at most 64"),
        ({"eval": {"steps": [2**20 + 1]}}, "eval.steps must all be at most 1048576"),
        ({"eval": {"baseline_steps": 2**20 + 1}}, "eval.baseline_steps must be at least 1, at"),
        ({"eval": {"num": 10**9}}, "eval.num must be 0 (all) or at least 2, at most"),
        ({"model": {"num_res_blocks": 17}}, "model.num_res_blocks must be in 1 .. 16"),
        ({"model": {"num_classes": 2**20 + 1}}, "model.num_classes must be 0"),
        ({"model": {"ch_mult": [1] * 11}}, "at most 10, each in 1 .. 64"),
        ({"model": {"ch_mult": [65]}}, "at most 10, each in 1 .. 64"),
        ({"model": {"attn_resolutions": [8] * 65}}, "model.attn_resolutions must hold at most 64"),
        ({"name": "a\nb"}, "name must be a plain folder name"),
        ({"name": ""}, "name must be 1 to 100 bytes long"),
        ({"name": "\u00fc" * 51}, "name must be 1 to 100 bytes long"),
        ({"data": {"source": "x" * 4097}}, "data.source must be a path, of at most 4096"),
    ],
)
def test_no_value_is_beyond_bounds(table, message):
    start = time.process_time()
    with pytest.raises(UsageError) as error:
        from_table(Config, table)
    text = str(error.value)
    assert message in text
    assert text.isprintable()
    assert len(text) < 1100
    assert time.process_time() - start < 2


BAD_FILES = {
    "long": (b"# " + b"x" * MAX_TOML, "it is longer than 262,144 bytes"),
    "dots": (b"a" + b".a" * 51 + b" = 1", "it has a line of more than 50 dots"),
    "dots and numbers": (b"a" + b".1.1" * 51 + b" = 1", "it has a line of more than 50 dots"),
    "many dots": (
        b"".join(b"[a%05d" % k + b".a" * 49 + b"]\n" for k in range(MAX_TOML // 107)),
        "unknown key 'a00000'",
    ),
    "brackets": (b"a = " + b"[" * (MAX_TOML - 9), "is not valid TOML"),
    "tables": (b"a = " + b"{a=" * (MAX_TOML // 3 - 9), "is not valid TOML"),
    "digits": (b"seed = 1" + b"0" * 5000, "is not valid TOML"),
    "other digits": (b"seed = 0x1" + b"0" * 5000, "seed must be a number of 64 bits"),
    "no text": (b"\xfe\xfe", "is not valid TOML: 'utf-8' codec can't decode"),
    "a line": (b"seed = 1\nname = x y\n", "(at line 2, column 8): name = x y"),
    "Python's": (b"deterministic = True", "True: TOML writes true and false in lower case"),
    "UTF-16": ("seed = 1".encode("utf-16"), "is not valid TOML: it is in UTF-16: save it as UTF-8"),
    "UTF-16, unmarked": ("seed = 1".encode("utf-16-le"), "it is in UTF-16: save it as UTF-8"),
    "UTF-16, reversed": ("seed = 1".encode("utf-16-be"), "it is in UTF-16: save it as UTF-8"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_configs(tmp_path, case):
    content, message = BAD_FILES[case]
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert time.process_time() - start < 5


def test_a_line_of_many_numbers(tmp_path):
    """The dots of a long list of betas do not count as nested keys."""
    betas = [1e-4 + 2e-6 * k for k in range(4096)]
    (tmp_path / "c.toml").write_text(
        f'[model]\nschedule = "trained_betas"\ntimesteps = 4096\nbetas = {betas}\n'
    )
    assert load_config(tmp_path / "c.toml").model.betas == tuple(betas)
    start = time.process_time()
    assert load_config(tmp_path / "c.toml").model.timesteps == 4096
    assert time.process_time() - start < 1


def test_the_largest_model_is_made_in_seconds():
    cfg = NetConfig(
        image_size=2**16,
        num_classes=2**20,
        ch=2**16,
        emb_ch=2**16,
        ch_mult=(64,) * 10,
        num_res_blocks=16,
        attn_resolutions=tuple(2**k for k in range(17)),
    )
    start = time.process_time()
    with torch.device("meta"):
        model = Model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 2**50
    assert time.process_time() - start < 5


def test_the_snr_weight_is_fine_before_the_one_step_round():
    DistillConfig(loss_weight="snr", rounds=12)


def test_norm_widths_are_those_of_the_net():
    from pdfast.models.blocks import GroupNormSiLU
    from pdfast.models.unet import UNet

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


def test_a_mark_of_the_order_of_bytes(tmp_path):
    """A config with a byte order mark, as Windows editors write."""
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"seed = 7\n")
    assert load_config(path).seed == 7
