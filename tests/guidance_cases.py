"""Class-conditional models and batches, with and without guidance, shared by tests."""

import dataclasses
import typing

import torch
from engine_cases import random_model

from pdfast.config.names import Parameterization
from pdfast.data.dataset import Dataset
from pdfast.training.batch import open_batch

STEPS, CLASSES, RANGE = 8, 10, (0.0, 4.0)
PARAMETERIZATIONS = typing.get_args(Parameterization)
DISTILLED = [name for name in PARAMETERIZATIONS if name != "eps"]


def teacher_of(config, parameterization="v", dtype=torch.float64, seed=0):
    cfg = dataclasses.replace(config.model.unguided(), parameterization=parameterization)
    return random_model(cfg, seed, dtype).eval()


def inputs(num=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    z = torch.randn(num, 1, 8, 8, generator=g, dtype=dtype)
    phi = 0.1 + 1.4 * torch.rand(num, generator=g, dtype=torch.float64)
    return z, phi, torch.arange(num) % CLASSES


def batch(config, model, num=64, **options):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (50, 8, 8, 1), dtype=torch.uint8, generator=g)
    data = Dataset(images, torch.arange(50) % CLASSES)
    loop = dataclasses.replace(config.distill, batch=num)
    return open_batch(config, loop, data, model, 1, **options)[0]
