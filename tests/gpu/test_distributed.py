"""Two GPUs by nccl: the sum inside a CUDA graph, the same samples, and an end to waiting."""

import signal
import time

import numpy as np
import pytest
import torch
from torchrun import lost, run

import pdfast
from pdfast.config.schema import NetConfig
from pdfast.models.model import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]

GRAPH = """
import torch
from pdfast.distributed import collectives as d

with d.session("auto", 0) as device:
    assert device == torch.device("cuda", d.rank()), device
    start = torch.arange(1000.0, device=device)
    d.broadcast([start])
    x = start * (d.rank() + 1)
    d.all_reduce(x)
    assert torch.equal(x, 3 * start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        x.mul_(0.5)
        d.all_reduce(x)
    for n in range(20):
        graph.replay()
        assert d.largest(0) == 0
    assert torch.equal(x, 3 * start)
    assert d.gather([start.byte().view(-1, 10, 10, 1)] * (d.rank() == 0), 10, 10).shape[0] == 10
print("well")
"""


def test_sums_in_a_graph(tmp_path):
    (tmp_path / "graph.py").write_text(GRAPH)
    ended = run(tmp_path, "graph.py")
    assert ended.codes == {}, ended.errors
    assert ended.output.split() == ["well", "well"]


def test_samples_are_the_same(tmp_path):
    cfg = NetConfig(image_size=8, ch=32, emb_ch=64, ch_mult=(1, 1), num_res_blocks=1, groups=8)
    pdfast.save(Model(cfg, steps=4), tmp_path / "model")
    ended = run(tmp_path, "-m", "--", "pdfast", "sample", "model", "--num=300", "--out=two.npz")
    assert ended.codes == {}, ended.errors
    one = pdfast.load(tmp_path / "model", "cuda:0").sample_images(300, 4)
    # cuDNN may choose another algorithm on each GPU: a grey level, where it rounds the other way.
    difference = np.load(tmp_path / "two.npz")["arr_0"].astype(int) - one.cpu().numpy()
    assert abs(difference).max() <= 1


HELD_UP = """
import os, signal, torch
from pdfast.distributed import collectives as d

with d.session("auto", 0) as device:
    x = torch.ones(1000, device=device)
    d.all_reduce(x)
    torch.cuda.synchronize()
    if d.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    d.all_reduce(x)
    float(x[0])  # waits for a GPU that waits for the other's
"""


def test_waiting_for_a_dead_gpu_ends(tmp_path):
    (tmp_path / "held_up.py").write_text(HELD_UP)
    begin = time.monotonic()
    ended = run(tmp_path, "held_up.py")
    assert ended.codes == {0: 1, 1: -signal.SIGKILL}, ended.errors
    assert lost(0).removeprefix("pdfast: ") in ended.errors
    assert time.monotonic() - begin < 60
