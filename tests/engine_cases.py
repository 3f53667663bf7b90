"""Runs of the engine's loop, shared by its tests."""

import copy
import dataclasses

import torch

from pdfast.config.schema import EngineConfig
from pdfast.console.progress import Screen
from pdfast.data.dataset import Dataset
from pdfast.distillation.objectives import DataObjective, Rollout
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.loop import fit
from pdfast.training.model_run import ModelRun
from pdfast.training.precision import cast_to_precision

UPDATES, STEPS, ROUND = 50, 8, 1


def changed(config, **tables):
    """Return a config with some values of some tables replaced."""
    for table, values in tables.items():
        config = dataclasses.replace(
            config, **{table: dataclasses.replace(getattr(config, table), **values)}
        )
    return config


def set_of(config, phase, **options):
    """Return the config with options of a phase, the model's dropout and the data's order set."""
    order = options.pop("order", config.data.order)
    dropout = options.pop("dropout", 0.0) if phase == "train" else 0.0
    options.pop("dropout", None)  # distillation has none
    defaults = {"updates": UPDATES, "batch": 8, "ema_decay": 0.0, "warmup": 5, "anneal": "linear"}
    loop = dataclasses.replace(getattr(config, phase), **(defaults | options))
    model = dataclasses.replace(config.model, dropout=dropout)
    data = dataclasses.replace(config.data, horizontal_flip=True, order=order)
    return dataclasses.replace(config, data=data, model=model, **{phase: loop})


def random_model(cfg, seed, dtype):
    """Return a model in which every weight matters: the last layers would start at zero."""
    torch.manual_seed(seed)
    model = Model(cfg).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def digits(num=50):
    generator = torch.Generator().manual_seed(1)
    return Dataset(
        torch.randint(0, 256, (num, 8, 8, 1), dtype=torch.uint8, generator=generator), None
    )


def batch_of_numbers(x):
    """Return samples x (M, H, W, C), float32, as one batch of a distillation in float64."""
    return Batch(
        images=x,
        labels=None,
        population=0,
        size=len(x),
        first=0,
        update=torch.zeros(1, dtype=torch.int64),
        seed=0,
        round_=1,
        flip=False,
        dtype=torch.float64,
    )


def objective_of(phase, cfg, teacher):
    return (
        DataObjective(cfg.loss_weight)
        if phase == "train"
        else Rollout(teacher, STEPS, cfg.loss_weight)
    )


def run_engine(config, phase, objective, model, data, path):
    with ModelRun(path, config, Screen(quiet=True)).start() as run:
        return fit(model, objective, getattr(config, phase), data, run, ROUND, phase)


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def distilled(
    config,
    path,
    kind=Rollout,
    data=None,
    precision="fp32",
    place="auto",
    device="cpu",
    **options,
):
    """Return (teacher, trained student), with [engine] options; `place` is engine.data."""
    options = EngineConfig(data=place, **options)
    config = dataclasses.replace(config, engine=options, precision=precision)
    teacher = random_model(config.model, 0, torch.float32).to(device)
    student = copy.deepcopy(teacher)
    low = cast_to_precision(teacher, precision)
    objective = kind(low, STEPS, config.distill.loss_weight, options)
    data = data or digits()
    data = data if place == "stream" else data.to(device)
    run_engine(config, "distill", objective, student, data, path)
    return teacher, student


def apart(start, one, other):
    """Return the distance between two models' weights, relative to how far the first moved."""
    return float((flat(one) - flat(other)).norm() / (flat(one) - flat(start)).norm())
