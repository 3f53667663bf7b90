"""The examples, run as a user would: by the commands of examples/README.md."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from diffusers_files import noise
from engine_cases import changed
from PIL import Image

import pdfast
from pdfast.config.schema import NetConfig, dump_config

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = "jupyter execute --output=digits-run examples/digits.ipynb"
PICTURES = "python examples/own_pictures.py photos"
EXPORT = "python examples/serve_student.py export runs/photos/round-04-steps-0004 exported"
SERVE = "python examples/serve_student.py serve exported"
SIGNALS = "python examples/signals_1d.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the examples in it, where this Python's commands are run."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("runs"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two workers share two cores
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *more):
    """A command of the README, with further arguments; what it printed."""
    done = subprocess.run(
        [*shlex.split(command), *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(name):
    """A script of the examples as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_commands_are_those_that_are_run_here():
    text = (EXAMPLES / "README.md").read_text()
    commands = re.findall(r"^    (.+)$", text, re.MULTILINE)
    assert commands == [NOTEBOOK, PICTURES, EXPORT, SERVE, SIGNALS]
    named = set(re.findall(r"\]\((\w+\.\w+)\)", text))
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert named == files - {"README.md", "digits-run.ipynb"}  # the latter is what NOTEBOOK writes


# ------------------------------------------------------------------------------------------
# The notebook


def test_the_notebook_is_kept_without_outputs():
    path = EXAMPLES / "digits.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert path.stat().st_size < 300_000


def test_the_slider_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    (cell,) = [c for c in nbformat.read(EXAMPLES / "digits.ipynb", 4).cells if c.id == "slider"]
    exec(cell.source, {})
    assert capsys.readouterr().out == (
        "The slider needs ipywidgets: pip install ipywidgets, then run this cell again.\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook(folder):
    """No cell fails, the figures are there, and the student beats its teacher at few steps."""
    run(NOTEBOOK)
    cells = nbformat.read(folder / "examples" / "digits-run.ipynb", as_version=4).cells
    kinds = {
        cell.id: [kind for output in cell.outputs for kind in output.get("data", {})]
        for cell in cells
        if cell.cell_type == "code"
    }
    assert all(
        output.output_type != "error" for cell in cells for output in cell.get("outputs", ())
    )
    assert "image/png" in kinds["grids"]
    assert "image/png" in kinds["distances"]
    assert "application/vnd.jupyter.widget-view+json" in kinds["slider"]
    out = folder / "examples" / "runs" / "digits_notebook"
    for name in ("grids.png", "distances.png"):
        assert Image.open(out / name).width > 500
    report = json.loads((out / "report.json").read_text())
    for steps in ("1", "2", "4"):
        assert report["student"][steps] < 0.6 * report["teacher"][steps], steps
    assert report["student"]["4"] < report["teacher"]["8"]


# ------------------------------------------------------------------------------------------
# One's own pictures


@pytest.fixture
def photos(folder, tiny):
    """A folder of ten pictures in two class folders, one of them damaged, and a config."""
    draw = np.random.default_rng(0)
    for k in range(10):
        pixels = draw.integers(0, 256, (12 + k, 20, 3), dtype=np.uint8)
        file = folder / "photos" / "ab"[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (folder / "photos" / "a" / "bad.png").write_bytes(b"not a picture")
    config = changed(
        tiny,
        model={"image_size": 16, "channels": 3, "num_classes": 2},
        distill={"start_steps": 64, "rounds": 2},
        eval={"steps": (2,)},
    )
    (folder / "tiny.toml").write_text(dump_config(config))
    return folder / "photos"


def test_own_pictures(photos, monkeypatch, handlers):
    """A small run writes its pictures and models; the same command again trains nothing."""
    flags = "--config tiny.toml --size 8 --updates 4 --rounds 5 --round-updates 2 --num 16"
    flags += " --skip-bad"
    said = run(PICTURES, *shlex.split(flags))
    out = Path("runs", "photos")
    assert f"the student: {out / 'round-05-steps-0002'}" in said
    for name in ("teacher-64", "teacher-2", "student-2"):
        assert Image.open(out / f"{name}-steps.png").size == (402, 102)  # two rows of eight
    config = pdfast.load_config(out / "config.toml")
    assert (config.train.updates, config.distill.updates, config.train.batch) == (4, 2, 4)
    model = pdfast.load(out / "teacher")
    assert (model.image_shape, model.class_names) == ((3, 8, 8), ("a", "b"))
    metrics = (out / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["own_pictures.py", "photos", *shlex.split(flags)])
    imported("own_pictures").main()
    assert (out / "metrics.jsonl").read_bytes() == metrics


def test_own_pictures_is_the_config_of_small_pictures(photos, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["own_pictures.py", "photos"])
    module = imported("own_pictures")
    config = pdfast.load_config("pictures16")
    assert config.data.source == ""  # a forgotten --data.source is refused
    named = dataclasses.replace(config.data, source="photos")
    assert module.settings(module.parsed()) == dataclasses.replace(config, data=named)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "nowhere is no folder"),
        (["empty", "--num", "0"], 2, "--num must be at least 1, not 0"),
        (["empty"], "own_pictures: ", "empty holds no images"),
        (["empty", "--updates", "0"], "own_pictures: train.updates must be at least 1", ""),
        (["empty", "--config", "no.toml"], "own_pictures: no.toml does not exist (in ", ""),
    ],
)
def test_own_pictures_says_what_is_wrong(folder, monkeypatch, capfd, arguments, code, message):
    (folder / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["own_pictures.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        imported("own_pictures").main()
    assert str(ended.value.code).startswith(str(code))
    assert message in f"{ended.value.code}\n{capfd.readouterr().err}"


# ------------------------------------------------------------------------------------------
# Serving


def test_a_student_exported_and_served(folder, straight):
    """The pictures are pdfast's own, rounded to uint8, from a process that cannot import it."""
    (student,) = straight.glob("round-02-*")
    shutil.copytree(student, folder / "runs" / "photos" / "round-04-steps-0004")
    run(EXPORT)
    (folder / "pdfast").mkdir()
    (folder / "pdfast" / "__init__.py").write_text("raise ImportError('not here')")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [*shlex.split(SERVE), "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            (address,) = re.findall(r"(http://127\.0\.0\.1:\d+)/", process.stdout.readline())
            with urllib.request.urlopen(f"{address}/?num=5&seed=3") as answer:
                assert answer.headers["Content-Type"] == "image/png"
                sheet = np.asarray(Image.open(io.BytesIO(answer.read())))
            refusals = {"?num=many": 400, "?num=65": 400, "?seed=-1": 400, "?size=8": 400, "x": 404}
            for query, code in refusals.items():
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(f"{address}/{query}")
                assert refused.value.code == code
                assert refused.value.read().count(b"\n") == 1
        finally:
            process.terminate()
    assert sheet.shape == (16, 24)
    served = sheet.reshape(2, 8, 3, 8).swapaxes(1, 2).reshape(6, 8, 8)
    model = pdfast.load(student)
    ours = model.sample(5, noise=noise(model, 5))[:, 0].numpy() * 127.5 + 127.5
    assert np.abs(served[:5] - ours).max() < 0.51
    assert not served[5].any()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("num=x", "num must be a whole number, 1 to 64, not 'x'"),
        ("num=", "num must be a whole number, 1 to 64, not ''"),
        ("num=1.5", "num must be a whole number, 1 to 64, not '1.5'"),
        ("num=٣", "num must be a whole number, 1 to 64, not '٣'"),
        ("num=0", "num must be 1 to 64, not 0"),
        ("num=65", "num must be 1 to 64, not 65"),
        ("seed=9223372036854775808", "seed must be 0 to 9223372036854775807, not 9223372036854"),
        ("steps=4", "there is no parameter 'steps': ask for /?num=4&seed=0"),
    ],
)
def test_a_bad_request_is_a_sentence(query, message):
    module = imported("serve_student")
    with pytest.raises(module.RequestError, match=f"^{re.escape(message)}"):
        module.asked(query)
    assert module.asked("") == (4, 0)
    assert module.asked("seed=7&num=9") == (9, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["serve", "nowhere"],
            "nowhere is no export to diffusers: make one by serve_student.py export",
        ),
        (["export", "nowhere", "new"], "there is no model directory nowhere"),
    ],
)
def test_serving_says_what_is_wrong(folder, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["serve_student.py", *arguments])
    with pytest.raises(SystemExit, match=f"^serve_student: {message}"):
        imported("serve_student").main()


def test_a_teacher_is_served_at_a_safe_number_of_steps(tmp_path):
    """A teacher of 1000 timesteps at 50 steps; the loop in the README for one with classes."""
    fields = {"image_size": 8, "ch": 16, "ch_mult": (1,), "num_res_blocks": 1, "groups": 8}
    fields |= {"attn_resolutions": (), "emb_ch": 64, "schedule": "linear", "timesteps": 1000}
    fields |= {"betas": (1e-4, 0.02)}
    module = imported("serve_student")
    pdfast.export(pdfast.Model(NetConfig(**fields)), tmp_path / "t", quiet=True)
    assert module.Sampler(tmp_path / "t").steps == 50
    pdfast.export(pdfast.Model(NetConfig(**fields, num_classes=3)), tmp_path / "c", quiet=True)
    with pytest.raises(ValueError, match=r"takes no labels: use the loop in .*c/README\.md"):
        module.Sampler(tmp_path / "c")


# ------------------------------------------------------------------------------------------
# Signals


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_signals(folder):
    """The student's 4 steps beat its teacher's own 4, by far."""
    said = run(SIGNALS)
    out = folder / "runs" / "signals"
    report = json.loads((out / "report.json").read_text())
    assert report["metric"] == "FD-raw"
    assert report["student"]["4"] < 0.5 * report["teacher"]["4"]
    assert f"{report['student']['4']:7.3f}" in said
    assert Image.open(out / "samples" / "compare.png").width > 1000
