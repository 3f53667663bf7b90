"""Choose a round's student among its raw weights and their averages.

The chosen candidate is the one whose samples are nearest to the teacher's from the same noise. Both
start from the same z on the round's grid and cover J of the student's N steps with unclipped DDIM,
as in training. The teacher takes its own r J steps, or a divisor of them if they are more than 256.
The distance is the mean squared difference of the end points over 128 images. All candidates get
the same images and noise, so that the noise cancels in the comparison.

A student of at most 8 steps is sampled in full, from pure noise. A student of more steps is
compared over 8 of them, which start from images diffused to times spread evenly over its grid.
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
MOST_STEPS = 8  # most steps of the student to compare
MOST_OF_TEACHER = 256  # most steps of the teacher over them: more end at nearly the same point


@dataclass(frozen=True)
class Choice:
    """The distance of each of a round's candidates from the teacher."""

    distances: dict[float, float]
    """Distance by the decay of the average; 0 stands for the raw weights."""
    evaluations: int
    """Network evaluations, of one image each, that the comparison took."""

    @property
    def chosen(self) -> float:
        """Decay of the nearest candidate, 0 for the raw weights; the first one in a tie."""
        return min(self.distances, key=lambda decay: _finite_first(self.distances[decay]))

    def as_metrics(self) -> dict[str, float]:
        """Return the fields of the choice in the metrics line that ends a round."""
        known = {k: value for k, value in self.distances.items() if math.isfinite(value)}
        return {
            "chosen": self.chosen,
            **{f"distance_{decay or 'raw'}": value for decay, value in known.items()},
            "choice_evaluations": self.evaluations,
        }

    def text(self) -> str:
        """Return a message on the choice."""
        said = (f"{name_of(k)} {value:.5g}" for k, value in self.distances.items())
        return f"{name_of(self.chosen)} chosen by distance from the teacher ({', '.join(said)})"


def name_of(decay: float) -> str:
    """Return the name of a candidate."""
    return f"EMA {decay:g}" if decay else "raw"


def _finite_first(distance: float) -> float:
    return distance if math.isfinite(distance) else math.inf


def steps_compared(num_steps: int) -> int:
    """Return how many of a student's `num_steps` steps are compared with its teacher."""
    return min(num_steps, MOST_STEPS)


def teachers_steps(compared: int, merged: int) -> int:
    """Return how many steps the teacher takes for each compared step of the student.

    Args:
        compared: Number of the student's steps that are compared.
        merged: Number of the teacher's steps that one of them stands for.

    Returns:
        The largest divisor of `merged` for which the teacher takes at most 256 steps.
    """
    most = max(1, MOST_OF_TEACHER // compared)
    return max(n for n in range(1, min(merged, most) + 1) if merged % n == 0)


def choice_evaluations(num_steps: int, merged: int, averages: int, calls: int = 1) -> int:
    """Return the network evaluations, of one image each, that the choice after a round takes.

    Args:
        num_steps: Sampling steps of the student.
        merged: Steps of its teacher that one of them stands for.
        averages: Number of averages; the raw weights are one more candidate. Without averages
            there is no choice.
        calls: Network calls in one step of the teacher; 2 if it is guided.
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
    """Load the best of the optimizer's candidates into the student of a finished round.

    The first process chooses for all.

    Args:
        optimizer: The round's optimizer, which holds the candidates.
        student: The round's student, whose weights are replaced; of the optimizer's precision.
        teacher: The round's teacher, in the networks' precision.
        data: The training data.
        config: The run's config.
        round_: Number of the round.

    Returns:
        The choice, with all distances.

    Raises:
        PdfastError: No candidate has finite samples.
    """
    steps, distill, candidates = student.steps, config.distill, optimizer.candidates()
    merged = 1 if steps == distill.start_steps else distill.merged(steps)  # 1: a first fit

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
    """Images that a comparison starts from."""

    z: Tensor
    """Noisy images (B, C, H, W), of the student's dtype."""
    step: Tensor
    """k of each image's time u = k / N, int64 (B,)."""
    conditioning: Conditioning


def _starts(student: Model, data: Dataset, config: Config, round_: int) -> Iterator[Start]:
    """Yield the images, noise and classes of the fixed batch, at times of the student's grid."""
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
    """Return the end points of a model's DDIM steps over the compared steps of a student.

    As in a sampler, the step to u = 0 returns x-hat itself.

    Args:
        model: The model to step with, the student or its teacher.
        start: Images and the steps they start from.
        num_steps: Sampling steps N of the student.
        merged: Steps of the model for each of the student's.

    Returns:
        Images (B, C, H, W), of the dtype of `start.z`.
    """
    z, fine = start.z, num_steps * merged
    z_in, place = z, start.step * merged
    for left in reversed(range(steps_compared(num_steps) * merged)):
        phi, following = model.schedule.phi(divide(place.double(), fine)), place - 1
        is_last = following == 0  # the sampler's last step, where phi_next is not used
        phi_next = model.schedule.phi(divide(torch.where(is_last, place, following).double(), fine))
        out = _output(model, z_in, phi, start.conditioning)
        step = ddim_step(z, out, phi, phi_next, model.parameterization, model.net_dtype)
        if not left:
            x_hat = predict_x(z, out.to(z), phi, model.parameterization)
            return torch.where(is_last[:, None, None, None], x_hat, step.z)
        z, z_in, place = step.z, step.z_in, following
    raise AssertionError("a student has at least one step")


def _output(model: Model, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
    """Return the raw output, guided if a weight is given that the model does not take as input."""
    told_both = conditioning.label is not None and conditioning.guidance is not None
    if told_both and not model.guidance:
        return guided_out(model, z, phi, conditioning)
    return model.forward_at_angle(z, phi, conditioning)
