"""A captured update owns its memory: nothing else in the process changes what a replay computes."""

import gc

import pytest
import torch
from gpu_phase import DEVICE, UPDATES, Phase, with_engine

from pdfast.models.cuda_graph import CLEAR, capture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def overwrite():
    """Fill the device's free memory with NaN, and free it again."""
    gc.collect()
    torch.cuda.empty_cache()
    blocks = [torch.full((1 << 26,), float("nan"), device=DEVICE) for _ in range(16)]
    torch.cuda.synchronize()
    del blocks
    torch.cuda.empty_cache()


def compile_another():
    """Train a network under torch.compile's own CUDA graphs, which clear cuBLAS's workspaces."""
    layers = [torch.nn.Linear(512, 512), torch.nn.GELU(), torch.nn.Linear(512, 512)]
    net = torch.nn.Sequential(*layers).to(DEVICE, torch.bfloat16)
    step = torch.compile(net, mode="reduce-overhead")
    x = torch.randn(256, 512, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        step(x).float().square().mean().backward()
    torch.cuda.synchronize()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_others_compile_and_capture_does_not_matter(small, deterministic, precision):
    expected = Phase(small, "distill", precision).ready().run().result()
    phase = Phase(small, "distill", precision).ready()
    compiled = Phase(with_engine(small, compile="on"), "distill", precision).ready().run(2)
    compile_another()
    overwrite()
    found = phase.run().result()
    compiled.run(2).result()
    assert same(found, expected)


@pytest.mark.parametrize("first", [0, 1])
def test_either_of_two_may_be_closed_first(small, deterministic, first):
    def phases():
        return [Phase(small, "train", "bf16"), Phase(small, "distill", "bf16")]

    alone = [phase.ready().run().result() for phase in phases()]
    both = [phase.ready() for phase in phases()]
    closed, kept = both[first], both[1 - first]
    closed.run(2)
    closed.repeat.close()
    overwrite()
    assert same(kept.run().result(), alone[1 - first])


@pytest.mark.parametrize("phase", ["train", "distill"])
def test_an_emptied_cache_between_replays(small, deterministic, phase):
    expected = Phase(small, phase, "bf16").ready().run().result()
    disturbed = Phase(small, phase, "bf16").ready()
    for _ in range(UPDATES):
        disturbed.run(1)
        torch.cuda.synchronize()
        getattr(torch._C, CLEAR)()
        overwrite()
    assert same(disturbed.result(), expected)


def test_workspaces_lie_in_the_graph_s_own_memory(deterministic):
    """A product that needs one leaves nothing outside the graph, and all of it is freed."""
    a = torch.randn(512, 512, device=DEVICE, dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        a @ a
    stream.synchronize()
    getattr(torch._C, CLEAR)()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    graph = capture(lambda: a @ a, stream)
    graph.replay()
    torch.cuda.synchronize()
    del graph
    torch.cuda.empty_cache()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
