"""Objectives: Algorithm 1 for the teacher, Algorithm 2 for the rounds, and the fit before them.

An objective is called with the model in training and a batch. It draws noisy images from the batch
and returns the model's raw output with its loss. The arithmetic is in diffusion/angles.py.

A round merges r steps of its teacher into one step of the student, from t to s (r = 2: Algorithm 2
of Salimans & Ho 2022). The target of that step is where two DDIM steps end: from t to m with the
prediction y1 of `first`, then from m to s with the prediction y2 of `second`.

    first    second   m                      r    method
    teacher  teacher  halfway                2    progressive distillation (Salimans & Ho 2022)
    teacher  student  one fine step below t  any  TRACT (Berthelot et al. 2023), multistep
                                                  consistency distillation (Heek et al. 2024)
    data     student  one fine step below t  any  (multistep) consistency training
                                                  (Song et al. 2023)

If the student takes the second step, t is any of the teacher's times, and the student learns to
jump from each to the end of its segment. Where m already is that end, y1 alone is the target. A
round to one step, s = 0, is consistency distillation. If `first` is the data, y1 is computed from
the image and the noise of z_t.

The fit is a first round, N -> N, for a student that cannot start as its teacher. A student of
another architecture is fitted to the teacher's output y at the same z_t. A student that predicts v
is fitted to a teacher that predicts eps, since the low-SNR end of that teacher cannot be distilled:
there x-hat, and so v-hat = (eps-hat - sigma z_t) / alpha, divides by alpha, which is down to 0.006
for a linear schedule of 1000 steps. The target of v needs no division if it uses the x of the data,

    v* = alpha eps-hat - sigma x.

Its mean given z_t is alpha eps-hat - sigma E[x | z_t]: the teacher's prediction at high SNR, where
that is good, and the data's posterior mean, as in Algorithm 1, at low SNR. The error of eps-hat is
scaled by alpha <= 1.

A guided student (Meng et al. 2022, stage 1) is fitted to its teacher's prediction under
classifier-free guidance. The guidance weight is drawn for each image and is an input of the
student.
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

MOST_TABULATED = 1024  # most steps of a teacher whose FiLM parameters are kept in a table
# The parameterization of the prediction y, by that of the network.
Y_OF: dict[Parameterization, Parameterization] = {"x": "x", "eps": "eps", "v": "v", "x_eps": "v"}


class DataObjective:
    """Training on data: predict x from z_t = alpha x + sigma eps (Algorithm 1)."""

    num_steps = merged = 0
    ahead = 0
    evaluations = 0
    carried: Sequence[Tensor] = ()
    teacher: Model | None = None

    def __init__(self, weight: LossWeight) -> None:
        self.weight = weight

    def begin(self, batch: Batch) -> None:
        """Do nothing, as no tensors are carried from one update to the next."""

    def __call__(self, model: Model, batch: Batch) -> ObjectiveOutput:
        """Return the output and loss of Algorithm 1, with u ~ U(0, 1)."""
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
    """The objective of a round: match two steps with one (Algorithm 2; see the module)."""

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
        """Set up the round to `num_steps` steps.

        Args:
            teacher: The round's teacher, frozen; it has `num_steps` times `merged` steps.
            num_steps: N, the student's sampling steps.
            weight: Name of the loss weight.
            engine: Options of execution, which do not change the objective.
            first: What predicts y1.
            second: What predicts y2.
            merged: r, the teacher's steps in one of the student's.
            huber_c: c of the pseudo-Huber loss; 0 for the squared error.

        Raises:
            ValueError: The teacher takes the second step, and `merged` is not 2.
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
        """Return r if the student takes the second step, else 0; see `NoiseOptions.merged`."""
        return self._merged if self._second == "student" else 0

    def _times(self) -> Grid:
        return fine_grid(self.teacher.schedule, self._merged * self.num_steps, self.teacher.device)

    @property
    def serves_later_rounds(self) -> bool:
        """Whether `rearm` works: not with a table of FiLM parameters, whose size is fixed."""
        return not self._tabulates

    def rearm(self, num_steps: int, merged: int) -> None:
        """Reuse the objective and its tensors for a later round.

        The caller replaces the teacher's weights, also in place.

        Args:
            num_steps: The student's sampling steps, fewer than before.
            merged: r of the round.
        """
        assert self.serves_later_rounds
        self.num_steps, self._merged = num_steps, merged
        if isinstance(self._grid, Tensor):
            grid = self._times()
            assert isinstance(grid, Tensor)
            self._grid[: len(grid)].copy_(grid)
            self._grid[len(grid) :].fill_(torch.inf)  # keeps it sorted: all of it is searched

    def begin(self, batch: Batch) -> None:
        """Do nothing, as no tensors are carried from one update to the next."""

    def __call__(self, student: Model, batch: Batch) -> ObjectiveOutput:
        """Return the student's output and its loss against two steps, from newly drawn times."""
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
        """Return the noisy batch at times of the round, and its conditioning."""
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
        """Return the student's loss against two steps, the second of which ends at `phi_next`.

        `phi_next` None stands for the angle half a step of the student below `phi_mid`.
        """
        if phi_next is None:
            phi_next = next_angle(self._grid, phi_t)
        steps = (z_t, first, out_mid, phi_t, phi_mid, is_last_step)
        return distill_loss(
            out, *steps, self.teacher.parameterization, self.weight, phi_next, self._huber_c
        )

    # -- options of the engine -------------------------------------------------------------

    def _teacher_at(self, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the teacher's raw output, with FiLM parameters from the table if it exists."""
        if self._films is not None:
            u = self.teacher.schedule.u(logsnr_of(phi))
            row = (u * (self._merged * self.num_steps)).round().long() - 1
            conditioning = dataclasses.replace(conditioning, films=self._films[row])
        return self.teacher.forward_at_angle(z, phi, conditioning)

    @torch.no_grad()
    def _tabulate(self) -> Tensor:
        """Return a table with the FiLM parameters of all blocks, a row for each teacher's time."""
        steps, teacher = self._merged * self.num_steps, self.teacher
        k = torch.arange(1, steps + 1, dtype=torch.float64, device=teacher.device)
        return teacher.films_at_angle(teacher.schedule.phi(divide(k, steps)))

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Run the block on the teacher's stream, concurrently with later work until `_join`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def _join(self) -> None:
        """Make later work wait for the teacher's stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class Fit:
    """The objective of a first fit: match the teacher's prediction at the times of N steps."""

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
        """Set up the fit.

        Args:
            teacher: The teacher, frozen.
            num_steps: N, the sampling steps of teacher and student.
            weight: Name of the loss weight.
            huber_c: c of the pseudo-Huber loss; 0 for the squared error.
            guides: Whether the teacher is evaluated with and without the class, for a guided
                student.
        """
        self.teacher, self.num_steps, self.weight = teacher, num_steps, weight
        self._huber_c, self.evaluations = huber_c, 2 if guides else 1
        self._grid = teacher.schedule.grid(num_steps, teacher.device)

    def begin(self, batch: Batch) -> None:
        """Do nothing, as no tensors are carried from one update to the next."""

    def __call__(self, student: Model, batch: Batch) -> ObjectiveOutput:
        """Return the loss of Algorithm 1, with the teacher's prediction in place of the data."""
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
