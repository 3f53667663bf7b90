"""The optimizer's averages and moments: in states, and from round to round."""

import dataclasses

import pytest
import torch
from engine_cases import random_model

from pdfast.config.schema import DistillConfig, TrainConfig
from pdfast.errors import PdfastError
from pdfast.training.optimizer import Optimizer, average_files

DECAYS = (0.3, 0.99, 0.9)


def opened(tiny, dtype=torch.float32, **options):
    model = random_model(tiny.model, 0, torch.float32)
    options = {"ema_decays": DECAYS, "keep_moments": True} | options
    return Optimizer(model, dataclasses.replace(tiny.distill, **options), dtype)


def make(optimizer, updates, first=0):
    """Make updates whose gradients depend on their number; gaps between parameters stay zero."""
    for k in range(first, first + updates):
        generator = torch.Generator().manual_seed(k)
        for view in optimizer._views(optimizer.grads).values():
            view.copy_(torch.randn(view.shape, generator=generator))
        optimizer.loss.fill_(1.0)
        optimizer.rate.fill_(1e-2)
        optimizer.step()


def saved(files):
    return {file: {name: t.clone() for name, t in found.items()} for file, found in files.items()}


def test_the_averages_of_a_config():
    assert TrainConfig(ema_decay=0.9).averages == (0.9,)
    assert TrainConfig(ema_decay=0.0).averages == ()
    assert DistillConfig().averages == ()
    assert DistillConfig(ema_decays=DECAYS).averages == DECAYS
    rounds = DistillConfig(start_steps=8, rounds=2, round_ema_decay=((4, 0.5),))
    assert [rounds.loop_of(steps).averages for steps in (4, 2)] == [(0.5,), ()]
    assert average_files(TrainConfig(ema_decay=0.9)) == ["ema.safetensors"]
    assert average_files(DistillConfig(ema_decay=0.9)) == ["ema.safetensors"]
    assert average_files(DistillConfig(ema_decays=(0.9,))) == ["ema_0.9.safetensors"]
    assert average_files(DistillConfig()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_on_to_the_same_bits(tiny, dtype):
    one = opened(tiny, dtype, ema_warmup=False)  # a warm-up would make the first decays alike
    one.earlier.fill_(7)
    make(one, 2)
    state = saved(one.state())
    names = {"weights.safetensors", "moments.safetensors"}
    assert state.keys() == names | {f"ema_{decay}.safetensors" for decay in DECAYS}
    for decay in DECAYS:
        assert state[f"ema_{decay}.safetensors"].keys() == state["weights.safetensors"].keys()
    other = opened(tiny, dtype, ema_warmup=False)
    make(other, 1, first=50)
    other.load(state)
    for optimizer in (one, other):
        make(optimizer, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))
    assert len({float(average.double().sum()) for average in one.ema}) == 3


def test_each_average_is_that_of_an_optimizer_of_its_own(tiny):
    together = opened(tiny)
    make(together, 3)
    assert together.candidates().keys() == {0.0, *DECAYS}
    for decay in DECAYS:
        alone = opened(tiny, ema_decays=(), ema_decay=decay, keep_moments=False)
        make(alone, 3)
        assert torch.equal(together.candidates()[decay], alone.ema[0])
        assert torch.equal(together.candidates()[0.0], alone.weights)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"ema_decays": (0.3, 0.99)}, "has .* in ema_0.9.safetensors, which this run does not"),
        ({"ema_decays": (0.3, 0.99, 0.8)}, "has no .* in ema_0.8.safetensors"),
        ({"ema_decays": (), "ema_decay": 0.9}, "has no .* in ema.safetensors"),
        ({"keep_moments": False}, "has earlier in moments.safetensors, which this run does not"),
    ],
)
def test_a_state_of_other_averages_or_moments_is_refused(tiny, of, message):
    state, other = saved(opened(tiny).state()), opened(tiny, **of)
    before = [t.clone() for t in other.tensors()]
    with pytest.raises(PdfastError, match=message):
        other.load(state)
    assert all(torch.equal(a, b) for a, b in zip(before, other.tensors(), strict=True))


def begun_at(tiny, weights, cfg):
    """Return a new optimizer of a model with these weights."""
    start = Optimizer(random_model(tiny.model, 1, torch.float32), cfg)
    start.use(weights)
    start.restart(cfg)
    return start


@pytest.mark.parametrize("averages", [{}, {"ema_decays": (), "ema_decay": 0.9}])
def test_moments_go_on_where_the_round_before_left_them(tiny, averages):
    """Like updates of one round, except for the averages; over two round ends, with one skipped."""
    straight = opened(tiny, **averages)
    make(straight, 5)
    first = opened(tiny, **averages)
    make(first, 2)
    first.loss.fill_(float("nan"))
    first.step()  # skipped
    first.release()
    moments = saved(first.moments())
    assert moments["moments.safetensors"]["earlier"].tolist() == [2]
    again = begun_at(tiny, first.weights, first.cfg)
    again.load_moments(moments)
    make(again, 2, first=2)
    assert again.moments()["moments.safetensors"]["earlier"].tolist() == [4]
    moments, weights = saved(again.moments()), again.weights.clone()
    third = begun_at(tiny, weights, first.cfg)
    third.load_moments(moments)
    make(third, 1, first=4)
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(third, name), getattr(straight, name)), name
    assert torch.equal(third.ema[0], third.weights)  # averages begin anew
    without = begun_at(tiny, weights, first.cfg)
    make(without, 1, first=4)
    assert not torch.equal(without.weights, straight.weights)
