"""Custom networks outside their range of noise levels, data or numbers of samples."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from engine_cases import random_model
from own_cases import CONFIG, SIGNAL, Dense, changed, distill, numbers
from torch import nn
from torch.nn import functional

import pdfast
from pdfast import reference
from pdfast.config.names import OUTPUTS
from pdfast.diffusion import wrappers
from pdfast.diffusion.wrappers import EDM, CosineSchedule, FlowMatching, LinearVP, TableSchedule
from pdfast.errors import UsageError
from pdfast.models import checkpoint

# ------------------------------------------------------------------------------------------
# Numbers of samples


class Of(Dense):
    """Applies a function to a valid output."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function, self.calls = function, 0

    def forward(self, z, logsnr, label):
        self.calls += 1
        return self.function(self, super().forward(z, logsnr, label), label)


def by_the_batch(module, out, label):
    return functional.batch_norm(out, None, None, training=True)


def among_all(module, out, label):
    flat = out.flatten(1)
    return (torch.softmax(flat @ flat.T, 1) @ flat).view_as(out)


def one_hot(count):
    """Return a function that reads labels as (B, classes), as many denoisers do."""

    def function(module, out, label):
        return out + label.float().reshape(-1, count)[:, :1, None]

    return function


OTHER = "the module's output for a sample differs between batches of 4 and 3: compute each output"
RANDOM = "output differs between calls with the same input: in evaluation mode it must draw no"


@pytest.mark.parametrize(
    ("function", "classes", "message"),
    [
        (lambda m, out, label: out - out.mean(0), 0, OTHER),
        (lambda m, out, label: out + 0.1 * out.flip(0), 0, OTHER),
        (by_the_batch, 0, OTHER),
        (among_all, 0, OTHER),
        (lambda m, out, label: out + torch.randn_like(out), 0, RANDOM),
        (lambda m, out, label: functional.dropout(out), 0, RANDOM),
        (lambda m, out, label: out * m.calls, 0, RANDOM),
        (lambda m, out, label: out.view(4, 1, 12), 0, r"failed on z \(3, 1, 12\), logsnr"),
        (lambda m, out, label: out[:2], 0, r"output has shape \(2, 1, 12\), where .* \(4, 1, 12\)"),
        (one_hot(4), 4, r"failed on z \(3, 1, 12\), .* and label \(3,\): RuntimeError: .*; it must "
         r"take any number B of samples: z \(B, 1, 12\), logsnr \(B,\) and label \(B,\), int64, "
         r"each sample's class in 0 .. 3$"),
        (one_hot(10), 10, r"failed on z \(4, 1, 12\), .* and label \(4,\): RuntimeError: "),
        (one_hot(3), 3, r"failed on z \(4, 1, 12\), .* and label \(4,\): RuntimeError: "),
    ],
)  # fmt: skip
def test_a_sample_depends_on_itself_alone(function, classes, message, tmp_path):
    network = pdfast.Network(Of(function, classes=classes), SIGNAL, num_classes=classes)
    data = (numbers(), torch.arange(40) % classes) if classes else numbers()
    with pytest.raises(UsageError, match=message) as caught:
        distill(tmp_path / "run", network, data=data)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def in_bfloat16(module, out, label):
    return (out.bfloat16() * torch.linspace(1, 2, 12).bfloat16()).float()


@pytest.mark.parametrize(
    "function",
    [in_bfloat16, lambda m, out, label: out * 0, lambda m, out, label: out * 1e-12],
    ids=["bfloat16 inside", "zeros at first", "almost zeros"],
)
def test_what_is_as_it_should_be(function, tmp_path):
    loop = {"updates": 1, "rounds": 1}
    config = changed(distill=loop, eval={"num": 2})
    student = distill(tmp_path / "run", Of(function), config=config)
    assert student.steps == 4


# ------------------------------------------------------------------------------------------
# Data and clip


def spread(low, high):
    """Return signals whose numbers range from `low` to `high`."""
    return torch.linspace(low, high, 40 * math.prod(SIGNAL)).reshape(40, *SIGNAL)


@pytest.mark.parametrize(
    ("data", "clip", "message"),
    [
        (spread(0.5, 254), (-1, 1), r"range from 0\.5 to 254, but"),
        (spread(-2, -1.5), (-1, 1), r"range from -2 to -1\.5, but"),
        (spread(0, 1.01), (0, 1), r"range from 0 to 1\.01, but .* clipped to \(0, 1\)"),
    ],
)  # fmt: skip
def test_data_outside_the_clip(data, clip, message, tmp_path):
    network = pdfast.Network(Dense(), SIGNAL, clip=clip)
    fix = r": scale the data .* x / 127\.5 - 1\), or pass a wider clip, or clip=None"
    with pytest.raises(UsageError, match=message + ".*" + fix):
        distill(tmp_path / "run", network, data=data)
    with pytest.raises(UsageError, match=message):
        pdfast.train(CONFIG, network=network, data=data, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_pictures_outside_the_clip(tmp_path):
    """They are read as numbers from -1 to 1."""
    network = pdfast.Network(Dense((1, 8, 8)), (1, 8, 8), clip=(0, 1))
    with pytest.raises(
        UsageError, match=r"range from -1 to 1, but the network's samples are clipped to \(0"
    ):
        pdfast.distill(CONFIG, teacher=network, out=tmp_path / "run", quiet=True)


def test_data_at_the_ends_of_the_clip(tmp_path):
    """Also beyond it by a rounding error."""
    data = numbers().clamp(-1, 1 + 2e-7)
    assert data.max() > 1
    config = changed(distill={"updates": 1, "rounds": 1}, eval={"num": 2})
    network = pdfast.Network(Dense(), SIGNAL, clip=(-1, 1))
    assert distill(tmp_path / "run", network, config=config, data=data).steps == 4


# ------------------------------------------------------------------------------------------
# Noise levels


class Asked(nn.Module):
    """A network of (z, time, label) that records the times of its calls."""

    def __init__(self):
        super().__init__()
        self.linear, self.times = nn.Linear(1, 1), []

    def forward(self, z, time, label):
        self.times.append(time.detach().double())
        return z * 0 + self.linear(time[:, None])[:, :, None] * 0

    def seen(self):
        times = torch.cat(self.times)
        return float(times.min()), float(times.max())


def network_of(module, schedule=None, parameterization="x", **options):
    return pdfast.Network(
        module, (1, 8), parameterization=parameterization, schedule=schedule, **options
    )


COSINE = f"at u = 1 the schedule {CosineSchedule()} visits "
VP = "LinearVP(beta_min=0.1, beta_max=20.0)"


@pytest.mark.parametrize(
    ("adapt", "schedule", "message"),
    [
        (lambda net: wrappers.from_time(net, LinearVP()), None,
         f"{COSINE}logSNR -20, outside -10.05 (t = 1) .. inf (t = 0) of from_time's {VP}: "
         f"pass schedule={VP} to pdfast.Network, as to from_time"),
        (lambda net: wrappers.from_time(net, TableSchedule(torch.linspace(9, -9, 50))), None,
         f"{COSINE}logSNR -20, outside -9 (t = 1) .. 9 (t = 0) of from_time's TableSchedule(logsnr "
         "of 50 timesteps): pass schedule="),
        (lambda net: wrappers.from_time(net, EDM()), LinearVP(),
         f"at u = 1 the schedule {VP} visits logSNR -10.05, outside -8.764 (t = 1) .. 12.43"),
        (lambda net: wrappers.from_edm(net), None,
         f"{COSINE}sigma 2.203e+04, outside 0.002 .. 80 of from_edm: pass schedule=EDM(sigma_min="
         "0.002, sigma_max=80) to pdfast.Network, or, if the network was trained for more, sigma"),
        (lambda net: wrappers.from_edm(net), FlowMatching(), "visits sigma 1.633e+16, out"),
        (lambda net: wrappers.from_edm(net, 0.01, 50.0), EDM(), "sigma 80, outside 0.01 .. 50 of "),
    ],
)  # fmt: skip
def test_a_schedule_that_leaves_a_wrappers_range(adapt, schedule, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        network_of(adapt(Asked()), schedule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapt", "schedule", "least", "most"),
    [
        (lambda net: wrappers.from_time(net, LinearVP()), LinearVP(), 0.0, 1.0),
        (lambda net: wrappers.from_time(net, LinearVP()), EDM(), 0.0, 1.0),
        (lambda net: wrappers.from_time(net, CosineSchedule()), None, 0.0, 1.0),
        (lambda net: wrappers.from_edm(net), EDM(), 0.002, 80.0),
        (lambda net: wrappers.from_edm(net, 0.0, 1e9), None, 0.0, 1e9),
        (lambda net: wrappers.from_flow(net), FlowMatching(), 0.0, 1.0),
        (lambda net: wrappers.from_flow(net), None, 0.0, 1.0),
    ],
)
def test_a_schedule_within_it(adapt, schedule, least, most):
    """The network is called at times of its range only, up to rounding in float32."""
    module = Asked()
    network = network_of(adapt(module), schedule, parameterization="v")
    for steps in (1, 64, 1024):
        network.sample(2, steps=steps)
    low, high = module.seen()
    assert least * (1 - 1e-5) <= low < high <= most * (1 + 1e-5)


def test_more_steps_than_the_range_allows(tmp_path):
    """The lowest noise level is at u = 1/N: refused as soon as N is known."""
    schedule = CosineSchedule(-8.0, 20.0)
    module = Asked()
    network = network_of(wrappers.from_edm(module), schedule)
    network.sample(2, steps=512)
    assert module.seen()[0] > 0.002
    message = r"at u = 0\.0001221 the schedule .* visits sigma 0\.0002\d+, .*: take fewer steps"
    with pytest.raises(UsageError, match=message):
        network.sample(2, steps=8192)
    data = numbers((1, 8))
    for config in (
        changed(distill={"start_steps": 8192}),
        changed(eval={"baseline_steps": 8192}),
        changed(eval={"steps": (8192,)}),
    ):
        with pytest.raises(UsageError, match="take fewer steps, or pass"):
            pdfast.distill(config, teacher=network, data=data, out=tmp_path / "run", quiet=True)
    student = network_of(wrappers.from_edm(Asked(), 0.5), schedule)
    wider = network_of(wrappers.from_flow(Asked()), schedule)
    with pytest.raises(
        UsageError, match=r"at u = 0\.125 the sched.* visits sigma .* outside 0\.5 \.\. 80"
    ):
        distill(tmp_path / "run", wider, data=data, student=student)
    with pytest.raises(
        UsageError, match=r"at u = 0 the schedule .* visits sigma 4\.54e-05, outside"
    ):
        pdfast.train(CONFIG, network=network, data=data, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


class Eps(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, z, logsnr, label):
        return self.linear(z)


def test_an_eps_head_where_nothing_is_left_of_the_data():
    message = (
        r"parameterization eps divides by alpha, which is 0 at u = 1 on the schedule {}: pass a "
        r"schedule that ends before, such as pdfast\.wrappers\.LinearVP\(\), or a network of "
        r"another parameterization"
    )
    for schedule, name in (
        (FlowMatching(), r"FlowMatching\(\)"),
        (TableSchedule(torch.linspace(9, -60, 50)), r"TableSchedule\(logsnr of 50 timesteps\)"),
    ):
        with pytest.raises(UsageError, match=message.format(name)):
            network_of(Eps(), schedule, parameterization="eps")
        for parameterization in ("v", "x"):
            assert (
                network_of(Eps(), schedule, parameterization=parameterization)
                .sample(2, 4)
                .isfinite()
                .all()
            )
    for schedule in (None, LinearVP(), EDM(), CosineSchedule(-30.0, 20.0)):
        assert network_of(Eps(), schedule, parameterization="eps").sample(2, 4).isfinite().all()


def test_a_model_that_was_saved_out_of_range(tmp_path):
    """As written before ranges existed: refused with the reason, and loaded with a range given."""
    module = wrappers.from_edm(Asked(), 0.0, math.inf)
    checkpoint.save_model(network_of(module), tmp_path / "model")
    with pytest.raises(
        UsageError, match=r"model: at u = 1 the schedule CosineS.* visits sigma 2\.203e"
    ):
        pdfast.load(tmp_path / "model", network=wrappers.from_edm(Asked()))
    assert pdfast.load(tmp_path / "model", network=module).sample(2, 2).shape == (2, 1, 8)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["network"] == "own"


@pytest.mark.parametrize("ends", [(-1.0, 80.0), (80.0, 0.002), (math.nan, 80.0)])
def test_a_range_that_is_none(ends):
    with pytest.raises(UsageError, match="from_edm needs 0 <= sigma_min < sigma_max, not"):
        wrappers.from_edm(Asked(), *ends)


# ------------------------------------------------------------------------------------------
# The published formulas


@pytest.mark.parametrize("clip", [None, (-0.3, 0.2)])
@pytest.mark.parametrize(
    ("shape", "parameterization"),
    [((2, 6), "v"), ((3,), "x"), ((1, 2, 4), "eps"), ((4,), "x_eps")],
)
def test_reference_takes_them(shape, parameterization, clip):
    """Samples equal those of the network itself, and losses those of the bare function."""
    module = Dense(shape, copies=OUTPUTS[parameterization].copies).double()
    schedule = CosineSchedule(-12.0, 15.0)
    network = pdfast.Network(
        module, shape, parameterization=parameterization, clip=clip, schedule=schedule
    )
    z = numbers(shape, num=5).double()
    for cut in (True, False):
        expected = network.sample(5, 4, noise=z, clip=cut)
        found = reference.ddim_sample(network, z, 4, clip=cut)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    bare = SimpleNamespace(parameterization=parameterization, logsnr_min=-12.0, logsnr_max=15.0)

    class Bare(SimpleNamespace):
        def __call__(self, z, logsnr, label=None):
            return module(z, logsnr, label)

    bare = Bare(**vars(bare))
    x, i = numbers(shape, num=5, seed=2).double(), torch.arange(5) % 4
    weight = "v_mse"
    for found, expected in zip(
        reference.distillation_loss(network, network, x, z, i, 4, weight),
        reference.distillation_loss(bare, bare, x, z, i, 4, weight),
        strict=True,
    ):
        assert torch.equal(found, expected)
        assert found.isfinite().all()
    u = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    found = reference.training_loss(network, x, z, u, weight)
    assert torch.equal(found, reference.training_loss(bare, x, z, u, weight))


def test_reference_says_where_it_does_not(tiny):
    table = {"schedule": "linear", "timesteps": 16, "betas": (1e-4, 0.02)}
    cfg = dataclasses.replace(tiny.model, **table)
    of_pdfast = random_model(cfg, 0, torch.float64)
    for model, shape, name in (
        (network_of(Eps(), FlowMatching(), parameterization="v").double(), (1, 8), "FlowMatching"),
        (network_of(Eps(), EDM(), parameterization="v").double(), (1, 8), "EDM"),
        (of_pdfast, (1, 8, 8), "TableSchedule"),
    ):
        z = numbers(shape, num=2).double()
        message = f"only the published cosine schedule, not this model's {name}: call the model"
        with pytest.raises(ValueError, match=message):
            reference.ddim_sample(model, z, 2)
        with pytest.raises(ValueError, match=message):
            reference.distillation_loss(model, model, z, z, torch.zeros(2).long(), 2, "constant")
        with pytest.raises(ValueError, match=message):
            reference.training_loss(model, z, z, torch.full((2,), 0.5).double(), "constant")
