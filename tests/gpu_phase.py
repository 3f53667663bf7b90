"""A phase of a run on a GPU, made as in `training.loop.fit`, for tests to replay by update."""

import contextlib
import copy
import dataclasses
import functools

import torch
from engine_cases import ROUND, STEPS, random_model

from pdfast.config.schema import EngineConfig, NetConfig
from pdfast.data.dataset import Dataset
from pdfast.distillation.objectives import DataObjective, Rollout
from pdfast.models.cuda_graph import Replay
from pdfast.training import compilation
from pdfast.training.batch import open_batch
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision, net_dtype
from pdfast.training.update import update

CPU, DEVICE, UPDATES = torch.device("cpu"), torch.device("cuda", 0), 20
NET = NetConfig(
    image_size=16,
    ch=32,
    emb_ch=64,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(8,),
    groups=8,
    num_classes=10,
)


def coloured(num=50):
    generator = torch.Generator().manual_seed(1)
    shape = (num, NET.image_size, NET.image_size, NET.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Dataset(images, torch.arange(num) % NET.num_classes)


class Phase:
    """The objects that `fit` makes for its loop, and the loop's work on the device."""

    def __init__(self, config, phase, precision="fp32", kind=Rollout, data=None, **loop):
        self.stack = contextlib.ExitStack()
        cfg = dataclasses.replace(getattr(config, phase), **loop)
        self.model = random_model(config.model, 0, torch.float32).to(DEVICE)
        self.objective = DataObjective(cfg.loss_weight)
        if phase == "distill":
            teacher = cast_to_precision(copy.deepcopy(self.model), precision)
            self.objective = kind(teacher, STEPS, cfg.loss_weight, config.engine)
        self.optimizer = Optimizer(self.model, cfg, net_dtype(precision))
        self.model.net.checkpoint = cfg.checkpoint
        data = data or coloured()
        data = data if config.engine.data == "stream" else data.to(DEVICE)
        batch, self.source = open_batch(config, cfg, data, self.model, ROUND, self.optimizer.done)
        if config.engine.compile == "on":
            nets = [m.net for m in (self.model, self.objective.teacher) if m is not None]
            self.stack.enter_context(compilation.compiled(nets))
        self.model.train()
        self.source.load(0)
        self.objective.begin(batch)
        self.calls, self.k, self.losses = 0, 0, []
        self.update = functools.partial(update, self.model, self.objective, self.optimizer, batch)

    def work(self):
        self.calls += 1
        self.update()

    def state(self):
        return [*self.optimizer.tensors(), *self.objective.carried]

    def ready(self, graph=True):
        self.repeat = Replay(self.work, self.state(), DEVICE if graph else CPU)
        return self

    def once(self):
        self.source.load(self.k + self.objective.ahead)
        self.optimizer.rate.fill_(self.optimizer.lr(self.k))
        self.repeat()
        self.k += 1

    def run(self, updates=UPDATES):
        for _ in range(updates):
            self.once()
            self.losses += [self.optimizer.loss.clone(), self.optimizer.norm.clone()]
        return self

    def result(self):
        """Return the tensors that the updates changed, and the losses and norms on the way."""
        self.stack.close()
        self.source.close()
        return [*(t.clone() for t in self.state()), torch.stack(self.losses)]


def with_engine(config, **options):
    return dataclasses.replace(config, engine=EngineConfig(**options))
