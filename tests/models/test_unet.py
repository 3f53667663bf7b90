"""The published U-Net: sizes, initialisation, options."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.config.schema import NetConfig, load_config
from pdfast.diffusion.conditioning import Conditioning, DropoutRng
from pdfast.kernels.calls import tensors_of
from pdfast.models.blocks import Attention, GroupNormSiLU, Pending, ResBlock
from pdfast.models.embeddings import logsnr_embedding
from pdfast.models.model import Model
from pdfast.models.unet import UNet


@pytest.mark.parametrize(
    ("name", "params"),
    [("cifar10", 60_004_099), ("imagenet64", 295_905_222), ("lsun128", 139_578_502)],
)
def test_published_parameter_counts(name, params):
    with torch.device("meta"):
        net = UNet(load_config(name).model)
    assert sum(p.numel() for p in net.parameters()) == params


def test_census_of_the_cifar10_net():
    """27 residual blocks, 15 attentions, 70 GroupNorms."""
    with torch.device("meta"):
        net = UNet(load_config("cifar10").model)
    kinds = [type(module).__name__ for module in net.modules()]
    assert (kinds.count("ResBlock"), kinds.count("Attention")) == (27, 15)
    assert kinds.count("GroupNormSiLU") == 70
    assert {m.eps for m in net.modules() if isinstance(m, GroupNormSiLU)} == {1e-6}


SMALL = {"image_size": 8, "channels": 1, "ch": 8, "emb_ch": 16, "ch_mult": (1, 2), "groups": 4}
SMALL |= {"num_res_blocks": 1, "attn_resolutions": (4,)}


def randomised(model):
    """Give a model random weights, none zero, so that every path matters."""
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def test_a_new_net_predicts_zero_and_its_last_layers_learn_first():
    model = Model(NetConfig(**SMALL))
    z = torch.randn(2, 1, 8, 8)
    assert model(z, torch.zeros(2)).abs().max() == 0
    assert any(m.weight.abs().max() > 0 for m in model.modules() if hasattr(m, "weight"))


def test_activations_stay_channels_last():
    model, seen = randomised(Model(NetConfig(**SMALL))), []
    for module in model.modules():
        if isinstance(module, GroupNormSiLU | torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.extend(tensors_of(o)))
    model(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert len(seen) > 20
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in seen)


def test_an_image_is_independent_of_its_batch():
    model = randomised(Model(NetConfig(**SMALL)).double())
    z, logsnr = torch.randn(5, 1, 8, 8).double(), torch.linspace(-15, 15, 5)
    whole = model(z, logsnr)
    assert torch.allclose(model(z[2:3], logsnr[2:3]), whole[2:3], atol=1e-12)


def test_class_labels():
    model = randomised(Model(NetConfig(**SMALL, num_classes=3)).double())
    z, logsnr = torch.randn(1, 1, 8, 8).double().expand(3, -1, -1, -1), torch.zeros(3)
    out = model(z, logsnr, torch.arange(3))
    assert (out[0] - out[1]).abs().max() > 1e-3
    # The published form: a dense layer on one-hot labels, added to the time embedding.
    expected = model.net.emb_class(torch.eye(3).double())
    handle = model.net.emb1.register_forward_hook(lambda m, i, o: o + expected)
    emb_class, model.net.emb_class = model.net.emb_class, None
    assert torch.allclose(model(z, logsnr), out, atol=1e-12)
    model.net.emb_class = emb_class
    handle.remove()
    with pytest.raises(ValueError, match="class-conditional: pass label"):
        model(z, logsnr)


class Calls(TorchDispatchMode):
    """Counts the calls of each op."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("film", [True, False])
def test_the_films_of_all_blocks_are_one_product(film):
    """Forward and backward equal a product for each block, in values and gradients."""
    net = randomised(Model(NetConfig(**SMALL, film=film)).double()).net
    net.defer = True  # as on a GPU
    blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
    logsnr, inputs = torch.linspace(-3, 3, 5, dtype=torch.float64), []
    with Calls() as seen:
        films = net.films(logsnr)
    assert len(blocks) == 10
    assert seen.calls["addmm"] == 3  # two of them embed the time
    loss = films.square().sum()
    with Calls() as seen:
        grads = torch.autograd.grad(loss, net.parameters(), allow_unused=True)
    assert seen.calls["mm"] == 5  # the first layer has one product, the others two
    assert seen.calls["sum"] == 3

    hook = net.emb1.register_forward_hook(lambda module, args, out: inputs.append(out))
    net.films(logsnr)
    hook.remove()
    each = torch.cat([block.film(torch.nn.functional.silu(inputs[0])) for block in blocks], dim=1)
    torch.testing.assert_close(films, each, rtol=1e-13, atol=1e-13)
    found = torch.autograd.grad(each.square().sum(), net.parameters(), allow_unused=True)
    assert sum(grad is not None for grad in grads) == 2 * len(blocks) + 4
    for grad, other in zip(grads, found, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-12)


def test_a_film_of_a_table_is_that_of_its_noise_level():
    model = randomised(Model(NetConfig(**SMALL)).double())
    z, phi = torch.randn(3, 1, 8, 8).double(), torch.tensor([0.3, 0.8, 1.3]).double()
    table = model.films_at_angle(phi.flip(0))
    told = Conditioning(films=table[torch.tensor([2, 1, 0])])
    assert torch.equal(model.forward_at_angle(z, phi, told), model.forward_at_angle(z, phi))


def test_attention_s_gradient_is_put_together_once():
    attention = Attention(32, NetConfig(**SMALL, num_heads=2))
    x = torch.randn(3, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    qkv = []
    attention.qkv.register_forward_hook(lambda module, args, out: qkv.append(out))
    out = attention(Pending(x))[0].h
    with Calls() as seen:
        torch.autograd.grad(out, qkv, torch.randn_like(out))
    assert seen.calls["cat"] == 1
    assert not {"stack", "clone", "copy_"} & set(seen.calls)


def test_dropout_is_by_counter():
    model = randomised(Model(NetConfig(**SMALL, dropout=0.5)))
    z, logsnr = torch.randn(2, 1, 8, 8), torch.zeros(2)
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert [block.layer for block in blocks] == list(range(len(blocks)))

    def made(z, logsnr, rng):
        return model(z, logsnr, conditioning=Conditioning(dropout_rng=rng))

    one, other = (DropoutRng(0, 0, torch.tensor([k]), 0) for k in (1, 2))
    assert torch.equal(made(z, logsnr, one), made(z, logsnr, one))
    assert not torch.equal(made(z, logsnr, one), made(z, logsnr, other))
    assert not torch.equal(made(z, logsnr, one), model(z, logsnr))
    second = made(z[1:], logsnr[1:], one._replace(first=1))
    assert torch.allclose(second, made(z, logsnr, one)[1:], atol=1e-5)


def test_embedding_tells_neighbouring_steps_apart():
    """At N = 8192 neighbouring noise levels differ, also in float32."""
    u = torch.arange(1, 8193) / 8192
    from pdfast.diffusion.schedules import CosineSchedule, logsnr_of

    emb = logsnr_embedding(logsnr_of(CosineSchedule().phi(u)), 32, torch.float32)
    assert (emb[1:] - emb[:-1]).abs().amax(1).min() > 1e-3


def test_the_whole_model_runs_in_float64():
    model = randomised(Model(NetConfig(**SMALL)).double())
    z = torch.randn(2, *model.image_shape, dtype=torch.float64)
    each = model.predict_x(z, torch.full((2,), 0.3, dtype=torch.float64))
    assert torch.equal(model.predict_x(z, 0.3), each)
    images = model.sample(2, 3)
    assert images.dtype == torch.float64
    assert images.abs().max() <= 1
