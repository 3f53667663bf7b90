"""What one update takes, counted from the real graph of its ops; nothing is allocated or computed.

The engine's own update (model, objective, optimizer, ops) runs once on fake tensors under the
dispatch mode of training/op_counter.py, which says what a count holds and what it does not.

Fake tensors take the path of the device that they claim to be on. Fake CUDA tensors need a PyTorch
built for CUDA; without one, `kernels=True` counts a CPU's ops as what they launch on a GPU. Of the
U-Net's ops only two then differ: attention, where a CPU saves the same tensors under another name,
and dropout, whose mask a CPU keeps as floats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pdfast.config.names import Precision
from pdfast.config.schema import Config, LoopConfig, NetConfig
from pdfast.data.dataset import Dataset
from pdfast.distillation.objectives import DataObjective, Fit
from pdfast.distillation.pipelined_teacher import rollout
from pdfast.distillation.rounds import remove_dropout
from pdfast.kernels import runtime
from pdfast.models.model import Model
from pdfast.models.unet import defers_sums
from pdfast.training.batch import open_batch
from pdfast.training.cuda_launches import NOT_COUNTED
from pdfast.training.op_counter import OPTIMIZER, Amount, Counter
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import low_parameters, net_dtype, precision_of
from pdfast.training.update import Objective, update

Phase = Literal["train", "fit", "distill"]


@dataclass(frozen=True)
class Memory:
    """The most bytes of tensors that live at once, and what they are."""

    state: Mapping[str, int]
    """Bytes that live from update to update, by what they hold."""
    activations: int
    """Bytes of everything else, at the moment of the peak."""

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(self.state.values()) + self.activations


@dataclass(frozen=True)
class Count:
    """One update: a count, not a measurement."""

    parts: Mapping[str, Amount]
    """By part, each of PARTS."""
    memory: Memory
    params: int
    """Parameters of the network."""
    kinds: Mapping[str, Amount] = field(default_factory=dict)
    """By kind of kernel, each of cuda_launches.KINDS."""

    @property
    def total(self) -> Amount:
        """All parts."""
        return sum(self.parts.values(), Amount())

    def floor(self, flop_rate: float, byte_rate: float) -> float:
        """Seconds that the counts take at these rates per second, one part after the other."""
        return sum(amount.seconds(flop_rate, byte_rate) for amount in self.parts.values())

    def table(self) -> str:
        """Markdown, for people."""
        lines = ["| part | GFLOP | MB moved | kernels |", "|---|---:|---:|---:|"]
        for name, amount in (*self.parts.items(), ("together", self.total)):
            gflop = f"{amount.flops / 1e9:,.1f}" if amount.flops else ""
            lines.append(f"| {name} | {gflop} | {amount.bytes / 1e6:,.1f} | {amount.launches:,} |")
        return "\n".join([*lines, "", f"Not counted: {NOT_COUNTED}."])


def count_update(
    config: Config,
    phase: Phase,
    device: torch.device | str = "cpu",
    *,
    num_images: int = 0,
    kernels: bool | None = None,
    precision: Precision | None = None,
    teacher: NetConfig | None = None,
    defer: bool | None = None,
) -> Count:
    """Count one update of `phase` as the config has it, with a data set of `num_images` images.

    `teacher`: of the phase "fit", where it is another network than the config's.
    `precision`: by default the config's on `device`. `kernels`: whether to count what the ops
    launch on a GPU, or on a CPU the ops themselves, those of kernels/ by their references; by
    default as they run on `device`. A CUDA device needs a PyTorch built for CUDA. `defer`: whether
    the networks leave sums to their readers; by default as they do on what is counted.
    """
    device = torch.device(device)
    precision = precision or precision_of(config.precision, device)
    if kernels is None:
        kernels = runtime.uses_triton(device, torch.float32)
    if defer is None:
        defer = defers_sums(torch.device("cuda") if kernels else device, net_dtype(precision))
    net = teacher or config.model
    table = "train" if phase == "train" else "distill"
    cfg: LoopConfig = getattr(config, table)
    if cfg.accumulate <= 3:
        return _count(config, phase, device, num_images, kernels, precision, net, defer)
    # The first part begins the sums; those after it take the same, so that it is enough to look
    # at two and at three.
    size, counts = cfg.batch // cfg.accumulate, []
    for n in (2, 3):
        loop = replace(cfg, batch=n * size, accumulate=n)
        short = replace(config, **{table: loop})  # type: ignore[arg-type]
        counts.append(_count(short, phase, device, num_images, kernels, precision, net, defer))
    two, three = counts
    more = cfg.accumulate - 2
    parts = {name: a.then(three.parts[name], more) for name, a in two.parts.items()}
    kinds = {name: a.then(three.kinds[name], more) for name, a in two.kinds.items()}
    return Count(parts, three.memory, three.params, kinds)


def _count(
    config: Config,
    phase: Phase,
    device: torch.device,
    num_images: int,
    kernels: bool,
    precision: Precision,
    net: NetConfig,
    defer: bool,
) -> Count:
    """`count_update`, of every part of the batch."""
    cfg: LoopConfig = config.train if phase == "train" else config.distill
    dtype = net_dtype(precision)
    with torch.device("meta"):  # the shapes; on fake tensors modules cannot be made whole
        model = Model(config.model.unguided() if phase == "train" else config.model)
        teacher = Model(net if phase == "fit" else config.model)
    for each in (model.net, teacher.net):
        each.defer = defer
    counter = Counter(kernels)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:  # a schedule's table is real
        objective: Objective = DataObjective(cfg.loss_weight)
        if phase != "train":
            remove_dropout(model)
            remove_dropout(_materialized(teacher, device, dtype)).eval()
            start = config.distill.start_steps
            if phase == "fit":
                objective = Fit(teacher, start, cfg.loss_weight, config.distill.c_of_huber)
            else:
                plan = config.distill
                objective = rollout(teacher, plan.plan[0], plan, config.engine)
        optimizer = Optimizer(_materialized(model, device), cfg, dtype)
        model.net.checkpoint = cfg.checkpoint
        holdout = config.data.holdout
        if config.engine.data == "stream" or not num_images:
            num_images, holdout = cfg.batch, 0
        data = _data(config, num_images, holdout, device)
        state = _state(optimizer, teacher if phase != "train" else None, data)
        _update(model, objective, optimizer, data, config, counter)
        memory = Memory(state, counter.peak - sum(state.values()))
    params = sum(p.numel() for p in model.parameters())
    return Count(dict(counter.parts), memory, params, dict(counter.kinds))


def _update(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    data: Dataset,
    config: Config,
    counter: Counter,
) -> None:
    """The engine's update, once."""
    step = optimizer.step

    def counted() -> None:
        with counter.within(OPTIMIZER):
            step()

    setattr(optimizer, "step", counted)  # noqa: B010  # mypy refuses the plain assignment
    config = replace(config, engine=replace(config.engine, data="device"))
    batch, _ = open_batch(config, optimizer.cfg, data, model, 1, optimizer.done)
    objective.begin(batch)
    counter.begin()
    update(model.train(), objective, optimizer, batch)


def _materialized(model: Model, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """The model itself, its meta parameters replaced by fake ones; `dtype` as numerics has it."""
    low = {id(p) for p in low_parameters(model).values()}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p.is_meta:
                kind = dtype if id(p) in low else p.dtype
                fake = torch.empty_strided(p.shape, p.stride(), dtype=kind, device=device)
                module._parameters[name] = nn.Parameter(fake)
    return model


def _data(config: Config, num: int, holdout: int, device: torch.device) -> Dataset:
    net = config.model
    shape = (num, net.image_size, net.image_size, net.channels)
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    labels = torch.empty(num, dtype=torch.int64, device=device) if net.num_classes else None
    trained = torch.empty(num - holdout, dtype=torch.int64, device=device) if holdout else None
    return Dataset(images, labels, trained=trained)


HOLDS = {"exp_avg": "moments", "exp_avg_sq": "moments", "ema": "averages"}
HOLDS |= {"_summed": "gradients", "copy": "rounded weights"}


def _state(optimizer: Optimizer, teacher: Model | None, data: Dataset) -> dict[str, int]:
    """Bytes that live from update to update, by what they hold."""
    named = [(HOLDS.get(name, name), value) for name, value in vars(optimizer).items()]
    named += [("teacher", p) for p in teacher.parameters()] if teacher is not None else []
    named += [("data set", part) for part in (data.images, data.labels, data.trained)]
    state: dict[str, int] = {}
    seen: set[int] = set()
    for name, value in named:
        if not isinstance(value, Tensor) or value.numel() <= 2:  # a counter
            continue
        if value.untyped_storage()._cdata not in seen:
            seen.add(value.untyped_storage()._cdata)
            state[name] = state.get(name, 0) + value.untyped_storage().nbytes()
    return state
