"""Algorithm 2 with one call of the teacher per update, and the choice of a round's objective."""

import torch
from torch import Tensor

from pdfast.config.schema import DistillConfig, EngineConfig
from pdfast.diffusion.angles import Noised, ddim_step
from pdfast.diffusion.conditioning import Conditioning
from pdfast.distillation.objectives import Rollout
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.update import ObjectiveOutput


class Pipelined(Rollout):
    """Rollout with one call of the teacher per update: at t_mid of a batch and at t of the next.

    The teacher is frozen, so its first step for a batch does not depend on earlier updates. The
    next batch's draws and the teacher's output at them are carried from one update to the next.
    """

    ahead = 1

    def begin(self, batch: Batch) -> None:
        """Carry the teacher's first step for the first batch."""
        draw, conditioning = self._noised(batch)
        out = self._both(draw.z_in, draw.phi_t, conditioning, draw, conditioning)[1]
        new = self._carry(draw, conditioning, out)
        if not self.carried:
            self.carried = [t.clone() for t in new]
        for kept, tensor in zip(self.carried, new, strict=True):
            kept.copy_(tensor)

    def __call__(self, student: Model, batch: Batch) -> ObjectiveOutput:
        """Return what Rollout does, with the teacher's two steps taken in different updates."""
        if batch.fixed:
            return super().__call__(student, batch)
        predicted = self.teacher.parameterization
        z_t, z_in, phi_t, phi_mid, is_last_step, out_t, *rest = (t.clone() for t in self.carried)
        ahead, told_ahead = self._noised(batch.next())
        conditioning = told_ahead.with_tensors(rest)
        with self._beside():
            z_mid = ddim_step(z_t, out_t, phi_t, phi_mid, predicted, batch.dtype)
            out_mid, out_ahead = self._both(z_mid.z_in, phi_mid, conditioning, ahead, told_ahead)
        out = student.forward_at_angle(z_in, phi_t, conditioning)
        self._join()
        for kept, new in zip(self.carried, self._carry(ahead, told_ahead, out_ahead), strict=True):
            kept.copy_(new)
        steps = (z_t, out_t, out_mid, phi_t, phi_mid, is_last_step)
        return ObjectiveOutput(out, self._loss(out, *steps, None))

    @torch.no_grad()
    def _both(
        self,
        z_mid: Tensor,
        phi_mid: Tensor,
        conditioning: Conditioning,
        ahead: Noised,
        told_ahead: Conditioning,
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's raw outputs at t_mid of one batch and at t of the next."""
        z, phi = torch.cat([z_mid, ahead.z_in]), torch.cat([phi_mid, ahead.phi_t])
        out = self._teacher_at(z, phi, conditioning.joined(told_ahead))
        return out[: len(z_mid)], out[len(z_mid) :]

    @staticmethod
    def _carry(draw: Noised, conditioning: Conditioning, out: Tensor) -> list[Tensor]:
        """Return the tensors of a batch that the next update needs."""
        kept = [draw.z_t, draw.z_in, draw.phi_t, draw.phi_mid, draw.is_last_step, out]
        return [*kept, *conditioning.tensors()]


def rollout(teacher: Model, num_steps: int, cfg: DistillConfig, engine: EngineConfig) -> Rollout:
    """Return the objective of the round to `num_steps` steps that the config asks for."""
    kind = Pipelined if engine.pipeline_teacher else Rollout
    return kind(
        teacher,
        num_steps,
        cfg.loss_weight,
        engine,
        first=cfg.first,
        second=cfg.second,
        merged=cfg.merged(num_steps),
        huber_c=cfg.c_of_huber,
    )
