"""Optional backends: refused with a reason if missing, called correctly, and right if installed."""

import dataclasses
import sys
from types import ModuleType

import pytest
import torch

from pdfast.config.schema import BackendsConfig, NetConfig, load_config
from pdfast.errors import UsageError
from pdfast.kernels.adamw import AdamWHyperparameters, adamw
from pdfast.kernels.group_norm_silu import group_norm_silu
from pdfast.models import backends
from pdfast.models.model import Model

CHOICES = [("group_norm", "apex"), ("optimizer", "apex"), ("attention", "xformers")]


def asking(name, value, config="cifar10"):
    return dataclasses.replace(load_config(config), backends=BackendsConfig(**{name: value}))


@pytest.mark.parametrize(("name", "value"), CHOICES)
def test_an_absent_peer_is_refused_with_the_reason(name, value, monkeypatch):
    monkeypatch.setattr(backends, "find", lambda _: None)
    with pytest.raises(UsageError, match=f"backends.{name} {value}: .*is not installed; leave"):
        backends.check(asking(name, value), torch.device("cpu"))


@pytest.mark.parametrize(("name", "value"), CHOICES)
def test_a_peer_needs_a_gpu_and_fitting_widths(name, value, monkeypatch):
    monkeypatch.setattr(backends, "find", lambda _: ModuleType("there"))
    with pytest.raises(UsageError, match="needs a GPU"):
        backends.check(asking(name, value), torch.device("cpu"))
    gpu = torch.device("cuda", 0)
    backends.check(asking(name, value), gpu)
    if name == "group_norm":
        with pytest.raises(UsageError, match="apex normalises in 16 or 32 groups"):
            backends.check(asking(name, value, "digits"), gpu)
        narrow = dataclasses.replace(
            asking(name, value), model=NetConfig(ch=96, groups=32, num_heads=1)
        )
        with pytest.raises(UsageError, match="no kernel for 96 channels"):
            backends.check(narrow, gpu)


def stand_ins(monkeypatch):
    """Modules with the backends' signatures that compute in PyTorch and record arguments."""

    def norm(x, groups, weight, bias, eps, act, passes):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert passes in (1, 2)
        y = torch.group_norm(x, groups, weight, bias, eps)
        return (torch.nn.functional.silu(y) if act == "silu" else y), None

    def attention(q, k, v):  # (B, tokens, heads, width)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def adam(overflow, lists, lr, beta1, beta2, eps, step, decoupled, corrected, decay, inverse):
        assert (decoupled, corrected, inverse) == (1, 1, 1)
        assert (lr.dtype, step.dtype) == (torch.float32, torch.int32)
        assert (overflow.dtype, overflow.shape) == (torch.int32, (1,))
        if overflow == 1:
            return
        (g,), (p,), (m,), (v,) = lists
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
        p.sub_(lr * (update + decay * p))

    members = {
        "group_norm_cuda": {},
        "apex": {},
        "apex.contrib": {},
        "apex.contrib.group_norm": {},
        "apex.contrib.group_norm.group_norm": {"group_norm_nhwc_fprop": norm},
        "apex.multi_tensor_apply": {
            "multi_tensor_applier": lambda op, overflow, lists, *args: op(overflow, lists, *args)
        },
        "amp_C": {"multi_tensor_adam_capturable": adam},
        "xformers": {},
        "xformers.ops": {"memory_efficient_attention": attention},
    }
    for name, content in members.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def small_model():
    torch.manual_seed(0)
    cfg = NetConfig(
        image_size=8, channels=1, ch=16, emb_ch=16, ch_mult=(1, 2), num_res_blocks=1,
        attn_resolutions=(4,), groups=4, num_heads=2,
    )  # fmt: skip
    model = Model(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def test_a_model_with_peers_computes_the_same(monkeypatch):
    model = small_model()
    z, logsnr = torch.randn(3, 1, 8, 8), torch.tensor([-3.0, 0.0, 5.0])
    own = model(z, logsnr)
    stand_ins(monkeypatch)
    backends.select(model, BackendsConfig(group_norm="apex", attention="xformers"))
    torch.testing.assert_close(model(z, logsnr), own, rtol=1e-5, atol=1e-5)


def optimizer_case(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    flat = [torch.randn(1000, generator=generator).to(device) for _ in range(2)]
    zeros = [torch.zeros(1000, device=device) for _ in range(2)]
    return [*flat, *zeros, flat[0].repeat(2, 1), flat[0].bfloat16()]


def same_updates(device, ema_warmup):
    """Five updates; the first, the third (for its gradient) and the last are skipped."""
    options = AdamWHyperparameters(
        max_norm=1.0,
        max_skipped=9,
        weight_decay=0.01,
        ema_decays=(0.9, 0.3),
        ema_warmup=ema_warmup,
    )
    earlier = torch.full((1,), 5, device=device)
    ours, theirs = optimizer_case(device), optimizer_case(device)
    counts = [torch.zeros(2, dtype=torch.int64, device=device) for _ in range(2)]
    for k in range(1, 6):
        lr, step = torch.full((1,), 1e-3, device=device), torch.full((1,), k, device=device)
        loss = torch.tensor([1.0, float("nan")][k in (1, 5)], device=device)
        grad = torch.randn(1000, generator=torch.Generator().manual_seed(k)).to(device)
        grad[7] *= float("inf") if k == 3 else 1
        before = [b.clone() for b in theirs]
        for case, function, skipped in (
            (ours, adamw, counts[0]),
            (theirs, backends.apex_adamw, counts[1]),
        ):
            case[1].copy_(grad)
            function(*case, lr, step, loss, skipped, options, earlier)
        same = [torch.equal(a, b) for a, b in zip(before, theirs, strict=True)]
        assert same[:1] + same[2:] == [k in (1, 3, 5)] * 5
    assert counts[0].tolist() == counts[1].tolist() == [3, 1]
    for a, b in zip(ours[:1] + ours[2:5], theirs[:1] + theirs[2:5], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ema_warmup", [False, True])
def test_the_apex_optimizer_is_given_what_ours_is(monkeypatch, ema_warmup):
    stand_ins(monkeypatch)
    same_updates("cpu", ema_warmup)


@pytest.mark.apex
@pytest.mark.gpu
@pytest.mark.skipif(
    backends.why_not("group_norm") != "" or not torch.cuda.is_available(),
    reason=backends.why_not("group_norm") or "no GPU",
)
@pytest.mark.parametrize("film", [True, False])
def test_apex_group_norm(film):
    x = torch.randn(4, 256, 8, 8, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(2, 256, device="cuda", dtype=torch.bfloat16)
    modulation = torch.randn(4, 512, device="cuda", dtype=torch.bfloat16) if film else None
    options = {"groups": 32, "eps": 1e-6, "silu": True}
    theirs = backends.apex_group_norm_silu(x, weight, bias, modulation, **options)
    ours = group_norm_silu(x, weight, bias, modulation, **options)
    torch.testing.assert_close(theirs, ours, rtol=0.05, atol=0.05)


@pytest.mark.apex
@pytest.mark.gpu
@pytest.mark.skipif(
    backends.why_not("optimizer") != "" or not torch.cuda.is_available(),
    reason=backends.why_not("optimizer") or "no GPU",
)
@pytest.mark.parametrize("ema_warmup", [False, True])
def test_apex_optimizer(ema_warmup):
    same_updates("cuda", ema_warmup)


@pytest.mark.xformers
@pytest.mark.gpu
@pytest.mark.skipif(
    backends.why_not("attention") != "" or not torch.cuda.is_available(),
    reason=backends.why_not("attention") or "no GPU",
)
def test_xformers_attention():
    q, k, v = torch.randn(3, 2, 4, 64, 32, device="cuda", dtype=torch.bfloat16)
    own = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(backends.xformers_attention(q, k, v), own, rtol=0.02, atol=0.02)
