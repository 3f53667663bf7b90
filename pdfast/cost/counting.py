"""Cost of one update, counted from its real ops without allocating or computing anything.

The engine's own update (model, objective, optimizer, ops) runs once on fake tensors under the
dispatch mode of training/op_counter.py, which documents what a count includes.

Fake tensors take the path of the device that they claim to be on. Fake CUDA tensors need a PyTorch
built for CUDA; without one, `kernels=True` counts the CPU's ops as if they were launched on a GPU.
Only two of the U-Net's ops then differ from a real GPU: attention, which saves the same tensors
under another name, and dropout, whose mask a CPU keeps as floats.
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
from pdfast.models.blocks import defers_sums
from pdfast.models.model import Model
from pdfast.training.batch import open_batch
from pdfast.training.cuda_launches import NOT_COUNTED
from pdfast.training.op_counter import OPTIMIZER, Amount, Counter
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import low_parameters, net_dtype, precision_of
from pdfast.training.update import Objective, update

Phase = Literal["train", "fit", "distill"]


@dataclass(frozen=True)
class Memory:
    """Peak memory of the tensors of one update, by use."""

    state: Mapping[str, int]
    """Bytes that stay allocated between updates, by use ("moments", "teacher", ...)."""
    activations: int
    """Bytes of all other tensors at the peak."""

    @property
    def peak(self) -> int:
        """Bytes at the peak, the state included."""
        return sum(self.state.values()) + self.activations


@dataclass(frozen=True)
class Count:
    """Counted (not measured) cost of one update."""

    parts: Mapping[str, Amount]
    """Cost of each part of the update (`op_counter.PARTS`)."""
    memory: Memory
    params: int
    """Parameters of the network."""
    kinds: Mapping[str, Amount] = field(default_factory=dict)
    """Cost by kind of kernel (`cuda_launches.KINDS`)."""

    @property
    def total(self) -> Amount:
        """Sum of all parts."""
        return sum(self.parts.values(), Amount())

    def floor(self, flop_rate: float, byte_rate: float) -> float:
        """Return the least seconds of the update on a device of these rates, part after part.

        Args:
            flop_rate: FLOP/s of the device.
            byte_rate: Bytes/s of its memory.
        """
        return sum(amount.seconds(flop_rate, byte_rate) for amount in self.parts.values())

    def table(self) -> str:
        """Return the parts and their sum as a Markdown table."""
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
    """Count one update of a phase of the config's run.

    Args:
        config: The run's config.
        phase: "train" for a teacher, "fit" for the first fit, "distill" for a round.
        device: Device of the update. A CUDA device needs a PyTorch built for CUDA.
        num_images: Size of the data set; 0 counts a batch instead of the set.
        kernels: Whether to count the GPU kernels that the ops launch. Otherwise the CPU's ops are
            counted, and the ops of kernels/ by their references. None: as they run on `device`.
        precision: Precision of the networks; None for the config's on `device`.
        teacher: The teacher's network in phase "fit", if it is not the config's.
        defer: Whether the networks defer sums to the op that reads them (`blocks.Pending`); None:
            as they do where `kernels` says that they run.

    Returns:
        The counts of the whole batch.
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
    # The first part starts the gradient sums and all later parts cost the same, so the difference
    # of three parts and two is the cost of each further part.
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
    """Count an update by running all its accumulated parts; see `count_update`."""
    cfg: LoopConfig = config.train if phase == "train" else config.distill
    dtype = net_dtype(precision)
    with torch.device("meta"):  # shapes only: modules cannot be created on fake tensors
        model = Model(config.model.unguided() if phase == "train" else config.model)
        teacher = Model(net if phase == "fit" else config.model)
    for each in (model.net, teacher.net):
        each.defer = defer
    counter = Counter(kernels)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:  # a schedule's table is a real tensor
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
    """Run the engine's update once, under the counter."""
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
    """Replace the model's meta parameters by fake ones, in place; low-precision ones in `dtype`."""
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
    """Return the bytes that stay allocated between updates, by use."""
    named = [(HOLDS.get(name, name), value) for name, value in vars(optimizer).items()]
    named += [("teacher", p) for p in teacher.parameters()] if teacher is not None else []
    named += [("data set", part) for part in (data.images, data.labels, data.trained)]
    state: dict[str, int] = {}
    seen: set[int] = set()
    for name, value in named:
        if not isinstance(value, Tensor) or value.numel() <= 2:  # a counter or a rate
            continue
        if value.untyped_storage()._cdata not in seen:
            seen.add(value.untyped_storage()._cdata)
            state[name] = state.get(name, 0) + value.untyped_storage().nbytes()
    return state
