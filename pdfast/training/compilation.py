"""torch.compile around the networks, and whether a phase's updates repay its cost.

pdfast's ops stay as they are. A compiler fuses the rest, which PyTorch runs as passes over memory:
biases, residual sums, concatenation, casts. A network is compiled once per process, however many
rounds use it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdfast.config.schema import BackendsConfig, Config
from pdfast.models.cuda_graph import rehearse
from pdfast.models.unet import UNet
from pdfast.training.op_counter import OTHER, Counter

# Measured on an H200 and its host (benchmarks/results/h200-2026-11-28.md), for the distillation
# update of the paper's CIFAR-10 network in bf16, batch 128, with these counts.
KERNELS, OTHER_BYTES = 1_781, 36.7e9
COMPILE_SECONDS, SAVED_SECONDS = 55.0, 72.2e-3 - 56.2e-3
MARGIN = 2.0  # by which it must repay: the estimate scales a measurement on one machine


@dataclass(frozen=True)
class Estimate:
    """Cost and saving of compilation, in seconds."""

    cost: float
    """Seconds that compilation takes, once."""
    saved: float
    """Seconds that it saves in every update."""

    def repays(self, updates: int) -> bool:
        """Return whether so many updates save clearly more than the cost."""
        return updates * self.saved > MARGIN * self.cost


def estimate(work: Callable[[], object], state: Iterable[Tensor]) -> Estimate:
    """Estimate the cost and saving of compiling an update, in proportion to a measured one.

    It counts the update's kernels and the bytes that they move. The same update has the same
    estimate on every machine, so that a resumed run and all processes of a run decide alike.

    Args:
        work: The update.
        state: Tensors that `work` changes and reads again; they are restored.
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
    """Return whether to compile the networks for `updates` updates, by engine.compile.

    "auto" compiles pdfast's own U-Nets and ops, on a GPU, if that repays, and reports the decision.

    Args:
        config: The run's config.
        nets: The networks of the update.
        device: Their device.
        updates: Number of updates of the phase.
        find: Returns the cost and saving; called only if they decide.
        say: Prints a line.
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
        f"torch.compile: on an H200 it would take about {found.cost:.0f} s and save about "
        f"{found.saved * 1e3:.2g} ms of each of {updates:,} updates, {found.saved * updates:.0f} s "
        f"in all: {'used' if used else 'not used'} (engine.compile)"
    )
    return used


@contextmanager
def compiled(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Run the networks through torch.compile inside the block."""
    nets = list(nets)
    for net in nets:
        net.compile(dynamic=False)
    try:
        yield
    finally:
        for net in nets:
            net._compiled_call_impl = None
