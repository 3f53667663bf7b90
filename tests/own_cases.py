"""Custom networks, and short runs of them, shared by tests."""

import dataclasses
import math

import torch
from torch import nn

import pdfast
from pdfast.config.schema import Config, DistillConfig, EvalConfig

SIGNAL = (1, 12)
LOOP = DistillConfig(start_steps=8, rounds=2, updates=6, batch=4, lr=1e-3)
CONFIG = Config(
    name="own",
    log_every=4,
    save_every=5,
    distill=LOOP,
    eval=EvalConfig(steps=(2,), baseline_steps=4, num=32),
)


class Dense(nn.Module):
    """A small network of any shape, whose output has `copies` times the first axis."""

    def __init__(self, shape=SIGNAL, classes=0, copies=1, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.shape = copies * shape[0], *shape[1:]
        self.inner = nn.Linear(math.prod(shape) + 1, width)
        self.outer = nn.Linear(width, math.prod(self.shape))
        self.classes = nn.Embedding(classes, width) if classes else None

    def forward(self, z, logsnr, label):
        h = self.inner(torch.cat([z.view(len(z), -1), logsnr[:, None] / 10], dim=1))
        if self.classes is not None:
            h = h + self.classes(label)
        return self.outer(torch.tanh(h)).view(len(z), *self.shape)


def numbers(shape=SIGNAL, num=40, seed=1):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed))


def distill(out, module=None, config=CONFIG, data=None, **given):
    module = Dense() if module is None else module
    if data is None:
        data = numbers()
    return pdfast.distill(config, teacher=module, data=data, out=out, quiet=True, **given)


def changed(**tables):
    config = CONFIG
    for table, values in tables.items():
        kept = getattr(config, table)
        new = dataclasses.replace(kept, **values) if isinstance(values, dict) else values
        config = dataclasses.replace(config, **{table: new})
    return config
