"""Training a teacher: Algorithm 1 in continuous time, u ~ U(0, 1)."""

import torch

from pdfast import checkpoint
from pdfast.config import Config
from pdfast.data import Dataset
from pdfast.draws import Draws, Stream, uniform_of
from pdfast.engine import Batch, Problem, fit
from pdfast.method import add_noise, data_target
from pdfast.model import Model
from pdfast.run import Run

ROUND = 0  # the teacher's number in the metrics and in the draws


def data_objective(model: Model, batch: Batch) -> Problem:
    """Predict the clean image from z_t = alpha x + sigma eps (Algorithm 1)."""
    phi = model.schedule.phi(uniform_of(batch.time[:, 0], batch.time[:, 1]))
    z_t = add_noise(batch.x, batch.eps, phi)
    y_target = data_target(batch.x, batch.eps, phi, model.head)
    return Problem(model.at(z_t, phi, batch.label), y_target, phi)


def new_model(config: Config, device: torch.device) -> Model:
    """A model with the initial weights of the config's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(Draws(config.seed, Stream.INIT).torch_seed(0))
        return Model(config.model).to(device)


def train_teacher(run: Run, data: Dataset, device: torch.device) -> Model:
    """The run's teacher: loaded if it is finished, else trained (or resumed) and saved."""
    if run.has(run.teacher_dir):
        run.clear_states(ROUND)
        return checkpoint.load_model(run.teacher_dir, device)
    model = new_model(run.config, device)
    num_params = sum(p.numel() for p in model.parameters())
    run.screen.say(
        f"teacher: {num_params:,} parameters, {run.config.train.updates} updates, "
        f"{len(data)} images"
    )
    result = fit(model, data_objective, run.config.train, data, run, ROUND, "teacher")
    # Logged before the model is there: a run cut off in between does the phase's end again.
    run.log(round=ROUND, **result.as_metrics())
    checkpoint.save_model(model, run.teacher_dir, seed=run.config.seed)
    run.clear_states(ROUND)
    run.screen.say(
        f"teacher: held loss {result.loss_start:.4g} -> {result.loss_end:.4g}, "
        f"saved to {run.teacher_dir}"
    )
    return model
