"""Import of the authors' checkpoints: the golden files, and what varies between files."""

import dataclasses
import hashlib
import json

import flax_files as ff
import golden
import msgpack
import numpy as np
import pytest
import torch

from pdfast.cli.main import main
from pdfast.config.schema import Config
from pdfast.distillation.rounds import load_teacher
from pdfast.interop.google.load import import_google, load_google
from pdfast.interop.google.published import views
from pdfast.models.checkpoint import load_model

TOL = 1e-9


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The imported golden files, by role and parameterization, in float64."""
    folder, models = tmp_path_factory.mktemp("imported"), {}
    for role in ("teacher", "student"):
        for parameterization in golden.PARAMETERIZATIONS:
            source, out = golden.flax_file(role, parameterization), folder / role / parameterization
            args = ["import", str(source), "--from", "google", "--out", str(out)]
            args += ["--config", str(golden.DATA / "published.toml")]
            assert main([*args, "--model.parameterization", parameterization]) == 0
            models[role, parameterization] = load_model(folder / role / parameterization).double()
    return models


@pytest.mark.parametrize("num_steps", [8192, 64, 1])
@pytest.mark.parametrize("parameterization", golden.PARAMETERIZATIONS)
def test_rollout_and_target_of_imported_teachers(imported, parameterization, num_steps):
    teacher = imported["teacher", parameterization]
    assert teacher.steps == 0
    golden.Case(
        parameterization, num_steps, teacher, imported["student", parameterization]
    ).check_rollout(TOL)


@pytest.mark.parametrize("parameterization", golden.PARAMETERIZATIONS)
def test_outputs_and_samples_of_imported_students(imported, parameterization):
    student, z = imported["student", parameterization], golden.value("unet/z")
    assert (student.steps, student.parameterization) == (4096, parameterization)
    out = student(z, golden.value("unet/logsnr"))
    expected = golden.value(f"unet/{golden.network(parameterization)}/out")
    assert golden.relative(out, expected) < TOL
    for steps in (1, 4):
        for clip in ("clip", "noclip"):
            expected = golden.value(f"ddim/{parameterization}/K{steps}/{clip}/samples")
            fast = student.sample(3, steps, noise=z, clip=clip == "clip")
            assert golden.relative(fast, expected) < TOL


def test_what_is_recorded_and_said(tmp_path, capsys):
    source = golden.flax_file("student", "x_eps")
    config = golden.config("x_eps")
    model = import_google(source, tmp_path / "new" / "model", config)
    manifest = json.loads((tmp_path / "new" / "model" / "manifest.json").read_text())
    assert manifest["imported"] == {
        "from": "google",
        "file": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "step": 1234,
        "num_sample_steps": 4096,
    }
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "a student of 4096 steps, its num_sample_steps; predicts x_eps, 274,758 parameters" in said
    )
    assert "reshaped" not in said
    loaded = load_model(tmp_path / "new" / "model")
    assert (loaded.cfg, loaded.steps, loaded.dtype) == (model.cfg, 4096, torch.float32)


# ------------------------------------------------------------------------------------------
# Names and layouts


@pytest.mark.parametrize("fields", ff.ARCHITECTURES, ids=str)
def test_every_parameter_is_of_one_name(fields):
    model = ff.net(**fields)
    numbers = torch.arange(sum(p.numel() for p in model.parameters()))
    split = numbers.split([p.numel() for p in model.parameters()])
    tensors = {
        name: part.view(p.shape)
        for (name, p), part in zip(model.net.named_parameters(), split, strict=True)
    }
    found = views(model.cfg, tensors)
    together = torch.cat([view.flatten() for view in found.values()])
    assert torch.equal(together.sort().values, numbers)


@pytest.mark.parametrize("fields", ff.ARCHITECTURES, ids=str)
def test_a_state_of_any_architecture_is_read(tmp_path, fields):
    model = ff.net(**fields)
    (tmp_path / "f").write_bytes(ff.pack(ff.state(model)))
    found = load_google(tmp_path / "f", Config(model=model.cfg))
    assert ff.same(found.model, model)
    assert (found.step, found.num_sample_steps, found.reshaped) == (1234, 4, [])


# ------------------------------------------------------------------------------------------
# What varies between files


def test_arrays_of_other_shapes_are_reshaped(write_state, tmp_path, capsys):
    """Older versions of flax wrote biases, norm scales and attention kernels in other shapes."""
    path = write_state(
        {
            "mid.attn_1/q/bias": lambda old: old.reshaped(8),
            "mid.attn_1/q/kernel": lambda old: old.reshaped(8, 8),
            "mid.attn_1/proj_out/kernel": lambda old: old.reshaped(8, 8),
            "norm_out/scale": lambda old: old.reshaped(1, 1, 1, 4),
            "conv_out/bias": lambda old: old.reshaped(1, 3),
            "conv_in/kernel": lambda old: old.reshaped(9, 3, 4),
        }
    )
    model = import_google(path, tmp_path / "model", ff.CONFIG)
    assert ff.same(model, ff.net())
    said = " ".join(capsys.readouterr().out.split())
    assert "6 parameters had another shape with as many elements, and were reshaped" in said
    assert "conv_in/kernel from (9, 3, 4) to (3, 3, 3, 4)" in said


def test_golden_file_with_other_shapes_has_the_golden_output(tmp_path):
    state = msgpack.unpackb(
        (golden.DATA / "published_x_student.flax").read_bytes(), ext_hook=msgpack.ExtType
    )
    for path, shape in (("conv_in/bias", [1, 32]), ("up_1.attn_0/v/kernel", [32, 32])):
        content = msgpack.unpackb(ff.get(state["ema_params"], path).data)
        ext = msgpack.ExtType(1, msgpack.packb([shape, *content[1:]]))
        ff.put(state["ema_params"], path, ext)
    (tmp_path / "f").write_bytes(msgpack.packb(state))
    found = load_google(tmp_path / "f", golden.config("x"))
    assert len(found.reshaped) == 2
    out = found.model.double()(golden.value("unet/z"), golden.value("unet/logsnr"))
    assert golden.relative(out, golden.value("unet/x/out")) < TOL


def test_chunked_arrays_are_joined(write_state):
    path = write_state(
        {
            "conv_in/kernel": lambda old: old.chunked(100, 8),
            "dense0/bias": lambda old: old.chunked(1, 1, 4),
        }
    )
    found = load_google(path, ff.CONFIG)
    assert ff.same(found.model, ff.net())
    assert not found.reshaped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_floats(tmp_path, dtype):
    model = ff.net()
    state = ff.state(model)
    kernel = model.net.emb0.weight.detach().t().contiguous()
    ff.put(state["ema_params"], "dense0/kernel", ff.Array(kernel.to(dtype)))
    (tmp_path / "f").write_bytes(ff.pack(state))
    found = load_google(tmp_path / "f", ff.CONFIG).model
    assert torch.equal(found.net.emb0.weight.t(), kernel.to(dtype).float())
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("num_sample_steps", "asked", "steps", "how"),
    [
        (..., None, 0, "a teacher, since it has no num_sample_steps"),
        (None, None, 0, "a teacher, since it has no num_sample_steps"),
        (0, None, 0, "a teacher, since it has num_sample_steps 0"),
        (8192, None, 0, "a teacher, since its num_sample_steps 8192 is distill.start_steps"),
        (4096, None, 4096, "a student of 4096 steps, its num_sample_steps"),
        (ff.Array(np.int32(8), code=3), None, 8, "a student of 8 steps, its num_sample_steps"),
        (ff.Array(np.uint16(1)), None, 1, "a student of 1 steps, its num_sample_steps"),
        (8192, 8192, 8192, "a student of 8192 steps, by --steps"),
        (16384, 0, 0, "a teacher, by --steps"),
        (..., 4, 4, "a student of 4 steps, by --steps"),
    ],
)
def test_teachers_and_students_are_told_apart(write_state, num_sample_steps, asked, steps, how):
    config = Config(model=dataclasses.replace(ff.SMALL, dropout=0.2))
    found = load_google(write_state(num_sample_steps=num_sample_steps), config, asked)
    assert (found.model.steps, found.what) == (steps, how)
    assert found.model.cfg.dropout == (0 if steps else 0.2)


def test_imported_models_are_distilled_on(write_state, tmp_path):
    for steps, start in ((0, 8192), (4, 4)):
        out = tmp_path / str(steps)
        import_google(write_state(num_sample_steps=steps), out, ff.CONFIG)
        distill = dataclasses.replace(
            ff.CONFIG.distill, teacher=str(out), start_steps=start, rounds=2
        )
        config = dataclasses.replace(ff.CONFIG, distill=distill)
        assert ff.same(load_teacher(config, torch.device("cpu")), ff.net())
