"""The signal that a round has to learn, compared with the rounding of its networks.

A student of many steps starts out almost equal to its target. If the difference is smaller than the
rounding of the networks' outputs, a round at that precision learns noise.
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
    """Signal and rounding of a round's first update, in v.

    Both are medians over the images of a fixed batch of the root mean square over pixels. (A mean
    would be dominated by the rare image at i = 0.)
    """

    signal: float
    """Size of v_target - v_student, evaluated in a finer precision."""
    rounding: float | None
    """Size of the error of that difference in the networks' precision; None if unknown."""

    @property
    def ratio(self) -> float:
        """Signal over rounding."""
        return self.signal / self.rounding if self.rounding else float("inf")


@torch.no_grad()
def measure(teacher: Model, low: Model, num_steps: int, batch: Batch) -> Signal:
    """Measure the signal of the round to N = `num_steps`, whose student starts as its teacher.

    `low` is compared with the teacher in float32 if its precision is bfloat16 or TF32, and in
    float64 if it is float32 and the network can compute in float64.

    Args:
        teacher: The round's teacher.
        low: The same in the networks' precision.
        num_steps: N, the student's sampling steps.
        batch: The fixed batch.
    """
    grid = teacher.schedule.grid(num_steps, teacher.device)
    draw, conditioning = batch.noised(grid, num_steps)
    phi_next = next_angle(grid, draw.phi_t)

    def difference(model: Model) -> Tensor:
        """Return v_target - v_student for every pixel."""
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
    """Return the median over images of the root mean square over pixels."""
    return float(difference.double().square().flatten(1).mean(1).sqrt().median())
