"""Whole updates, with group_norm_silu and with PyTorch's own norms, side by side in one process."""

import copy
import statistics
import time

import pytest
import torch
from harness import ROWS

from pdfast import engine
from pdfast.config import load_config
from pdfast.data import Dataset
from pdfast.distillation import Rollout
from pdfast.kernels.group_norm_silu import group_norm_silu, reference
from pdfast.training import DataObjective, new_model
from pdfast.unet import GroupNormSiLU

CASES = ["cifar10", "digits"] if torch.cuda.is_available() else ["digits"]
REPEATS, UPDATES = 9, 8
NORMS = {"pdfast": group_norm_silu, "eager": reference}


@pytest.mark.parametrize("phase", ["train", "distill"])
def test_update(case, phase, benchmark, device, request):
    """Median of interleaved repeats of a few updates each."""
    quick = request.config.getoption("--quick")
    config = load_config(case)
    shape = (1000, config.model.image_size, config.model.image_size, config.model.channels)
    data = Dataset(torch.randint(0, 256, shape, dtype=torch.uint8, device=device), None)
    cfg = getattr(config, phase)
    model = new_model(config, device)
    objective = (
        DataObjective(cfg.loss_weight)
        if phase == "train"
        else Rollout(copy.deepcopy(model), 512, cfg.loss_weight)
    )
    optimizer = engine.Optimizer(model, cfg)
    models = [model] + ([objective.teacher] if phase == "distill" else [])
    norms = [m for net in models for m in net.modules() if isinstance(m, GroupNormSiLU)]
    times = {who: [] for who in NORMS}

    def repeat():
        for who, op in NORMS.items():
            for norm in norms:
                norm.op = op
            start = time.perf_counter()
            for k in range(1 if quick else UPDATES):
                batch = engine.Batch(data, cfg.batch, 0, 1, False, torch.float32, k)
                engine.update(model, objective, optimizer, batch, k)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[who].append((time.perf_counter() - start) / (1 if quick else UPDATES))

    benchmark.group = f"update {case} {phase}"
    benchmark.pedantic(repeat, rounds=1 if quick else REPEATS, warmup_rounds=0 if quick else 1)
    for who, measured in times.items():
        measured = measured if quick else measured[1:]
        row = {"op": f"update, {phase}", "shape": f"{case}, batch {cfg.batch}", "who": who}
        row |= {"seconds": statistics.median(measured), "bytes": 0, "rounds": len(measured)}
        request.config.stash[ROWS].append(row)
