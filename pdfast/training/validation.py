"""The loss that a phase is watched by: on held-out images, or on a fixed batch."""

import contextlib
from collections.abc import Callable, Iterable

import torch

from pdfast.config.schema import Config, LoopConfig
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.models.model import Model
from pdfast.training.batch import Batch, held_out_batches, open_batch
from pdfast.training.update import Objective


@torch.no_grad()
def fixed_batch_loss(model: Model, objective: Objective, batch: Batch, parts: int) -> float:
    """Return the mean loss on one batch, of the model in evaluation mode (without dropout)."""
    model.eval()
    losses = [objective(model, batch.part(n, parts)).loss.per_image.mean() for n in range(parts)]
    mean = torch.stack(losses).mean() / collectives.size()
    collectives.all_reduce(mean)
    return float(mean)


@torch.no_grad()
def held_out_loss(model: Model, objective: Objective, batches: Iterable[Batch]) -> float:
    """Return the mean loss on all images of `batches`, of which each process has some."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)  # of losses, of images
    for batch in batches:
        losses = objective(model, batch).loss.per_image.double()
        sums += torch.stack([losses.sum(), torch.ones_like(losses).sum()])
    collectives.all_reduce(sums)
    return float(sums[0] / sums[1])


def loss_of(
    config: Config, cfg: LoopConfig, data: Dataset, model: Model, objective: Objective, round_: int
) -> Callable[[], float]:
    """Return a function that returns the loss on the held-out images, or else a fixed batch."""
    if data.held_out is not None:
        return lambda: held_out_loss(
            model, objective, held_out_batches(config, data, model, round_)
        )
    batch, source = open_batch(config, cfg, data, model, round_, fixed=True)
    with contextlib.closing(source):
        source.load(0)
    return lambda: fixed_batch_loss(model, objective, batch, cfg.accumulate)
