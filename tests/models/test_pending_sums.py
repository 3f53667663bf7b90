"""Sums and concatenations deferred to their readers, as on a GPU, tested on a CPU."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.config.edm import EDMNetConfig
from pdfast.config.schema import NetConfig
from pdfast.diffusion.conditioning import Conditioning, DropoutRng
from pdfast.kernels import group_norm_silu as op
from pdfast.models.blocks import Attention, Conv, GroupNormSiLU, Pending, ResBlock, defers_sums
from pdfast.models.model import Model
from pdfast.models.unet import UNet

BASE = NetConfig(
    image_size=8, channels=1, ch=8, emb_ch=16, ch_mult=(1, 2), groups=4, num_res_blocks=2,
    attn_resolutions=(4,),
)  # fmt: skip
DDPM = {"film": False, "resample": "conv", "embedding": "timestep", "timesteps": 100}
DDPM |= {"schedule": "linear", "betas": (1e-4, 0.02), "parameterization": "eps"}
OF_EDM = {"schedule": "edm", "sigmas": (0.002, 80.0, 7.0), "embedding": "noise", "film": False}
DDPMPP = {"residual_scale": 0.5**0.5, "attention_up": "last", "projection": True, "group_ch": 4}
NCSNPP = DDPMPP | {"filter": (1, 3, 3, 1), "pyramid": True, "fourier": True, "noise_ch": 12}
NETS = {
    "film": {},
    "heads": {"num_heads": 2, "attn_resolutions": (8, 4)},
    "embedding added": {"film": False},
    "groups straddle x and skip": {"ch": 12, "ch_mult": (1, 2, 3), "groups": 4},
    "widths that no vector divides": {"ch": 6, "ch_mult": (1, 2), "groups": 3},
    "strided resampling": {"resample": "conv"},
    "ddpm": DDPM | {"downsample_padding": 0},
    "classes": {"num_classes": 3, "label_dropout": 0.1},
    "guided": {"guidance": (0.0, 4.0), "num_classes": 3, "label_dropout": 0.1},
    "dropout": {"dropout": 0.3},
    "one resolution": {"ch_mult": (1,)},
    "ddpm++ of edm": OF_EDM
    | {"edm": EDMNetConfig(preconditioning="edm", constants=(0.5,), class_first=True, **DDPMPP)}
    | {"num_classes": 3, "attn_resolutions": (8, 4)},
    "ncsn++ of ve": OF_EDM
    | {"edm": EDMNetConfig(preconditioning="ve", **NCSNPP), "parameterization": "eps"},
}


def made(name, dtype=torch.float64, **options):
    """Return a network without zero weights."""
    torch.manual_seed(0)
    net = UNet(dataclasses.replace(BASE, **{**NETS[name], **options}))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return net.to(dtype)


def inputs(net, dtype=torch.float64):
    cfg = net.cfg
    torch.manual_seed(1)
    z = torch.randn(3, cfg.channels, cfg.image_size, cfg.image_size).to(dtype)
    rng = DropoutRng(0, 0, torch.tensor([1]), 0) if cfg.dropout else None
    label = torch.tensor([0, 2, 1]) if cfg.num_classes else None
    weights = torch.tensor([0.0, 1.0, 3.5]) if cfg.guidance else None
    told = Conditioning(label, weights, dropout_rng=rng)
    return z, torch.tensor([-2.0, 0.5, 4.0]), told


def run(net, defer, dtype=torch.float64, checkpoint=False):
    """Return the output and every gradient, the input's first."""
    net.defer, net.checkpoint = defer, checkpoint
    z, logsnr, told = inputs(net, dtype)
    z.requires_grad_()
    out = net(z, logsnr, conditioning=told)
    torch.manual_seed(2)
    wanted = [z, *net.parameters()]
    seed = torch.randn(out.shape).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, wanted, seed)]


def distance(found, exact):
    """Return the largest relative L2 distance between two lists' tensors."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b).norm() / (b.norm() + 1e-30)) for a, b in pairs)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_same_network_in_float64(name, checkpoint):
    net = made(name)
    ours = run(net, True, checkpoint=checkpoint)
    theirs = run(net, False, checkpoint=checkpoint)
    assert min(float(t.norm()) for t in theirs) > 1e-6  # none is zero
    assert distance(ours, theirs) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_the_same_network_in_float32_but_for_rounding(name):
    exact = run(made(name), False)
    net = made(name, torch.float32)
    ours, theirs = run(net, True, torch.float32), run(net, False, torch.float32)
    assert distance(theirs, exact) < 1e-4
    assert distance(ours, exact) < max(2 * distance(theirs, exact), 1e-6)


def test_bfloat16_is_no_less_accurate():
    """A deferred sum is rounded once, not at each addition."""
    net = made("film", torch.bfloat16)
    for module in net.precise():
        module.float()
    exact_net = made("film")
    with torch.no_grad():  # the reference has the rounded weights
        for p, q in zip(exact_net.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    z, logsnr, _ = inputs(net, torch.bfloat16)
    errors = {}
    with torch.no_grad():
        exact = exact_net(z.double(), logsnr)
        for defer in (True, False):
            net.defer = defer
            errors[defer] = float((net(z, logsnr).double() - exact).norm() / exact.norm())
    assert errors[False] < 0.05
    assert errors[True] < 1.25 * errors[False]


@pytest.mark.parametrize("norm", ["eager", "reference"])
@pytest.mark.parametrize("name", ["film", "groups straddle x and skip", "ddpm"])
def test_other_norms_are_given_the_written_sum(name, norm, monkeypatch):
    """A backend's op, or PyTorch's where nothing is compiled."""
    expected = run(made(name), False)
    net = made(name)
    if norm == "reference":
        monkeypatch.setattr(op, "COMPILED_FOR", ())
    else:
        for module in net.modules():
            if isinstance(module, GroupNormSiLU):
                module.op = op.eager
    for checkpoint in (False, True):
        assert distance(run(net, True, checkpoint=checkpoint), expected) < 1e-11


@pytest.mark.parametrize("name", ["film", "ddpm"])
def test_without_gradients(name):
    net = made(name)
    z, logsnr, told = inputs(net)
    with torch.no_grad():
        net.defer = True
        ours = net(z, logsnr, conditioning=told)
        net.defer = False
        theirs = net(z, logsnr, conditioning=told)
    assert distance([ours], [theirs]) < 1e-12


def test_a_compiler_sees_the_same_network():
    net = made("film")
    expected = run(net, False)
    net.compile(backend="aot_eager", dynamic=False)
    assert distance(run(net, True), expected) < 1e-12
    assert distance(run(net, True, checkpoint=True), expected) < 1e-12


def test_where_sums_are_left_to_their_readers():
    kinds = {"cpu": False, "mps": False, "cuda": True, "meta": True}
    for kind, expected in kinds.items():
        device = torch.device(kind)
        assert defers_sums(device, torch.float32) is expected
        assert defers_sums(device, torch.bfloat16) is expected
        assert defers_sums(device, torch.float64) is False


class Ops(TorchDispatchMode):
    """Records the calls of ops on images, or on their pixels as rows, and counts additions."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func._schema.name.partition("::")[2], args))
        return func(*args, **(kwargs or {}))

    def of(self, *names):
        return [args for name, args in self.calls if name in names]

    def on_images(self, *names):
        found = []
        for args in self.of(*names):
            first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
            found += [args] * (first.ndim == 4)
        return found


@pytest.mark.parametrize("defer", [True, False, None])
def test_what_is_left_of_the_passes(defer):
    """Biases of convolutions, residual sums and concatenations are all computed in norms."""
    net = made("film", torch.float32)
    net.defer = defer
    z, logsnr, told = inputs(net, torch.float32)
    with Ops() as forward:
        out = net(z, logsnr, conditioning=told)
    with Ops() as backward:
        out.backward(torch.ones_like(out))
    modules = list(net.modules())
    biased = [args for args in forward.of("convolution") if args[2] is not None]
    reduced = [args for args in backward.of("convolution_backward") if args[-1][2]]
    ups = len(net.up)
    if not defer:
        assert len(biased) == len(reduced) == sum(isinstance(m, Conv) for m in modules)
        assert len(forward.on_images("cat")) == ups
        blocks = sum(isinstance(m, ResBlock | Attention) for m in modules)
        assert len(forward.on_images("add", "add_")) == blocks
        return
    assert len(biased) == len(reduced) == 2  # conv_in's and conv_out's
    assert not forward.on_images("cat", "add", "add_")
    assert len(forward.of("addmm_")) == ups
    calls = forward.of("group_norm_silu")
    assert len(calls) == sum(isinstance(m, GroupNormSiLU) for m in modules)
    x, addend, residual, skip = zip(*(args[:4] for args in calls), strict=True)
    first_reader, blocks = 1, sum(isinstance(m, ResBlock) for m in modules)
    assert sum(t is not None for t in addend) == len(calls) - first_reader
    assert sum(t is not None for t in residual) == len(calls) - first_reader - blocks
    assert sum(t is not None for t in skip) == ups
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in x)
    # A skip connection adds gradients of a norm and a product on the way up, and of the residual on
    # the way down. The gradient of the norm beside it is added only for conv_in's output, which no
    # norm writes.
    assert len(backward.on_images("add", "add_")) == 2 * ups + 1
    assert not backward.on_images("cat", "sum")


def test_what_a_norm_keeps_is_what_the_skip_connections_hold():
    """No concatenation is kept; the only new tensor is the joined weights of all FiLM layers."""
    kept = {}
    for defer in (True, False):
        net = made("film", torch.float32)
        net.defer, saved = defer, {}
        z, logsnr, told = inputs(net, torch.float32)

        def pack(t, saved=saved):
            saved[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = net(z, logsnr, conditioning=told)
        for p in net.parameters():
            saved.pop(p.untyped_storage()._cdata, None)
        kept[defer] = sum(saved.values())
        del out
    skips = 3 * (3 * 8 * 8**2 + 8 * 4**2 + 2 * 16 * 4**2)  # elements, at both resolutions
    films = sum(m.film.weight.numel() for m in net.modules() if isinstance(m, ResBlock))
    assert kept[False] - kept[True] == 4 * (skips - films)  # copies in the concatenations


def test_a_pending_sum_is_written_as_pytorch_adds():
    h, residual = torch.randn(2, 2, 3, 4, 4)
    bias, rows = torch.randn(3), torch.randn(2, 3)
    assert Pending(h).written() is h
    assert torch.equal(Pending(h, bias).written(), h + bias[:, None, None])
    assert torch.equal(Pending(h, None, residual).written(), h + residual)
    both = Pending(h, rows, residual).written()
    assert torch.equal(both, h + rows[:, :, None, None] + residual)
    low = Pending(h.bfloat16(), bias).written()
    assert low.dtype == torch.bfloat16


def test_names_of_parameters_stay():
    """An older state dict has all of them, and loads."""
    model = Model(BASE)
    names = set(model.state_dict())
    assert {"net.conv_in.bias", "net.down.0.0.conv1.bias", "net.up.0.0.shortcut.bias"} <= names
    assert {"net.mid.1.proj.bias", "net.conv_out.bias"} <= names
    assert not {name for name in names if "defer" in name}
