"""Kernels that an op launches on a CUDA device, and the bytes that each moves: a rule for each op.

The ops of kernels/ register their rules. The rules here, for PyTorch's own ops, are taken from its
source (aten/src/ATen/native, with its folders cuda and cudnn). tests/training/test_op_counter.py
compares them with updates measured with PyTorch 2.11:

- cuDNN convolves, and PyTorch adds the bias in a pass over the output; the bias's broadcast rules
  out the vectorised path. A backward is one product each for the gradients of input and weight, and
  a reduction for the bias. Each product first copies a gradient that has gaps (the slice that
  `cat`'s backward returns).
- cuBLASLt adds a linear layer's bias as it writes; its gradient is a separate reduction.
- An elementwise op is vectorised where all its operands have the same layout, without gaps.
- `cat` takes 128 inputs in a launch; an op on lists takes 64 tensors or 320 chunks of 65,536
  numbers.
- Pooling and resampling first copy an operand that has gaps.

An op without a rule counts as one kernel, as does attention. NOT_COUNTED lists the rest. The
measured updates used pdfast's own group norm, and attention with one head; the rule for PyTorch's
group norm is from its source alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._prims_common import suggest_memory_format

from pdfast.kernels.calls import (
    ADDS,
    ATTENTION,
    CATS,
    COPIES,
    NORM_BACKWARD,
    NORM_FORWARD,
    NORM_PARAMS,
    POINTWISE,
    PRODUCTS,
    REDUCTIONS,
    RESAMPLING,
    STRIDED_ADDS,
    Call,
    Launch,
    Rule,
    bytes_of,
    copy_of,
    made_dense,
)
from pdfast.kernels.registry import registered

NOT_COUNTED = (
    "memory sets, and what cuDNN and cuBLAS launch beside the main kernel of a product or of "
    "attention: sums of split products, workspaces, changes of layout, epilogues"
)

OWN = {f"pdfast::{op.name}": op for op in registered().values()}
NAMES = {
    PRODUCTS: "mm addmm addmm_ bmm baddbmm convolution convolution_backward",
    NORM_FORWARD: "native_group_norm",
    NORM_BACKWARD: "native_group_norm_backward",
    ADDS: "add add_ sub sub_ _foreach_add _foreach_add_",
    REDUCTIONS: "sum mean linalg_vector_norm amax amin",
    CATS: "cat stack",
    COPIES: "copy_ clone _to_copy _foreach_copy_",
    RESAMPLING: "avg_pool2d upsample_nearest2d avg_pool2d_backward upsample_nearest2d_backward",
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names.split()}
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach"}
FREE |= {"_unsafe_view", "_reshape_alias", "lift_fresh", "is_nonzero", "_local_scalar_dense"}
OVERWRITES = {"copy_", "_foreach_copy_", "fill_", "zero_"}  # these do not read their old values
GATHERS = {"index", "embedding", "index_select"}

CAT_INPUTS, CAT_DIMS = 128, 4
LIST_TENSORS, LIST_CHUNKS, LIST_CHUNK = 64, 320, 65_536


def runs_nothing(func: OpOverload) -> bool:
    """Return whether an op is a view, an allocation, or a read of a value on the host."""
    return func.is_view or func._schema.name.partition("::")[2] in FREE


def kind_of(call: Call) -> str:
    """Return the kind of a call's main kernel."""
    if own := OWN.get(call.func._schema.name):
        return own.kind
    if "scaled_dot_product" in call.name:
        return ATTENTION
    return KIND_OF.get(call.name, POINTWISE)


def moved_by(call: Call) -> int:
    """Return the bytes that a call reads and writes, once per tensor, as one kernel would."""
    own = OWN.get(call.func._schema.name)
    gathers = own.gathers if own else call.name in GATHERS
    return call.moved(gathers=gathers, overwrites=call.name in OVERWRITES)


def launches(call: Call) -> list[Launch]:
    """Return the kernels that a call launches on a CUDA device."""
    if own := OWN.get(call.func._schema.name):
        return own.launches(call)
    rule = RULES.get(call.name)
    return rule(call) if rule else [Launch(kind_of(call), moved_by(call))]


# ------------------------------------------------------------------------------------------
# Rules


def _convolution(call: Call) -> list[Launch]:
    x, weight, bias, out = call["input"], call["weight"], call["bias"], call.outputs[0]
    found = made_dense(_layout(x, weight), x, weight)
    found.append(Launch(PRODUCTS, bytes_of(x, weight, out)))
    if bias is not None:
        found.append(Launch(STRIDED_ADDS, bytes_of(out, bias, out)))
    return found


def _convolution_backward(call: Call) -> list[Launch]:
    dy, x, weight = call["grad_output"], call["input"], call["weight"]
    dx, dweight, dbias = call.result
    found: list[Launch] = []
    if dbias is not None:
        found.append(Launch(REDUCTIONS, bytes_of(dy, dbias)))
    turned = suggest_memory_format(dy) != suggest_memory_format(x)  # into the layout of x, once
    if turned:
        found.append(copy_of(dy))
    for other, grad in ((weight, dx), (x, dweight)):
        if grad is not None:
            layout = _layout(x if turned else dy, other)
            found += made_dense(layout, other, *([] if turned else [dy]))
            found.append(Launch(PRODUCTS, bytes_of(dy, other, grad)))
    return found


def _product(call: Call) -> list[Launch]:
    """Count a matrix product, or a batch of them, with its bias, if any.

    A product in place adds to its output's old values.
    """
    bias = call["self"] if call.name in ("addmm", "addmm_", "baddbmm") else None
    factors = [t for t in call.inputs if t is not bias]
    out = call.outputs[0]
    found = [copy_of(factor) for factor in factors if not _has_rows(factor)]
    moved = bytes_of(*factors, out)
    if call.name == "addmm_":
        moved += bytes_of(out)
    elif bias is not None:
        fused = bias.ndim == 1 and bias.is_contiguous() and min(factors[1].shape) > 1
        if fused:
            moved += bytes_of(bias)
        else:  # copied to the output, to which the product adds
            found.append(Launch(COPIES, bytes_of(bias, out)))
            moved += bytes_of(out)
    return [*found, Launch(PRODUCTS, moved)]


def _add(call: Call) -> list[Launch]:
    alike = _lie_alike([*call.inputs, *call.outputs])
    return [Launch(ADDS if alike else STRIDED_ADDS, moved_by(call))]


def _cat(call: Call) -> list[Launch]:
    inputs = call["tensors"]
    layouts = {suggest_memory_format(t) for t in inputs}
    layout = layouts.pop() if len(layouts) == 1 else torch.contiguous_format
    dense = all(t.is_contiguous(memory_format=layout) for t in inputs)
    at_once = CAT_INPUTS if dense else CAT_INPUTS // 2
    alike = len({t.dtype for t in inputs}) == 1 and max(t.ndim for t in inputs) <= CAT_DIMS
    if len(inputs) < 2 or not alike or not (dense or layout == torch.contiguous_format):
        return [Launch(COPIES, moved_by(call), len(inputs))]
    return [Launch(CATS, moved_by(call), -(-len(inputs) // at_once))]


def _lists(call: Call) -> list[Launch]:
    """Count an op on lists of tensors: one launch for many if dtypes and layouts are the same."""
    into, source = call["self"], call["other"] if call["src"] is None else call["src"]
    source = source if isinstance(source, list | tuple) else into  # of a number: itself
    types = [{t.dtype for t in tensors} for tensors in (into, source)]
    one = len(types[0]) == len(types[1]) == 1 and (kind_of(call) == COPIES or types[0] == types[1])
    alike = one and all(_lie_alike(pair) for pair in zip(into, source, strict=True))
    return [Launch(kind_of(call), moved_by(call), _list_launches(into) if alike else len(into))]


def _list_launches(tensors: Sequence[Tensor]) -> int:
    """Return the launches of PyTorch's kernels on lists: one for each full table, and the last."""
    number = held = chunks = 0
    for tensor in tensors:
        held += 1
        last = -(-tensor.numel() // LIST_CHUNK) - 1
        for chunk in range(last + 1):
            chunks += 1
            if chunks == LIST_CHUNKS or (chunk == last and held == LIST_TENSORS):
                number, chunks = number + 1, 0
                held = 0 if chunk == last else 1
    return number + (chunks > 0)


def _resampling(call: Call) -> list[Launch]:
    """Count a resampling, and a copy that makes its first argument dense.

    A gradient is made dense in the layout of its tensor. A backward reads only the sizes of its
    input.
    """
    first = call["self"] if call["grad_output"] is None else call["grad_output"]
    like = first if call["self"] is None else call["self"]
    moved = bytes_of(first, *call.outputs)
    return [*made_dense(suggest_memory_format(like), first), Launch(RESAMPLING, moved)]


def _norm(call: Call) -> list[Launch]:
    """Count PyTorch's norm: moments, their product with the parameters, the map; only in NCHW."""
    found = made_dense(torch.contiguous_format, call["input"])
    return [*found, Launch(NORM_FORWARD, moved_by(call) + bytes_of(call["input"]), 3)]


def _norm_backward(call: Call) -> list[Launch]:
    """Count PyTorch's: sums per channel, three coefficients, the map; then the parameters."""
    dy, x = call["grad_out"], call["input"]
    found = made_dense(torch.contiguous_format, dy, x)
    main = Launch(NORM_BACKWARD, moved_by(call) + bytes_of(dy, x), 4)
    return [*found, main, Launch(NORM_PARAMS, 0)]


RULES: dict[str, Rule] = dict.fromkeys(("mm", "addmm", "addmm_", "bmm", "baddbmm"), _product)
RULES |= dict.fromkeys(("add", "add_", "sub", "sub_"), _add)
RULES |= dict.fromkeys(("cat", "stack"), _cat)
RULES |= dict.fromkeys(("_foreach_add", "_foreach_add_", "_foreach_copy_"), _lists)
RULES |= dict.fromkeys(NAMES[RESAMPLING].split(), _resampling)
RULES |= {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_group_norm": _norm,
    "native_group_norm_backward": _norm_backward,
}


# ------------------------------------------------------------------------------------------
# Tensors


def _layout(*tensors: Tensor) -> torch.memory_format:
    """Return cuDNN's layout: channels-last if an operand has it, and none is float64."""
    if any(t.dtype == torch.float64 for t in tensors):
        return torch.contiguous_format
    layouts = [suggest_memory_format(t) for t in tensors]
    return next((la for la in layouts if la != torch.contiguous_format), torch.contiguous_format)


def _has_rows(matrix: Tensor) -> bool:
    """Return whether cuBLAS takes the matrix without a copy: its rows or columns are contiguous."""
    *_, rows, columns = matrix.shape
    *_, down, across = matrix.stride()
    return (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))


def _lie_alike(tensors: Sequence[Tensor]) -> bool:
    """Return whether all tensors are dense and have the same shape and strides."""

    def order(tensor: Tensor) -> list[tuple[int, int]]:
        pairs = zip(tensor.stride(), tensor.shape, strict=True)
        return [(stride, size) for stride, size in pairs if size > 1]

    first, *others = tensors
    expected = 1
    for stride, size in sorted(order(first)):
        if stride != expected:
            return False
        expected *= size
    return all(t.shape == first.shape and order(t) == order(first) for t in others)
