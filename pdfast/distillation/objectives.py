"""The objectives: Algorithm 1 of the teacher, the rounds', and the fit before them.

Each is called with the model in training and a batch, of which it makes the noised images, and
gives the model's raw output with its loss. The arithmetic is in diffusion/angles.py.

A round merges r steps of the student that it starts from in one (r = 2: Algorithm 2). The target
is where two steps lead from t: one to m by y1, one on to the end s of the student's step by y2.

    first    second   m                      r    is
    teacher  teacher  halfway                2    progressive distillation (Salimans & Ho 2022)
    teacher  student  one fine step below t  any  TRACT (Berthelot et al. 2023), multistep
                                                  consistency distillation (Heek et al. 2024)
    data     student  one fine step below t  any  (multistep) consistency training
                                                  (Song et al. 2023)

With the student, t is any of the teacher's times, and the student learns to jump from each to the
end of its segment. Where m is that end already, y1 alone is the target. A round to one step, s = 0,
is consistency distillation. y1 of the data is that of the image and the noise that z_t was made of.

The fit is a first round, N -> N, of a student that cannot start as its teacher. A student of
another architecture is fitted to the teacher's output y, at the same z_t. So is one that predicts v
where the teacher predicts eps, whose low-SNR end cannot be distilled: there x-hat, and with it
v-hat = (eps-hat - sigma z_t) / alpha, divides by alpha, which a linear schedule of 1000 steps
brings down to 0.006. The target of v needs no division if the data's own x is put in,

    v* = alpha eps-hat - sigma x,

whose mean given z_t is alpha eps-hat - sigma E[x | z_t]: the teacher's prediction where it is good,
at high SNR, and the data's posterior mean, as in Algorithm 1, where it is not. The error of eps-hat
comes in times alpha <= 1.

A guided student (Meng et al. 2022, stage 1) is fitted to what its teacher predicts under
classifier-free guidance, of a weight drawn for each image, which is an input of the student's.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pdfast.config.names import First, Second
from pdfast.config.schema import EngineConfig, LossWeight, Parameterization
from pdfast.diffusion.angles import (
    Loss,
    Noised,
    combine,
    data_loss,
    ddim_step,
    distill_loss,
    prediction,
)
from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.schedules import Grid, fine_grid, logsnr_of, next_angle
from pdfast.distributed.device import side_stream
from pdfast.kernels.angles import divide
from pdfast.models.guidance import guided_out
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.update import ObjectiveOutput

MOST_TABULATED = 1024  # steps of a teacher whose FiLM parameters are kept in a table
# By the parameterization of a network, that of its prediction y.
Y_OF: dict[Parameterization, Parameterization] = {"x": "x", "eps": "eps", "v": "v", "x_eps": "v"}


class DataObjective:
    """Predict the clean image from z_t = alpha x + sigma eps (Algorithm 1)."""

    num_steps = merged = 0
    ahead = 0
    evaluations = 0
    carried: Sequence[Tensor] = ()
    teacher: Model | None = None

    def __init__(self, weight: LossWeight) -> None:
        self.weight = weight

    def begin(self, batch: Batch) -> None:
        """Nothing is carried from update to update."""

    def __call__(self, model: Model, batch: Batch) -> ObjectiveOutput:
        """Algorithm 1, from the draw of u ~ U(0, 1) to the loss."""
        times = model.schedule.grid(0, model.device)
        draw, conditioning = batch.noised(times, 0, model.parameterization)
        assert draw.y is not None
        if model.training:
            conditioning = dataclasses.replace(conditioning, dropout_rng=batch.dropout_rng())
        out = model.forward_at_angle(draw.z_in, draw.phi_t, conditioning)
        return ObjectiveOutput(
            out, data_loss(out, draw.y, draw.phi_t, model.parameterization, self.weight)
        )


class Rollout:
    """The objective of one round: predict in one step where two steps lead; see above."""

    ahead = 0
    carried: Sequence[Tensor] = ()

    def __init__(
        self,
        teacher: Model,
        num_steps: int,
        weight: LossWeight,
        engine: EngineConfig = EngineConfig(),  # noqa: B008  # frozen
        *,
        first: First = "teacher",
        second: Second = "teacher",
        merged: int = 2,
        huber_c: float = 0.0,
    ) -> None:
        """`num_steps` is N, the student's; the teacher has N `merged`.

        `huber_c` above 0: c of the pseudo-Huber loss. Raises ValueError where the teacher would
        have to take the second of other than two steps.
        """
        if second == "teacher" and merged != 2:
            raise ValueError(f"the teacher takes the second of two steps, not of {merged}")
        self.teacher, self.num_steps, self.weight = teacher, num_steps, weight
        self._first, self._second, self._merged, self._huber_c = first, second, merged, huber_c
        self.evaluations = 1 if first == "data" else 2
        self._grid = self._times()
        self._stream: torch.cuda.Stream | None = None
        if engine.teacher_stream and teacher.device.type == "cuda":
            self._stream = side_stream(teacher.device, "teacher")
        self._tabulates = (
            engine.tabulate_film and not teacher.num_classes and "teacher" in (first, second)
        )
        small = merged * num_steps <= MOST_TABULATED
        self._films = self._tabulate() if self._tabulates and small else None

    @property
    def merged(self) -> int:
        """r where the student takes the second step, otherwise 0; see `NoiseOptions.merged`."""
        return self._merged if self._second == "student" else 0

    def _times(self) -> Grid:
        return fine_grid(self.teacher.schedule, self._merged * self.num_steps, self.teacher.device)

    @property
    def serves_later_rounds(self) -> bool:
        """Whether `rearm` can take it to a round of fewer steps: not with tables, of N's size."""
        return not self._tabulates

    def rearm(self, num_steps: int, merged: int) -> None:
        """Take the round to `num_steps`, fewer than before, in the tensors that are there.

        The teacher's weights are for the caller to replace, in place too.
        """
        assert self.serves_later_rounds
        self.num_steps, self._merged = num_steps, merged
        if isinstance(self._grid, Tensor):
            grid = self._times()
            assert isinstance(grid, Tensor)
            self._grid[: len(grid)].copy_(grid)
            self._grid[len(grid) :].fill_(torch.inf)  # which is searched as a whole

    def begin(self, batch: Batch) -> None:
        """Nothing is carried from update to update."""

    def __call__(self, student: Model, batch: Batch) -> ObjectiveOutput:
        """The loss of one step against two, from the draw of t on; see diffusion/angles.py."""
        draw, conditioning = self._noised(batch)
        z_t, phi_t, phi_mid = draw.z_t, draw.phi_t, draw.phi_mid
        with self._beside(), torch.no_grad():  # two DDIM steps, unclipped
            predicted = self.teacher.parameterization
            if draw.y is None:
                first = self._teacher_at(draw.z_in, phi_t, conditioning)
                z_mid = ddim_step(z_t, first, phi_t, phi_mid, predicted, batch.dtype)
            else:
                first = draw.y
                z_mid = ddim_step(z_t, first, phi_t, phi_mid, Y_OF[predicted], batch.dtype)
            second = self._teacher_at if self._second == "teacher" else student.forward_at_angle
            out_mid = second(z_mid.z_in, phi_mid, conditioning)
        out = student.forward_at_angle(draw.z_in, phi_t, conditioning)
        self._join()
        steps = (z_t, first, out_mid, phi_t, phi_mid, draw.is_last_step)
        return ObjectiveOutput(out, self._loss(out, *steps, draw.phi_next))

    def _noised(self, batch: Batch) -> tuple[Noised, Conditioning]:
        """The batch at the round's times."""
        grid = self._grid
        if isinstance(grid, Tensor) and batch.phase is None:
            grid = grid[: self._merged * self.num_steps + 1]
        of_data = self.teacher.parameterization if self._first == "data" else None
        return batch.noised(grid, self.num_steps, of_data, self.merged)

    def _loss(
        self,
        out: Tensor,
        z_t: Tensor,
        first: Tensor,
        out_mid: Tensor,
        phi_t: Tensor,
        phi_mid: Tensor,
        is_last_step: Tensor,
        phi_next: Tensor | None,
    ) -> Loss:
        """The student's loss against two steps, the second of which ends at `phi_next`.

        None: half a step of the student's grid below phi_mid.
        """
        if phi_next is None:
            phi_next = next_angle(self._grid, phi_t)
        steps = (z_t, first, out_mid, phi_t, phi_mid, is_last_step)
        return distill_loss(
            out, *steps, self.teacher.parameterization, self.weight, phi_next, self._huber_c
        )

    # -- options of the engine -------------------------------------------------------------

    def _teacher_at(self, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
        """The teacher's raw output, its FiLM parameters from the table where there is one."""
        if self._films is not None:
            u = self.teacher.schedule.u(logsnr_of(phi))
            row = (u * (self._merged * self.num_steps)).round().long() - 1
            conditioning = dataclasses.replace(conditioning, films=self._films[row])
        return self.teacher.forward_at_angle(z, phi, conditioning)

    @torch.no_grad()
    def _tabulate(self) -> Tensor:
        """FiLM parameters of all blocks at each of the teacher's times: a row each."""
        steps, teacher = self._merged * self.num_steps, self.teacher
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


class Fit:
    """Predict what the teacher predicts, at the times of a sampler of N steps."""

    ahead = 0
    carried: Sequence[Tensor] = ()

    merged = 0

    def __init__(
        self,
        teacher: Model,
        num_steps: int,
        weight: LossWeight,
        huber_c: float = 0.0,
        *,
        guides: bool = False,
    ) -> None:
        """`guides`: the teacher is evaluated with the class and without, for a guided student."""
        self.teacher, self.num_steps, self.weight = teacher, num_steps, weight
        self._huber_c, self.evaluations = huber_c, 2 if guides else 1
        self._grid = teacher.schedule.grid(num_steps, teacher.device)

    def begin(self, batch: Batch) -> None:
        """Nothing is carried from update to update."""

    def __call__(self, student: Model, batch: Batch) -> ObjectiveOutput:
        """The loss of `train` with the teacher in the data's place."""
        moved = self.teacher.parameterization != student.parameterization  # from eps to v
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
                y = prediction(out, phi, self.teacher.parameterization)
        out = student.forward_at_angle(draw.z_in, phi, conditioning)
        loss = data_loss(out, y, phi, student.parameterization, self.weight, self._huber_c)
        return ObjectiveOutput(out, loss)
