"""Batches sampled in parallel: the same bits, calls and errors as one after the other."""

import contextlib
import threading

import pytest
import torch

from pdfast.config.schema import NetConfig
from pdfast.models.custom import Network
from pdfast.models.guidance import guided
from pdfast.models.lanes import MOST, Lanes
from pdfast.models.model import Model

TINY = {"image_size": 4, "ch": 4, "emb_ch": 8, "ch_mult": (1,), "num_res_blocks": 1}
TINY |= {"attn_resolutions": (4,), "groups": 2, "channels": 1, "num_heads": 1}
NUM, STEPS = 18, 3  # five batches, the last half empty


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)


@pytest.fixture
def threads():
    """Return a setter of PyTorch's number of threads, which is restored at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make(dtype=torch.float32, **fields):
    torch.manual_seed(0)
    model = Model(NetConfig(**(TINY | fields)))
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    return model.to(dtype)


def half(model):
    """Cast a model to bfloat16, except for embeddings and norms, as in a run."""
    precise = [*model.net.precise()]
    model.net.to(torch.bfloat16)
    for module in precise:
        module.float()
    return model


def noting(model):
    """Return the model, and a list that receives the thread of each network call."""
    seen = []
    model.net.register_forward_pre_hook(lambda *_: seen.append(threading.get_ident()))
    return model, seen


MODELS = {
    "plain": make,
    "float64": lambda: make(torch.float64),
    "bfloat16": lambda: half(make()),
    "classes": lambda: make(num_classes=3),
    "guided": lambda: guided(make(num_classes=3, label_dropout=0.1), 1.5),
}


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("name", MODELS)
def test_bits_do_not_depend_on_the_lanes(name, sampler, threads):
    model, found = MODELS[name](), []
    for number in (1, 2, 3, 5):
        threads(number)
        found.append(model.sample(NUM, STEPS, seed=7, sampler=sampler))
        assert torch.get_num_threads() == number
    # Another number of images, and batches sampled in parallel with other batches.
    found.append(torch.cat([model.sample(6, STEPS, seed=7, sampler=sampler), found[0][6:]]))
    chosen = [
        torch.cat(list(model.sample_batches(NUM, STEPS, 7, sampler=sampler, batches=batches)))
        for batches in (range(0, 5, 2), range(1, 5, 2))
    ]
    whole = torch.empty_like(found[0])
    for parts, first in zip(chosen, (0, 1), strict=True):
        rows = [k for k in range(NUM) if k // 4 % 2 == first]
        whole[rows] = parts
    assert all(torch.equal(images, found[0]) for images in [*found, whole])
    assert found[0].isfinite().all()
    assert not found[0].requires_grad


def test_given_classes_and_noise_reach_their_images(threads):
    model, generator = make(num_classes=3), torch.Generator().manual_seed(1)
    label = torch.arange(NUM) % 3
    noise = torch.randn(NUM, *model.shape, generator=generator)
    found = []
    for number in (1, 3):
        threads(number)
        found.append(model.sample(NUM, STEPS, label=label, noise=noise))
    assert torch.equal(*found)
    one = model.sample(4, STEPS, label=label[4:8], noise=noise[4:8])  # one batch in one lane
    assert torch.equal(one, found[0][4:8])


def test_threads_that_call_the_network(threads, monkeypatch):
    """Small networks are called in lanes, large and custom ones in the caller's thread."""
    here = threading.get_ident()
    for number, lanes in ((1, 1), (2, 2), (3, 3), (16, 5)):
        threads(number)
        model, seen = noting(make())
        model.sample(NUM, STEPS)
        assert len(seen) == 5 * STEPS
        assert here not in seen
        assert len(set(seen)) <= lanes
        with contextlib.closing(model.lanes(5)) as found:
            assert found.number == lanes
        with contextlib.closing(model.lanes(20)) as found:
            assert found.number == min(number, MOST)
    monkeypatch.setattr("pdfast.models.model.LANE_SIZE", 4 * 4 * 4 - 1)
    large, seen = noting(make())
    large.sample(NUM, STEPS)
    own, of_own = noting(_own())
    own.sample(NUM, STEPS)
    assert {*seen, *of_own} == {here}


def _own():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(-1.0))

        def forward(self, z, logsnr, label):
            return self.w * z

    return Network(Module(), shape=(1, 4, 4))


def test_the_callback_is_called_here_in_order(threads):
    def told(number):
        threads(number)
        steps = []
        model.sample(NUM, STEPS, callback=lambda step: steps.append((threading.get_ident(), step)))
        return steps

    model = make()
    alone, beside = told(1), told(2)
    for steps in (alone, beside):
        assert {thread for thread, _ in steps} == {threading.get_ident()}
        assert [step.done for _, step in steps] == list(range(1, 5 * STEPS + 1))
        assert {step.total for _, step in steps} == {5 * STEPS}
    assert [step.first for _, step in beside][:6] == [0, 4] * 3
    by_place = {(step.first, step.u): step.x_hat for _, step in alone}
    assert len(by_place) == 5 * STEPS
    assert all(torch.equal(step.x_hat, by_place[step.first, step.u]) for _, step in beside)


@pytest.mark.parametrize("number", [1, 2])
def test_what_ends_the_sampling(number, threads):
    """Test an error in the callback, an error in the network, and a closed iterator."""
    threads(number)
    model, before = make().train(), threading.active_count()

    def stop(step):
        if step.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(NUM, STEPS, callback=stop)
    hook = model.net.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.sample(NUM, STEPS)
    hook.remove()
    batches = model.sample_batches(NUM, STEPS)
    assert next(batches).shape == (4, 1, 4, 4)
    batches.close()
    assert model.training
    assert torch.get_num_threads() == number
    assert threading.active_count() == before


def test_steps_are_announced_once_for_each_call(threads):
    for number in (1, 2, 3):
        threads(number)
        calls, (model, seen) = [], noting(make())
        list(model.sample_batches(NUM, STEPS, on_step=lambda calls=calls: calls.append(0)))
        assert len(calls) == len(seen) == 5 * STEPS


def test_samples_may_be_learned_from(threads):
    threads(2)
    images = make().sample(NUM, STEPS)
    w = torch.ones(1, requires_grad=True)
    (images * w).sum().backward()
    assert w.grad.item() == pytest.approx(images.sum().item(), rel=1e-4)


def test_a_lane_is_one_thread(threads):
    threads(4)
    both, ended = threading.Barrier(2), []

    def mine():
        both.wait(60)
        return torch.get_num_threads()

    def fails():
        both.wait(60)
        raise ZeroDivisionError

    def works():
        both.wait(60)
        ended.append(True)

    with contextlib.closing(Lanes(2)) as lanes:
        assert (lanes.number, lanes.together([mine] * 2)) == (2, [1, 1])
        with pytest.raises(ZeroDivisionError):
            lanes.together([fails, works])
        assert ended == [True]
    assert torch.get_num_threads() == 4
    with contextlib.closing(Lanes(0)) as none:
        assert (none.number, none.together([torch.get_num_threads])) == (1, [4])
