"""Import of diffusers' pipelines: an imported model computes what diffusers computes."""

import copy
import dataclasses
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import diffusers_files as df
import huggingface_hub
import numpy as np
import pytest
import tomli_w
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from onnx_readme import by_readme

import pdfast
from pdfast.cli.main import main, parse
from pdfast.config.loops import DistillConfig
from pdfast.config.schema import EngineConfig, EvalConfig, NetConfig, load_config
from pdfast.config.serialization import to_table
from pdfast.diffusion import betas
from pdfast.diffusion.conditioning import UNCONDITIONAL, Conditioning
from pdfast.distillation.rounds import check_start
from pdfast.errors import UsageError
from pdfast.interop import onnx
from pdfast.interop.common import Probe
from pdfast.interop.diffusers import export as exporting
from pdfast.interop.diffusers import unet2d
from pdfast.interop.diffusers.load import load_diffusers
from pdfast.interop.diffusers.pipeline import Pipeline, Table
from pdfast.interop.diffusers.weights import Weights
from pdfast.interop.recipe import plan_for
from pdfast.models.checkpoint import load_model
from pdfast.models.model import Model
from pdfast.training import precision

pytestmark = pytest.mark.usefixtures("handlers")
TOL = 1e-5


@pytest.fixture(autouse=True)
def _quiet_and_small(monkeypatch):
    """Sample in batches of the 4 images that are compared, not of 64."""
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def loaded(folder, *args):
    return load_diffusers(str(folder), *args).model


def u_of(t, timesteps=1000):
    return (t.double() + 1) / timesteps


# ------------------------------------------------------------------------------------------
# Networks


@pytest.mark.parametrize("name", df.FAMILIES)
def test_the_network_is_diffusers(name, tmp_path):
    """Compare the raw output at the first timestep, the last, and one between."""
    net = df.unet(**df.FAMILIES[name])
    df.save(tmp_path / "p", net)
    if name == "ddpm-cifar10-32":
        df.flatten(tmp_path / "p")
    model = loaded(tmp_path / "p")
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in net.parameters()
    ) + model.cfg.emb_ch * bool(model.cfg.num_classes)  # the class bias, which is 0
    t = torch.tensor([0, 1, 17, 500, 998, 999])
    z = df.noise(model, len(t))
    labels = torch.arange(len(t)) % 5 if model.cfg.num_classes else None
    with torch.no_grad():
        theirs = net(z, t, class_labels=labels).sample
        ours = model.forward_at_angle(z, model.schedule.phi(u_of(t)), Conditioning(labels))
    assert df.apart(ours, theirs) < TOL < 0.1 * theirs.abs().max()
    assert (model.parameterization, model.steps, model.cfg.schedule) == ("eps", 0, "linear")


@pytest.mark.parametrize(
    ("fields", "params"), [(df.CIFAR10, 35_746_307), (df.CELEBAHQ, 113_673_219)]
)
def test_the_full_size(fields, params):
    """The published pipelines' configurations have the published numbers of parameters."""
    with torch.device("meta"):
        table = json.loads(UNet2DModel(**fields).to_json_string())
    scheduler = json.loads(DDPMScheduler().to_json_string())
    file = Path("config.json")
    pipeline = Pipeline("", Table(file, table), Table(file, scheduler), Weights(file), None)
    found = unet2d.network(pipeline) | unet2d.embedding(pipeline)[0]
    with torch.device("meta"):
        model = Model(NetConfig(**found, **unet2d.schedule(pipeline)[0]))
    assert sum(p.numel() for p in model.parameters()) == params


def test_in_bfloat16_and_with_tabulated_embeddings(tmp_path):
    """The engine's variants of a network work with the imported layers too."""
    from pdfast.distillation.objectives import Rollout

    model = loaded(df.save(tmp_path / "p"))
    phi = model.schedule.phi(torch.tensor([0.2, 0.9]))
    z = df.noise(model, 2)
    low = precision.cast_to_precision(model, "bf16")
    with torch.no_grad():
        out, rough = model.forward_at_angle(z, phi), low.forward_at_angle(z, phi)
    assert rough.dtype == torch.bfloat16
    assert 0 < df.apart(rough, out) < 0.05 * out.abs().max()
    rollout = Rollout(model, 5, "snr_trunc", EngineConfig(tabulate_film=True))
    with torch.no_grad():
        for k in (1, 2, 10):
            phi = model.schedule.phi(torch.tensor([k / 10, 1.0]))
            out = model.forward_at_angle(z, phi)
            assert df.apart(rollout._teacher_at(z, phi, UNCONDITIONAL), out) < 1e-6
            assert df.apart(model.forward_at_angle(z, phi.flip(0)), out) > 1e-3 or k == 10


# ------------------------------------------------------------------------------------------
# Schedules


SCHEDULES = {
    "linear": {},
    "linear, 2000": {"num_train_timesteps": 2000, "beta_end": 0.01},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained_betas": {"trained_betas": [0.01 + 0.0013 * k for k in range(100)]},
    "zero terminal SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}
SCHEDULES["trained_betas"] |= {"num_train_timesteps": 100, "prediction_type": "sample"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_is_diffusers(name, tmp_path):
    scheduler = DDPMScheduler(**SCHEDULES[name])
    df.save(tmp_path / "p", scheduler=scheduler)
    model = loaded(tmp_path / "p")
    exact, timesteps = scheduler.alphas_cumprod, len(scheduler.alphas_cumprod)
    assert torch.equal(betas.alpha_bar(model.cfg), exact)
    u = u_of(torch.arange(timesteps), timesteps)
    product = model.schedule.phi(u).cos().square()
    if exact[-1] == 0:  # its logSNR, minus infinity, is cut off
        assert 0 < product[-1] < 3e-9
        product, exact = product[:-1], exact[:-1]
    torch.testing.assert_close(product, exact.double(), rtol=1e-10, atol=0)
    predicts = SCHEDULES[name].get("prediction_type", "epsilon")
    assert exporting.PREDICTS[model.parameterization] == predicts


@pytest.mark.parametrize(
    ("name", "predicts"),
    [
        ("linear", "epsilon"),
        ("linear", "sample"),
        ("linear", "v_prediction"),
        ("squaredcos_cap_v2", "v_prediction"),
    ],
)
def test_samples_are_ddims(name, predicts, tmp_path):
    """Compare with the pipeline's own scheduler at trailing timesteps and steps that divide T."""
    fields = SCHEDULES[name] | {"prediction_type": predicts, "timestep_spacing": "trailing"}
    df.save(tmp_path / "p", df.unet(gain=4.0), DDIMScheduler(**fields), DDIMPipeline)
    model, pipe = loaded(tmp_path / "p"), df.opened(tmp_path / "p")
    start, exact = df.noise(model), copy.deepcopy(model).double()
    for steps in (1, 4, 10):
        ours = model.sample(4, steps, noise=start)
        own = df.apart(ours, exact.sample(4, steps, noise=start.double()))
        difference = df.apart(ours, df.by_pipeline(pipe, steps))
        print(f"{name}, {predicts}, {steps} steps: {difference:.1e}, float32 to float64 {own:.1e}")
        assert difference < max(TOL, 10 * own if predicts != "v_prediction" else 0)
    assert (ours.abs() == 1).any()
    assert (ours.abs() < 1).any()


def test_samples_from_zero_terminal_snr(tmp_path):
    """alpha = 0 at u = 1 becomes 4.5e-5 here, and the samples differ only by that."""
    fields = SCHEDULES["zero terminal SNR"] | {"timestep_spacing": "trailing"}
    df.save(tmp_path / "p", df.unet(gain=4.0), DDIMScheduler(**fields), DDIMPipeline)
    model, pipe = loaded(tmp_path / "p"), df.opened(tmp_path / "p")
    for steps in (1, 10):
        ours = model.sample(4, steps, noise=df.noise(model))
        difference = df.apart(ours, df.by_pipeline(pipe, steps))
        print(f"zero terminal SNR, {steps} steps: {difference:.1e}")
        assert difference < 5e-4


# ------------------------------------------------------------------------------------------
# Our own exports


OWN = {
    "published": {},
    "another schedule, four heads": {
        "logsnr_min": -15.0,
        "logsnr_max": 12.0,
        "num_heads": 4,
        "parameterization": "x",
        "emb_ch": 48,
    },
    "classes": {"num_classes": 5, "parameterization": "eps"},
    "by betas": {
        "schedule": "linear",
        "timesteps": 100,
        "betas": (0.001, 0.12),
        "embedding": "timestep",
        "film": False,
        "resample": "conv",
        "downsample_padding": 0,
        "freq_shift": 0,
        "norm_eps": 1e-5,
    },
}
NET = {"image_size": 8, "channels": 1, "ch": 16, "emb_ch": 64, "ch_mult": (1, 2), "groups": 8}
NET |= {"num_res_blocks": 1, "attn_resolutions": (4,)}


def own(steps, **fields):
    """A model of pdfast's with random weights."""
    torch.manual_seed(3)
    model = Model(NetConfig(**(NET | fields)), steps).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=(1 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.2)
    if model.net.emb_class is not None:  # an export has it in every class's row
        torch.nn.init.zeros_(model.net.emb_class.bias)
    return model


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("published", 0),
        ("another schedule, four heads", 8),
        ("classes", 8),
        ("by betas", 0),
        ("by betas", 8),
    ],
)
def test_what_was_exported_comes_back(name, steps, tmp_path):
    model = own(steps, **OWN[name])
    pdfast.export(model, tmp_path / "out", quiet=True)
    back = loaded(tmp_path / "out")
    assert (back.cfg, back.steps) == (model.cfg, steps)
    weights = back.net.state_dict()
    for key, value in model.net.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=0)
    assert loaded(tmp_path / "out", 4).steps == 4
    pipe = df.opened(tmp_path / "out")
    if not model.cfg.num_classes:
        number = steps or 4
        ours = model.sample(4, number, noise=df.noise(model))
        assert df.apart(ours, df.by_pipeline(pipe, number)) < TOL
    if name == "by betas":  # 8 does not divide 100
        assert pipe.scheduler.config.num_train_timesteps == (1024 if steps else 100)


def test_an_exported_cosine_is_known_without_our_file(tmp_path):
    """The scheduler's betas and the rows of the learned table identify it."""
    model = own(4)
    pdfast.export(model, tmp_path / "out", quiet=True)
    (tmp_path / "out" / exporting.OWN).unlink()
    back = loaded(tmp_path / "out")
    assert (back.cfg, back.steps) == (model.cfg, 0)


def test_a_table_of_another_schedules_logsnr(tmp_path):
    """A learned table is accepted for linear betas too; here it is made by hand."""
    net = df.unet(**df.PUBLISHED, time_embedding_type="learned", num_train_timesteps=1000)
    linear = Model(NetConfig(**NET, schedule="linear", timesteps=1000, betas=(0.0001, 0.02)))
    table = linear.net.embedding(linear.schedule.logsnr)
    net.time_proj.weight.data.copy_(table)
    model = loaded(df.save(tmp_path / "p", net))
    assert (model.cfg.schedule, model.cfg.embedding) == ("linear", "logsnr")
    t, z = torch.tensor([0, 500, 999]), df.noise(model, 3)
    with torch.no_grad():
        theirs = net(z, t).sample
        assert df.apart(model.forward_at_angle(z, model.schedule.phi(u_of(t))), theirs) < TOL


def test_what_an_onnx_export_says_of_the_schedule():
    model = own(0, **OWN["by betas"])
    about = onnx.describe(model, 0.0)["schedule"]
    assert about["logsnr"] == model.schedule.logsnr.tolist()
    assert about["formula"][0].startswith("logsnr is listed at u = 1/T, 2/T, ..., 1, where T")
    assert "phi = a u + b" in onnx.describe(own(0), 0.0)["schedule"]["formula"]
    assert onnx.describe(own(0), 0.0)["sampler"]["clip"] == (-1, 1)


@pytest.mark.slow
def test_onnx_of_a_timestep_network(tmp_path, monkeypatch):
    """Look up the timestep at noise levels between two timesteps and beyond both ends."""
    model = own(0, **OWN["by betas"])
    pdfast.export(model, tmp_path / "out", "onnx", quiet=True)
    by_readme(model, tmp_path / "out", monkeypatch)
    logsnr = torch.linspace(9, -9, 7)
    inputs = Probe(df.noise(model, 7), logsnr, None)
    with torch.no_grad():
        ours = model(*inputs)
    out = onnx.run((tmp_path / "out" / onnx.GRAPH).read_bytes(), inputs)
    assert df.apart(out, ours) < TOL
    assert df.apart(out[2], out[3]) > 1e-3


# ------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def data(tmp_path):
    """A folder of images for the small networks."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images)
    return tmp_path / "d.npz"


def test_neither_diffusers_nor_the_hub_is_needed_for_a_folder(tmp_path, monkeypatch):
    df.save(tmp_path / "p")
    for name in ("diffusers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    assert loaded(tmp_path / "p").cfg.timesteps == 1000


def test_the_config_of_few_timesteps_can_be_run(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    df.save(tmp_path / "p", scheduler=df.DDPMScheduler(num_train_timesteps=32))
    assert main(["import", "p", "--from", "diffusers", "--out", "m"]) == 0
    config = load_config("m.toml")
    assert (config.eval.baseline_steps, config.distill.start_steps) == (32, 32)
    model = load_model("m")
    check_start(model, config)


def test_import_distil_export(tmp_path, data, capsys, monkeypatch):
    """An eps teacher of 1000 timesteps: a first fit, two rounds, and the student's export."""
    monkeypatch.chdir(tmp_path)
    df.save(tmp_path / "p")
    assert main(["import", "p", "--from", "diffusers", "--out", "in/m"]) == 0
    near, *lines = capsys.readouterr().out.splitlines()[-6:]
    command = "pdfast distill --config in/m.toml --teacher in/m --data.source YOUR_IMAGES"
    assert near.startswith("512 does not divide the teacher's 1000 timesteps")
    assert lines == [
        "wrote in/m.toml: a first fit of a v student to this eps teacher (round 1 of 8), then 7 "
        "halvings, 512 to 4 steps",
        "next, with your pictures (a folder or an .npz) in place of YOUR_IMAGES:",
        command,
        "this is 7 rounds of 50,000 updates after a fit of 200,000, in batches of 128: see its "
        "time first, with --dry-run",
        "for a trial add --distill.start-steps 64 --rounds 4 --distill.updates 200 --out "
        "runs/m-trial",
    ]
    model = load_model("in/m")
    manifest = json.loads(Path("in/m/manifest.json").read_text())["imported"]
    assert manifest["from"] == "diffusers"
    assert (manifest["pipeline"], manifest["scheduler"]) == ("DDPMPipeline", "DDPMScheduler")
    config = load_config("in/m.toml")
    assert config.model == dataclasses.replace(model.cfg, parameterization="v")
    assert config.distill == DistillConfig(start_steps=512, rounds=7)
    assert config.eval == EvalConfig()
    table = tomllib.loads(Path("in/m.toml").read_text())
    assert config.data.source == table["data"]["source"] == ""
    assert table["distill"] == {
        "start_steps": 512, "rounds": 7, "updates": 50_000, "batch": 128, "lr": 5e-5,
        "fit_updates": 0, "fit_lr": 2e-4,
    }  # fmt: skip
    assert Path("in/m.toml").read_text().startswith(f"# {command}\n")

    given = [*shlex.split(command)[1:-1], str(data)]
    page = (Path(pdfast.__file__).parents[1] / "docs" / "teachers.md").read_text()
    (own,) = re.findall(r"--distill.start-steps 500 .*", page)
    check_start(model, parse([*given, *shlex.split(own)]).fields)
    args = [*given, "--distill.start-steps", "16", "--rounds", "2"]
    args += ["--distill.updates", "2", "--distill.batch", "4", "--out", "run", "--eval.num", "4"]
    args += ["--eval.steps", "4", "--eval.baseline-steps", "4"]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "moves it to v" in said
    assert "distill.start_steps: 16 does not divide the teacher's 1000 timesteps" in said
    (student,) = Path("run").glob("round-03-steps-0004")
    assert main(["export", str(student), "--to", "diffusers", "--out", "out"]) == 0
    student, pipe = load_model(student), df.opened("out")
    assert student.cfg == config.model
    ours = student.sample(4, 4, noise=df.noise(student))
    assert df.apart(ours, df.by_pipeline(pipe, 4)) < TOL
    assert main(["import", "out", "--from", "diffusers", "--out", "again"]) == 0
    assert "a student of 4 steps" in capsys.readouterr().out
    assert load_model("again").cfg == student.cfg


@pytest.mark.slow
def test_the_forecast_of_an_imported_teacher(tmp_path, data, capsys):
    """`--dry-run` counts the first fit and the rounds, and no training of a teacher."""
    df.save(tmp_path / "p")
    out = str(tmp_path / "m")
    assert main(["import", str(tmp_path / "p"), "--from", "diffusers", "--out", out]) == 0
    args = ["distill", "--config", f"{out}.toml", "--teacher", out, "--data.source", str(data)]
    assert main([*args, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "memory, the first fit: " in said
    assert "memory, training" not in said


@pytest.mark.parametrize(
    ("steps", "fields", "plan"),
    [
        (0, {}, (8192, 11)),
        (0, OWN["by betas"], (64, 4)),
        (0, OWN["by betas"] | {"timesteps": 3}, (2, 1)),
        (0, OWN["by betas"] | {"timesteps": 96}, (96, 5)),
        (32, {}, (32, 3)),
        (12, {}, (12, 2)),
        (4, {}, (4, 1)),
        (1, {}, None),
        (8, {"parameterization": "eps"}, (8, 1, True)),
    ],
)
def test_the_rounds_that_are_proposed(steps, fields, plan):
    with torch.device("meta"):
        found = plan_for(Model(NetConfig(**(NET | fields)), steps))
    assert found == (plan and (*plan, False)[:3])


def test_what_a_trial_of_a_student_is(tmp_path, capsys):
    """A student keeps the steps that it was distilled to, which its rounds start from."""
    df.save(tmp_path / "p", scheduler=DDIMScheduler(prediction_type="sample"))
    out = tmp_path / "m"
    pdfast.import_model(tmp_path / "p", out, steps=128)
    *_, line, trial = capsys.readouterr().out.splitlines()
    assert "this is 5 rounds of 50,000 updates, in batches of 128: see" in line
    assert trial == "for a trial add --distill.updates 200 --out runs/m-trial"


def test_import_in_python_is_the_command(tmp_path, capsys):
    """Files and model are the same; what the files tell need not be said."""
    df.save(tmp_path / "p", df.unet(num_class_embeds=5))
    args = ["--out", str(tmp_path / "a"), "--null-class", "4"]
    assert main(["import", str(tmp_path / "p"), *args]) == 0
    said = capsys.readouterr().out
    model = pdfast.import_model(tmp_path / "p", tmp_path / "b", null_class=4, quiet=True)
    assert not capsys.readouterr().out
    assert (model.num_classes, " 4 classes, " in said) == (4, True)
    for name in ("config.json", "manifest.json"):
        a, b = ((tmp_path / out / name).read_text() for out in "ab")
        assert a == b
    a, b = (load_config(tmp_path / f"{out}.toml") for out in "ab")
    assert dataclasses.replace(a, name="b") == b
    for origin, said in (
        ("google", "p is a diffusers pipeline: pass origin='diffusers'"),
        ("edm", "p is a diffusers pipeline: pass origin='diffusers'"),
        ("diffuser", "no import from 'diffuser'; did you mean 'diffusers'"),
    ):
        with pytest.raises(UsageError, match=said):
            pdfast.import_model(tmp_path / "p", tmp_path / "c", origin)
    with pytest.raises(UsageError, match=r"which library wrote .*: pass origin='diffusers', edm"):
        pdfast.import_model(tmp_path, tmp_path / "c")
    with pytest.raises(UsageError, match="out is empty"):
        pdfast.import_model(tmp_path / "p", "")
    with pytest.raises(UsageError, match="parameterization is for origin edm"):
        pdfast.import_model(tmp_path / "p", tmp_path / "c", parameterization="x")


def test_classes_are_told(tmp_path, capsys):
    """Classes are counted, and a label for no class is asked for unless it was given."""
    df.save(tmp_path / "p", df.unet(num_class_embeds=5))
    asks = "if one of its 5 labels means 'no class', import it again with --null-class LABEL"
    pdfast.import_model(tmp_path / "p", tmp_path / "a")
    said = capsys.readouterr().out
    assert "schedule linear of 1000 timesteps, 5 classes, " in said
    assert asks in said
    pdfast.import_model(tmp_path / "p", tmp_path / "b", null_class=2)
    assert "means no class" not in capsys.readouterr().out


def test_a_student_and_an_unclipped_sampler(tmp_path, capsys):
    """An import with --steps 1 cannot be distilled further, and its own sampler does not clip."""
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    df.save(tmp_path / "p", scheduler=scheduler)
    args = ["import", str(tmp_path / "p"), "--from", "diffusers", "--out", str(tmp_path / "m")]
    assert main([*args, "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "a student of 1 steps" in said
    assert "clip_sample false" in said
    assert "1 steps cannot be halved" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "p"]


def test_a_schedule_by_betas_is_not_trained_with(tmp_path, data, capsys):
    """Neither `train` nor `distill` trains a teacher on a schedule by betas."""
    table = to_table(NetConfig(**(NET | OWN["by betas"] | {"channels": 3})))
    (tmp_path / "c.toml").write_text(tomli_w.dumps({"model": table}))
    args = ["--config", str(tmp_path / "c.toml"), "--data.source", str(data), "--out"]
    args.append(str(tmp_path / "run"))
    for command in (["train"], ["train", "--dry-run"], ["distill", "--distill.start-steps=64"]):
        args_now = [*command, *args, *(["--rounds", "2"] if command[0] == "distill" else [])]
        assert main(args_now) == 2
        said = capsys.readouterr().err
        assert "model.schedule linear is only for distilling a teacher that has it: pass" in said
        assert "pass that teacher by --teacher (to train one here, set" in said
    assert not (tmp_path / "run").exists()


def test_an_id_on_the_hub(tmp_path, capsys, monkeypatch):
    """Only JSON and safetensors are downloaded; without internet access there is one sentence."""
    df.save(tmp_path / "p")
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "p")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    args = ["import", "google/ddpm-cifar10-32", "--from", "diffusers", "--out", "m"]
    assert main(args) == 0
    ((name, patterns),) = asked
    assert name == "google/ddpm-cifar10-32"
    assert "unet/diffusion_pytorch_model.safetensors" in patterns
    assert "vae/config.json" in patterns  # a pipeline of latents is to be seen as one
    assert all(p.endswith((".json", ".safetensors")) and "*" not in p for p in patterns)

    def fails(name, allow_patterns):
        raise ConnectionError("no route to a.b. Read the docs at c.d\nand much advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    assert main([*args[:-1], "n"]) == 1
    error = capsys.readouterr().err
    assert (
        "not be downloaded from the hub (no route to a.b): download the pipeline's folder" in error
    )
    assert error.count("\n") == 1
    assert not (tmp_path / "n").exists()
