"""Bytes of every Triton op, counted at the loads and stores of Triton's interpreter."""

import numpy as np
import pytest
import torch
from launch_cases import OPS, TRAFFIC
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpreterBuilder


class Accesses:
    """Addresses that the kernels in a block of code read and wrote, and their bytes."""

    def __init__(self, monkeypatch):
        self.read, self.written = [], []
        for name, log in (
            ("create_masked_load", self.read),
            ("create_masked_store", self.written),
        ):
            monkeypatch.setattr(InterpreterBuilder, name, self.logged(name, log))

    @staticmethod
    def logged(name, log):
        real = getattr(InterpreterBuilder, name)

        def call(builder, ptrs, *args):
            mask = args[0] if name.endswith("load") else args[1]
            log.append((ptrs.data[mask.data], ptrs.get_element_ty().primitive_bitwidth // 8))
            return real(builder, ptrs, *args)

        return call

    def of(self, tensor):
        """How often each element of a tensor was (read, written)."""
        start = tensor.data_ptr()
        counts = []
        for log in (self.read, self.written):
            count = np.zeros(tensor.numel(), int)
            for addresses, _ in log:
                place = (addresses.astype(np.int64) - start) // tensor.itemsize
                inside = place[(place >= 0) & (place < len(count))]
                np.add.at(count, inside, 1)
            counts.append(count)
        return counts

    def total(self):
        return sum(a.size * size for a, size in self.read + self.written)


class EagerBytes(TorchDispatchMode):
    """Bytes that PyTorch's operations read and write, each from and to memory."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        memory = {t.untyped_storage().data_ptr() for t in inputs}
        views = outputs and outputs[0].untyped_storage().data_ptr() in memory
        if not views or func.overloadpacket.__name__.endswith("_"):
            self.total += sum(t.numel() * t.itemsize for t in inputs + outputs)
        return result


@pytest.mark.parametrize("case", TRAFFIC)
def test_every_number_is_moved_as_often_as_the_op_says(case, monkeypatch):
    traffic = TRAFFIC[case]
    with EagerBytes() as eager:
        traffic.eager()
    with monkeypatch.context() as patch:
        accesses = Accesses(patch)
        expected = traffic.run()
    for tensor, reads, writes in expected:
        read, written = accesses.of(tensor)
        assert (read == reads).all()
        assert (written == writes).all()
    needed = sum(t.numel() * t.itemsize * (reads + writes) for t, reads, writes in expected)
    assert accesses.total() == needed + traffic.scratch
    per_element = [total / traffic.elements for total in (accesses.total(), eager.total)]
    print("\n{}: {:.1f} bytes per element, eager PyTorch {:.1f}".format(case, *per_element))


def test_every_op_is_counted():
    counted, files = {case.split()[0] for case in TRAFFIC}, {op.file for op in OPS.values()}
    assert counted == files, f"files without traffic(): {sorted(files - counted)}"
