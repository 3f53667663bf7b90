"""The benchmarks time networks that compute something: the check, and what it must refuse."""

import engine_update
import live
import published
import pytest
import torch
from engine_cases import changed
from engine_update import Engine
from published import Published

from pdfast.config.schema import load_config
from pdfast.models.unet import UNet

STEPS = 512  # of the student, as bench_update.py has it
TRAINERS = {Published: published, Engine: engine_update}


def updated(trainer, phase, **options):
    """Return a trainer of the digits after one update of a small batch."""
    config = changed(load_config("digits"), train={"batch": 8}, distill={"batch": 8})
    images = torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8)
    one = trainer(config, phase, images, STEPS, **options)
    one.update()
    return one


@pytest.mark.parametrize("phase", ["train", "distill"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_timed_is_live(trainer, phase):
    one = updated(trainer, phase)
    gradients = one.gradients()
    assert set(gradients) == {
        name for name, _ in UNet(load_config("digits").model).named_parameters()
    }
    live.check(gradients)


@pytest.mark.parametrize("phase", ["train", "distill"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_net_as_training_begins_with_it_is_refused(trainer, phase, monkeypatch):
    monkeypatch.setattr(TRAINERS[trainer], "enliven", lambda model: model)
    one = updated(trainer, phase)
    with pytest.raises(
        ValueError, match=r"140 of 142 parameters have a gradient below 1e-06 of the"
    ):
        live.check(one.gradients())


def test_both_trainers_begin_with_the_same_weights():
    ours, theirs = updated(Engine, "train"), updated(Published, "train")
    # One step of Adam at a small rate moves each weight by no more than the rate.
    pairs = zip(ours.optimizer._params.values(), theirs.named.values(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) <= 0.005


def test_only_zeros_are_drawn_and_always_the_same():
    def layers():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.LayerNorm(100))
        torch.nn.init.zeros_(net[1].bias)
        return net

    before, first, again = layers(), live.enliven(layers()), live.enliven(layers())
    assert torch.equal(first[0].weight, before[0].weight)
    assert torch.equal(first[1].weight, torch.ones(100))
    bias = first[1].bias
    assert torch.equal(bias, again[1].bias)
    assert 0.8 * live.STD < float(bias.detach().std()) < 1.2 * live.STD
    assert not torch.equal(live.enliven(layers(), seed=1)[1].bias, bias)


@pytest.mark.parametrize("small", [0.0, 1e-7, float("nan")])
def test_a_parameter_without_a_gradient_is_named(small):
    gradients = {"a": torch.ones(3), "b": torch.full((3,), 1e-5)}
    live.check(gradients)
    with pytest.raises(ValueError, match=r"parameters? have .*\(.*c"):
        live.check(gradients | {"c": torch.full((3,), small)})
