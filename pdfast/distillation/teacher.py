"""Training a teacher: Algorithm 1 in continuous time, u ~ U(0, 1)."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pdfast.config.schema import Config, LossWeight
from pdfast.data.dataset import Dataset
from pdfast.diffusion.angles import data_loss
from pdfast.diffusion.rng import Draws, Stream
from pdfast.models import backends
from pdfast.models.model import Model
from pdfast.training.batch import Batch
from pdfast.training.loop import Problem, fit
from pdfast.training.model_run import ModelRun

ROUND = 0  # the teacher's number in the metrics and in the draws


class DataObjective:
    """Predict the clean image from z_t = alpha x + sigma eps (Algorithm 1)."""

    ahead = 0
    carried: Sequence[Tensor] = ()
    teacher: Model | None = None

    def __init__(self, weight: LossWeight) -> None:
        self.weight = weight

    def begin(self, batch: Batch) -> None:
        """Nothing is carried from update to update."""

    def __call__(self, model: Model, batch: Batch) -> Problem:
        """Algorithm 1, from the draw of u ~ U(0, 1) to the loss."""
        times = model.schedule.grid(0, model.device)
        draw, conditioning = batch.noised(times, 0, model.head)
        assert draw.y is not None
        if model.training:
            conditioning = dataclasses.replace(conditioning, dropout_rng=batch.dropout_rng())
        out = model.forward_at_angle(draw.z_in, draw.phi_t, conditioning)
        return Problem(out, data_loss(out, draw.y, draw.phi_t, model.head, self.weight))


def new_model(config: Config, device: torch.device) -> Model:
    """A model with the initial weights of the config's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(Draws(config.seed, Stream.INIT).torch_seed(0))
        return Model(config.model).to(device)


def train_teacher(run: ModelRun, data: Dataset, device: torch.device) -> Model:
    """The run's teacher: loaded if it is finished, else trained (or resumed) and saved."""
    if run.has(run.teacher_dir):
        run.clear_states(ROUND)
        return backends.select(run.load(run.teacher_dir, device), run.config.backends)
    if run.networks.teacher is not None:
        model: Model = run.networks.teacher.copy().to(device)
    else:
        config = dataclasses.replace(run.config, model=run.config.model.unguided())
        model = backends.select(new_model(config, device), run.config.backends)
    if run.students():
        run.screen.warn(
            f"{run.teacher_dir}, the teacher of the rounds that are there, is gone: it is trained "
            "again; stop here to put it back"
        )
    num_params = sum(p.numel() for p in model.parameters())
    run.screen.say(
        f"teacher: {num_params:,} parameters, {run.config.train.updates} updates, "
        f"{data.num_trained} images"
    )
    cfg = run.config.train
    objective = DataObjective(cfg.loss_weight)
    result = fit(model, objective, cfg, data, run, ROUND, "teacher")
    # Logged before the model is there: a run cut off in between does the phase's end again.
    run.log(round=ROUND, **result.as_metrics())
    run.save_model(model, run.teacher_dir, seed=run.config.seed)
    run.clear_states(ROUND)
    run.screen.say(f"teacher: {result.text()}, saved to {run.teacher_dir}")
    return model
