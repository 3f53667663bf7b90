"""The registry of the ops in kernels/: each op's file registers it here.

`pdfast doctor`, the counts of launches and bytes, the benchmarks' tables by kernel and the tests of
every op (launches, machine code, bytes) read the registry, so a new op needs no change there. The
calls that the tests make are in the op's own test, tests/kernels/test_<op>.py, where
tests/launch_cases.py finds them: they take up to a hundred lines an op, and no installed code needs
them.
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
    """Part of an update in which an op runs. Ops are listed in this order."""

    NETWORK = 0
    BATCH = 1
    TEACHER = 2
    STUDENT = 3
    LOSS = 4
    OPTIMIZER = 5


@dataclass(frozen=True, kw_only=True)
class Op:
    """An op under torch.ops.pdfast."""

    name: str
    """Name under torch.ops.pdfast; also the stem of its file in kernels/, test and benchmark."""
    stage: Stage
    """Part of an update in which the op runs."""
    op: OpOverload | None = None
    """The op that `library.define` returned; None where C++ registers it."""
    kernels: tuple[Any, ...] = ()
    """Triton kernels that a call launches, in order; empty for an op in C++."""
    kind: str = POINTWISE
    """Kind of the main kernel, one of calls.KINDS."""
    gathers: bool = False
    """Whether the op reads only the gathered elements of its first tensor; see `Call.moved`."""
    rule: Rule | None = None
    """Counts a call's launches; None: one kernel, which moves each tensor once."""
    implementation: Callable[[torch.device], str] = runtime.implementation
    """Returns a text on how the op runs on a device, and why."""
    beside: str = ""
    """Name of the op whose file, test, benchmark and line in `pdfast doctor` this one shares."""

    @property
    def file(self) -> str:
        """Stem of the op's file in kernels/."""
        return self.beside or self.name

    @property
    def kernel_names(self) -> list[str]:
        """Names of the Triton kernels that a call launches, in order."""
        return [kernel.__name__ for kernel in self.kernels]

    @property
    def fallback(self) -> Callable[..., Any] | None:
        """Function that `library.define` registered: it calls the reference without Triton."""
        return FUNCTIONS.get(self.name)

    def launches(self, call: Call) -> list[Launch]:
        """Return the kernels that a call of the op launches on a CUDA device."""
        if self.rule:
            return self.rule(call)
        return [Launch(self.kind, call.moved(gathers=self.gathers))]


_registered: dict[str, Op] = {}


def register(op: Op) -> None:
    """Add an op to the registry; raise ValueError if its name is taken."""
    if op.name in _registered:
        raise ValueError(f"two ops are called {op.name}: in {_registered[op.name].file}.py, {op}")
    _registered[op.name] = op


@functools.cache
def registered() -> Mapping[str, Op]:
    """Return all ops by name, in the order of an update. Imports every file of kernels/."""
    package = importlib.import_module("pdfast.kernels")
    for found in pkgutil.iter_modules(package.__path__, "pdfast.kernels."):
        importlib.import_module(found.name)
    ops = sorted(_registered.values(), key=lambda op: (op.stage, op.name))
    return {op.name: op for op in ops}
