"""The first round, N -> N, of a student that cannot start as its teacher.

A student of another architecture is fitted to the teacher's output y, at the same z_t. So is one
that predicts v where the teacher predicts eps, whose low-SNR end cannot be distilled: there x-hat,
and with it v-hat = (eps-hat - sigma z_t) / alpha, divides by alpha, which a linear schedule of 1000
steps brings down to 0.006. The target of v needs no division if the data's own x is put in,

    v* = alpha eps-hat - sigma x,

whose mean given z_t is alpha eps-hat - sigma E[x | z_t]: the teacher's prediction where it is good,
at high SNR, and the data's posterior mean, as in Algorithm 1, where it is not. The error of eps-hat
comes in times alpha <= 1.

A guided student (Meng et al. 2022, stage 1) is fitted to what its teacher predicts under
classifier-free guidance, of a weight drawn for each image, which is an input of the student's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pdfast.config.schema import LossWeight
from pdfast.diffusion.angles import combine, data_loss, prediction
from pdfast.models.guidance import guided_out
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.loop import Problem


class Fit:
    """Predict what the teacher predicts, at the times of a sampler of N steps."""

    ahead = 0
    carried: Sequence[Tensor] = ()

    def __init__(self, teacher: Model, num_steps: int, weight: LossWeight) -> None:
        self.teacher, self.num_steps, self.weight = teacher, num_steps, weight
        self._grid = teacher.schedule.grid(num_steps, teacher.device)

    def begin(self, batch: Batch) -> None:
        """Nothing is carried from update to update."""

    def __call__(self, student: Model, batch: Batch) -> Problem:
        """The loss of `train` with the teacher in the data's place."""
        moved = self.teacher.head != student.head  # from eps to v
        draw, conditioning = batch.noised(self._grid, self.num_steps, "x" if moved else None)
        phi = draw.phi_t
        told_both = conditioning.label is not None and conditioning.guidance is not None
        with torch.no_grad():
            if told_both and not self.teacher.guidance:
                out = guided_out(self.teacher, draw.z_in, phi, conditioning).to(draw.z_t)
            else:
                out = self.teacher.forward_at_angle(draw.z_in, phi, conditioning).to(draw.z_t)
            if moved:
                assert draw.y is not None
                y = combine((phi.cos(), out), (-phi.sin(), draw.y))
            else:
                y = prediction(out, phi, self.teacher.head)
        out = student.forward_at_angle(draw.z_in, phi, conditioning)
        return Problem(out, data_loss(out, y, phi, student.head, self.weight))
