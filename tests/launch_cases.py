"""A call of every op of kernels/ for each option that changes its launch, on any device.

Tensors hold ordinary values, so that a call may also be run and compared with the op's reference.
"""

import functools
import itertools

import torch

from pdfast.kernels import adamw, add_noise, ddim_step, distill_loss, dropout
from pdfast.kernels.add_noise import NoiseOptions, draw_indices

HEADS, WEIGHTS = ("x", "eps", "v", "both"), ("constant", "snr", "snr_trunc", "v_mse")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# (B, C, H, W). Of the first two, H W C is a multiple of 16 and of the block; of the others, Triton
# makes code of its own: for a size that is no such multiple, and for a size of 1.
LARGE, SMALL, ODD, ONE = (2, 3, 64, 64), (2, 1, 8, 8), (2, 3, 5, 7), (2, 1, 1, 1)
PARAMS = 60_004_099 + 61  # of the paper's CIFAR-10 network, padded to a multiple of 64


def values(shape, dtype, device, seed=0):
    """Standard normal, channels-last where it is images; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    if tensor.ndim == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.to(device)


def raw(shape, head, dtype, device, seed):
    """A network's output."""
    b, c, h, w = shape
    return values((b, 2 * c if head == "both" else c, h, w), dtype, device, seed)


def angles(batch, device, last=0.3):
    """float64 (batch,) in (0, pi/2)."""
    return torch.linspace(last, 1.2, batch, dtype=torch.float64).to(device)


def step(device, head="v", dtype="bf16", shape=LARGE, offset=0):
    """ddim_step; `offset` elements into a buffer lies z."""
    z = values(shape, torch.float32, device)
    if offset:
        b, c, h, w = shape
        flat = torch.cat([z.new_zeros(offset), z.permute(0, 2, 3, 1).flatten()])[offset:]
        z = flat.view(b, h, w, c).permute(0, 3, 1, 2)
    out = raw(shape, head, DTYPES[dtype], device, 1)
    phi = angles(len(z), device)
    return ddim_step.ddim_step(z, out, phi, phi - 0.1, head, DTYPES[dtype])


def distill(device, head="v", weight="snr_trunc", dtype="bf16", shape=LARGE, uneven=False):
    """distill_loss; `uneven`: the teacher's second step has an angle that is given."""
    outs = [raw(shape, head, DTYPES[dtype], device, seed) for seed in (1, 2, 3)]
    z, phi = values(shape, torch.float32, device), angles(len(outs[0]), device)
    last = torch.arange(len(z), device=device) == 0
    phi_next = phi - 0.25 if uneven else None
    return distill_loss.distill_loss(
        outs[0], z, *outs[1:], phi, phi - 0.1, last, head, weight, phi_next
    )


def data(device, head="v", weight="snr_trunc", dtype="bf16", shape=LARGE):
    """data_loss."""
    out = raw(shape, head, DTYPES[dtype], device, 1)
    y = values(shape, torch.float32, device)
    return distill_loss.data_loss(out, y, angles(len(y), device), head, weight)


def noise(
    device,
    dtype="bf16",
    head=None,
    flip=True,
    times="discrete",
    gathered=False,
    levels="u8",
    some=False,
    shape=(5, 3, 32, 32),
    **draws,
):
    """add_noise: 3 images of 5, or of `some`; `times` discrete, continuous or by table."""
    draws = {"seed": 2**32 - 1, "round_": 1, "update": 7, "num": 3, **draws}
    update = draws.pop("update")
    images = values(shape, torch.float32, "cpu")
    if levels == "u8":
        images = (40 * images + 128).clamp(0, 255).to(torch.uint8)
    population = len(images) if gathered else 0
    rows = torch.tensor([4, 1]) if some else None
    if gathered:
        images = images[draw_indices(NoiseOptions(population=population, **draws), update, rows)]
    n = 0 if times == "continuous" else 6
    table = torch.linspace(0.1, 1.5, 2 * n + 1, dtype=torch.float64).square().to(device)
    options = NoiseOptions(
        num_steps=n,
        flip=flip,
        head=head,
        net_dtype=DTYPES[dtype],
        population=population,
        **draws,
    )
    return add_noise.add_noise(
        images.contiguous(memory_format=torch.channels_last).to(device),
        table if times == "table" else (1.57, 4.5e-5),
        update,
        options,
        None if rows is None else rows.to(device),
    )


def drop(device, dtype="bf16", shape=LARGE, **draws):
    """dropout."""
    x = values(shape, DTYPES[dtype], device)
    draws = {"seed": 2**32 - 1, "round_": 1, "update": 7, "layer": 3, **draws}
    return dropout.dropout(x, 0.1, **draws)


def optimize(device, ema=True, copy="bf16", max_norm=1.0, size=4096, live=True, warmup=True):
    """adamw; all buffers after it. Without `live` they hold nothing, and no memory is touched."""

    def buffer(seed, dtype=torch.float32):
        if not live:
            return torch.empty(size, dtype=dtype, device=device)
        return values(size, torch.float32, device, seed).square().to(dtype)

    buffers = [buffer(seed) for seed in range(4)]
    buffers.append(buffer(4) if ema else None)
    buffers.append(buffer(5, DTYPES[copy]) if copy else None)
    lr, loss = torch.tensor([1e-3], device=device), torch.tensor(0.5, device=device)
    count = torch.tensor([3], device=device)
    skipped = torch.zeros(2, dtype=torch.int64, device=device)
    options = adamw.AdamWHyperparameters(
        max_norm=max_norm, max_skipped=10, weight_decay=0.1, ema_decay=0.999, ema_warmup=warmup
    )
    norm = adamw.adamw(*buffers, lr, count, loss, skipped, options)
    return norm, *(b for b in buffers if b is not None), skipped


def _cases():
    """Names, and the calls: the last are of sizes that Triton makes code of its own for."""
    for head, dtype in itertools.product(HEADS, DTYPES):
        yield "ddim_step", step, {"head": head, "dtype": dtype}
        yield "data_loss", data, {"head": head, "dtype": dtype}
        for uneven in (False, True):
            yield "distill_loss", distill, {"head": head, "dtype": dtype, "uneven": uneven}
    for head, weight in itertools.product(HEADS, WEIGHTS):
        yield "distill_loss", distill, {"head": head, "weight": weight}
    for weight in WEIGHTS:
        yield "data_loss", data, {"weight": weight}
    for dtype, head in itertools.product(("bf16", "fp32"), (None, *HEADS)):
        yield "add_noise", noise, {"dtype": dtype, "head": head, "times": "continuous"}
    for dtype, flip in itertools.product(DTYPES, (False, True)):
        yield "add_noise", noise, {"dtype": dtype, "flip": flip}
    for head in (None, "x"):
        yield "add_noise", noise, {"head": head, "times": "table"}
    for levels, flip, gathered in itertools.product(("u8", "fp32"), (False, True), (False, True)):
        yield "add_noise", noise, {"levels": levels, "flip": flip, "gathered": gathered}
    for gathered in (False, True):
        yield "add_noise", noise, {"some": True, "gathered": gathered}
        yield "add_noise", noise, {"shuffled_by": 6, "some": True, "gathered": gathered}
    for by in (1, 3, 2**31 + 5):  # batches of one image, of this process's, of very many
        yield "add_noise", noise, {"shuffled_by": by}
    for dtype in DTYPES:
        yield "dropout", drop, {"dtype": dtype}
    for ema, copy, most in itertools.product((False, True), (None, "bf16", "fp16"), (0.0, 1.0)):
        yield "adamw", optimize, {"ema": ema, "copy": copy, "max_norm": most}
    for shape in (SMALL, ODD, ONE):
        for name, call in (("ddim_step", step), ("distill_loss", distill), ("data_loss", data)):
            yield name, call, {"shape": shape}
        yield "add_noise", noise, {"shape": (5, *shape[1:]), "head": "v"}
        yield "dropout", drop, {"shape": shape}
    for size in (1, 4099):
        yield "adamw", optimize, {"size": size}
    yield "adamw", optimize, {"warmup": False}
    yield "ddim_step", step, {"offset": 1, "shape": SMALL}


CASES = {
    " ".join([name, *(f"{k}={v}" for k, v in options.items())]): functools.partial(call, **options)
    for name, call, options in _cases()
}
