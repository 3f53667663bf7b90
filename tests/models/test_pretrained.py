"""Models that come with pdfast, and weights stored as float16."""

import dataclasses
import json

import pytest
import torch

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import dump_config, load_config
from pdfast.data.dataset import load_dataset
from pdfast.errors import PdfastError, UsageError
from pdfast.evaluation.evaluator import Evaluator
from pdfast.models import checkpoint, pretrained
from pdfast.models.model import Model
from pdfast.pretrained.__main__ import pack
from pdfast.storage import files, model_dir

NETWORK = pdfast.Config().model
SMALL = dataclasses.replace(
    NETWORK, image_size=8, channels=1, ch=8, emb_ch=16, ch_mult=(1, 2), num_res_blocks=1,
    attn_resolutions=(4,), groups=4,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Model(SMALL, steps=4)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made.eval()


# -- float16 ---------------------------------------------------------------------------------


def test_half_takes_half_the_space_and_is_loaded_as_float32(model, tmp_path):
    pdfast.save(model, tmp_path / "half", half=True, note="small")
    pdfast.save(model, tmp_path / "full")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.62 * sizes[1]  # both have a header of names
    loaded = pdfast.load(tmp_path / "half")
    assert (loaded.cfg, loaded.steps, loaded.dtype) == (model.cfg, 4, torch.float32)
    for name, tensor in loaded.weights().items():
        assert torch.equal(tensor, model.weights()[name].half().float()), name
    table = json.loads((tmp_path / "half" / "config.json").read_text())
    assert table["dtype"] == "float16"
    assert "dtype" not in json.loads((tmp_path / "full" / "config.json").read_text())


def test_half_refuses_what_float16_cannot_hold(model, tmp_path):
    with torch.no_grad():
        model.net.emb0.bias[0] = 1e5
    with pytest.raises(UsageError, match=r"float16 holds numbers up to 65504.*emb0\.bias"):
        pdfast.save(model, tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_half_refuses_a_custom_network(tmp_path):
    class Zero(torch.nn.Module):
        def forward(self, z, logsnr, label=None):
            return z * 0

    with pytest.raises(UsageError, match="save a custom network without it"):
        pdfast.save(pdfast.Network(Zero(), shape=(2,)), tmp_path / "half", half=True)


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("float8", "dtype must be float16, or absent"),
        (None, "dtype must be float16, or absent"),
        ("float16", "must hold float16, not torch.float32"),
    ],
)
def test_a_dtype_that_is_not_that_of_the_weights(model, tmp_path, dtype, says):
    table = {**model.describe(), "dtype": dtype}
    weights = {model_dir.WEIGHTS: model.weights()}
    files.write(tmp_path / "bad", weights, {model_dir.CONFIG: table}, steps=4)
    with pytest.raises(PdfastError, match=says):
        checkpoint.load_model(tmp_path / "bad")


def test_float16_weights_without_the_word_are_refused(model, tmp_path):
    halved = {name: tensor.half() for name, tensor in model.weights().items()}
    files.write(tmp_path / "bad", {model_dir.WEIGHTS: halved}, {model_dir.CONFIG: model.describe()})
    with pytest.raises(PdfastError, match=r"must hold float32 or float64, not torch\.float16"):
        checkpoint.load_model(tmp_path / "bad")


# -- by name ---------------------------------------------------------------------------------


def test_names_and_students():
    assert pretrained.names() == ["digits"]
    assert pretrained.students("digits") == [8, 4, 2, 1]


@pytest.mark.parametrize(("steps", "found"), [(8, 8), (4, 4), (2, 2), (1, 1), (0, 0), (64, 0)])
def test_a_name_means_the_student_of_these_steps_or_the_teacher(steps, found):
    loaded = pdfast.load("digits", steps=steps)
    assert (loaded.steps, loaded.image_shape) == (found, (1, 8, 8))


def test_a_path_that_is_there_is_meant_itself(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pdfast.save(model, "digits")
    assert pdfast.load("digits").cfg == SMALL
    with pytest.raises(UsageError, match=r"steps choose a student.*digits is a path"):
        pdfast.load("digits", steps=4)


def test_no_such_name():
    with pytest.raises(UsageError, match="there is no model directory numbers"):
        pdfast.load("numbers")


def test_the_command_samples_and_says_of_what(tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(["sample", "digits", "--steps", "4", "--num", "9", "--out", str(out)]) == 0
    about = json.loads((tmp_path / "grid.png.json").read_text())
    assert (about["model"], about["steps"], about["images"]) == ("digits-4", 4, 9)
    assert main(["sample", "digits", "--out", str(tmp_path / "more.png")]) == 2
    said = capsys.readouterr().err
    assert "pass --steps (it comes with students of 8, 4, 2, 1)" in said


def test_they_are_small_whole_and_say_what_made_them():
    sizes = [file.stat().st_size for file in pretrained.FOLDER.rglob("*") if file.suffix != ".pyc"]
    assert sum(sizes) <= 4_000_000
    for steps in (0, *pretrained.students("digits")):
        path = pretrained.find("digits", steps)
        manifest = model_dir.verify(path)
        assert manifest["config"] == "digits"
        assert manifest["command"] == "pdfast distill --rounds 13"
        assert len(manifest["commit"]) == 40
    assert "FD-pixel" in (pretrained.FOLDER / "digits.md").read_text()


# The manifest has the float32 model's distance from the run's report, which other machines reach up
# to rounding. float16 may change it by 0.005.
@pytest.mark.parametrize(
    "steps", [pytest.param(64, marks=pytest.mark.slow), 8, 4, 2, 1], ids=lambda n: f"{n} steps"
)
def test_float16_keeps_the_distance(steps):
    path = pretrained.find("digits", steps)
    config = load_config("digits")
    evaluator = Evaluator.of(load_dataset(config.data, config.model), config, torch.device("cpu"))
    distance, _ = evaluator.evaluate(pdfast.load(path), steps)
    manifest = files.read_manifest(path)
    assert manifest["metric"] == evaluator.metric
    assert abs(distance - manifest["distance"]) < 0.005


# -- making them -----------------------------------------------------------------------------


def test_pack(model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = dataclasses.replace(load_config("digits"), name="small", model=SMALL)
    distill = dataclasses.replace(config.distill, start_steps=16, rounds=2, round_updates=())
    (run / "config.toml").write_text(dump_config(dataclasses.replace(config, distill=distill)))
    report = {"metric": "FD-pixel", "teacher": {"64": 0.5}, "student": {"8": 0.6, "4": 0.7}}
    (run / "report.json").write_text(json.dumps(report))
    (run / "report.md").write_text("# small\n\n![distances](report.png)\n\nFD-pixel\n")
    pdfast.save(Model(SMALL), run / "teacher")
    for number, steps in ((1, 8), (2, 4)):
        pdfast.save(model, run / f"round-{number:02d}-steps-{steps:04d}")
    pack(run, tmp_path, "pdfast distill")
    made = {p.name: files.read_manifest(p)["distance"] for p in tmp_path.glob("small-*")}
    assert made == {"small-teacher": 0.5, "small-8": 0.6, "small-4": 0.7}
    about = (tmp_path / "small.md").read_text()
    assert "`pdfast distill`, commit " in about
    assert about.endswith("# small\n\nFD-pixel\n")  # without the picture, which is not stored
    del report["student"]["4"]
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises(PdfastError, match="no student at 4 steps"):
        pack(run, tmp_path / "again", "pdfast distill")
    (run / "report.json").unlink()
    with pytest.raises(UsageError, match="has no report: run pdfast eval"):
        pack(run, tmp_path / "again", "pdfast distill")
