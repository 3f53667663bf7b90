"""`--dry-run`: what a run will take, from the network's graph alone; no weight is allocated."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pdfast.config import Config, dump_config
from pdfast.model import Model
from pdfast.progress import Screen

MB = 1e6


class Costs:
    """Counts for one model and batch size, on meta tensors."""

    def __init__(self, config: Config, batch: int) -> None:
        with torch.device("meta"):
            model = Model(config.model)
            z = torch.empty(batch, *model.image_shape)
            logsnr = torch.empty(batch)
            classes = config.model.num_classes
            label = torch.zeros(batch, dtype=torch.int64) if classes else None
        self.params = sum(p.numel() for p in model.parameters())
        self.saved_bytes = 0
        seen: set[int] = {p.untyped_storage()._cdata for p in model.parameters()}
        held: list[Tensor] = []  # keeps the storages alive, so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                held.append(tensor)
                self.saved_bytes += storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with FlopCounterMode(display=False) as forward, hooks:
            out = model(z, logsnr, label)
        self.forward_flops = forward.get_total_flops()
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        self.backward_flops = backward.get_total_flops()


def matmul_rate(device: torch.device) -> float:
    """float32 matrix-multiply FLOP/s of the device, the best of a few short runs."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def forecast(config: Config, device: torch.device, screen: Screen, distill: bool) -> None:
    """Print the resolved config, parameters, memory, disk, time, and the table of rounds."""
    screen.say(dump_config(config).rstrip())
    train = Costs(config, config.train.batch)
    phases: list[tuple[str, Any, Costs, int, float]] = [
        ("teacher", config.train, train, 0, train.forward_flops + train.backward_flops)
    ]
    if distill:
        plain = replace(config, model=replace(config.model, dropout=0.0))
        costs = Costs(plain, config.distill.batch)
        per_update = 3 * costs.forward_flops + costs.backward_flops
        for round_ in range(1, config.distill.rounds + 1):
            steps = config.distill.steps_after(round_)
            cfg = replace(config.distill, updates=config.distill.updates_of(steps))
            phases.append((f"round {round_}", cfg, costs, steps, per_update))
    rate = matmul_rate(device)
    weights = 4 * train.params
    screen.say("")
    screen.say(f"parameters: {train.params:,}")
    for name, cfg, costs, _, _ in phases[:2]:
        # Weights, gradients and two moments; averaged weights; the teacher beside its student.
        copies = 4 + bool(cfg.ema_decay) + (name != "teacher")
        total = copies * weights + costs.saved_bytes
        screen.say(
            f"memory, {'training' if name == 'teacher' else 'distillation'}: {total / MB:,.0f} MB "
            f"= {copies} x {weights / MB:,.1f} MB of float32 weights, gradients and moments + "
            f"{costs.saved_bytes / MB:,.0f} MB of activations for backward (batch {cfg.batch}); "
            "workspaces and the data set come on top"
        )
    states = 3 * (4 if config.train.ema_decay else 3)
    disk = (len(phases) + states) * weights
    screen.say(
        f"disk: at most {disk / MB:,.0f} MB = {len(phases)} models and {states} more copies in "
        "three saved states"
    )
    screen.say(
        f"time on {device}: at least the figures below, which take every counted FLOP at the rate "
        f"of a large float32 matrix product here ({rate / 1e9:,.0f} GFLOP/s)"
    )
    screen.say("")
    screen.say(f"{'':>9} {'steps':>6} {'updates':>9} {'lr':>8} {'images':>12} {'hours':>9}")
    hours = 0.0
    for name, cfg, _, steps, flops in phases:
        phase = cfg.updates * flops / rate / 3600
        hours += phase
        screen.say(
            f"{name:>9} {steps or '':>6} {cfg.updates:>9,} {cfg.lr:>8.1e} "
            f"{cfg.updates * cfg.batch:>12,} {phase:>9.3g}"
        )
    screen.say(f"{'total':>9} {'':>6} {'':>9} {'':>8} {'':>12} {hours:>9.3g}")
