"""engine.compile: when it is used, that it ends with its phase, and that results stay the same."""

import contextlib
import dataclasses

import pytest
import torch
from engine_cases import STEPS, apart, changed, digits, distilled, flat, random_model, set_of
from run_cases import assert_same_run, stop_after
from torch._dynamo.utils import counters

import pdfast
from pdfast.config.schema import BackendsConfig, EngineConfig
from pdfast.distillation import rounds
from pdfast.distillation.objectives import Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.errors import Stopped
from pdfast.training import compilation
from pdfast.training.batch import open_batch
from pdfast.training.compilation import Estimate, chosen, compiled, estimate
from pdfast.training.optimizer import Optimizer
from pdfast.training.update import update

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_an_estimate_repays_by_a_margin():
    found = Estimate(cost=55.0, saved=16e-3)
    assert found.repays(50_000)
    assert not found.repays(3_500)  # about even
    assert not Estimate(cost=10.0, saved=1e-4).repays(500)


def test_an_update_is_estimated_and_leaves_all_as_it_was(tiny):
    cfg = set_of(tiny, "distill").distill
    model = random_model(tiny.model, 0, torch.float32)
    objective = Rollout(random_model(tiny.model, 1, torch.float32), STEPS, cfg.loss_weight)
    optimizer = Optimizer(model, cfg, torch.float32)
    batch, _ = open_batch(tiny, cfg, digits(), model, 1, optimizer.done)
    state = optimizer.tensors()
    before = [t.clone() for t in state]
    found = estimate(lambda: update(model, objective, optimizer, batch), state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    assert 0 < found.cost < compilation.COMPILE_SECONDS
    assert 0 < found.saved < compilation.SAVED_SECONDS
    assert not found.repays(500)


@pytest.fixture
def said():
    return []


def paper():
    return Estimate(55.0, 16e-3)


@pytest.mark.parametrize(
    ("choice", "device", "updates", "expected", "words"),
    [
        ("auto", CUDA, 50_000, True, "55 s and save about 16 ms of each of 50,000 updates, 800 s"),
        ("auto", CUDA, 1_000, False, "16 s in all: not used"),
        ("auto", CPU, 50_000, False, None),
        ("on", CPU, 1, True, None),
        ("on", CUDA, 1, True, None),
        ("off", CUDA, 50_000, False, None),
    ],
)
def test_where_it_is_used(tiny, said, choice, device, updates, expected, words):
    config = changed(tiny, engine={"compile": choice})
    nets = [random_model(config.model, 0, torch.float32).net]
    assert chosen(config, nets, device, updates, paper, said.append) is expected
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_only_pdfast_s_own_networks_are_compiled_unasked(tiny, said):
    own = random_model(tiny.model, 0, torch.float32).net
    args = CUDA, 50_000, paper, said.append
    assert chosen(tiny, [own], *args)
    assert not chosen(tiny, [own, torch.nn.Linear(2, 2)], *args)
    peers = dataclasses.replace(tiny, backends=BackendsConfig(attention="xformers"))
    assert not chosen(peers, [own], *args)


def test_true_and_false_are_on_and_off(tmp_path):
    for word, meant in (("true", "on"), ("false", "off"), ('"auto"', "auto")):
        (tmp_path / "c.toml").write_text(f"[engine]\ncompile = {word}\n")
        assert pdfast.load_config(tmp_path / "c.toml").engine.compile == meant
    assert EngineConfig().compile == "auto"


def test_networks_are_compiled_inside_alone():
    nets = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    with contextlib.suppress(KeyError), compiled(nets):
        assert all(net._compiled_call_impl is not None for net in nets)
        raise KeyError
    assert [net._compiled_call_impl for net in nets] == [None, None]


# Options of [distill] and [engine], and the objective.
CASES = {
    "in parts": {"checkpoint": True, "accumulate": 2},
    "pipelined": {"kind": Pipelined, "tabulate_film": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_networks_teach_the_same(tiny, tmp_path, case):
    options = dict(CASES[case])
    loop = {key: options.pop(key) for key in ("checkpoint", "accumulate") if key in options}
    config = set_of(tiny, "distill", updates=6, warmup=0, **loop)
    start, plain = distilled(config, tmp_path / "a", **options)
    before = counters["stats"]["unique_graphs"]
    _, other = distilled(config, tmp_path / "b", compile="on", **options)
    assert counters["stats"]["unique_graphs"] > before
    assert not torch.equal(flat(start), flat(plain))
    assert apart(start, plain, other) < 1e-3


@pytest.mark.slow
def test_compiled_bf16_is_as_near_float32(tiny, tmp_path):
    """At most twice as far as uncompiled bf16, which rounds between all ops."""
    config = set_of(tiny, "distill", updates=6, warmup=0)
    start, exact = distilled(config, tmp_path / "a")
    _, plain = distilled(config, tmp_path / "b", precision="bf16")
    _, other = distilled(config, tmp_path / "c", precision="bf16", compile="on")
    assert not torch.equal(flat(plain), flat(other))
    assert apart(start, exact, other) <= 2 * apart(start, exact, plain)


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_bit_and_compiles_once(tiny, tmp_path, monkeypatch):
    loop = {"ema_decay": 0.9, "checkpoint": True}
    config = changed(tiny, engine={"compile": "on"}, train=loop, model={"dropout": 0.25})
    config = changed(config, distill={"start_steps": 16, "rounds": 3})
    graphs, one_round = [], rounds._distill_round

    def counted(*args):
        student = one_round(*args)
        graphs.append(counters["stats"]["unique_graphs"])
        return student

    monkeypatch.setattr(rounds, "_distill_round", counted)
    pdfast.distill(config, out=tmp_path / "straight", quiet=True)
    assert len(graphs) == 3
    assert graphs[0] == graphs[2]  # later rounds reuse the first round's code
    for updates in (7, 15):  # in the teacher's phase, in the first round
        with monkeypatch.context() as patch:
            stop_after(patch, updates)
            with pytest.raises(Stopped):
                pdfast.distill(config, out=tmp_path / "run", quiet=True)
    pdfast.distill(config, out=tmp_path / "run", quiet=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_another_choice_does_not_end_a_run(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    off = changed(tiny, engine={"compile": "off"})
    pdfast.distill(off, out=tmp_path / "run", quiet=True)
