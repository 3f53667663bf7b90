"""The objective of progressive distillation, Algorithm 2, and ways to make its teacher cheap."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pdfast.config.schema import EngineConfig, LoopConfig, LossWeight
from pdfast.diffusion.angles import Noised, ddim_step, distill_loss
from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.schedules import logsnr_of, next_angle
from pdfast.distributed.device import side_stream
from pdfast.kernels.angles import divide
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.loop import Problem

MOST_TABULATED = 1024  # steps of a teacher whose FiLM parameters are kept in a table


class Rollout:
    """The objective of one round: predict in one step where the teacher's two steps lead."""

    ahead = 0
    carried: Sequence[Tensor] = ()

    def __init__(
        self,
        teacher: Model,
        num_steps: int,
        weight: LossWeight,
        engine: EngineConfig = EngineConfig(),  # noqa: B008  # frozen
    ) -> None:
        """`num_steps` is N, the student's; the teacher has 2N."""
        self.teacher, self.num_steps, self.weight = teacher, num_steps, weight
        self._grid = teacher.schedule.grid(num_steps, teacher.device)
        self._stream: torch.cuda.Stream | None = None
        if engine.teacher_stream and teacher.device.type == "cuda":
            self._stream = side_stream(teacher.device, "teacher")
        small = 2 * num_steps <= MOST_TABULATED and not teacher.num_classes
        self._films = self._tabulate() if engine.tabulate_film and small else None

    def begin(self, batch: Batch) -> None:
        """Nothing is carried from update to update."""

    def __call__(self, student: Model, batch: Batch) -> Problem:
        """Algorithm 2, from the draw of i ~ U{0 .. N-1} to the loss; see diffusion/angles.py."""
        N, head = self.num_steps, self.teacher.head  # noqa: N806
        draw, conditioning = batch.noised(self._grid, N)
        z_t, phi_t, phi_mid = draw.z_t, draw.phi_t, draw.phi_mid
        with self._beside(), torch.no_grad():  # two DDIM steps of the teacher, unclipped
            out_t = self._teacher_at(draw.z_in, phi_t, conditioning)
            z_mid = ddim_step(z_t, out_t, phi_t, phi_mid, head, batch.dtype)
            out_mid = self._teacher_at(z_mid.z_in, phi_mid, conditioning)
        out = student.forward_at_angle(draw.z_in, phi_t, conditioning)
        self._join()
        phi_next = next_angle(self._grid, phi_t)
        args = (z_t, out_t, out_mid, phi_t, phi_mid, draw.is_last_step, head, self.weight, phi_next)
        return Problem(out, distill_loss(out, *args))

    # -- options of the engine -------------------------------------------------------------

    def _teacher_at(self, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
        """The teacher's raw output, its FiLM parameters from the table where there is one."""
        if self._films is not None:
            u = self.teacher.schedule.u(logsnr_of(phi))
            row = (u * (2 * self.num_steps)).round().long() - 1
            conditioning = replace(conditioning, films=[table[row] for table in self._films])
        return self.teacher.forward_at_angle(z, phi, conditioning)

    @torch.no_grad()
    def _tabulate(self) -> list[Tensor]:
        """FiLM parameters (2N, 2C) of every block at u = 1/2N, 2/2N, ... 1."""
        steps, teacher = 2 * self.num_steps, self.teacher
        k = torch.arange(1, steps + 1, dtype=torch.float64, device=teacher.device)
        return teacher.films_at_angle(teacher.schedule.phi(divide(k, steps)))

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """The block's work on the teacher's stream, beside what follows, up to `_join`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def _join(self) -> None:
        """What follows comes after the teacher's stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class Pipelined(Rollout):
    """The same objective with one call of the teacher: at t_mid of a batch and t of the next.

    The teacher is frozen, so its first step of a batch needs nothing of the update before. What is
    carried are the next batch's draws and the teacher's output at them.
    """

    ahead = 1

    def begin(self, batch: Batch) -> None:
        """The teacher's first step of the first batch."""
        draw, conditioning = batch.noised(self._grid, self.num_steps)
        out = self._both(draw.z_in, draw.phi_t, conditioning, draw, conditioning)[1]
        self.carried = [t.clone() for t in self._carry(draw, conditioning, out)]

    def __call__(self, student: Model, batch: Batch) -> Problem:
        """As in Rollout, the teacher's two steps taken in different calls."""
        if batch.fixed:
            return super().__call__(student, batch)
        head = self.teacher.head
        z_t, z_in, phi_t, phi_mid, is_last_step, out_t, *rest = (t.clone() for t in self.carried)
        ahead, told_ahead = batch.next().noised(self._grid, self.num_steps)
        conditioning = told_ahead.with_tensors(rest)
        with self._beside():
            z_mid = ddim_step(z_t, out_t, phi_t, phi_mid, head, batch.dtype)
            out_mid, out_ahead = self._both(z_mid.z_in, phi_mid, conditioning, ahead, told_ahead)
        out = student.forward_at_angle(z_in, phi_t, conditioning)
        self._join()
        for kept, new in zip(self.carried, self._carry(ahead, told_ahead, out_ahead), strict=True):
            kept.copy_(new)
        phi_next = next_angle(self._grid, phi_t)
        args = (z_t, out_t, out_mid, phi_t, phi_mid, is_last_step, head, self.weight, phi_next)
        return Problem(out, distill_loss(out, *args))

    @torch.no_grad()
    def _both(
        self,
        z_mid: Tensor,
        phi_mid: Tensor,
        conditioning: Conditioning,
        ahead: Noised,
        told_ahead: Conditioning,
    ) -> tuple[Tensor, Tensor]:
        """The teacher's raw outputs at t_mid of one batch and at t of the one ahead."""
        z, phi = torch.cat([z_mid, ahead.z_in]), torch.cat([phi_mid, ahead.phi_t])
        out = self._teacher_at(z, phi, conditioning.joined(told_ahead))
        return out[: len(z_mid)], out[len(z_mid) :]

    @staticmethod
    def _carry(draw: Noised, conditioning: Conditioning, out: Tensor) -> list[Tensor]:
        """What the next update needs of a batch."""
        kept = [draw.z_t, draw.z_in, draw.phi_t, draw.phi_mid, draw.is_last_step, out]
        return [*kept, *conditioning.tensors()]


def rollout(teacher: Model, num_steps: int, cfg: LoopConfig, engine: EngineConfig) -> Rollout:
    """The objective of the round to `num_steps`, as the config would have it run."""
    kind = Pipelined if engine.pipeline_teacher else Rollout
    return kind(teacher, num_steps, cfg.loss_weight, engine)
