"""Sampling by a captured network call: on a CPU the call's buffers, by a stand-in its launches."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pdfast
from pdfast.config.schema import NetConfig
from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.samplers import denoised
from pdfast.errors import PdfastError
from pdfast.models import captured
from pdfast.models.captured import FEWEST, Captured, denoiser_of
from pdfast.models.custom import Network
from pdfast.models.guidance import guided
from pdfast.models.lanes import Lanes
from pdfast.models.model import Model

TINY = {"image_size": 4, "ch": 4, "emb_ch": 8, "ch_mult": (1,), "num_res_blocks": 1}
TINY |= {"attn_resolutions": (4,), "groups": 2, "channels": 1, "num_heads": 1}
NOUGHT = Conditioning(torch.zeros(4, dtype=torch.int64))
NUM, STEPS = 18, 3  # five batches, the last half empty


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)


def make(**fields):
    torch.manual_seed(0)
    model = Model(NetConfig(**(TINY | fields)))
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    return model


MODELS = {
    "plain": make,
    "float64": lambda: make().double(),
    "x_eps": lambda: make(parameterization="x_eps"),
    "one class": lambda: make(num_classes=1),
    "classes": lambda: make(num_classes=3),
    "guided": lambda: guided(make(num_classes=3, label_dropout=0.1), 1.5),
}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("name", MODELS)
def test_samples_of_a_captured_call_are_the_models(name, sampler, clip, monkeypatch):
    """Each batch's noise, angle and classes reach the buffers, and no x-hat is overwritten."""
    model = MODELS[name]()
    expected = model.sample(NUM, STEPS, 7, sampler=sampler, clip=clip)
    made, x_hats = [], []

    def denoiser(self, calls):
        made.append((Captured(self, 4), calls))
        return contextlib.closing(made[-1][0])

    monkeypatch.setattr(type(model), "denoiser", denoiser)
    monkeypatch.setattr(type(model), "lanes", lambda self, batches: Lanes(0))
    batches = model.sample_batches(
        NUM, STEPS, 7, None, None, clip, sampler, on_x_hat=lambda *x: x_hats.append(x[2])
    )
    found = list(batches)
    assert torch.equal(torch.cat(found), expected)
    assert [calls for _, calls in made] == [5 * STEPS]
    assert len({x_hat.data_ptr() for x_hat in x_hats}) == len(x_hats) == 5 * STEPS
    with pytest.raises(RuntimeError, match="closed"):  # its memory is free
        made[0][0].predict_x_at_angle(torch.zeros(4, 1, 4, 4), torch.ones(4), NOUGHT)


class Launches(TorchDispatchMode):
    """Counts ops that launch a kernel on a GPU: all but views and allocations."""

    FREE = ("view", "expand", "slice", "select", "empty", "empty_like", "detach", "_unsafe_view")
    FREE += ("unsqueeze", "permute", "transpose", "t", "alias", "as_strided", "split", "unbind")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op.overloadpacket.__name__ not in self.FREE
        return op(*args, **kwargs or {})


class Counted:
    """A stand-in for CallReplay that counts its calls and computes nothing."""

    def __init__(self, work, state, device):
        self.calls = 0

    def __call__(self):
        self.calls += 1

    def close(self):
        self.calls = None


@pytest.mark.parametrize(("sampler", "most"), [("ddim", 16), ("ancestral", 40)])
def test_a_step_outside_the_graph_is_a_few_launches(sampler, most, monkeypatch):
    """A replay is one launch; around it are the buffers' copies and the sampler's formula."""
    monkeypatch.setattr(captured, "CallReplay", Counted)
    model, z = make(num_classes=3), torch.zeros(4, 1, 4, 4)
    whole, around = Launches(), Launches()
    denoiser, arguments = Captured(model, 4), {"sampler": sampler, "noise": lambda step: z}
    with torch.no_grad():
        for from_what, launches in ((model, whole), (denoiser, around)):
            x_hats = denoised(from_what, z, 4, conditioning=NOUGHT, **arguments)
            next(x_hats)
            with launches:
                next(x_hats)
            x_hats.close()
    assert 0 < around.count <= most < whole.count
    assert denoiser._replay.calls == 2


@pytest.mark.parametrize(("device", "calls"), [("cuda", FEWEST - 1), ("cpu", 1000)])
def test_few_calls_and_those_on_a_cpu_are_not_captured(device, calls, monkeypatch):
    monkeypatch.delattr(captured, "Captured")
    model = SimpleNamespace(device=torch.device(device))
    with denoiser_of(model, 4, calls) as denoiser:
        assert denoiser is model


def test_the_memory_of_a_capture_is_freed(monkeypatch):
    """Also when the caller stops in the middle of sampling."""
    calls = []

    def made(model, batch):
        calls.append((model, batch))
        return SimpleNamespace(close=lambda: calls.append("closed"))

    monkeypatch.setattr(captured, "Captured", made)
    model = SimpleNamespace(device=torch.device("cuda"))

    def sampling():
        with denoiser_of(model, 4, FEWEST) as denoiser:
            yield denoiser

    stopped = sampling()
    assert next(stopped) is not model
    assert calls == [(model, 4)]
    stopped.close()
    assert calls == [(model, 4), "closed"]


@pytest.mark.parametrize("error", [PdfastError, torch.OutOfMemoryError])
def test_a_call_that_cannot_be_captured_is_called_with_a_warning(error, monkeypatch):
    def refuse(model, batch):
        raise error("it cannot be captured")

    monkeypatch.setattr(captured, "Captured", refuse)
    model = SimpleNamespace(device=torch.device("cuda"))
    with pytest.warns(UserWarning, match="captured$"), denoiser_of(model, 4, 64) as made:
        assert made is model


def test_a_run_without_graphs_samples_without_them(monkeypatch, tiny, tmp_path):
    """`engine.graph` holds for the samples of a run, and for no others."""
    allowed = []

    def noted(model, batch, calls):
        allowed.append(captured._permitted.get())
        return contextlib.nullcontext(model)

    monkeypatch.setattr("pdfast.models.model.denoiser_of", noted)
    for graph in (False, True):
        engine = dataclasses.replace(tiny.engine, graph=graph)
        config = dataclasses.replace(tiny, engine=engine)
        pdfast.train(config, out=tmp_path / str(graph), quiet=True)
        pdfast.evaluate(tmp_path / str(graph) / "teacher", steps=(3,), quiet=True)
        assert set(allowed) == {graph}
        allowed.clear()
    make().sample(1, 2)
    assert allowed == [True]
    monkeypatch.delattr(captured, "Captured")
    model = SimpleNamespace(device=torch.device("cuda"))
    with captured.permitted(False), denoiser_of(model, 4, 1000) as denoiser:
        assert denoiser is model


def test_custom_networks_are_called():
    """A module may wait for the GPU, or keep a state in Python, which a graph would not see."""
    network = Network(torch.nn.Identity(), (2,))
    with network.denoiser(1000) as denoiser:
        assert denoiser is network
