"""Exports compute what pdfast computes: samples in diffusers, the network in onnxruntime."""

import copy
import importlib
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers_files import apart, by_pipeline, noise, opened
from onnx_readme import by_readme

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import NetConfig
from pdfast.diffusion import angles
from pdfast.diffusion.conditioning import Conditioning
from pdfast.errors import PdfastError, UsageError
from pdfast.interop import onnx
from pdfast.interop.diffusers import export
from pdfast.models.checkpoint import load_model
from pdfast.models.model import Model

pytestmark = pytest.mark.usefixtures("handlers")
TOL = 1e-5
STEPS = (1, 2, 4, 8, 64)
SMALL = {
    "image_size": 8,
    "channels": 1,
    "ch": 16,
    "emb_ch": 64,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "groups": 8,
}
ARCHITECTURES = {
    "one level, attention in the middle alone": {"ch_mult": (1,), "attn_resolutions": ()},
    "attention on the upper of two levels": {"attn_resolutions": (8,), "channels": 3},
    "four heads": {"num_heads": 4},
    "three levels, all with attention": {
        "ch_mult": (1, 2, 3),
        "num_res_blocks": 2,
        "attn_resolutions": (8, 4, 2),
        "num_heads": 0,
        "head_dim": 8,
    },
    "classes": {"num_classes": 5, "attn_resolutions": (8, 4)},
    "another width of the embedding": {"emb_ch": 48},
    "another schedule": {"logsnr_min": -15.0, "logsnr_max": 12.0},
}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Sample in batches of the 4 images that are compared, not of 64."""
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)


def make(steps=4, gain=1.0, **fields):
    """A model with random weights, none of them zero; `gain` scales its output."""
    generator = torch.Generator().manual_seed(5)
    model = Model(NetConfig(**(SMALL | fields)), steps).eval()
    with torch.no_grad():
        for p in model.parameters():
            std = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * std)
        for p in model.net.conv_out.parameters():
            p.mul_(gain)
    return model


def labels_for(model, num=4):
    return torch.arange(num) % model.cfg.num_classes if model.cfg.num_classes else None


# ------------------------------------------------------------------------------------------
# diffusers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_network_and_samples(name, tmp_path):
    """The v parameterization: the network's output at four timesteps, and the samples."""
    model = make(**ARCHITECTURES[name])
    pdfast.export(model, tmp_path / "out", quiet=True)
    pipe = opened(tmp_path / "out")
    grid, labels = pipe.scheduler.config.num_train_timesteps, labels_for(model)
    k = torch.tensor([0, 15, grid // 2 - 1, grid - 1])
    with torch.no_grad():
        ours = model.forward_at_angle(
            noise(model), model.schedule.phi((k + 1) / grid), Conditioning(labels)
        )
        theirs = pipe.unet(noise(model), k, class_labels=labels).sample
    assert apart(ours, theirs) < TOL
    for steps in STEPS if name in ("four heads", "classes") else (1, 8):
        ours = model.sample(4, steps, noise=noise(model), label=labels)
        assert apart(ours, by_pipeline(pipe, steps, labels)) < TOL, steps
    if name == "four heads":  # x-hat is clipped, and eps-hat must be recomputed from it
        assert (ours.abs() == 1).any()
        assert apart(ours, by_pipeline(pipe, steps, clipped=False)) > 0.01


@pytest.mark.parametrize("num_classes", [0, 5])
def test_samples_of_the_x_head(num_classes, tmp_path):
    model = make(parameterization="x", num_classes=num_classes, gain=12.0)
    pdfast.export(model, tmp_path / "out", quiet=True)
    pipe, labels, start = opened(tmp_path / "out"), labels_for(model), noise(model)
    exact = copy.deepcopy(model).double()
    for steps in STEPS:
        ours = model.sample(4, steps, noise=start, label=labels)
        own = apart(ours, exact.sample(4, steps, noise=start.double(), label=labels))
        difference = apart(ours, by_pipeline(pipe, steps, labels))
        print(f"predicts x, {steps} steps: {difference:.1e}, pdfast's float32 to float64 {own:.1e}")
        assert difference < TOL if steps <= 2 else difference <= 10 * own
    assert (ours.abs() == 1).any()


def test_samples_of_the_eps_head(tmp_path):
    """Random weights saturate x-hat; the step that divides by alpha = 4.5e-5 is tested below."""
    model = make(steps=0, parameterization="eps")
    pdfast.export(model, tmp_path / "out", quiet=True)
    pipe, exact = opened(tmp_path / "out"), copy.deepcopy(model).double()
    for steps in STEPS:
        ours = model.sample(4, steps, noise=noise(model))
        own = apart(ours, exact.sample(4, steps, noise=noise(model).double()))
        assert apart(ours, by_pipeline(pipe, steps)) <= max(TOL, 10 * own), steps


def test_the_eps_heads_first_step_is_as_exact_as_pdfasts(tmp_path):
    """x-hat at u = 1 from the eps of a known x: float32 errors are alike in both libraries."""
    model = make(steps=0, parameterization="eps")
    pdfast.export(model, tmp_path / "out", quiet=True)
    scheduler = opened(tmp_path / "out").scheduler
    scheduler.set_timesteps(64)
    phi = model.schedule.phi(torch.ones(64))
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double() - 0.5
    eps = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    z = angles.combine((phi.cos(), x), (phi.sin(), eps.double())).float()
    theirs = scheduler.step(eps, scheduler.timesteps[0], z).pred_original_sample
    ours = angles.predict_x(z, eps, phi, "eps")
    print(f"eps at u = 1: diffusers {apart(theirs, x):.1e}, pdfast {apart(ours, x):.1e}")
    assert apart(theirs, x) <= 10 * apart(ours, x)


@pytest.mark.parametrize(("logsnr_min", "logsnr_max"), [(-20.0, 20.0), (-10.0, 15.0)])
@pytest.mark.parametrize("grid", [1024, 1600, 8192])
def test_alpha_bar_in_float32(grid, logsnr_min, logsnr_max):
    """diffusers' cumulative products are the schedule in float32, on a grid of any length."""
    phi = export.angles(make(logsnr_min=logsnr_min, logsnr_max=logsnr_max), grid)
    exact = phi.cos().square()

    def error(betas):
        scheduler = DDIMScheduler(num_train_timesteps=grid, trained_betas=betas)
        return export.schedule_error(scheduler.alphas_cumprod, phi)

    plain = 1 - exact / torch.cat([torch.ones(1, dtype=torch.float64), exact[:-1]])
    compensated = error(export.compensated_betas(phi))
    print(
        f"T = {grid}: alpha-bar off by {compensated:.1e}, uncompensated {error(plain.tolist()):.1e}"
    )
    assert compensated <= 2**-25 < error(plain.tolist())


@pytest.mark.parametrize(
    ("steps", "grid"), [(0, 1024), (1, 1024), (4, 1024), (25, 1600), (1024, 1024), (4096, 4096)]
)
def test_the_grid_serves_the_models_steps_and_64(steps, grid, tmp_path):
    model = make(steps)
    assert export.grid_of(model) == grid
    assert grid % 64 == 0 == grid % max(1, steps)
    if steps == 25:  # not a power of two
        pdfast.export(model, tmp_path / "out", quiet=True)
        theirs = by_pipeline(opened(tmp_path / "out"), 25)
        assert apart(model.sample(4, 25, noise=noise(model)), theirs) < TOL


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_cards_call_as_written(num_classes, steps, tmp_path, monkeypatch):
    model = make(steps, num_classes=num_classes)
    pdfast.export(model, tmp_path / "out", quiet=True)
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ran = {}
    exec(code, ran)
    labels = labels_for(model)
    assert apart(ran["labels"], labels) == 0 if num_classes else "labels" not in ran
    ours = model.sample(4, steps or 64, noise=noise(model, seed=0), label=labels) / 2 + 0.5
    if num_classes:
        assert apart(ran["images"], ours) < TOL
    else:
        pictures = np.stack([np.asarray(image) for image in ran["images"]])
        assert np.abs(pictures - ours[:, 0].numpy() * 255).max() < 0.51  # rounded to uint8
    assert max(map(len, card.splitlines())) <= 100
    assert ("\n```\n\nUse this loop, not `pipe()`, which takes no" in card) == bool(num_classes)
    way = "set_timesteps(" if num_classes else "num_inference_steps="
    assert f"\n- **Steps.** `{way}" in card
    assert "use_clipped_model_output=True" in card
    tags = card.split("---")[1]
    assert ("\n- class-conditional-image-generation\n" in tags) == bool(num_classes)
    assert ("\n- unconditional-image-generation\n" in tags) == (not num_classes)
    assert ("with labels 0 to 4" in card) == bool(num_classes)


@pytest.mark.parametrize(
    ("steps", "fields", "message"),
    [
        (
            4,
            {"parameterization": "x_eps"},
            "model.parameterization x_eps: diffusers' DDIMScheduler takes x, eps",
        ),
        (4, {"ch_mult": (2, 2)}, "model.ch_mult begins with 2"),
        (4, {"num_heads": 2, "attn_resolutions": (8, 4)}, "model.num_heads 2"),
        (2**15, {}, "the grid of 32768 timesteps that 32768 steps and model.logsnr_max 20 need"),
    ],
)
def test_what_diffusers_cannot_express(steps, fields, message, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        pdfast.export(make(steps, **fields), tmp_path / "out")
    assert "to='onnx'" in str(raised.value)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------
# ONNX


@pytest.mark.parametrize(
    ("fields", "mean"),
    [
        ({"parameterization": "x", "ch_mult": (1,)}, 1e4),
        ({"parameterization": "x_eps", "num_classes": 5, "ch_mult": (2, 2)}, 0),
    ],
    ids=str,
)
def test_onnx(fields, mean, tmp_path, monkeypatch):
    """Compare the network at other batch sizes, and samples made with the JSON file alone.

    In one case the norms' inputs have a mean of thousands of standard deviations. There
    E[x^2] - E[x]^2 has lost every digit of the variance, and is often below 0.
    """
    model = make(2, **fields)
    if mean:
        with torch.no_grad():
            model.net.conv_in.bias += mean
    pdfast.export(model, tmp_path / "out", "onnx", quiet=True)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {onnx.MEANING, onnx.GRAPH, onnx.README, "manifest.json"}
    by_readme(model, tmp_path / "out", monkeypatch)
    content = (tmp_path / "out" / onnx.GRAPH).read_bytes()
    assert str(pdfast.__path__[0]).encode() not in content  # no path of this machine
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    about = json.loads((tmp_path / "out" / onnx.MEANING).read_text())
    assert [i.name for i in session.get_inputs()] == list(about["inputs"])
    graph = importlib.import_module("onnx").load_from_string(content)
    assert [o.version for o in graph.opset_import] == [about["opset"]] == [20]
    for num in (1, 5):
        z, labels = noise(model, num), labels_for(model, num)
        logsnr = torch.linspace(-19, 19, num)
        given = {"z": z, "logsnr": logsnr} | ({} if labels is None else {"label": labels})
        out = session.run(None, {k: v.numpy() for k, v in given.items()})[0]
        with torch.no_grad():
            assert apart(torch.from_numpy(out), model(z, logsnr, labels)) < TOL
            exact = copy.deepcopy(model).double()(z.double(), logsnr.double(), labels)
        assert apart(torch.from_numpy(out), exact) < TOL
    if about["parameterization"] != "x":
        assert about["inputs"]["label"]["no_class"] is None
        refuses(opened_quietly(tmp_path / "out"), model, -1)
        assert out.shape[1:] == tuple(about["output"]["shape"][1:]) == (2, 8, 8)
        return
    z = noise(model).double().numpy()
    schedule, steps = about["schedule"], about["steps"]
    for i in reversed(range(steps)):
        phi, phi_s = (schedule["a"] * u / steps + schedule["b"] for u in (i + 1, i))
        logsnr = np.full(4, -2 * math.log(math.tan(phi)), np.float32)
        out = session.run(None, {"z": z.astype(np.float32), "logsnr": logsnr})[0]
        x = out.clip(-1, 1)
        eps = (z - math.cos(phi) * x) / math.sin(phi)
        z = math.cos(phi_s) * x + math.sin(phi_s) * eps
    assert apart(torch.from_numpy(x), model.sample(4, steps, noise=noise(model))) < TOL


def test_the_loop_of_the_docs_is_that_of_the_readme(tmp_path, monkeypatch):
    page = (Path(pdfast.__path__[0]).parent / "docs" / "teachers.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (loop,) = [block for block in blocks if "onnxruntime" in block]
    model = make(4, ch_mult=(1,))
    pdfast.export(model, tmp_path / "digits-onnx", "onnx", quiet=True)
    pictures = by_readme(model, tmp_path / "digits-onnx", monkeypatch)
    ran = {}
    exec(loop, ran)
    assert np.array_equal(np.rint(ran["x_hat"] * 127.5 + 127.5), pictures)


def test_labels_that_are_no_class_in_onnx(tmp_path):
    """-1 means no class where the model has learned that; any other label is an error."""
    model, folder = make(num_classes=4, label_dropout=0.1, ch_mult=(1,)), tmp_path / "out"
    pdfast.export(model, folder, "onnx", quiet=True)
    about = json.loads((folder / onnx.MEANING).read_text())["inputs"]["label"]
    assert (about["from"], about["below"], about["no_class"]) == (0, 4, -1)
    session = opened_quietly(folder)
    z, logsnr, labels = noise(model, 5), torch.linspace(-9, 9, 5), torch.tensor([-1, 0, 1, 2, 3])
    outs = {}
    for shift in range(5):
        label = labels.roll(shift)
        given = {"z": z.numpy(), "logsnr": logsnr.numpy(), "label": label.numpy()}
        out = torch.from_numpy(session.run(None, given)[0])
        with torch.no_grad():
            assert apart(out, model(z, logsnr, label)) < TOL
        outs[int(label[0])] = out[0]
    for label, other in itertools.combinations(outs, 2):
        assert apart(outs[label], outs[other]) > 0.01
    for label in (-5, -4, -3, -2, 4):
        refuses(session, model, label)


def opened_quietly(folder):
    """Open the exported graph in onnxruntime, without its log of the errors that it raises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    path = str(folder / onnx.GRAPH)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def refuses(session, model, label):
    """Assert that PyTorch and onnxruntime both refuse a batch with an invalid label."""
    z, logsnr, labels = noise(model, 2), torch.zeros(2), torch.tensor([1, label])
    with pytest.raises(IndexError):
        model(z, logsnr, labels)
    given = {"z": z.numpy(), "logsnr": logsnr.numpy(), "label": labels.numpy()}
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, given)


def test_an_export_that_differs_is_not_kept(tmp_path, monkeypatch):
    model, off = make(ch_mult=(1,)), 2e-5
    run, weights = onnx.run, export.weights
    monkeypatch.setattr(onnx, "run", lambda *args: run(*args) + off)
    message = r"the network in {} [\d.]+ differs from the model by .*, and is not written"
    with pytest.raises(PdfastError, match=message.format("onnxruntime")):
        pdfast.export(model, tmp_path / "out", "onnx")

    def shifted(*args):
        state = weights(*args)
        state["conv_out.bias"] = state["conv_out.bias"] + 10 * off
        return state

    monkeypatch.setattr(export, "weights", shifted)
    with pytest.raises(PdfastError, match=message.format("diffusers")):
        pdfast.export(model, tmp_path / "out")
    with torch.no_grad():
        model.net.conv_in.bias[0] = math.nan
    with pytest.raises(PdfastError, match="output holds numbers that are not finite: it has"):
        pdfast.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------
# The command


def fails(capsys, code, message, *args):
    assert main([str(a) for a in args]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("pdfast: ")
    assert errors.count("\n") == 1


def test_the_command(capsys, straight, tmp_path):
    (student,) = straight.glob("round-02-*")
    out = tmp_path / "new" / "out"
    assert main(["export", str(student), "--to", "diffusers", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "DDIMPipeline on 1024 timesteps, its network equal to " in said
    assert "call it with num_inference_steps=2, use_clipped_model_output=True (README.md)" in said
    model = load_model(student)
    assert apart(model.sample(4, 2, noise=noise(model)), by_pipeline(opened(out), 2)) < TOL
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    fails(capsys, 2, f"{out} already exists", "export", student, "--to", "onnx", "--out", out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    out.with_name("empty").mkdir()
    pdfast.export(student, out.with_name("empty"), quiet=True)
    assert (out.with_name("empty") / "README.md").is_file()


def test_usage(capsys, straight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = (
        f"{straight} is a run, not a model: name one of its models, such as {straight}/"
        "round-02-steps-0002 (finished: teacher, round-01-steps-0004, round-02-steps-0002)"
    )
    to = ["--to", "diffusers", "--out", "out"]
    fails(capsys, 2, inside, "export", straight, *to)
    fails(capsys, 2, "there is no model directory nowhere", "export", "nowhere", *to)
    fails(capsys, 2, "--to", "export", straight / "teacher", "--out", "out")
    fails(capsys, 2, "--out", "export", straight / "teacher", "--to", "onnx")
    fails(
        capsys,
        2,
        "--to cannot be 'onn'; did you mean 'onnx'?",
        "export",
        straight,
        "--to",
        "onn",
        "--out",
        "out",
    )
    with pytest.raises(UsageError, match="no export to 'onn'; did you mean 'onnx'"):
        pdfast.export(straight / "teacher", "out", "onn")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "module"), [("diffusers", "diffusers"), ("onnx", "onnxscript"), ("onnx", "onnxruntime")]
)
def test_a_missing_extra(capsys, straight, tmp_path, monkeypatch, to, module):
    monkeypatch.setitem(sys.modules, module, None)
    args = ["export", straight / "teacher", "--to", to, "--out", tmp_path / "out"]
    fails(capsys, 1, f"install pdfast with the extra '{to}'", *args)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(capsys, straight, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DDIMScheduler, "save_config", full)
    args = ["export", straight / "teacher", "--to", "diffusers", "--out", tmp_path / "out"]
    fails(capsys, 1, "no space left on device; nothing was changed", *args)
    assert not list(tmp_path.iterdir())


def test_exports_are_float32_whatever_the_model_is(tmp_path):
    model = make()
    for name, source in (("float32", model), ("float64", copy.deepcopy(model).double())):
        pdfast.export(source, tmp_path / name / "model", quiet=True)
    single, double = tmp_path / "float32" / "model", tmp_path / "float64" / "model"
    files = [p.relative_to(single) for p in single.rglob("*.*")]
    assert len(files) == 7
    for file in files:
        assert (single / file).read_bytes() == (double / file).read_bytes(), file
