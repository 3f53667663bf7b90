"""Choose a round's student among its raw weights and their averages.

It is the one whose samples are nearest to the teacher's from the same noise. Teacher and candidate
go down as many of the student's steps, J of its N, from the same z on the round's grid: the teacher
by its own r J steps, or by fewer that divide them where these are more than 256, unclipped DDIM as
in learning. The distance is the mean square of the difference of where they end, over 128 images
that are the same for all candidates, so that the noise cancels in every comparison.

A student of at most 8 steps goes all the way, from pure noise, as a sampler does. One of more steps
is compared over 8 of them, which begin at images diffused to times spread evenly over its grid.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config.schema import Config
from pdfast.data.dataset import Dataset
from pdfast.diffusion.angles import ddim_step, diffuse, predict_x
from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.rng import Draws, Stream
from pdfast.distributed import collectives
from pdfast.errors import PdfastError
from pdfast.kernels.add_noise import to_float
from pdfast.kernels.angles import divide
from pdfast.models.guidance import guided_out
from pdfast.models.model import Model
from pdfast.training.batch import open_batch
from pdfast.training.optimizer import Optimizer

IMAGES, PARTS = 128, 2  # 64 images at a time
MOST_STEPS = 8  # of the student, that are compared
MOST_OF_TEACHER = 256  # steps in the place of these: more lead to nearly the same end


@dataclass(frozen=True)
class Choice:
    """A round's candidates, and how far each is from the teacher."""

    distances: dict[float, float]
    """By the decay of an average; the raw weights' is 0."""
    evaluations: int
    """Of a network for one image, that finding them took."""

    @property
    def chosen(self) -> float:
        """The decay of the nearest, 0 for the raw weights; of equals the first."""
        return min(self.distances, key=lambda decay: _finite_first(self.distances[decay]))

    def as_metrics(self) -> dict[str, float]:
        """What the line of metrics that ends a round says of it."""
        known = {k: value for k, value in self.distances.items() if math.isfinite(value)}
        return {
            "chosen": self.chosen,
            **{f"distance_{decay or 'raw'}": value for decay, value in known.items()},
            "choice_evaluations": self.evaluations,
        }

    def text(self) -> str:
        """The choice in words."""
        said = (f"{name_of(k)} {value:.5g}" for k, value in self.distances.items())
        return f"{name_of(self.chosen)} chosen by distance from the teacher ({', '.join(said)})"


def name_of(decay: float) -> str:
    """What a candidate is called."""
    return f"EMA {decay:g}" if decay else "raw"


def _finite_first(distance: float) -> float:
    return distance if math.isfinite(distance) else math.inf


def steps_compared(num_steps: int) -> int:
    """How many steps of a student of so many are compared with its teacher's."""
    return min(num_steps, MOST_STEPS)


def teachers_steps(compared: int, merged: int) -> int:
    """How many steps the teacher takes for each of the `compared` ones, of the `merged` it has."""
    most = max(1, MOST_OF_TEACHER // compared)
    return max(n for n in range(1, min(merged, most) + 1) if merged % n == 0)


def choice_evaluations(num_steps: int, merged: int, averages: int, calls: int = 1) -> int:
    """Evaluations, of one image each, that the choice after a round takes.

    The student has `num_steps`, each of which stands for `merged` of its teacher's; its candidates
    are so many averages and the raw weights. Without averages there is no choice. `calls`: of the
    teacher in a step of its own, two where it is guided.
    """
    compared = steps_compared(num_steps)
    each = teachers_steps(compared, merged) * calls + 1 + averages
    return IMAGES * compared * each if averages else 0


def choose(
    optimizer: Optimizer,
    student: Model,
    teacher: Model,
    data: Dataset,
    config: Config,
    round_: int,
) -> Choice:
    """Give the student of a finished round the best of its optimizer's candidates.

    `teacher` is the round's, in the networks' precision; that of the student is the optimizer's.
    The first process chooses for all. Raises PdfastError if no candidate's samples are finite.
    """
    steps, distill, candidates = student.steps, config.distill, optimizer.candidates()
    merged = 1 if steps == distill.start_steps else distill.merged(steps)  # 1: of a first fit

    def by_the_first() -> list[float]:
        student.eval()
        parts = list(_starts(student, data, config, round_))
        finer = teachers_steps(steps_compared(steps), merged)
        goals = [ends(teacher, part, steps, finer) for part in parts]
        found = []
        for weights in candidates.values():
            optimizer.use(weights)
            pairs = zip(parts, goals, strict=True)
            sums = [(ends(student, part, steps) - goal).double().square() for part, goal in pairs]
            found.append(float(torch.cat(sums).mean()))
        return found

    distances = dict(zip(candidates, collectives.from_first(by_the_first), strict=True))
    if not any(map(math.isfinite, distances.values())):
        raise PdfastError(
            f"round {round_}: the samples of the raw weights and of all averages are not finite; "
            "start again with a lower learning rate and another --out (finished models are whole)"
        )
    calls = 2 if student.guidance and not teacher.guidance else 1
    choice = Choice(distances, choice_evaluations(steps, merged, len(candidates) - 1, calls))
    optimizer.use(candidates[choice.chosen])
    return choice


class Start(NamedTuple):
    """Images that a comparison begins at."""

    z: Tensor
    """(B, C, H, W), in the dtype of the student."""
    step: Tensor
    """int64 (B,): k of u = k / N, at which each is."""
    conditioning: Conditioning


def _starts(student: Model, data: Dataset, config: Config, round_: int) -> Iterator[Start]:
    """The fixed batch's images, noise and classes, at times of the student's grid."""
    fixed = dataclasses.replace(config.distill, batch=IMAGES, accumulate=1)
    batch, source = open_batch(config, fixed, data, student, round_, fixed=True)
    steps, device = student.steps, student.device
    draws = Draws(config.seed, Stream.FIXED_NOISE, round_, device)
    grid, compared = student.schedule.grid(steps, device), steps_compared(steps)
    with closing(source):
        source.load(0)
        for part in (batch.part(n, PARTS) for n in range(PARTS)):
            drawn, conditioning = part.noised(grid, steps)
            z = draws.normal(0, part.first, part.size, student.image_shape)
            place = torch.arange(part.first, part.first + part.size, device=device)
            step = compared + (place * (steps - compared) + (IMAGES - 1) // 2) // (IMAGES - 1)
            if steps > compared:
                images = part.images if part.population else part.images[drawn.chosen]
                phi = student.schedule.phi(divide(step.double(), steps))
                z = diffuse(to_float(images.permute(0, 3, 1, 2)), z, phi)
            yield Start(z.to(student.dtype), step, conditioning)


@torch.no_grad()
def ends(model: Model, start: Start, num_steps: int, merged: int = 1) -> Tensor:
    """Where a model's DDIM steps lead, in place of those of a student of `num_steps`.

    The model takes `merged` for each of the student's. Like a sampler's, the step to u = 0 gives
    x-hat itself.
    """
    z, fine = start.z, num_steps * merged
    z_in, place = z, start.step * merged
    for left in reversed(range(steps_compared(num_steps) * merged)):
        phi, following = model.schedule.phi(divide(place.double(), fine)), place - 1
        is_last = following == 0  # of the sampler; where the next angle is of no use
        phi_next = model.schedule.phi(divide(torch.where(is_last, place, following).double(), fine))
        out = _output(model, z_in, phi, start.conditioning)
        step = ddim_step(z, out, phi, phi_next, model.parameterization, model.net_dtype)
        if not left:
            x_hat = predict_x(z, out.to(z), phi, model.parameterization)
            return torch.where(is_last[:, None, None, None], x_hat, step.z)
        z, z_in, place = step.z, step.z_in, following
    raise AssertionError("a student has at least one step")


def _output(model: Model, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
    """A model's raw output, guided where the student is told a weight and the model takes none."""
    told_both = conditioning.label is not None and conditioning.guidance is not None
    if told_both and not model.guidance:
        return guided_out(model, z, phi, conditioning)
    return model.forward_at_angle(z, phi, conditioning)
