"""Custom networks: any shape, the built-in path's bits, resumed runs, one-sentence errors."""

import copy
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from engine_cases import random_model
from own_cases import CONFIG, LOOP, SIGNAL, Dense, changed, distill, numbers
from run_cases import TIMING, assert_same_run, metrics, stop_after
from torch import nn

import pdfast
from pdfast.cli.main import main
from pdfast.config.names import OUTPUTS
from pdfast.config.schema import EvalConfig, TrainConfig
from pdfast.distillation.given_data import from_numbers
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.evaluation.detectors import plain
from pdfast.models import checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the default network, for reading only."""
    path = tmp_path_factory.mktemp("own") / "run"
    student = distill(path)
    return path, student


# ------------------------------------------------------------------------------------------
# Any shape


@pytest.mark.parametrize(
    ("shape", "parameterization", "classes"),
    [((2, 12), "v", 0), ((1, 2, 3, 4), "x", 3), ((3,), "x_eps", 0), ((3, 4, 6), "v", 0)],
    ids=["signals", "volumes of classes", "points", "float images"],
)
def test_shapes(shape, parameterization, classes, tmp_path):
    out = tmp_path / "run"
    module = Dense(shape, classes, copies=OUTPUTS[parameterization].copies)
    network = pdfast.Network(module, shape, parameterization=parameterization, num_classes=classes)
    before = copy.deepcopy(module.state_dict())
    x = numbers(shape)
    data = (x.numpy(), np.arange(40) % 3) if classes else x
    student = distill(out, network, data=data)
    assert (student.steps, student.parameterization, student.num_classes) == (
        2,
        parameterization,
        classes,
    )
    label = torch.arange(5) % classes if classes else None
    made = student.sample(5, 2, label=label)
    assert made.shape == (5, *shape)
    assert torch.equal(made[3:], student.sample(5, 2, label=label)[3:])
    noise = torch.randn(5, *shape)
    assert student.sample(5, 2, label=label, noise=noise).shape == (5, *shape)
    x_hat = student.predict_x(noise, torch.zeros(5), label)
    assert x_hat.shape == (5, *shape)
    again = pdfast.load(out / "round-02-steps-0002", network=network)
    assert torch.equal(again.sample(5, 2, label=label), made)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    moved = [n for n, t in student.net.state_dict().items() if not torch.equal(t, before[n])]
    assert moved == list(before)
    drawn = shape in ((2, 12), (3, 4, 6))
    pictures = {"round-01-steps-0004.png", "round-02-steps-0002.png", "compare.png"}
    assert {p.name for p in (out / "samples").iterdir()} == (pictures if drawn else set())
    report = (out / "report.md").read_text()
    assert "# own: FD-raw" in report
    assert ("There are no pictures" in report) == (not drawn)
    assert set(json.loads((out / "report.json").read_text())["student"]) == {"2"}


def test_the_built_in_path_bit_for_bit(tiny, tmp_path):
    """pdfast's own U-Net as a module, on the same pictures. In float64, as the noise level is
    rounded to the module's dtype.
    """
    loop = dataclasses.replace(tiny.distill, start_steps=4, rounds=1)
    few = EvalConfig(steps=(2,), baseline_steps=2, num=16)
    net = dataclasses.replace(tiny.model, ch_mult=(1,), attn_resolutions=())
    tiny = dataclasses.replace(tiny, model=net, distill=loop, eval=few)
    model = random_model(tiny.model, 0, torch.float64)
    pdfast.save(model, tmp_path / "teacher")
    built_in = pdfast.distill(tiny, teacher=tmp_path / "teacher", out=tmp_path / "a", quiet=True)
    network = pdfast.Network(model.net, (1, 8, 8), clip=(-1, 1))
    own = pdfast.distill(tiny, teacher=network, out=tmp_path / "b", quiet=True)
    ours, theirs = own.net.state_dict(), built_in.net.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(own.sample(3, 2), built_in.sample(3, 2))
    reports = [(tmp_path / run / "report.json").read_text() for run in "ab"]
    assert reports[0] == reports[1]
    pictures = [(tmp_path / run / "samples" / "compare.png").read_bytes() for run in "ab"]
    assert pictures[0] == pictures[1]
    found = [[{k: v for k, v in m.items() if k not in {"signal", "rounding"} | TIMING}
              for m in metrics(tmp_path / run)] for run in "ab"]  # fmt: skip
    assert found[0] == found[1]


def test_its_input_is_its_own():
    """A module gets contiguous copies of its input, which it may write into."""
    seen = []

    class Writes(Dense):
        def forward(self, z, logsnr, label):
            seen.append((z.is_contiguous(), logsnr.dtype))
            return super().forward(z.mul_(0), logsnr, label)

    z = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    before = z.clone()
    network = pdfast.Network(Writes((3, 4, 4)), (3, 4, 4))
    for given in (z, z.contiguous()):
        network.forward_at_angle(given, torch.ones(2, dtype=torch.float64))
        assert torch.equal(given, before)
    assert seen == [(True, torch.float32)] * 2


def test_a_module_alone_takes_shape_and_classes_from_the_data(tmp_path):
    module = Dense((3,), classes=3)
    student = distill(tmp_path / "run", module, data=(numbers((3,)), torch.arange(40) % 3))
    assert (student.shape, student.parameterization, student.num_classes) == ((3,), "v", 3)


class Odd(nn.Module):
    """With tied and frozen parameters, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.norm, self.dropout = nn.BatchNorm1d(12), nn.Dropout(0.5)

    def forward(self, z, logsnr, label):
        h = self.dropout(self.norm(self.frozen(z[:, 0])))
        return self.second(torch.tanh(self.first(h)))[:, None]


def test_frozen_stays_frozen_and_tied_tied(tmp_path):
    module = Odd()
    before = copy.deepcopy(module.state_dict())
    student = distill(tmp_path / "run", module.train())
    after = student.net.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    learns = {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert moved == learns | {"norm.weight", "norm.bias"}  # not the running statistics
    assert module.training
    again = pdfast.load(tmp_path / "run" / "round-02-steps-0002", network=module)
    assert torch.equal(again.sample(3, 2), student.sample(3, 2))
    assert again.net.second.weight is again.net.first.weight


def test_trained_and_distilled_in_one_folder(tmp_path):
    """The trained teacher is in the run, which refuses another one."""
    config = dataclasses.replace(CONFIG, train=TrainConfig(updates=8, batch=4, lr=1e-2, warmup=0))
    start, x = Dense(), numbers()
    teacher = pdfast.train(config, network=start, data=x, out=tmp_path / "run", quiet=True)
    assert not torch.equal(teacher.net.inner.weight, start.inner.weight)
    student = pdfast.distill(config, teacher=teacher, data=x, out=tmp_path / "run", quiet=True)
    assert student.steps == 2
    assert metrics(tmp_path / "run")[0]["round"] == 0
    again = pdfast.train(config, network=start, data=x, out=tmp_path / "run", quiet=True)
    assert torch.equal(again.net.inner.weight, teacher.net.inner.weight)


# ------------------------------------------------------------------------------------------
# Students of another architecture


def test_a_smaller_student_and_an_interruption(tmp_path, monkeypatch):
    """Stopped in the fit and in the round after it, with the same bits."""
    config = dataclasses.replace(CONFIG, distill=dataclasses.replace(LOOP, fit_updates=12))
    small = Dense(width=4, seed=3)
    plain, run = tmp_path / "plain", tmp_path / "run"
    student = distill(plain, config=config, student=small)
    assert student.net.inner.weight.shape == (4, 13)
    fit = next(m for m in metrics(plain) if "fixed_batch_loss_end" in m)
    assert fit["steps"] == 8
    assert fit["fixed_batch_loss_end"] < fit["fixed_batch_loss_start"]
    for updates in (8, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, updates)
            with pytest.raises(Stopped, match="is saved at update"):
                distill(run, config=config, student=small)
    distill(run, config=config, student=small)
    assert_same_run(plain, run)


def test_an_eps_teacher_becomes_a_v_student(tmp_path, capsys):
    teacher = pdfast.Network(Dense(), SIGNAL, parameterization="eps")
    given = {"teacher": teacher, "data": numbers(), "out": tmp_path / "run"}
    student = pdfast.distill(CONFIG, **given)
    assert "round 1 moves it to v at the same 8 steps" in capsys.readouterr().out
    assert student.parameterization == "v"
    assert (tmp_path / "run" / "round-01-steps-0008").is_dir()


# ------------------------------------------------------------------------------------------
# Resumed


def test_the_same_call_goes_on(finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            distill(run)
    distill(run)
    assert_same_run(finished[0], run)


def test_other_data_are_noticed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            distill(tmp_path / "run")
    with pytest.raises(UsageError, match=r"was begun with other data .*: pass the former data, or"):
        distill(tmp_path / "run", data=numbers(seed=2))


@pytest.mark.parametrize("option", [{"data": "stream"}, {"pipeline_teacher": True}])
def test_options_of_the_engine_teach_the_same(finished, option, tmp_path):
    student = distill(tmp_path / "run", config=changed(engine=option))
    kept, exact = finished[1].net.state_dict(), "data" in option
    for name, tensor in student.net.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], **({"rtol": 0, "atol": 0} if exact else {}))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Dense(width=9), r"its inner.bias is float32 \(8,\), the module's float32 \(9,\)"),
        (Odd(), r"its first.bias is missing, the module's float32 \(12,\)"),
        (Dense(seed=5), "already has another teacher: choose another out"),
        (
            pdfast.Network(Dense(copies=2), SIGNAL, parameterization="x_eps"),
            "has parameterization 'v', but .* has 'x_eps'",
        ),
        (pdfast.Network(Dense(), SIGNAL, clip=(-4, 4)), r"has clip None, but .* has \[-4.0, 4.0\]"),
    ],
    ids=["width", "names", "weights", "parameterization", "clip"],
)
def test_another_teacher_in_the_same_folder(finished, module, message):
    with pytest.raises(UsageError, match=message):
        distill(finished[0], module)


# ------------------------------------------------------------------------------------------
# Its files


def test_without_the_module(finished, capsys, tmp_path):
    model = finished[0] / "round-02-steps-0002"
    call = f'in Python, pdfast.load("{model}", network=module) loads its weights into a copy'
    for command in (
        ["sample", model, "--num", "1", "--out", tmp_path / "a.png"],
        ["export", model, "--to", "onnx", "--out", tmp_path / "onnx"],
        ["eval", model],
        ["distill", "--teacher", model, "--out", tmp_path / "run"],
    ):
        assert main(list(map(str, command))) == 2
        error = capsys.readouterr().err
        assert call in error
        assert error.count("\n") == 1
    assert main(["eval", str(finished[0])]) == 2
    assert "the call of pdfast.distill that made the run" in capsys.readouterr().err
    with pytest.raises(UsageError, match="only your code can create"):
        pdfast.load(model)
    with pytest.raises(UsageError, match="a custom network, which pdfast cannot export"):
        pdfast.export(finished[1], tmp_path / "out", to="diffusers")


def test_a_run_without_a_model(finished, capsys, tmp_path):
    """A run that lost its models, and one that was stopped before it had any."""
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    for models in ("teacher", "round-*"):
        for path in run.glob(models):
            shutil.rmtree(path)
        assert main(["eval", str(run)]) == 2
        assert f"{run} is a run of a custom network" in capsys.readouterr().err


def test_what_a_directory_says(finished, tmp_path):
    table = json.loads((finished[0] / "teacher" / "config.json").read_text())
    assert table["network"] == "own"
    assert (table["shape"], table["parameterization"], table["steps"]) == ([1, 12], "v", 0)
    assert table["schedule"]["kind"] == "cosine"
    loaded = pdfast.load(finished[0] / "teacher", network=Dense(seed=7))
    assert loaded.schedule.describe() == table["schedule"]
    assert torch.equal(loaded.net.outer.bias, Dense().outer.bias)
    given = pdfast.Network(Dense(), SIGNAL, schedule=pdfast.wrappers.EDM())
    with pytest.raises(UsageError, match=r"has schedule .*cosine.* the network given has .*edm"):
        pdfast.load(finished[0] / "teacher", network=given)


def test_a_model_of_pdfasts_own_needs_no_network(tiny, tmp_path):
    pdfast.save(random_model(tiny.model, 0, torch.float32), tmp_path / "model")
    with pytest.raises(UsageError, match="is a model of pdfast's own network"):
        pdfast.load(tmp_path / "model", network=Dense())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", []),
        ("shape", 3),
        ("parameterization", "w"),
        ("schedule", {}),
        ("clip", [1]),
        ("steps", -1),
    ],
)
def test_a_config_that_is_none(finished, key, value, tmp_path):
    network = pdfast.Network(Dense(), SIGNAL)
    table = network.describe() | {key: value}
    network.describe = lambda: table
    checkpoint.save_model(network, tmp_path / "model")
    with pytest.raises(PdfastError, match="is not a model's configuration"):
        pdfast.load(tmp_path / "model", network=Dense())


# ------------------------------------------------------------------------------------------
# Distances


def test_distances_of_numbers():
    """At most 1024 features: means of neighbours, over channels only in the end."""
    generator = torch.Generator().manual_seed(0)
    for shape, means in (((2, 16, 16, 16), (2, 8, 8, 8)), ((1, 3000), (1, 750)), ((3000,), (750,))):
        x = torch.rand(5, *shape, generator=generator)
        data = from_numbers(x, shape, pdfast.Network(Dense(), shape).image_shape, 0)
        features = plain.raw(shape).extract(data.images).values
        assert features.shape == (5, math.prod(means))
        parts = x.double()
        for axis, (many, few) in enumerate(zip(shape, means, strict=True), 1):
            parts = parts.unflatten(axis, (few, many // few)).mean(axis + 1)
        torch.testing.assert_close(features, parts.flatten(1))
    x = torch.rand(5, 2, 6, generator=generator)
    data = from_numbers(x, (2, 6), (2, 1, 6), 0)
    assert torch.equal(plain.raw((2, 6)).extract(data.images).values, x.double().flatten(1))
