"""Calls of ops and the kernels that they launch, from which launches and bytes are counted.

The ops of kernels/ register their counting rules (registry.py). The rules of PyTorch's own ops are
in training/cuda_launches.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

# Kinds of kernels, in the order of a report.
PRODUCTS = "convolutions and matrix products"
ATTENTION = "attention"
NORM_FORWARD = "group norm, forward"
NORM_BACKWARD = "group norm, backward"
NORM_PARAMS = "group norm, gradients of parameters"
STEPS = "add_noise, ddim_step, distill_loss"
OPTIMIZER = "optimizer"
STRIDED_ADDS = "strided adds"  # biases of convolutions, and sums with a gradient that has gaps
ADDS = "vectorised adds"  # residual sums, sums of gradients
REDUCTIONS = "reductions"  # gradients of biases
CATS = "cat"
COPIES = "copies and casts"
RESAMPLING = "pooling and upsampling"
DROPOUT = "dropout"
POINTWISE = "other elementwise"
NORM_KINDS = (NORM_FORWARD, NORM_BACKWARD, NORM_PARAMS)
MEMORY_KINDS = (STRIDED_ADDS, ADDS, REDUCTIONS, CATS, COPIES, RESAMPLING, DROPOUT, POINTWISE)
KINDS = (PRODUCTS, ATTENTION, *NORM_KINDS, STEPS, OPTIMIZER, *MEMORY_KINDS)


class Launch(NamedTuple):
    """Kernels of one kind that a call launches."""

    kind: str
    """Kind of the kernels, one of KINDS."""
    bytes: int
    """Bytes that the kernels read and write in all, each tensor once."""
    number: int = 1
    """Number of kernels."""


class Call:
    """A call of an op: its arguments by name (None where omitted), and its result."""

    def __init__(
        self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        self.func, self.args, self.kwargs, self.result = func, args, kwargs, result
        self.name = func._schema.name.partition("::")[2]
        self.inputs = tensors_of((args, kwargs))
        self.outputs = tensors_of(result)
        named = zip((a.name for a in func._schema.arguments), args, strict=False)
        self.values = dict(named) | dict(kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def moved(self, *, gathers: bool = False, overwrites: bool = False) -> int:
        """Return the bytes that the call reads and writes, each tensor once, as one kernel would.

        Args:
            gathers: Of the first tensor, the op reads only as many elements as its first output
                has.
            overwrites: The op does not read the tensors that it changes.
        """
        schema, read, taken = self.func._schema, list(self.inputs), 0
        changed = tensors_of([self[a.name] for a in schema.arguments if a.is_write])
        makes = any(r.alias_info is None for r in schema.returns)
        written = changed + (self.outputs if makes else [])
        if gathers:
            taken = self.outputs[0].numel() * read.pop(0).element_size()
        if overwrites:
            read = read[len(changed) :]
        return taken + bytes_of(*read, *written)


Rule = Callable[[Call], list[Launch]]


def tensors_of(tree: Any) -> list[Tensor]:
    """Return all tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def bytes_of(*tensors: Tensor) -> int:
    """Return the bytes of the distinct elements: a broadcast element counts once."""
    return sum(
        t.element_size() * math.prod(n for n, s in zip(t.shape, t.stride(), strict=True) if s)
        for t in tensors
    )


def copy_of(tensor: Tensor) -> Launch:
    """Return the launch that copies a tensor to a dense one of the same dtype."""
    return Launch(COPIES, bytes_of(tensor) + tensor.element_size() * tensor.numel())


def made_dense(layout: torch.memory_format, *tensors: Tensor) -> list[Launch]:
    """Return the copies of the tensors that are not yet dense in `layout`."""
    return [copy_of(t) for t in tensors if not t.is_contiguous(memory_format=layout)]
