"""Custom networks, data and calls that are refused, each with one sentence."""

import math

import numpy as np
import pytest
import torch
from engine_cases import random_model
from own_cases import CONFIG, SIGNAL, Dense, changed, distill, numbers
from torch import nn

import pdfast
from pdfast.errors import UsageError


class Wrong(nn.Module):
    def __init__(self, call, dtype=torch.float32, more=()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        for name in more:
            self.register_parameter(name, nn.Parameter(torch.ones(1)))
        self.call = call

    def forward(self, z, logsnr, label):
        return self.call(self, z * self.weight)


def own_error(call, **options):
    return lambda: pdfast.Network(Wrong(call, **options), SIGNAL)


def not_copied():
    module = Dense()
    module.kept = (line for line in "ab")  # a generator cannot be copied
    return module


def with_buffer(*buffers):
    module = Dense()
    for k, buffer in enumerate(buffers):
        module.register_buffer(f"kept_{k}", buffer)
    return module


def test_buffers_may_hold_a_mask_or_share_memory(tmp_path):
    mask = torch.full((4, 4), -math.inf).triu(1)
    student = distill(tmp_path / "run", with_buffer(mask, mask.flatten()[2:]))
    assert torch.equal(student.net.kept_0, mask)
    assert torch.equal(student.net.kept_1, mask.flatten()[2:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_error(lambda m, z: torch.cat([z, z], 1)),
         r"has shape \(4, 2, 12\), where parameterization v of shape \(1, 12\) needs \(4, 1, 12\)"),
        (own_error(lambda m, z: z.double()), "output is float64, its parameters float32"),
        (own_error(lambda m, z: (z, z)), "output is of type tuple"),
        (own_error(lambda m, z: z / 0), "not finite, at logSNR"),
        (own_error(lambda m, z: z.view(5, -1)), "failed on z .* label None: RuntimeError: shape"),
        (own_error(lambda m, z: z.detach()), "output has no gradient"),
        (own_error(lambda m, z: z, more=["spare"]), "parameter spare gets no gradient: freeze it"),
        (own_error(lambda m, z: z.abs().sqrt() * 0 + (z * 0).sqrt() * 0 + z),
         "gradient of the module's parameter weight is not finite"),
        (own_error(lambda m, z: z, dtype=torch.bfloat16), "parameter weight is bfloat16: keep"),
        (lambda: pdfast.Network(nn.ModuleList([Dense(), Dense().double()]), SIGNAL),
         "parameter 1.inner.weight is float64, others float32"),
        (lambda: Dense().requires_grad_(False), "no parameter that requires a gradient"),
        (lambda: nn.Identity(), "failed on z .*TypeError"),
        (not_copied, "the module cannot be copied .TypeError: "),
        (lambda: nn.LazyLinear(12), "parameter weight holds no values yet"),
        (lambda: with_buffer(torch.zeros(1).expand(12)), "failed loading its own state_dict: Runt"),
        (lambda: pdfast.Network(Dense(), ()), r"shape must be that of one sample, such as"),
        (lambda: pdfast.Network(Dense(), (1, 0)), r"shape must be .* not \(1, 0\)"),
        (lambda: pdfast.Network(Dense(), SIGNAL, parameterization="w"),
         "parameterization must be one of x, .* not 'w'"),
        (lambda: pdfast.Network(Dense(), SIGNAL, clip=(1, -1)), r"clip must be \(low, high\)"),
        (lambda: pdfast.Network(Dense(), SIGNAL, num_classes=-1), "num_classes must be"),
        (lambda: pdfast.Network(Dense(), SIGNAL, schedule="cosine"), "schedule must be one of pdf"),
        (lambda: pdfast.Network(lambda z, logsnr: z, SIGNAL), "is an nn.Module, not function"),
    ],
)  # fmt: skip
def test_wrong_modules(make, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        distill(tmp_path / "run", make())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (numbers((1, 13)), r"data must have shape \(M, 1, 12\), not \(40, 1, 13\)"),
        (numbers((12,)), r"data must have shape \(M, 1, 12\), not \(40, 12\)"),
        (numbers(num=1), "data must hold at least 2 samples, not 1"),
        (numbers() / 0, "not finite in float32, in sample 0"),
        (numbers().double() * 1e300, "not finite in float32, in sample 0"),
        (numbers().byte(), "data holds uint8, where floats are needed"),
        (np.array([["a"]]), "data holds <U1, a type that torch does not have"),
        (numbers().numpy().astype(">f4"), "data holds >f4, a type that torch does not have"),
        (numbers().to_sparse(), "data is a sparse tensor"),
        ([1.0, 2.0], "data must be a tensor or an array, not list"),
        ((numbers(), torch.zeros(40).long()), "data has labels, but the network has no classes"),
    ],
)
def test_wrong_data(data, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        distill(tmp_path / "run", pdfast.Network(Dense(), SIGNAL), data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (numbers(), r"the network has 3 classes: pass data=\(samples, labels\)"),
        ((numbers(), torch.zeros(39).long()), r"must be 40 whole numbers, not int64 \(39,\)"),
        ((numbers(), torch.zeros(40)), r"must be 40 whole numbers, not float32 \(40,\)"),
        ((numbers(), torch.arange(40) % 4), r"are from 0 to 3, outside 0 \.\. 2"),
    ],
)
def test_wrong_labels(data, message, tmp_path):
    network = pdfast.Network(Dense(classes=3), SIGNAL, num_classes=3)
    with pytest.raises(UsageError, match=message):
        distill(tmp_path / "run", network, data=data)


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (changed(precision="bf16"), {}, "precision bf16 is for pdfast's own network"),
        (changed(distill={"checkpoint": True}), {}, "distill.checkpoint is for pdfast's own"),
        (changed(engine={"tabulate_film": True}), {}, "engine.tabulate_film is for pdfast's own"),
        (changed(backends={"group_norm": "apex"}), {}, "backends.group_norm apex is for pdfast's"),
        (changed(data={"horizontal_flip": True}), {}, "with data=, turn it off"),
        (changed(distill={"teacher": "there"}), {}, "the config names another in distill.teacher"),
        (changed(distill={"fit_updates": 5}), {}, "leave it at 0, or pass student"),
        (CONFIG, {"student": Dense((1, 13))}, r"failed on z \(4, 1, 12\)"),
        (CONFIG, {"student": pdfast.Network(Dense((1, 13)), (1, 13))},
         r"the student has shape \(1, 13\), but must have \(1, 12\), as the teacher's"),
        (CONFIG, {"student": pdfast.Network(Dense(), SIGNAL, parameterization="x")},
         "the student has parameterization x, but must have v, as"),
        (CONFIG, {"student": Dense().double()}, "has dtype torch.float64, but must have"),
        (None, {"rounds": 11}, "11 rounds cannot halve 1024 steps exactly: use at most 10"),
        (CONFIG, {"data": ()}, "shape of a sample is not known"),
        (CONFIG, {"teacher": "runs/there"}, "a student, and samples as data, need a custom"),
        (CONFIG, {"teacher": pdfast.Network(Dense(), SIGNAL, steps=4)}, "distilled to 4 steps"),
    ],
)  # fmt: skip
def test_wrong_calls(config, given, message, tmp_path):
    given = {"teacher": Dense(), "data": numbers()} | given
    with pytest.raises(UsageError, match=message):
        pdfast.distill(config, out=tmp_path / "run", quiet=True, **given)
    assert not (tmp_path / "run").exists()


def test_a_network_of_diffusers_is_named_before_anything_is_made():
    kind = type("UNet2DModel", (Dense,), {"__module__": "diffusers.models.unets.unet_2d"})
    said = (
        r"^UNet2DModel is a model of diffusers.*\(pdfast import FOLDER --from diffusers\), or wrap"
    )
    with pytest.raises(UsageError, match=said):
        pdfast.Network(kind(), SIGNAL)
    wrapped = Wrong(lambda module, z: z)
    wrapped.inside = kind()
    assert pdfast.Network(wrapped, SIGNAL).shape == SIGNAL


def test_pictures_may_be_named_for_any_network(tiny, tmp_path):
    """As --data.source does; the images are the data set's own, by their digest."""
    path = tmp_path / "pictures.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8))
    pdfast.train(tiny, data=path, out=tmp_path / "a", quiet=True)
    pdfast.distill(tiny, data=str(path), out=tmp_path / "a", quiet=True)
    source = pdfast.load_config(tmp_path / "a" / "config.toml").data.source
    assert source == str(path)
    own = pdfast.Network(Dense((1, 8, 8)), (1, 8, 8), clip=(-1, 1))
    pdfast.distill(tiny, teacher=own, data=path, rounds=1, out=tmp_path / "b", quiet=True)
    assert pdfast.load_config(tmp_path / "b" / "config.toml").data.source == source


def test_more_wrong_calls(tiny, tmp_path):
    volume = pdfast.Network(Dense((1, 2, 2, 2)), (1, 2, 2, 2))
    with pytest.raises(
        UsageError, match=r"not pictures that pdfast reads: pass data=, a tensor \(M,"
    ):
        pdfast.distill(CONFIG, teacher=volume, out=tmp_path / "run")
    model = random_model(tiny.model, 0, torch.float32)
    with pytest.raises(UsageError, match="of pdfast's own network: pass the path of its directory"):
        pdfast.distill(CONFIG, teacher=model, data=numbers(), out=tmp_path / "run")
    with pytest.raises(UsageError, match="samples as data need a custom network: pass network"):
        pdfast.train(CONFIG, data=numbers(), out=tmp_path / "run")
    flow = pdfast.Network(Dense(), SIGNAL, schedule=pdfast.wrappers.FlowMatching())
    with pytest.raises(UsageError, match="continuous time on the cosine schedule"):
        pdfast.train(CONFIG, network=flow, data=numbers(), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"an nn.Module, not str"):
        pdfast.Network("unet", SIGNAL)
    network = pdfast.Network(Dense(), SIGNAL)
    with pytest.raises(UsageError, match=r"noise must have shape \(2, 1, 12\), not \(2, 12\)"):
        network.sample(2, 2, noise=torch.zeros(2, 12))
    assert not (tmp_path / "run").exists()
