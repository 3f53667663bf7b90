"""A mode that counts what ops cost: operations, bytes, kernels and live storages.

It sees every op below autograd, on fake tensors, which have shapes but no values, or on real ones
in an ordinary update. It counts floating-point operations by the formulas of
torch.utils.flop_counter, and kernels with the bytes that each reads and writes, once per tensor, by
the rules of cuda_launches.py. It also follows which storages are alive. On a CPU, where an op is
not a list of kernels, each op that does something counts as one. All of this is a count, not a
measurement: it knows nothing of caches, padding, libraries' workspaces and launch time.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pdfast.kernels.calls import (
    ATTENTION,
    KINDS,
    NORM_KINDS,
    OPTIMIZER,
    PRODUCTS,
    STEPS,
    Call,
    Launch,
    tensors_of,
)
from pdfast.training.cuda_launches import OWN, kind_of, launches, moved_by, runs_nothing

__all__ = [
    "ATTENTION",
    "NETS",
    "NORMS",
    "OPTIMIZER",
    "OTHER",
    "PARTS",
    "STEPS",
    "Amount",
    "Counter",
]

# Parts of an update. NORMS is the compiled op or PyTorch's own norm, without FiLM and SiLU.
NETS = "convolutions and linear layers"
NORMS = "group norm"
OTHER = "other"  # biases and their gradients, residual sums, concatenation, resampling, casts
PARTS = (NETS, ATTENTION, NORMS, STEPS, OPTIMIZER, OTHER)
PART_OF = {PRODUCTS: NETS, ATTENTION: ATTENTION, STEPS: STEPS, OPTIMIZER: OPTIMIZER}
PART_OF |= dict.fromkeys(NORM_KINDS, NORMS)

aten = torch.ops.aten
# PyTorch's counter lacks the product in place, and the CPU's attention, whose first arguments are
# those of the flash attention.
FORMULAS = {
    **flop_registry,
    aten.addmm_: flop_registry[aten.addmm],
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
REFERENCES = {name: op.fallback for name, op in OWN.items() if op.fallback}


@dataclass(frozen=True)
class Amount:
    """Total cost of some ops."""

    flops: int = 0
    """Floating-point operations of matrix products, convolutions and attention, 2 per MAC."""
    bytes: int = 0
    """Bytes that the kernels read and write, once per tensor."""
    launches: int = 0
    """Number of kernels."""

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.flops + other.flops, self.bytes + other.bytes, self.launches + other.launches
        )

    def then(self, longer: "Amount", times: int) -> "Amount":
        """Extrapolate: return self + times * (longer - self), where `longer` has one more part."""
        pairs = zip(astuple(self), astuple(longer), strict=True)
        return Amount(*(a + times * (b - a) for a, b in pairs))

    def seconds(self, flop_rate: float, byte_rate: float) -> float:
        """Return the least seconds at these rates, with operations and memory overlapped."""
        return max(self.flops / flop_rate, self.bytes / byte_rate)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the cost of every op, and follows the live storages.

    With `kernels`, every op counts as the kernels that it launches on a GPU, whatever the device of
    its tensors. Otherwise the ops of kernels/ run and count as their references, and PyTorch's ops
    count by the device of their tensors.
    """

    def __init__(self, kernels: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = kernels
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._part: str | None = None
        self.begin()

    def begin(self) -> None:
        """Reset the counts, but keep the live storages."""
        self.parts = dict.fromkeys(PARTS, Amount())
        self.kinds = dict.fromkeys(KINDS, Amount())
        self.peak = self.live

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count every op in the block as `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if func.namespace == "prim":  # a query of a fake tensor, such as its device
            return func(*args, **kwargs)
        if name == "aten::is_nonzero" and isinstance(args[0], FakeTensor):
            return True  # count the usual case: the update is made, not skipped
        if not self.kernels and name in REFERENCES:
            kind = OWN[name].kind
            with self, self.within(self._part or PART_OF.get(kind, OTHER)):
                return REFERENCES[name](*args, **kwargs)
        result = func(*args, **kwargs)
        for tensor in tensors_of(result):
            self._see(tensor)
        if not runs_nothing(func):
            self._add(Call(func, args, kwargs, result))
        return result

    def _add(self, call: Call) -> None:
        formula = FORMULAS.get(call.func._overloadpacket)
        flops = int(formula(*call.args, **call.kwargs, out_val=call.result)) if formula else 0
        on_cuda = self.kernels or any(t.is_cuda for t in (*call.outputs, *call.inputs))
        kind = kind_of(call)
        for launch in launches(call) if on_cuda else [Launch(kind, moved_by(call))]:
            # The operations are of the main kernels; a backward has two.
            mine = flops if launch.kind == kind else 0
            flops -= mine
            amount = Amount(mine, launch.bytes, launch.number)
            self.kinds[launch.kind] += amount
            self.parts[self._part or PART_OF.get(launch.kind, OTHER)] += amount

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
