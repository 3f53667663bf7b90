"""Registration of the ops of kernels/ with PyTorch, as torch.ops.pdfast.

`torch.library.custom_op` is not used, because each call of its ops passes through torch._dynamo.
The first call then spends a second or two on that import, and every call takes 12 us on the host
where it takes 5 us here (PyTorch 2.13.0, one core of a Xeon;
findings/torch_custom_op_imports_dynamo.sh).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

LIBRARY = torch.library.Library("pdfast", "FRAGMENT")  # type: ignore[no-untyped-call]
FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The function behind each op, by the op's name."""


def define(*mutated: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Return a decorator that registers a function NAME_op as the op pdfast::NAME, on any device.

    The function's annotations are the op's schema. The function runs without autograd, and the op
    is not differentiable without `torch.library.register_autograd`. It needs a fake
    (`torch.library.register_fake(NAME_op, lib=LIBRARY)`).

    Args:
        *mutated: Names of the arguments that the op writes to.
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
    """Wrap `function` so that autograd learns which arguments were written to.

    Autograd sees the writes of PyTorch's own ops, but not those of a kernel.
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
