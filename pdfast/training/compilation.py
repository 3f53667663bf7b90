"""Where torch.compile is put around the networks, and whether a phase's updates repay it.

pdfast's ops stay as they are; what a compiler fuses is the rest that PyTorch runs as passes over
memory: biases, residual sums, concatenation, casts. A network is compiled once per process, however
many rounds use it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdfast.config.schema import BackendsConfig, Config
from pdfast.models.unet import UNet
from pdfast.training.cuda_graph import rehearse
from pdfast.training.op_counter import OTHER, Counter

# Measured on an H200 and its host (benchmarks/results/h200-2026-11-28.md), of the update whose
# counts these are: the distillation update of the paper's CIFAR-10 network in bf16, batch 128.
KERNELS, OTHER_BYTES = 1_781, 36.7e9
COMPILE_SECONDS, SAVED_SECONDS = 55.0, 72.2e-3 - 56.2e-3
MARGIN = 2.0  # by which it must repay: the estimate is a proportion, from one machine


@dataclass(frozen=True)
class Estimate:
    """What compiling costs and saves, in seconds."""

    cost: float
    """Once."""
    saved: float
    """Of every update."""

    def repays(self, updates: int) -> bool:
        """Whether so many updates save clearly more than it costs."""
        return updates * self.saved > MARGIN * self.cost


def estimate(work: Callable[[], object], state: Iterable[Tensor]) -> Estimate:
    """Count an update's kernels and what they move, and take both in proportion to the measured.

    The tensors of `state` are left as they were. The same update has the same estimate on every
    machine, so that a resumed run and every process of one decide alike.
    """
    counter = Counter(kernels=True)
    with counter:
        rehearse(work, state)
    kernels = sum(amount.launches for amount in counter.parts.values())
    return Estimate(
        COMPILE_SECONDS * kernels / KERNELS,
        SAVED_SECONDS * counter.parts[OTHER].bytes / OTHER_BYTES,
    )


def chosen(
    config: Config,
    nets: Iterable[nn.Module],
    device: torch.device,
    updates: int,
    find: Callable[[], Estimate],
    say: Callable[[str], None],
) -> bool:
    """Whether the networks are to be compiled for so many updates, as engine.compile has it.

    "auto" compiles pdfast's own U-Nets and ops, on a GPU, where that repays, and says so; `find`
    gives what it costs and saves.
    """
    choice = config.engine.compile
    if choice != "auto":
        return choice == "on"
    own = all(isinstance(net, UNet) for net in nets) and config.backends == BackendsConfig()
    if device.type != "cuda" or not own:
        return False
    found = find()
    used = found.repays(updates)
    say(
        f"torch.compile: on an H200 it would take some {found.cost:.0f} s and save some "
        f"{found.saved * 1e3:.2g} ms of each of {updates:,} updates, {found.saved * updates:.0f} s "
        f"in all: {'used' if used else 'not used'} (engine.compile)"
    )
    return used


@contextmanager
def compiled(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Call the networks through torch.compile inside."""
    nets = list(nets)
    for net in nets:
        net.compile(dynamic=False)
    try:
        yield
    finally:
        for net in nets:
            net._compiled_call_impl = None
