"""Pooling and upsampling in the U-Net without Triton, and under torch.compile."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pdfast.kernels import runtime
from pdfast.kernels.resample import avg_pool2x2, upsample2x
from pdfast.models.blocks import ResBlock
from pdfast.models.unet import UNet

PAIRS = {
    "avg_pool2x2": (avg_pool2x2, lambda x: F.avg_pool2d(x, 2)),
    "upsample2x": (upsample2x, lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")),
}


@pytest.fixture
def on_cpu(monkeypatch):
    """As without Triton, also in a process that interprets its kernels."""
    monkeypatch.setattr(runtime, "uses_triton", lambda device, *dtypes: False)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_a_cpu_runs_pytorch_s_own(on_cpu, name, dtype, layout):
    """The same bits, also of the gradient, without custom ops in Python; channels-last."""
    ours, theirs = PAIRS[name]
    x = torch.randn(2, 24, 4, 6).to(dtype).contiguous(memory_format=layout).requires_grad_()
    out, expected = ours(x), theirs(x)
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert "pdfast" not in out.grad_fn.name()
    dy = torch.randn_like(out)
    grads = [torch.autograd.grad(y, x, dy)[0] for y in (out, expected)]
    assert torch.equal(*grads)


def test_odd_sizes_are_refused_on_a_cpu_too(on_cpu):
    with pytest.raises(ValueError, match="an even height and width, not 5x4"):
        avg_pool2x2(torch.ones(2, 3, 5, 4))
    with pytest.raises(TypeError, match=r"x must be float32 .*, not int64"):
        upsample2x(torch.ones(2, 3, 4, 4, dtype=torch.int64))


def traced(function, *args):
    """Return the names of the ops that torch.compile traces, and the result."""
    names = []

    def backend(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    return names, torch.compile(function, backend=backend, fullgraph=True)(*args)


def test_a_compiler_is_given_pytorch_s_own():
    """It can fuse these with their neighbours, unlike pdfast's ops."""
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    names, out = traced(lambda x: upsample2x(avg_pool2x2(x)), x)
    assert torch.equal(out, PAIRS["upsample2x"][1](PAIRS["avg_pool2x2"][1](x)))
    assert any("avg_pool2d" in name for name in names)
    assert any("interpolate" in name for name in names)
    assert not any("resample" in name for name in names)


def test_an_exported_net_holds_pytorch_s_own(tiny):
    net = UNet(tiny.model).eval()
    assert {m.resample for m in net.modules() if isinstance(m, ResBlock)} == {"none", "down", "up"}
    z, logsnr = torch.randn(2, 1, 8, 8), torch.zeros(2)
    with torch.no_grad():
        exported = torch.export.export(net, (z, logsnr))
        assert torch.equal(exported.module()(z, logsnr), net(z, logsnr))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum("avg_pool2d" in name for name in names) == 2
    assert sum("upsample_nearest2d" in name for name in names) == 2
    assert not any("resample" in name for name in names)
