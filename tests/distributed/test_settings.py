"""Every call restores the caller's process-wide settings of PyTorch."""

import itertools
import os
import shutil

import flax_files as ff
import pytest
import torch
from engine_cases import random_model
from own_cases import Dense, distill, numbers

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import dump_config
from pdfast.distributed import settings
from pdfast.errors import UsageError
from pdfast.training import loop
from pdfast.training.precision import set_precision, without_tf32

BACKENDS = torch.backends
PLACES = {
    "all": BACKENDS, "cudnn": BACKENDS.cudnn, "mkldnn": BACKENDS.mkldnn,
    "matmul": BACKENDS.cuda.matmul, "conv": BACKENDS.cudnn.conv, "rnn": BACKENDS.cudnn.rnn,
    "cpu matmul": BACKENDS.mkldnn.matmul, "cpu conv": BACKENDS.mkldnn.conv,
}  # fmt: skip
VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
SUMS = "allow_bf16_reduced_precision_reduction"


def legacy(read):
    """Read an older switch, or return PyTorch's refusal."""
    try:
        return read()
    except RuntimeError:
        return "mixed"


def seen():
    """Return every setting that pdfast may touch, and some others, as a user reads them."""
    deterministic = torch.utils.deterministic
    return {
        "threads": torch.get_num_threads(),
        "benchmark": BACKENDS.cudnn.benchmark,
        "cudnn deterministic": BACKENDS.cudnn.deterministic,
        "cudnn": BACKENDS.cudnn.enabled,
        "cudnn tf32": legacy(lambda: BACKENDS.cudnn.allow_tf32),
        "matmul tf32": legacy(lambda: BACKENDS.cuda.matmul.allow_tf32),
        "matmul": legacy(torch.get_float32_matmul_precision),
        "sums": getattr(BACKENDS.cuda.matmul, SUMS),
        "split": getattr(BACKENDS.cuda.matmul, f"{SUMS}_split_k", None),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": deterministic.fill_uninitialized_memory,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "variable": os.environ.get(VARIABLE),
        "random": torch.get_rng_state().tolist(),
        "precisions": {name: place.fp32_precision for name, place in PLACES.items()},
    }


@pytest.fixture
def odd(monkeypatch):
    """Settings that no call of pdfast would choose; returns them as a user reads them."""
    monkeypatch.setenv(VARIABLE, ":16:8")
    cudnn, matmul, more = BACKENDS.cudnn, BACKENDS.cuda.matmul, torch.utils.deterministic
    torch.set_num_threads(2)
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, True, False
    torch.set_float32_matmul_precision("medium")
    setattr(matmul, SUMS, (False, False))
    torch.use_deterministic_algorithms(True, warn_only=True)
    more.fill_uninitialized_memory = True
    yield seen()
    torch.set_num_threads(1)
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, False, True
    torch.set_float32_matmul_precision("highest")
    setattr(matmul, SUMS, True)
    torch.use_deterministic_algorithms(False)
    more.fill_uninitialized_memory = True


def test_every_call_from_python(odd, tiny, straight, tmp_path, monkeypatch):
    """After success, after a refusal, and after an error from inside."""
    inside, real, run = [], loop.update, tmp_path / "run"

    def update(*args):
        if not inside:
            inside.append(seen())
        return real(*args)

    monkeypatch.setattr(loop, "update", update)
    given = {"quiet": True, "threads": 1}
    pdfast.distill(tiny, out=run, **given)
    assert seen() == odd
    during = inside[0]
    assert (during["threads"], during["deterministic"], during["warn only"]) == (1, False, False)
    assert (during["sums"], during["benchmark"], during["fill"]) == (False, True, False)
    assert during["precisions"]["cpu matmul"] == "ieee"
    for name in ("teacher", "round-02-steps-0002"):  # the caller's settings changed no result
        theirs = (straight / name / "model.safetensors").read_bytes()
        assert (run / name / "model.safetensors").read_bytes() == theirs
    pdfast.train(tiny, out=run, **given)
    assert seen() == odd
    pdfast.evaluate(run, **given)
    assert seen() == odd
    pdfast.evaluate(run / "teacher", steps=(1,), **given)
    assert seen() == odd
    model = pdfast.load(run / "teacher")
    model.sample(2, 2)
    pdfast.save(model, tmp_path / "model")
    pdfast.export(model, tmp_path / "out", quiet=True)
    assert seen() == odd
    with pytest.raises(UsageError):
        pdfast.train(tiny, out=run, resume="never", **given)
    assert seen() == odd
    module = Dense()
    odd["random"] = seen()["random"]  # the line above draws random numbers
    distill(tmp_path / "own", module, threads=1)
    assert seen() == odd
    monkeypatch.setattr(loop, "update", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pdfast.train(tiny, out=tmp_path / "other", **given)
    assert seen() == odd


def test_every_command(odd, tiny_toml, straight, write_state, tmp_path, capsys, handlers):
    """Within a process, as notebooks and tests call them."""
    run, state = shutil.copytree(straight, tmp_path / "run"), write_state()
    odd["random"] = seen()["random"]  # the line above draws random numbers
    (tmp_path / "c.toml").write_text(dump_config(ff.CONFIG))
    one = ["--threads", 1]
    for command in (
        ["sample", run / "teacher", "--steps", 1, "--num", 2, "--out", tmp_path / "s", *one],
        ["eval", run / "teacher", "--steps", 1, "--num", 8, *one],
        ["import", state, "--from", "google", "--config", tmp_path / "c.toml", "--out",
         tmp_path / "m"],
        ["distill", "--config", tiny_toml, "--dry-run", *one],
        ["doctor", *one],
    ):  # fmt: skip
        assert main([str(part) for part in command]) == 0, capsys.readouterr().err
        assert seen() == odd, command


def test_a_deterministic_run(tiny, tmp_path, monkeypatch):
    """The variable that cuBLAS reads is unset when the run ends."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before, inside = seen(), []

    def update(*args, real=loop.update):
        inside.append(seen())
        return real(*args)

    monkeypatch.setattr(loop, "update", update)
    config = pdfast.Config(**{**vars(tiny), "deterministic": True})
    pdfast.train(config, out=tmp_path / "run", quiet=True)
    assert (inside[0]["deterministic"], inside[0]["variable"]) == (True, ":4096:8")
    assert inside[0]["benchmark"] is False
    assert seen() == before


# ------------------------------------------------------------------------------------------
# TF32, whose switches exist on a CPU too


def set_places(**values):
    for name, value in values.items():
        PLACES[name].fp32_precision = value


CALLERS = {
    "nothing": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "legacy": lambda: (
        setattr(BACKENDS.cudnn, "allow_tf32", False)
        or setattr(BACKENDS.cuda.matmul, "allow_tf32", True)
    ),
    "one for all": lambda: set_places(all="tf32"),
    "one for CUDA": lambda: set_places(cudnn="ieee"),
    "each its own": lambda: set_places(matmul="tf32", conv="ieee", rnn="tf32"),
    "both kinds": lambda: torch.set_float32_matmul_precision("high") or set_places(matmul="ieee"),
}


@pytest.fixture
def fresh():
    """The switches as at the start of a process, as far as they can be reset."""

    def reset():
        set_places(all="none", cudnn="none")
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cudnn.allow_tf32 = True
        set_places(**{"matmul": "none", "cpu matmul": "none"})

    reset()
    yield
    reset()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32(fresh, monkeypatch, caller, precision):
    """In a run the precision decides, whatever the caller chose; that is restored after it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    CALLERS[caller]()
    before, products = seen(), ("matmul", "conv", "rnn")
    for fails in (False, True):
        try:
            with settings.kept():
                set_precision(precision, torch.device("cuda"))
                now = seen()["precisions"]
                assert {now[name] == "tf32" for name in products} == {precision == "tf32"}
                assert {now["cpu matmul"], now["cpu conv"]} <= {"ieee", "none"}
                with without_tf32():
                    exact = seen()["precisions"]
                    assert all(exact[name] != "tf32" for name in products)
                assert seen()["precisions"] == now
                assert not fails or 1 / 0
        except ZeroDivisionError:
            assert fails
        assert seen() == before


def test_calls_within_calls(fresh, monkeypatch):
    """Each restores what it found, in whatever precision."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for outer, inner in itertools.permutations(["fp32", "tf32", "bf16"], 2):
        before = seen()
        with settings.kept():
            set_precision(outer, torch.device("cuda"))
            between = seen()
            with settings.kept():
                set_precision(inner, torch.device("cuda"))
            assert seen() == between
        assert seen() == before


def test_what_changes_nothing(tiny, tmp_path):
    before = seen()
    model = random_model(tiny.model, 0, torch.float32)
    before["random"] = seen()["random"]  # the line above draws random numbers
    pdfast.save(model, tmp_path / "model")
    pdfast.load(tmp_path / "model").sample(2, 2, seed=1)
    network = pdfast.Network(Dense(), (1, 12))
    before["random"] = seen()["random"]  # so does a module's own initialization
    network.sample(2, 2)
    network.predict_x(numbers(), torch.zeros(40))
    assert seen() == before
