"""Fields by names that earlier versions had, in Python."""

import dataclasses

import pytest
from own_cases import SIGNAL, Dense

import pdfast
from pdfast.config.model import NetConfig
from pdfast.models.model import Model


def warned(name):
    return pytest.warns(
        DeprecationWarning, match=f"^head of {name} is called parameterization now$"
    )


@pytest.mark.parametrize(("then", "now"), [("x", "x"), ("both", "x_eps")])
def test_a_config_takes_and_gives_it(then, now):
    with warned("NetConfig") as said:
        cfg = NetConfig(head=then)
    assert (len(said), cfg) == (1, NetConfig(parameterization=now))
    assert said[0].filename == __file__
    with warned("NetConfig") as said:
        assert dataclasses.replace(NetConfig(parameterization="v"), head=then) == cfg
    with warned("NetConfig"):
        assert cfg.head == then
    assert "head" not in dataclasses.asdict(cfg)


@pytest.mark.parametrize(("then", "now"), [("x", "x"), ("both", "x_eps")])
def test_a_network_takes_and_gives_it(then, now):
    with warned("Network"):
        network = pdfast.Network(Dense(copies=1 + (then == "both")), SIGNAL, head=then)
    assert network.parameterization == now
    with warned("Network"):
        assert network.head == then


def test_a_model_gives_it(tiny):
    model = Model(dataclasses.replace(tiny.model, parameterization="x_eps"))
    with warned("Model"):
        assert model.head == "both"
