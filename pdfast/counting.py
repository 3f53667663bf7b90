"""What one update takes, counted from the real graph of its ops; nothing is allocated or computed.

The engine's own update (model, objective, optimizer, ops) runs once on fake tensors, which have
shapes and no values, while a dispatch mode looks at every op: its floating-point operations, by
the formulas of torch.utils.flop_counter; the bytes that it reads and writes, once per argument;
whether it runs a kernel (views and allocations do not); and which storages live. That is a count,
not a measurement: caches, padding, libraries' workspaces and the time of a launch are not in it.

Fake tensors take the path of the device that they claim to be on. Fake CUDA tensors need a PyTorch
built for CUDA; without one, `kernels=True` counts the ops of kernels/ as the kernels that they are
on a GPU, and the rest as on a CPU. Of the U-Net's ops only two then differ: attention, where a CPU
saves the same tensors under another name, and dropout, whose mask a CPU keeps as floats.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pdfast import numerics
from pdfast.batch import open_batch
from pdfast.config import Config, LoopConfig, NetConfig
from pdfast.data import Dataset
from pdfast.distillation import remove_dropout
from pdfast.engine import Objective, update
from pdfast.fitting import Fit
from pdfast.kernels import runtime
from pdfast.kernels.adamw import adamw_op
from pdfast.kernels.add_noise import add_noise_op
from pdfast.kernels.ddim_step import ddim_step_op
from pdfast.kernels.distill_loss import data_loss_op, distill_loss_op
from pdfast.kernels.dropout import dropout_op
from pdfast.model import Model
from pdfast.optimizer import Optimizer
from pdfast.rollout import rollout
from pdfast.training import DataObjective

Phase = Literal["train", "fit", "distill"]

NETS = "convolutions and linear layers"
ATTENTION = "attention"
NORMS = "group norm"
STEPS = "add_noise, ddim_step, distill_loss"
OPTIMIZER = "optimizer"
OTHER = "other"  # residual sums, concatenation, resampling, casts, sums of gradients
PARTS = (NETS, ATTENTION, NORMS, STEPS, OPTIMIZER, OTHER)

aten = torch.ops.aten
# PyTorch's counter has no entry for the CPU's attention, whose first arguments are the same.
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}
PART_OF = {f"aten::{name}": NETS for name in PRODUCTS} | {
    "aten::native_group_norm": NORMS,
    "aten::native_group_norm_backward": NORMS,
    "pdfast::group_norm_silu": NORMS,
    "pdfast::group_norm_silu_backward": NORMS,
    "pdfast::add_noise": STEPS,
    "pdfast::ddim_step": STEPS,
    "pdfast::distill_loss": STEPS,
    "pdfast::data_loss": STEPS,
    "pdfast::adamw": OPTIMIZER,
}
OPS = (add_noise_op, ddim_step_op, distill_loss_op, data_loss_op, dropout_op, adamw_op)
# What an op of kernels/ runs where Triton does not: its function, which calls the reference.
REFERENCES: dict[str, Callable[..., Any]] = {op._qualname: op._init_fn for op in OPS}
LAUNCHES = {"pdfast::adamw": 2, "pdfast::group_norm_silu_backward": 2}  # where they are not one
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach"}
FREE = {f"aten::{name}" for name in FREE | {"_unsafe_view", "_reshape_alias", "lift_fresh"}}
# These do not read what was there.
OVERWRITES = {"aten::copy_", "aten::_foreach_copy_", "aten::fill_", "aten::zero_"}
GATHERS = {"aten::index", "aten::embedding", "aten::index_select", "pdfast::add_noise"}


@dataclass(frozen=True)
class Amount:
    """What ops take together."""

    flops: int = 0
    """Floating-point operations of matrix products, convolutions and attention, 2 per MAC."""
    bytes: int = 0
    """Bytes of every op's inputs and outputs."""
    launches: int = 0
    """Kernels."""

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.flops + other.flops, self.bytes + other.bytes, self.launches + other.launches
        )

    def then(self, longer: "Amount", times: int) -> "Amount":
        """This, and `times` more of what `longer` has beyond it."""
        pairs = zip(astuple(self), astuple(longer), strict=True)
        return Amount(*(a + times * (b - a) for a, b in pairs))

    def seconds(self, flop_rate: float, byte_rate: float) -> float:
        """The least time at these rates per second, operations and memory overlapping."""
        return max(self.flops / flop_rate, self.bytes / byte_rate)


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
        return "\n".join(lines)


def count_update(
    config: Config,
    phase: Phase,
    device: torch.device | str = "cpu",
    *,
    num_images: int = 0,
    kernels: bool | None = None,
    precision: numerics.Precision | None = None,
    teacher: NetConfig | None = None,
) -> Count:
    """Count one update of `phase` as the config has it, with a data set of `num_images` images.

    `teacher`: of the phase "fit", where it is another network than the config's.
    `precision`: by default the config's on `device`. `kernels`: whether the ops of kernels/ are
    kernels, as on a GPU, or their references' ops; by default as they run on `device`. A CUDA
    device needs a PyTorch built for CUDA.
    """
    device = torch.device(device)
    precision = precision or numerics.precision_of(config.precision, device)
    if kernels is None:
        kernels = runtime.uses_triton(device, torch.float32)
    net = teacher or config.model
    table = "train" if phase == "train" else "distill"
    cfg: LoopConfig = getattr(config, table)
    if cfg.accumulate <= 3:
        return _count(config, phase, device, num_images, kernels, precision, net)
    # The first part begins the sums; those after it take the same, so that it is enough to look
    # at two and at three.
    size, counts = cfg.batch // cfg.accumulate, []
    for n in (2, 3):
        loop = replace(cfg, batch=n * size, accumulate=n)
        short = replace(config, **{table: loop})  # type: ignore[arg-type]
        counts.append(_count(short, phase, device, num_images, kernels, precision, net))
    two, three = counts
    more = cfg.accumulate - 2
    parts = {name: a.then(three.parts[name], more) for name, a in two.parts.items()}
    return Count(parts, three.memory, three.params)


def _count(
    config: Config,
    phase: Phase,
    device: torch.device,
    num_images: int,
    kernels: bool,
    precision: numerics.Precision,
    net: NetConfig,
) -> Count:
    """`count_update`, of every part of the batch."""
    cfg: LoopConfig = config.train if phase == "train" else config.distill
    dtype = numerics.net_dtype(precision)
    with torch.device("meta"):  # the shapes; on fake tensors modules cannot be made whole
        model = Model(config.model.unguided() if phase == "train" else config.model)
        teacher = Model(net if phase == "fit" else config.model)
    counter = Counter(kernels)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:  # a schedule's table is real
        objective: Objective = DataObjective(cfg.loss_weight)
        if phase != "train":
            remove_dropout(model)
            remove_dropout(_materialized(teacher, device, dtype)).eval()
            start = config.distill.start_steps
            if phase == "fit":
                objective = Fit(teacher, start, cfg.loss_weight)
            else:
                objective = rollout(teacher, start // 2, cfg, config.engine)
        optimizer = Optimizer(_materialized(model, device), cfg, dtype)
        model.net.checkpoint = cfg.checkpoint
        if config.engine.data == "stream" or not num_images:
            num_images = cfg.batch
        data = _data(config, num_images, device)
        state = _state(optimizer, teacher if phase != "train" else None, data)
        _update(model, objective, optimizer, data, config, counter)
        memory = Memory(state, counter.peak - sum(state.values()))
    params = sum(p.numel() for p in model.parameters())
    return Count(dict(counter.parts), memory, params)


def _update(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    data: Dataset,
    config: Config,
    counter: "Counter",
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
    low = {id(p) for p in numerics.low_parameters(model).values()}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p.is_meta:
                kind = dtype if id(p) in low else p.dtype
                fake = torch.empty_strided(p.shape, p.stride(), dtype=kind, device=device)
                module._parameters[name] = nn.Parameter(fake)
    return model


def _data(config: Config, num: int, device: torch.device) -> Dataset:
    net = config.model
    shape = (num, net.image_size, net.image_size, net.channels)
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    labels = torch.empty(num, dtype=torch.int64, device=device) if net.num_classes else None
    return Dataset(images, labels)


HOLDS = {"exp_avg": "moments", "exp_avg_sq": "moments", "ema": "averages"}
HOLDS |= {"_summed": "gradients", "copy": "rounded weights"}


def _state(optimizer: Optimizer, teacher: Model | None, data: Dataset) -> dict[str, int]:
    """Bytes that live from update to update, by what they hold."""
    named = [(HOLDS.get(name, name), value) for name, value in vars(optimizer).items()]
    named += [("teacher", p) for p in teacher.parameters()] if teacher is not None else []
    named += [("data set", data.images), ("data set", data.labels)]
    state: dict[str, int] = {}
    seen: set[int] = set()
    for name, value in named:
        if not isinstance(value, Tensor) or value.numel() <= 2:  # a counter
            continue
        if value.untyped_storage()._cdata not in seen:
            seen.add(value.untyped_storage()._cdata)
            state[name] = state.get(name, 0) + value.untyped_storage().nbytes()
    return state


# ------------------------------------------------------------------------------------------
# The dispatch mode


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what every op takes, and follows the storages that live."""

    def __init__(self, kernels: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = kernels
        self.parts = dict.fromkeys(PARTS, Amount())
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._part: str | None = None

    def begin(self) -> None:
        """Forget what was counted so far, but not what lives."""
        self.parts, self.peak = dict.fromkeys(PARTS, Amount()), self.live

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count every op in here to `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if func.namespace == "prim":  # a question to a fake tensor, such as its device
            return func(*args, **kwargs)
        if name == "aten::is_nonzero":  # whether the update is made: in general it is
            return True
        part = self._part or _part_of(name)
        if not self.kernels and name in REFERENCES:
            with self, self.within(part):
                return REFERENCES[name](*args, **kwargs)
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        for tensor in outputs:
            self._see(tensor)
        if not (func.is_view or name in FREE):
            formula = FORMULAS.get(func._overloadpacket)
            flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
            moved = _moved(func, args, kwargs, outputs)
            self.parts[part] += Amount(flops, moved, _launches(name, args))
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _part_of(name: str) -> str:
    return ATTENTION if "scaled_dot_product" in name else PART_OF.get(name, OTHER)


def _launches(name: str, args: Any) -> int:
    if name == "aten::convolution_backward":
        return sum(args[-1])  # output_mask: one per gradient, at least
    return LAUNCHES.get(name, 1)


def _moved(func: OpOverload, args: Any, kwargs: Any, outputs: list[Tensor]) -> int:
    """Bytes that an op reads and writes, once per tensor."""
    name, schema, read = func._schema.name, func._schema, _tensors((args, kwargs))
    values = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    changed = _tensors([values.get(a.name) for a in schema.arguments if a.is_write])
    makes = [r.alias_info is None for r in schema.returns]
    written = changed + (outputs if any(makes) else [])
    taken = 0
    if name in GATHERS:  # of the set that is indexed, what is taken
        taken = outputs[0].numel() * read[0].element_size()
    if name in OVERWRITES:
        read = read[len(changed) :]
    elif name in GATHERS:
        read = read[1:]
    if name == "pdfast::adamw":  # its clip factor is known when all gradients have been read
        read.append(values["grads"])
    return taken + sum(map(_size, read)) + sum(map(_size, written))


def _size(tensor: Tensor) -> int:
    """Bytes of the distinct elements: a broadcast one counts once."""
    strided = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(n for n, stride in strided if stride)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
