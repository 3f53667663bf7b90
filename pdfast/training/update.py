"""One update, of training and distillation alike, and what an objective is.

An update is one function of tensors that stay where they are: the objective draws from a batch,
runs the networks, and gives the loss with its gradient; the optimizer takes it from there.
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
    """What an objective makes of one batch."""

    out: Tensor
    """Raw output of the model in training, with its graph."""
    loss: Loss
    """Its loss, and the gradient to start from."""


class Objective(Protocol):
    """What a phase minimises."""

    num_steps: int
    """Sampling steps N whose times it draws; 0: continuous time."""

    @property
    def merged(self) -> int:
        """How many steps each of the N stands for, where the times are theirs; otherwise 0."""

    ahead: int
    """How many updates ahead it draws its batches."""

    evaluations: int
    """Evaluations of a network without a gradient that an image takes in an update: forward passes
    beside the student's own."""

    carried: Sequence[Tensor]
    """What one call leaves for the next."""

    @property
    def teacher(self) -> Model | None:
        """The model that is evaluated beside the one in training, if there is one."""

    def begin(self, batch: Batch) -> None:
        """Before the first update of this process, whose batch is given."""

    def __call__(self, model: Model, batch: Batch, /) -> ObjectiveOutput:
        """The model's output and its loss."""


def evaluations(objective: Objective, cfg: LoopConfig, updates: int) -> int:
    """Network evaluations that so many updates take.

    One is the forward pass of one image, of whichever network. An image's backward pass counts two,
    and with `checkpoint` one more, since the forward pass is done again. Updates that are skipped
    count; what is computed between the updates, such as the fixed-batch or held-out loss, a round's
    signal and the quick distances, does not, nor does what is repeated after a resumption.
    """
    return updates * cfg.batch * (objective.evaluations + 3 + cfg.checkpoint)


def update(
    model: Model, objective: Objective, optimizer: Optimizer, batch: Batch
) -> tuple[Tensor, Tensor]:
    """One whole update: (mean loss, gradient norm before clipping), both 0-d on the device."""
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
