"""The ops of kernels/: each registers itself here, and whoever needs them all asks here.

So `pdfast doctor`, the counts of launches and bytes, the benchmarks' tables by kernel and the tests
of every op (launches, machine code, bytes) know an op by its file alone. What a test needs beyond
that is in the op's own test, tests/kernels/test_<op>.py, where tests/launch_cases.py finds it: the
calls of one op take up to a hundred lines, and nothing that is installed needs them.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch._ops import OpOverload

from pdfast.kernels import runtime
from pdfast.kernels.calls import POINTWISE, Call, Launch, Rule
from pdfast.kernels.library import FUNCTIONS


class Stage(IntEnum):
    """When in an update an op runs, which is the order that the ops are listed in."""

    NETWORK = 0
    BATCH = 1
    TEACHER = 2
    STUDENT = 3
    LOSS = 4
    OPTIMIZER = 5


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op under torch.ops.pdfast."""

    name: str
    """Its name there; also that of its file in kernels/, its test and its benchmark."""
    stage: Stage
    op: OpOverload | None = None
    """As `library.define` made it; None where C++ registers it."""
    kernels: tuple[Any, ...] = ()
    """The Triton kernels that a call launches, in their order; none where it is C++."""
    kind: str = POINTWISE
    """Kind of its main kernel, one of calls.KINDS."""
    gathers: bool = False
    """Whether of its first tensor it reads only what it takes; see `Call.moved`."""
    rule: Rule | None = None
    """Rule for the launches of a call, where it is not one kernel that moves each tensor once."""
    implementation: Callable[[torch.device], str] = runtime.implementation
    """Text that says what it runs as on a device, and why."""
    beside: str = ""
    """The op whose file, test, benchmark and line in `pdfast doctor` it shares."""

    @property
    def file(self) -> str:
        """The stem of its file in kernels/."""
        return self.beside or self.name

    @property
    def kernel_names(self) -> list[str]:
        """Names of the Triton kernels that a call launches, in their order."""
        return [kernel.__name__ for kernel in self.kernels]

    @property
    def fallback(self) -> Callable[..., Any] | None:
        """The function that runs where Triton does not: it calls the reference."""
        return FUNCTIONS.get(self.name)

    def launches(self, call: Call) -> list[Launch]:
        """Kernels that a call of it launches on a CUDA device."""
        if self.rule:
            return self.rule(call)
        return [Launch(self.kind, call.moved(gathers=self.gathers))]


_registered: dict[str, Op] = {}


def register(op: Op) -> None:
    """Add an op, at the end of its file; ValueError where another one has its name."""
    if op.name in _registered:
        raise ValueError(f"two ops are called {op.name}: in {_registered[op.name].file}.py, {op}")
    _registered[op.name] = op


@functools.cache
def registered() -> Mapping[str, Op]:
    """All ops by name, in the order of an update; imports every file of kernels/."""
    package = importlib.import_module("pdfast.kernels")
    for found in pkgutil.iter_modules(package.__path__, "pdfast.kernels."):
        importlib.import_module(found.name)
    ops = sorted(_registered.values(), key=lambda op: (op.stage, op.name))
    return {op.name: op for op in ops}
