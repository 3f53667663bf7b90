"""One update, for training and distillation alike, and the protocol of an objective.

An update is one function of tensors that stay in place. The objective draws from a batch, runs the
networks, and returns the loss with its gradient; the optimizer does the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from pdfast.config.schema import LoopConfig
from pdfast.diffusion.angles import Loss
from pdfast.distributed import collectives
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.optimizer import Optimizer


class ObjectiveOutput(NamedTuple):
    """An objective's result on one batch."""

    out: Tensor
    """Raw output of the model in training, with its autograd graph."""
    loss: Loss
    """Loss of that output, and the gradient with respect to it."""


class Objective(Protocol):
    """The loss that a phase minimises."""

    num_steps: int
    """Sampling steps N whose times it draws; 0: continuous time."""

    @property
    def merged(self) -> int:
        """Number of small steps that each of the N steps merges; 0: no merging."""

    ahead: int
    """Number of updates by which it draws its batches ahead."""

    evaluations: int
    """Network evaluations without gradient per image and update: forward passes beside the
    student's own."""

    carried: Sequence[Tensor]
    """Tensors that one call leaves for the next."""

    @property
    def teacher(self) -> Model | None:
        """Model that is evaluated beside the one in training; or None."""

    def begin(self, batch: Batch) -> None:
        """Prepare for this process's first update, whose batch is given."""

    def __call__(self, model: Model, batch: Batch, /) -> ObjectiveOutput:
        """Return the model's output on a batch, and its loss."""


def evaluations(objective: Objective, cfg: LoopConfig, updates: int) -> int:
    """Return the network evaluations of `updates` updates.

    One evaluation is the forward pass of one image, through any network. An image's backward pass
    counts as two, and `checkpoint` adds one, since it recomputes the forward pass. Skipped updates
    count. Work between the updates does not: the fixed-batch or held-out loss, a round's signal and
    the quick distances. Nor do updates that a resumed run repeats.
    """
    return updates * cfg.batch * (objective.evaluations + 3 + cfg.checkpoint)


def update(
    model: Model, objective: Objective, optimizer: Optimizer, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Make one update; return (mean loss, gradient norm before clipping), 0-d on the device."""
    parts = optimizer.cfg.accumulate
    share = 1 / (parts * collectives.size())
    for n in range(parts):
        out, loss = objective(model, batch.part(n, parts))
        grad_out, mean = loss.grad_out, loss.per_image.mean()
        if share != 1:
            grad_out, mean = grad_out * share, mean * share
        optimizer.backward(out, grad_out, mean, first=n == 0)
    optimizer.step()
    return optimizer.loss, optimizer.norm
