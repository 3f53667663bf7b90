"""Import of NVlabs/edm's network pickles: recorded outputs, the commands, and exports."""

import dataclasses
import json
import math
import signal
from pathlib import Path

import edm_files as ef
import numpy as np
import pytest
import torch
from onnx_readme import by_readme
from run_cases import assert_same_run, stop_after

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import load_config
from pdfast.diffusion.preconditioning import Preconditioner, iddpm_levels
from pdfast.errors import UsageError
from pdfast.interop.edm.load import load_edm
from pdfast.models.checkpoint import load_model
from pdfast.training.precision import cast_to_precision

TOL = 1e-5  # of float32 networks that round in another order


def denoised(model, labels=None):
    """Return x-hat at the recorded inputs, whose z_edm is z / alpha."""
    x, noise, _, sigma = ef.inputs()
    alpha = (1 + sigma.double() ** 2).rsqrt()[:, None, None, None]
    z = (alpha * (x + sigma[:, None, None, None] * noise)).to(model.dtype)
    with torch.no_grad():
        return model.predict_x(z, -2 * sigma.double().log(), labels)


# ------------------------------------------------------------------------------------------
# Outputs


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("kind", ef.WRAPPERS)
@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_outputs_are_those_of_the_published_classes(tmp_path, name, kind, classes):
    file = ef.write(tmp_path / "a.pkl", ef.network(name, kind, classes))
    labels = ef.inputs()[2] if classes else None
    expected = torch.tensor(ef.NETWORKS[name]["outputs"][f"{kind} {classes}"])
    scale = expected.abs().amax(1, keepdim=True).clamp(min=1)  # of eps-hat, by sigma
    for parameterization in ("v", "x") if kind == "edm" else ("v",):
        model = load_edm(file, parameterization)
        assert model.parameterization == (parameterization if kind == "edm" else "eps")
        found = ef.shown(denoised(model, labels))
        assert ((found - expected).abs() / scale).max() < TOL


def test_the_tolerance_would_notice(tmp_path):
    """A wrong label changes the output by much more than the tolerance."""
    model = load_edm(ef.write(tmp_path / "a.pkl", ef.network("ddpmpp", "edm", 3)))
    expected = torch.tensor(ef.NETWORKS["ddpmpp"]["outputs"]["edm 3"])
    assert (ef.shown(denoised(model, torch.tensor([1, 1, 2, 1]))) - expected).abs().max() > 1e-3
    assert (ef.shown(denoised(model, ef.inputs()[2])) - expected).abs().max() < TOL


@pytest.mark.parametrize("parameterization", ["v", "x"])
def test_edm_s_output_is_the_formula(tmp_path, parameterization):
    """D = c_skip z_edm + c_out F (Karras et al. 2022, table 1), in float64."""
    cfg = load_edm(ef.write(tmp_path / "a.pkl", ef.network("tiny")), parameterization).cfg
    torch.manual_seed(0)
    z, out = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
    found = Preconditioner(cfg).output(z, out, -2 * sigma.log())
    s = sigma[:, None, None, None]
    alpha = 1 / (1 + s**2).sqrt()
    x_hat = 0.25 / (s**2 + 0.25) * z / alpha + s * 0.5 / (s**2 + 0.25).sqrt() * out
    expected = x_hat if parameterization == "x" else (alpha * z - x_hat) / (alpha * s)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    scaled = Preconditioner(cfg).scaled(z, -2 * sigma.log())
    assert torch.allclose(scaled, z / alpha / (s**2 + 0.25).sqrt(), rtol=1e-12)


def test_iddpm_s_levels_are_the_recursion():
    assert torch.allclose(iddpm_levels(0.001, 0.008, 1000).float(), ef.levels(), rtol=1e-6)
    assert iddpm_levels(0.001, 0.008, 2)[-1] == 0


def test_bfloat16_is_near(tmp_path):
    model = load_edm(ef.write(tmp_path / "a.pkl", ef.network("ncsnpp", "edm")))
    exact, low = denoised(model), denoised(cast_to_precision(model, "bf16"))
    assert 0 < (low - exact).norm() / exact.norm() < 0.05


# ------------------------------------------------------------------------------------------
# Files


def test_what_is_recorded_and_said(tmp_path, capsys):
    file = ef.write(tmp_path / "a.pkl", ef.network("ddpmpp", "vp", 3))
    assert main(["import", str(file), "--from", "edm", "--out", str(tmp_path / "model")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a teacher, SongUNet with VPPrecond; predicts eps, sigma 0.002 .. 80," in said
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["imported"]["network"] == "SongUNet"
    loaded, cfg = load_model(tmp_path / "model"), load_config(tmp_path / "model.toml").model
    assert (loaded.num_classes, loaded.label_dropout, loaded.steps) == (3, 0.1, 0)
    assert cfg == dataclasses.replace(loaded.cfg.without_dropout(), parameterization="v")
    assert torch.equal(denoised(loaded, ef.inputs()[2]), denoised(load_edm(file), ef.inputs()[2]))
    assert math.isclose(math.tan(float(loaded.schedule.phi(torch.ones(())))), 80.0, rel_tol=1e-9)


@pytest.mark.parametrize("protocol", [3, 5])
def test_other_protocols_of_pickle(tmp_path, protocol):
    file = ef.write(tmp_path / "a.pkl", ef.network("tiny"), protocol)
    other = ef.write(tmp_path / "b.pkl", ef.network("tiny"))
    assert torch.equal(denoised(load_edm(file)), denoised(load_edm(other)))


def test_positional_arguments_and_views_of_one_storage(tmp_path):
    persisted = ef.network("tiny")
    record = ef.inner(persisted)["state"]
    first = ("img_resolution", "in_channels", "out_channels")
    record["_init_args"] = tuple(record["_init_kwargs"].pop(key) for key in first)
    layers = record["_modules"]
    for name in ("map_layer0", "map_layer1"):
        weight = layers[name].meta["state"]["_parameters"]["weight"].detach()
        wide = torch.cat([weight.t(), weight.t()])
        view = wide[len(weight.t()) :].t()
        assert not view.is_contiguous()
        layers[name].meta["state"]["_parameters"]["weight"] = torch.nn.Parameter(view)
    file = ef.write(tmp_path / "a.pkl", persisted)
    plain = ef.write(tmp_path / "b.pkl", ef.network("tiny"))
    assert torch.equal(denoised(load_edm(file)), denoised(load_edm(plain)))


def test_torch_s_storage_loader_is_not_called(tmp_path, monkeypatch):
    def refused(*args):
        raise AssertionError("called")

    file = ef.write(tmp_path / "a.pkl", ef.network("tiny"))
    monkeypatch.setattr(torch.storage, "_load_from_bytes", refused)
    monkeypatch.setattr("pickle.Unpickler", refused)
    load_edm(file)


# ------------------------------------------------------------------------------------------
# What may be done with it


def imported(capsys, kind, *flags):
    """Import a small network into t; return the arguments that the import prints, shortened."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(8) % 3)
    ef.write(Path("a.pkl"), ef.network("tiny", kind, 3))
    assert main(["import", "a.pkl", "--from", "edm", "--out", "t", *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    command = next(line for line in said if line.startswith("pdfast distill ")).split()[1:]
    command[command.index("YOUR_IMAGES")] = "data.npz"
    command += ["--distill.start-steps", "4", "--distill.updates", "3", "--distill.batch", "2"]
    return [*command, "--eval.steps", "2", "--eval.baseline-steps", "4"]


@pytest.mark.parametrize(("kind", "flags", "first"), [
    ("edm", [], "v"),
    ("edm", ["--model.parameterization", "x"], "x"),
    ("ve", [], "eps"),
])  # fmt: skip
def test_it_is_distilled_and_sampled(tmp_path, monkeypatch, capsys, kind, flags, first):
    """Run the command that the import prints, with few updates, and then more rounds."""
    monkeypatch.chdir(tmp_path)
    command = [*imported(capsys, kind, *flags), "--rounds", "1", "--out", "run"]
    fits = first == "eps"
    command += ["--distill.fit-updates", "3"] if fits else []
    assert main(command) == 0
    student = load_model(f"run/round-0{1 + fits}-steps-0002")
    assert student.parameterization == ("v" if fits else first)
    assert student.cfg.edm == load_model("t").cfg.edm
    samples = student.sample(3, label=torch.arange(3))
    assert samples.shape == (3, 3, 8, 8)
    assert samples.isfinite().all()
    changed = [
        not torch.equal(tensor, student.weights()[name])
        for name, tensor in load_model("t").weights().items()
    ]
    assert sum(changed) > len(changed) / 2
    assert main([*command, "--rounds", "2"]) == 0  # resumes
    assert load_model(f"run/round-0{2 + fits}-steps-0001").steps == 1


@pytest.mark.parametrize("updates", [2, 3, 5])
def test_a_stopped_run_of_it_resumes_with_the_same_bits(tmp_path, monkeypatch, capsys, updates):
    """Stopped within a round, at its end, and within the next one."""
    monkeypatch.chdir(tmp_path)
    command = [*imported(capsys, "edm"), "--rounds", "2"]
    assert main([*command, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, updates)
        assert main([*command, "--out", "parts"]) == 128 + signal.SIGTERM
    assert main([*command, "--out", "parts"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("ncsnpp", "edm"), ("ddpmpp", "iddpm"), ("adm", "vp")])
def test_the_network_goes_to_onnx(tmp_path, monkeypatch, name, kind):
    model = load_edm(ef.write(tmp_path / "a.pkl", ef.network(name, kind, 3)))
    pdfast.export(model, tmp_path / "out", to="onnx", quiet=True)  # compares the outputs
    schedule = json.loads((tmp_path / "out" / "network.json").read_text())["schedule"]
    assert schedule["kind"] == "edm"
    assert schedule["formula"][0].startswith("tan phi = (sigma_min^(1/rho) + u ")
    by_readme(model, tmp_path / "out", monkeypatch)


def test_diffusers_has_not_what_it_is(tmp_path):
    model = load_edm(ef.write(tmp_path / "a.pkl", ef.network("tiny")))
    with pytest.raises(UsageError, match=r"model\.edm: diffusers' .*; .* export with to='onnx'"):
        pdfast.export(model, tmp_path / "out", to="diffusers")
