"""The ops of kernels/ as PyTorch knows them: torch.ops.pdfast.

`torch.library.custom_op` would do, but each call of its ops passes through torch._dynamo: its
import takes a second or two at the first, and a call 12 us on the host for 5 (PyTorch 2.13.0, one
core of a Xeon; findings/torch_custom_op_imports_dynamo.sh).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

LIBRARY = torch.library.Library("pdfast", "FRAGMENT")  # type: ignore[no-untyped-call]
FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The function that each op was made of, by the op's name."""


def define(*mutated: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Make an op of a function NAME_op, whose annotations are its schema; for any device.

    `mutated` are the arguments that it writes to. Without `torch.library.register_autograd` it
    is not differentiable, and the function runs without autograd. It needs a fake
    (`torch.library.register_fake(NAME_op, lib=LIBRARY)`).
    """

    def decorate(function: Callable[..., Any]) -> OpOverload:
        name = function.__name__.removesuffix("_op")
        tags = [torch.Tag.pt2_compliant_tag]
        schema = torch.library.infer_schema(function, mutates_args=mutated)
        LIBRARY.define(name + schema, tags=tags)  # type: ignore[no-untyped-call]
        run = torch.no_grad()(_versioned(function, mutated) if mutated else function)
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        FUNCTIONS[name] = function
        op: OpOverload = getattr(torch.ops.pdfast, name).default
        return op

    return decorate


def _versioned(function: Callable[..., Any], mutated: tuple[str, ...]) -> Callable[..., Any]:
    """The function; afterwards autograd knows that the arguments have been written to.

    It sees what PyTorch's own ops do, and nothing of a kernel.
    """
    names = function.__code__.co_varnames
    places = [names.index(name) for name in mutated]

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        result = function(*args)
        written = (args[place] for place in places)
        torch.autograd.graph.increment_version([t for t in written if isinstance(t, Tensor)])
        return result

    return run
