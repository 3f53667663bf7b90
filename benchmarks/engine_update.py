"""pdfast's own update, made as in `training.loop.fit`, for the benchmarks of updates."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from live import enliven
from published import Phase
from torch import Tensor

from pdfast.config.schema import Config, EngineConfig
from pdfast.data.dataset import Dataset
from pdfast.distillation.objectives import DataObjective
from pdfast.distillation.pipelined_teacher import rollout
from pdfast.distillation.rounds import remove_dropout
from pdfast.distillation.teacher import new_model
from pdfast.models.blocks import GroupNormSiLU
from pdfast.models.cuda_graph import Replay
from pdfast.models.model import Model
from pdfast.training.batch import open_batch
from pdfast.training.op_counter import OPTIMIZER
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision, net_dtype, set_precision
from pdfast.training.update import update


def compile_net(model: Model) -> None:
    """Compile a model's network as a run with engine.compile does."""
    model.net.compile(dynamic=False)


class Engine:
    """A trainer of one phase of a config; each `update()` is one update, replayed on a GPU."""

    def __init__(
        self,
        config: Config,
        phase: Phase,
        images: Tensor,
        num_steps: int,
        *,
        norm: Callable[..., Tensor] | None = None,
        compiled: bool = False,
    ) -> None:
        """`images` are unlabelled, uint8 (N, H, W, C), on the device of all the work.

        `num_steps` are the student's sampling steps, in distillation. `norm` replaces
        group_norm_silu. `compiled`: compile the networks, whatever the config says.
        """
        cfg, device = getattr(config, phase), images.device
        on_gpu = device.type == "cuda"
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        precision = set_precision(config.precision, device)
        model = enliven(new_model(config, device))
        objective = DataObjective(cfg.loss_weight)
        if phase == "distill":
            remove_dropout(model)
            teacher = cast_to_precision(copy.deepcopy(model).eval(), precision)
            use_norm(teacher, norm)
            if compiled:
                compile_net(teacher)
            objective = rollout(teacher, num_steps, cfg, config.engine)
        use_norm(model.train(), norm)
        self.optimizer = Optimizer(model, cfg, net_dtype(precision))
        model.set_checkpoint(cfg.checkpoint)
        if compiled:
            compile_net(model)
        batch, _ = open_batch(config, cfg, Dataset(images, None), model, 1, self.optimizer.done)
        name_for_the_profiler(self.optimizer)
        objective.begin(batch)
        work = functools.partial(update, model, objective, self.optimizer, batch)
        state = [*self.optimizer.tensors(), *objective.carried]
        self.repeat = Replay(work, state, device)
        if on_gpu:
            self.peak = torch.cuda.max_memory_allocated(device) - before  # during the capture

    def update(self) -> Tensor:
        """Make one update; return the mean loss."""
        self.optimizer.rate.fill_(self.optimizer.cfg.lr)
        self.repeat()
        return self.optimizer.loss

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the last update, by parameter name."""
        return self.optimizer._grads


def use_norm(model: Model, norm: Callable[..., Tensor] | None) -> None:
    """Make the model's norms run as `norm`, if it is given."""
    for module in model.modules():
        if isinstance(module, GroupNormSiLU) and norm is not None:
            module.op = norm


def name_for_the_profiler(optimizer: Optimizer) -> None:
    """Show the optimizer's step under its part's name in the profiler."""
    step = optimizer.step

    def named() -> None:
        with torch.profiler.record_function(OPTIMIZER):
            step()

    optimizer.step = named


def with_options(config: Config, phase: Phase, options: Mapping[str, object]) -> Config:
    """Return the config with options of [engine], of the phase's table or of the top level."""
    own = {name: value for name, value in options.items() if name == "precision"}
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    of_engine = {name: value for name, value in options.items() if name in names}
    of_loop = {name: value for name, value in options.items() if name not in names | set(own)}
    tables = {
        "engine": dataclasses.replace(config.engine, **of_engine),
        phase: dataclasses.replace(getattr(config, phase), **of_loop),
    }
    return dataclasses.replace(config, **tables, **own)
