"""Launches of ops on a CUDA device: each rule by hand; test_op_counter.py measures an update."""

from pathlib import Path

import pytest
import torch
from launch_cases import CASES, OPS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast.kernels.calls import (
    ADDS,
    CATS,
    COPIES,
    NORM_BACKWARD,
    NORM_FORWARD,
    NORM_PARAMS,
    PRODUCTS,
    REDUCTIONS,
    RESAMPLING,
    STRIDED_ADDS,
    Call,
)
from pdfast.training.cuda_launches import launches
from pdfast.training.op_counter import Counter

PACKAGE = Path(__file__).parents[2] / "pdfast"


def kinds_of(function, *shapes):
    """Return {kind: (bytes, kernels)} of the launches of `function` on fake float32 tensors."""
    counter = Counter(kernels=True)
    with FakeTensorMode(), counter:
        tensors = [torch.empty(shape) for shape in shapes]
        counter.begin()
        function(*tensors)
    return {kind: (a.bytes, a.launches) for kind, a in counter.kinds.items() if a.launches}


def test_a_convolution_s_bias():
    """Added in a separate pass over the output; its gradient sums the output's gradient."""

    def run(x, w, b):
        for tensor in (x, w, b):
            tensor.requires_grad_()
        torch.nn.functional.conv2d(x, w, b).backward(torch.empty(2, 5, 6, 6))

    x, w, b, y = 4 * 2 * 3 * 36, 4 * 5 * 3, 4 * 5, 4 * 2 * 5 * 36
    assert kinds_of(run, (2, 3, 6, 6), (5, 3, 1, 1), (5,)) == {
        PRODUCTS: (3 * (x + w + y), 3),
        STRIDED_ADDS: (2 * y + b, 1),
        REDUCTIONS: (y + b, 1),
    }


def test_a_gradient_with_gaps_is_copied_for_each_of_a_convolution_s_gradients():
    """Such as the slice of channels from `cat`'s backward; the bias's sum reads it as it is."""

    def run(x, w, both, output_mask):
        x, both = (t.to(memory_format=torch.channels_last) for t in (x, both))
        dy, ones = both[:, :4], [1, 1]
        torch.ops.aten.convolution_backward(
            dy, x, w, [4], ones, [0, 0], ones, False, [0, 0], 1, output_mask
        )

    shapes, dy = [(2, 3, 8, 8), (4, 3, 1, 1), (2, 8, 8, 8)], 4 * 2 * 4 * 64
    laid_out = 2 * 4 * 2 * 64 * (3 + 8)  # copies that `run` itself makes
    for mask in ([True] * 3, [False, True, True], [False, False, True]):
        found = kinds_of(lambda *tensors, mask=mask: run(*tensors, mask), *shapes)
        assert found[COPIES] == (laid_out + sum(mask[:2]) * 2 * dy, 2 + sum(mask[:2]))
        assert found[REDUCTIONS] == (dy + 16, 1)


def test_linear_layers():
    """The product adds the bias, except to a single column; factors need dense rows or columns."""
    linear = torch.nn.functional.linear
    x, w, b = (6, 4), (5, 4), (5,)
    moved = 4 * (24 + 20 + 5 + 30)
    assert kinds_of(linear, x, w, b) == {PRODUCTS: (moved, 1)}
    one = kinds_of(linear, x, (1, 4), (1,))
    assert one == {PRODUCTS: (4 * (24 + 4 + 6 + 6), 1), COPIES: (4 * (1 + 6), 1)}
    whole = kinds_of(lambda x, w: x[:, ::2] @ w, (6, 4), (2, 3))
    assert whole == {PRODUCTS: (4 * (12 + 6 + 18), 1), COPIES: (4 * 24, 1)}
    rows = kinds_of(lambda x, w: x[:, :2].t() @ w, (6, 4), (6, 3))
    assert rows == {PRODUCTS: (4 * (12 + 18 + 6), 1)}


def test_a_product_that_is_added():
    """To a matrix, which is first copied to the output, or in place to the output."""
    shapes = (6, 5), (6, 4), (4, 5)
    apart = kinds_of(torch.addmm, *shapes)
    assert apart == {COPIES: (4 * 60, 1), PRODUCTS: (4 * (24 + 20 + 30 + 30), 1)}
    assert kinds_of(lambda y, a, b: y.addmm_(a, b), *shapes) == {PRODUCTS: (4 * (24 + 20 + 60), 1)}
    counter = Counter(kernels=True)
    with FakeTensorMode(), counter:
        torch.empty(6, 5).addmm_(torch.empty(6, 4), torch.empty(4, 5))
    assert counter.kinds[PRODUCTS].flops == 2 * 6 * 4 * 5


@pytest.mark.parametrize(
    ("function", "shapes", "kind"),
    [
        (lambda x, y: x + y, [(2, 3), (2, 3)], ADDS),
        (lambda x, y: x.t() + y.t(), [(2, 3), (2, 3)], ADDS),
        (lambda x, y: x.t() + y, [(3, 3), (3, 3)], STRIDED_ADDS),
        (lambda x, y: x[:, :2] + y, [(2, 3), (2, 2)], STRIDED_ADDS),
        (lambda x, y: x + y, [(2, 3), (3,)], STRIDED_ADDS),
        (lambda x, y: x[:1] + y, [(2, 3), (1, 3)], ADDS),
        (lambda x: x + 1, [(2, 3)], ADDS),
    ],
)
def test_adds_are_vectorised_where_operands_lie_alike(function, shapes, kind):
    assert {name: n for name, (_, n) in kinds_of(function, *shapes).items()} == {kind: 1}


def test_cat_and_stack():
    """128 inputs a launch, 64 if one has gaps; with two dtypes, or five axes, copies."""
    cat, many = torch.cat, [(2, 3)] * 129
    assert kinds_of(lambda *xs: cat(xs), *many) == {CATS: (129 * 48, 2)}
    assert kinds_of(lambda *xs: torch.stack(xs), *many) == {CATS: (129 * 48, 2)}
    assert kinds_of(lambda *xs: cat([x.t() for x in xs]), *many)[CATS][1] == 3
    assert kinds_of(lambda x, y: cat([x, y], 4), (1, 1, 1, 1, 3), (1, 1, 1, 1, 3)) == {
        COPIES: (48, 2)
    }


def test_lists_of_tensors():
    """A launch ends with 64 tensors or 320 chunks of 65,536 numbers."""

    def copy(*tensors, dtype=torch.float32):
        half = len(tensors) // 2
        torch._foreach_copy_(tensors[:half], [t.to(dtype) for t in tensors[half:]])

    small, large = (10,), (65_536 * 100 + 1,)
    assert kinds_of(copy, *[small] * 128) == {COPIES: (64 * 80, 1)}
    assert kinds_of(copy, *[small] * 130)[COPIES][1] == 2
    assert kinds_of(copy, *[large] * 12)[COPIES][1] == 2  # 606 chunks
    low = kinds_of(lambda *t: copy(*t, dtype=torch.bfloat16), *[small] * 128)
    assert low[COPIES] == (64 * (60 + 60), 64 + 1)  # the casts, and one for all
    add = torch._foreach_add_
    assert kinds_of(lambda *t: add(t[:3], t[3:]), *[(2, 3)] * 6) == {ADDS: (3 * 72, 1)}
    turned = kinds_of(lambda *t: add(t[:3], [x.t() for x in t[3:]]), *[(3, 3)] * 6)
    assert turned == {ADDS: (3 * 108, 3)}


def test_resampling_copies_what_has_gaps():
    """PyTorch's ops, whose backward does not read the input; and pdfast's."""
    aten, own = torch.ops.aten, torch.ops.pdfast.resample
    calls = [
        lambda part: aten.upsample_nearest2d_backward(part, [8, 8], [2, 4, 4, 4], 2.0, 2.0),
        lambda part: aten.avg_pool2d(part, [2, 2]),
        lambda part: own(part, False, 4),
    ]
    laid_out, part, quarter = 2 * 4 * 2 * 8 * 64, 4 * 2 * 4 * 64, 2 * 4 * 64
    for call in calls:

        def run(both, call=call):
            call(both.to(memory_format=torch.channels_last)[:, :4])

        found = kinds_of(run, (2, 8, 8, 8))
        assert found == {COPIES: (laid_out + 2 * part, 2), RESAMPLING: (part + quarter, 1)}

    def backward(dy, x, halves):
        if halves:
            aten.avg_pool2d_backward(dy, x, [2, 2], [2, 2], [0, 0], False, True, None)
        else:
            own(dy, True, 4)

    for halves in (False, True):
        found = kinds_of(
            lambda dy, x, halves=halves: backward(dy, x, halves), (2, 4, 4, 4), (2, 4, 8, 8)
        )
        copied = {} if halves else {COPIES: (2 * quarter, 1)}  # pdfast's works only in NHWC
        assert found == copied | {RESAMPLING: (part + quarter, 1)}


def test_group_norm_s_kernels():
    """pdfast's: one forward, two backward with sums passed between them; both channels-last."""

    def run(x, w, b):
        for tensor in (x, w, b):
            tensor.requires_grad_()
        y = torch.ops.pdfast.group_norm_silu(x, None, None, None, w, b, None, 2, 1e-6, True, False)[
            0
        ]
        torch.autograd.grad(y, (x, w, b), torch.empty_like(y))

    found = kinds_of(run, (2, 4, 8, 8), (4,), (4,))
    x, params, statistics, sums = 4 * 2 * 4 * 64, 32, 2 * 16, 4 * 2 * 2 * 4
    assert found == {
        COPIES: (2 * 2 * x, 2),
        NORM_FORWARD: (2 * x + params + statistics, 1),
        NORM_BACKWARD: (3 * x + params + statistics + sums, 1),
        NORM_PARAMS: (sums + params, 1),
    }


class Calls(TorchDispatchMode):
    """Records the calls of one op of kernels/."""

    def __init__(self, name):
        super().__init__()
        self.name, self.found = f"pdfast::{name}", []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name == self.name:
            self.found.append(Call(func, args, kwargs or {}, result))
        return result


@pytest.mark.parametrize("name", OPS)
def test_an_op_of_kernels_counts_as_the_kernels_that_it_registers(name):
    """With Triton; without it, it counts as the operations of its reference."""
    run = next(call for case, call in CASES.items() if case.split()[0] == name)
    op, device = OPS[name], torch.device("cpu")
    with Calls(name) as calls:
        run(device)
    (call,) = calls.found
    found = launches(call)
    assert sum(launch.number for launch in found) == len(op.kernels)
    assert {launch.kind for launch in found} == {op.kind}
    largest = max(t.nbytes for t in (*call.inputs, *call.outputs))
    assert found[-1].bytes > largest
    with Calls(name) as calls, Counter(kernels=True) as counter:
        run(device)
    assert len(calls.found) == 1
    assert counter.kinds[op.kind].launches >= len(op.kernels)
    with Calls(name) as calls, Counter(kernels=False):
        run(device)
    assert not calls.found


def test_the_counter_knows_the_kernels_alone():
    """The engine may use the counter, which imports nothing that is built on the engine."""
    for name in ("op_counter", "cuda_launches"):
        lines = (PACKAGE / "training" / f"{name}.py").read_text().splitlines()
        ours = [line for line in lines if line.startswith(("from pdfast", "import pdfast"))]
        allowed = ("from pdfast.kernels.", "from pdfast.training.cuda_launches ")
        assert all(line.startswith(allowed) for line in ours)
