"""Training of the teacher: Algorithm 1 in continuous time, u ~ U(0, 1)."""

import dataclasses

import torch

from pdfast.config.model import attention_note
from pdfast.config.schema import Config
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream
from pdfast.distillation.objectives import DataObjective
from pdfast.models import backends
from pdfast.models.model import Model
from pdfast.training import warmup
from pdfast.training.loop import fit
from pdfast.training.model_run import ModelRun

ROUND = 0  # the teacher's number in the metrics and in the draws


def new_model(config: Config, device: torch.device) -> Model:
    """Return a new model, its weights initialised from the config's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(Draws(config.seed, Stream.INIT).torch_seed(0))
        return Model(config.model).to(device)


def train_teacher(run: ModelRun, data: Dataset, device: torch.device) -> Model:
    """Return the run's teacher, loaded if it is finished, otherwise trained (or resumed) and saved.

    Args:
        run: The run.
        data: The training data.
        device: Where the teacher is trained.
    """
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
            f"{run.teacher_dir}, the teacher of the existing rounds, is missing: it is trained "
            "again; stop here to put it back"
        )
    num_params = sum(p.numel() for p in model.parameters())
    run.screen.say(
        f"teacher: {num_params:,} parameters, {run.config.train.updates} updates, "
        f"{data.num_trained} images"
    )
    shape = "" if run.networks.teacher is not None else attention_note(run.config.model)
    for note in filter(None, (warmup.train_note(run.config), shape)):
        run.screen.warn(f"teacher: {note}")
    cfg = run.config.train
    objective = DataObjective(cfg.loss_weight)
    result = fit(model, objective, cfg, data, run, ROUND, "teacher")
    # Logged before the model is saved: a run killed in between repeats the end of the phase.
    run.log(round=ROUND, **result.as_metrics())
    run.save_model(model, run.teacher_dir, seed=run.config.seed)
    run.clear_states(ROUND)
    run.screen.say(f"teacher: {result.text('train.lr')}, saved to {run.teacher_dir}")
    return model
