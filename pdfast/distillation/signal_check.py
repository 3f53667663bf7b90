"""What a round has to learn, beside the rounding of the networks that teach it.

A student of many steps starts almost where its teacher would take it. Where the difference is
smaller than the rounding of the networks' outputs, a round at that precision teaches noise.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.diffusion.angles import combine, ddim_step, loss_weight, prediction, target
from pdfast.diffusion.schedules import next_angle
from pdfast.models.model import Model
from pdfast.training import precision
from pdfast.training.batch import Batch


class Signal(NamedTuple):
    """What the first update of a round sees, in v: medians over a fixed batch's images of the root
    mean square over pixels. (A mean would be that of the rare image at i = 0.)
    """

    signal: float
    """Of v_target - v_student, evaluated exactly enough."""
    rounding: float | None
    """Of what the networks' precision changes in that difference; None where it is not known."""

    @property
    def ratio(self) -> float:
        """Signal over rounding."""
        return self.signal / self.rounding if self.rounding else float("inf")


@torch.no_grad()
def measure(teacher: Model, low: Model, num_steps: int, batch: Batch) -> Signal:
    """The signal of the round to N = `num_steps`, whose student starts as its teacher.

    `low` is the teacher in the networks' precision. It is compared with the teacher in float32
    where that is bfloat16 or TF32, and in float64 where it is float32, if it computes in that.
    """
    grid = teacher.schedule.grid(num_steps, teacher.device)
    draw, conditioning = batch.noised(grid, num_steps)
    phi_next = next_angle(grid, draw.phi_t)

    def difference(model: Model) -> Tensor:
        """v_target - v_student of every pixel."""
        parameterization, dtype, z_t = (
            model.parameterization,
            model.net_dtype,
            draw.z_t.to(model.dtype),
        )
        out_t = model.forward_at_angle(z_t, draw.phi_t, conditioning)
        z_mid = ddim_step(z_t, out_t, draw.phi_t, draw.phi_mid, parameterization, dtype)
        out_mid = model.forward_at_angle(z_mid.z_in, draw.phi_mid, conditioning)
        outs = (out_t.to(z_t), out_mid.to(z_t))
        y_target = target(
            z_t, *outs, draw.phi_t, draw.phi_mid, draw.is_last_step, parameterization, phi_next
        )
        to_v = loss_weight(draw.phi_t, parameterization, "v_mse").sqrt()
        return combine((to_v, y_target - prediction(outs[0], draw.phi_t, parameterization)))

    found = difference(low)
    coarse = low.net_dtype == torch.bfloat16 or precision.rounds_to_tf32(low)
    if not coarse and not low.in_double:
        return Signal(_typical(found), None)
    with precision.without_tf32():
        expected = difference(teacher if coarse else copy.deepcopy(teacher).double())
    return Signal(_typical(expected), _typical(found.to(expected) - expected))


def _typical(difference: Tensor) -> float:
    """Median over images of the root mean square."""
    return float(difference.double().square().flatten(1).mean(1).sqrt().median())
