"""The command line: every mistake is one line on stderr with the right exit code."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from run_cases import run

import pdfast
from pdfast.cli.main import parse
from pdfast.console.progress import Screen
from pdfast.errors import PdfastError, UsageError
from pdfast.launch import VARIABLES
from pdfast.runs.run import Run

pytestmark = pytest.mark.usefixtures("handlers")


def fails(capsys, expected_code, message, *args):
    code, _, errors = run(capsys, *args)
    assert code == expected_code
    assert message in errors
    assert errors.startswith("pdfast: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["distil"], "no command 'distil'; did you mean 'distill'?"),
        (["distill", "--roundz", "3"], "did you mean --rounds?"),
        (["train", "--model.parametrization", "v"], "did you mean --model.parameterization?"),
        (["distill", "--model.ch", "x"], "--model.ch must be a whole number, not 'x'"),
        (
            ["distill", "--model.parameterization", "w"],
            "--model.parameterization cannot be 'w' (choices: eps, v, x, x_eps)",
        ),
        (["distill", "--config"], "--config needs a value"),
        (["distill", "--config", "cifar"], "no config 'cifar'; did you mean 'cifar10'?"),
        (["distill", "--config", "absent.toml"], "absent.toml does not exist (in "),
        (["distill", "--rounds", "14"], "14 rounds cannot halve 8192 steps exactly"),
        (["distill", "--distill.start-steps", "100"], "11 rounds cannot halve 100 steps"),
        (["distill", "--model.groups", "7"], "model.groups 7 does not divide a width of 32"),
        (
            ["distill", "--model.parameterization", "eps"],
            "parameterization eps cannot be distilled",
        ),
        (
            ["distill", "--rounds", "13", "--distill.loss-weight", "snr"],
            "the snr weight is 2e-09 at the only noise level of a 1-step sampler",
        ),
        (["distill", "--model.image-size", "16"], "images of 8x8x1, but the config asks for 16x16"),
        (["distill", "--data.source", "nowhere"], "nowhere does not exist"),
        (["distill", "--device", "tpu", "--dry-run"], "no device 'tpu': use auto, cpu or cuda:k"),
        (["distill", "--device", "cuda:99", "--dry-run"], "no device 'cuda:99'"),
        (["distill", "--threads", "-1", "--dry-run"], "threads must be in 0"),
        (["distill", "--seed", "-1"], "seed must be in 0 .."),
        (
            ["train", "--resume", "always"],
            "--resume cannot be 'always' (choices: auto, never, strict)",
        ),
        (["distill", "--teacher", "nowhere"], "there is no model directory"),
        (["distill", "--teacher", "nowhere", "--dry-run"], "there is no model directory"),
        (["sample"], "sample needs MODEL (see pdfast sample --help)"),
        (["sample", "nowhere"], "there is no model directory nowhere"),
        (["eval", "nowhere"], "there is no model or run directory nowhere"),
        (["compare", "nowhere", "elsewhere"], "nowhere"),
        (["compare"], "there is nothing to compare with: name two runs or more"),
        (["eval", "nowhere", "--steps", "0"], "--steps must all be at least 1"),
        (
            ["eval", "nowhere", "--eval.num", "3"],
            "--eval.num is no option of pdfast eval; did you mean --num?",
        ),
        (
            ["import", "x", "--from=google", "--out=y", "--train.lr=1"],
            "--train.lr is no option of pdfast import (see --help)\n",
        ),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_usage_errors(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, message, *args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "mine"], "no config comes with pdfast as 'mine'; did you mean 'mine.toml'?"),
        (["--config", "mnie.toml"], "; did you mean 'mine.toml'?"),
        (["--config", "sub/bird.toml"], "; did you mean 'sub/birds.toml'?"),
        (
            ["mine.toml"],
            "mine.toml is no argument of pdfast distill; did you mean --config mine.toml?",
        ),
        (["cifar10"], "cifar10 is no argument of pdfast distill; did you mean --config cifar10?"),
    ],
)
def test_the_config_that_was_meant(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("mine.toml", "sub/birds.toml"):
        (tmp_path / name).write_text("")
    fails(capsys, 2, message, "distill", *args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nchh = 3\n", "unknown key 'model.chh'; did you mean 'model.ch'?"),
        ("[model]\nch = 'a'\n", "model.ch must be a whole number, not 'a'"),
        ("[model\n", "is not valid TOML"),
        ("[distill]\nrounds = 15\n", "15 rounds cannot halve"),
    ],
)
def test_bad_toml(capsys, tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    fails(capsys, 2, message, "distill", "--config", path)
    fails(capsys, 2, str(path), "distill", f"--config={path}")


@pytest.mark.parametrize(
    "args",
    [
        ["import", "x", "--from", "google", "--out", "new"],
        ["export", "x", "--to", "onnx", "--out", "new"],
        ["data", "digits", "--size", "8", "--out", "new.npz"],
        ["compare", "x", "y"],
    ],
)
def test_what_one_process_does(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    command = parse(args)
    for name, value in zip(VARIABLES, ("1", "2", "1", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"pdfast {args[0]} is work for one process: start it wit"):
        command.run()
    assert not list(tmp_path.iterdir())


def test_no_permission(tmp_path, tiny):
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    as_root = os.geteuid() == 0
    if as_root:  # root may write anywhere: drop its rights for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(
            PdfastError, match=r"permission denied; fix the cause, or choose another"
        ):
            Run(folder / "run", tiny, Screen(quiet=True)).start()
    finally:
        if as_root:
            os.seteuid(0)


def test_out_of_memory(capsys, tmp_path, tiny_toml):
    fails(
        capsys, 1, "out of memory: raise accumulate or set checkpoint",
        "train", "--config", tiny_toml, "--out", tmp_path / "run", "--train.batch", 2**40,
    )  # fmt: skip


def test_out_below_a_file(capsys, tmp_path, tiny_toml):
    (tmp_path / "file").write_text("")
    message = "cannot write to"
    fails(capsys, 1, message, "distill", "--config", tiny_toml, "--out", tmp_path / "file" / "run")


def test_damaged_model(capsys, straight, tmp_path):
    shutil.copytree(straight / "teacher", tmp_path / "teacher")
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    fails(capsys, 1, "is damaged", "sample", tmp_path / "teacher", "--steps", "2")
    weights.unlink()
    fails(capsys, 1, "is missing", "sample", tmp_path / "teacher", "--steps", "2")
    assert not (tmp_path / "samples").exists()


def test_sample_is_repeatable_and_independent_of_num(capsys, straight, tmp_path):
    model = straight / "round-02-steps-0002"
    for name, num in (("a", 70), ("b", 70), ("c", 3), ("d", 65)):
        out = tmp_path / f"{name}.npz"
        assert run(capsys, "sample", model, "--num", num, "--seed", 5, "--out", out)[0] == 0
    images = {k: np.load(tmp_path / f"{k}.npz")["arr_0"] for k in "abcd"}
    assert images["a"].dtype == np.uint8
    assert images["a"].shape == (70, 8, 8, 1)
    assert np.array_equal(images["a"], images["b"])
    assert np.array_equal(images["a"][:3], images["c"])
    assert np.array_equal(images["a"][:65], images["d"])
    assert run(capsys, "sample", model, "--seed", 6, "--out", tmp_path / "e.npz")[0] == 0
    assert not np.array_equal(np.load(tmp_path / "e.npz")["arr_0"][:3], images["c"])


def test_sample_outputs_hold_the_same_images(capsys, straight, tmp_path):
    model = straight / "round-01-steps-0004"
    for out in ("folder", "grid.png", "images.npz"):
        assert run(capsys, "sample", model, "--num", 4, "--out", tmp_path / out)[0] == 0
    images = np.load(tmp_path / "images.npz")["arr_0"]
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [f.name for f in files] == [f"{k:06d}.png" for k in range(4)]
    for image, file in zip(images, files, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image[..., 0])
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(sheet[2:50:6, 2:50:6], images[0][..., 0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num", "0"], "--num must be at least 1"),
        (["--seed", "-3"], "--seed must be in 0 .."),
        (["--steps", "-1"], "steps must be in 1 .. 1048576"),
        (["--label", "1"], "this model is unconditional"),
        (["--variance", "2", "--sampler", "ancestral"], "variance must be in 0 (small)"),
        (["--variance", "0.5"], "--variance is for --sampler ancestral"),
        (["--out", "x.jpg"], "must be a folder, an .npz or a .png"),
    ],
)
def test_bad_sample_arguments(capsys, straight, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, message, "sample", straight / "round-01-steps-0004", *args)
    assert not list(tmp_path.iterdir())


def test_other_steps_than_a_student_s_own_are_told(capsys, straight, tmp_path):
    sample = ["sample", straight / "round-01-steps-0004", "--num", 2, "--out"]
    code, output, errors = run(capsys, *sample, tmp_path / "a", "--steps", 3)
    assert (code, "was distilled to 4 steps, not to 3" in output + errors) == (0, True)
    code, output, errors = run(capsys, *sample, tmp_path / "b")
    assert (code, "was distilled to" in output + errors) == (0, False)
    four = pdfast.load(straight / "round-01-steps-0004").sample_images(2, 4)
    for k in range(2):
        shown = np.asarray(Image.open(tmp_path / "b" / f"{k:06d}.png"))
        assert np.array_equal(shown, four[k, ..., 0])


@pytest.mark.parametrize("command", ["train", "distill", "sample", "eval"])
@pytest.mark.parametrize("out", [["--out", ""], ["--out="]])
def test_an_empty_out_is_refused(capsys, straight, tmp_path, monkeypatch, command, out):
    monkeypatch.chdir(tmp_path)
    model = [straight / "round-01-steps-0004"] if command in ("sample", "eval") else []
    fails(capsys, 2, "--out is empty: give it a path, or omit it", command, *model, *out)
    with pytest.raises(PdfastError, match="out must be a path, not ''"):
        pdfast.train(out="")
    assert not list(tmp_path.iterdir())


def test_a_teacher_needs_steps(capsys, straight, tmp_path):
    fails(capsys, 2, "pass --steps", "sample", straight / "teacher", "--out", tmp_path / "x")
    code, _, _ = run(
        capsys, "sample", straight / "teacher", "--steps", 3, "--num", 2, "--sampler", "ancestral",
        "--variance", "0.5", "--out", tmp_path / "x",
    )  # fmt: skip
    assert code == 0
    assert len(list((tmp_path / "x").glob("*.png"))) == 2
    about = json.loads((tmp_path / "x" / "samples.json").read_text())
    assert (about["sampler"], about["variance"], about["steps"]) == ("ancestral", 0.5, 3)


def test_eval_of_a_model_and_of_a_run(capsys, straight, tmp_path):
    evaluate = ["eval", straight / "round-02-steps-0002", "--steps", 1, 2, "--out"]
    code, output, _ = run(capsys, *evaluate, tmp_path / "e")
    assert code == 0
    assert run(capsys, *evaluate, tmp_path / "few", "--num", 30)[0] == 0
    assert json.loads((tmp_path / "few" / "eval.json").read_text())["images"] == 30
    table = json.loads((tmp_path / "e" / "eval.json").read_text())
    assert set(table["model"]) == {"1", "2"}
    assert (tmp_path / "e" / "eval.png").is_file()
    assert "FD-pixel" in output
    report = json.loads((straight / "report.json").read_text())
    assert table["model"]["2"] == report["student"]["2"]


def test_eval_sees_the_data_as_the_model_does(capsys, straight, tmp_path):
    np.savez(tmp_path / "large.npz", images=np.zeros((9, 16, 16, 1), np.uint8))
    (tmp_path / "other.toml").write_text('[data]\nsource = "large.npz"\n')
    cwd = os.getcwd()
    os.chdir(tmp_path)
    try:
        message = "large.npz has images of 16x16x1, but the config asks for 8x8x1"
        fails(capsys, 2, message, "eval", straight / "teacher", "--config", "other.toml")
        os.chdir(straight / "teacher")
        args = ["eval", ".", "--steps", "1", "--out", str(tmp_path / "e")]
        assert run(capsys, *args)[0] == 0
    finally:
        os.chdir(cwd)


def test_dry_run_allocates_no_net(capsys, tmp_path, monkeypatch):
    from pdfast.models import unet

    monkeypatch.chdir(tmp_path)
    real = unet.UNet.__init__

    def on_meta_only(self, cfg):
        real(self, cfg)
        assert all(p.is_meta for p in self.parameters())

    monkeypatch.setattr(unet.UNet, "__init__", on_meta_only)
    code, output, _ = run(
        capsys, "distill", "--config", "cifar10", "--rounds", 11, "--dry-run", "--device", "cpu"
    )
    assert code == 0
    assert "parameters: 60,004,099" in output
    assert re.search(r"memory, distillation: [\d,]+ MB", output)
    assert re.search(r"disk: at most [\d,]+ MB", output)
    rounds = re.findall(r"round +(\d+) +(\d+) +([\d,]+) +5\.0e-05", output)
    expected = [(str(r), str(8192 >> r), "50,000") for r in range(1, 12)]
    assert rounds == expected
    assert "ch_mult = [" in output
    assert not list(tmp_path.iterdir())


def test_doctor_says_what_is_so(capsys):
    code, output, _ = run(capsys, "doctor", "--device", "cpu")
    assert code == 0
    assert "device: cpu, because as asked" in output
    ops = "group_norm_silu resample add_noise ddim_step dropout distill_loss adamw"
    for op in ops.split():
        assert op in output
    assert "one NVIDIA H200" in output
    last = output.splitlines()[-1]
    assert last.startswith(
        "verdict: pdfast can train, distil and sample here, on cpu; without a GPU"
    )


def test_version_and_help():
    def call(*args):
        command = [sys.executable, "-m", "pdfast", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert call("--version").stdout.startswith("pdfast 0.")
    start = time.perf_counter()
    helped = call("distill", "--help")
    assert helped.returncode == 0
    assert "--rounds" in helped.stdout
    assert "--distill.updates" in helped.stdout
    assert "noqa" not in helped.stdout
    first = "The defaults shown are those of --config (digits, if none is named)."
    assert first in helped.stdout
    assert first not in call("--help").stdout
    print(f"help took {time.perf_counter() - start:.2f} s")
    lazy = "import sys, pdfast.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lazy], check=False).returncode == 0


EARLY = """
import os, signal, sys

class Imports:
    def find_spec(self, name, *rest):
        if name == "torch":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Imports())
from pdfast.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_while_torch_is_being_imported(tiny_toml, tmp_path):
    command = [sys.executable, "-c", EARLY, "distill", "--config", str(tiny_toml)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 143
    assert re.fullmatch(r"SIGTERM: .*\npdfast: stopped by SIGTERM; .*\n", done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("args", [["train", "--threads", "1"], ["distill", "--help"]])
def test_a_reader_that_leaves_ends_nothing(tiny_toml, tmp_path, args):
    """A reader that closes the pipe early, as `pdfast train | head -1` does."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pdfast", *args, "--config", str(tiny_toml)]
    command += ["--out", str(tmp_path / "run")]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "report.json").is_file() == ("--help" not in args)
