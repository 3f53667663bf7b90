"""Bytes of distill_loss and adamw, counted at the interpreter's loads and stores."""

import numpy as np
import pytest
import torch
from kernel_checks import HEADS, angles, images
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpreterBuilder

from pdfast.kernels.adamw import AdamWHyperparameters, adamw, adamw_reference
from pdfast.kernels.distill_loss import distill_loss, loss_and_grad, target


class Traffic:
    """Addresses that the kernels of a block of code read and wrote, and their bytes."""

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


@pytest.mark.parametrize("head", HEADS)
def test_distill_loss_reads_and_writes_everything_once(head, monkeypatch):
    g = torch.Generator().manual_seed(0)
    shape = (2, 3, 16, 16)
    raw = (2, 6 if head == "both" else 3, 16, 16)
    out, out_t, out_mid = (images(raw, torch.float32, "channels last", g) for _ in range(3))
    z_t = images(shape, torch.float32, "channels last", g)
    phi_t, phi_mid, last = angles(64, 2, g)
    with EagerBytes() as eager:
        y = target(z_t, out_t, out_mid, phi_t, phi_mid, last, head)
        loss_and_grad(out, y, phi_t, head, "snr_trunc")
    with monkeypatch.context() as patch:
        traffic = Traffic(patch)
        loss = distill_loss(out, z_t, out_t, out_mid, phi_t, phi_mid, last, head, "snr_trunc")
    once = [out, out_t, out_mid] + ([z_t] if head in ("v", "both") else [])
    for tensor in (*once, phi_t, phi_mid, last):
        assert (traffic.of(tensor)[0] == 1).all()
    for tensor in loss:
        assert (traffic.of(tensor)[1] == 1).all()
    needed = sum(t.numel() * t.itemsize for t in (*once, phi_t, phi_mid, last, *loss))
    assert traffic.total() == needed
    elements = z_t.numel()
    print(f"\n{head}: {needed / elements:.1f} bytes per element, eager PyTorch", end=" ")
    print(f"{eager.total / elements:.1f}")


def test_adamw_reads_gradients_twice_and_the_rest_once(monkeypatch):
    buffers = [torch.rand(5000, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    copy = torch.empty(5000, dtype=torch.float16)
    counters = torch.tensor([0.1]), torch.tensor([2]), torch.tensor(0.5), torch.tensor([0, 0])
    hyperparameters = AdamWHyperparameters(
        max_norm=1.0, max_skipped=1, weight_decay=0.1, ema_decay=0.9
    )
    with EagerBytes() as eager:
        adamw_reference(*(b.clone() for b in buffers), copy, *counters, hyperparameters)
    with monkeypatch.context() as patch:
        traffic = Traffic(patch)
        adamw(*buffers, copy, *counters, hyperparameters)
    reads, writes = (2, 0), {0: 1, 1: 0, 2: 1, 3: 1, 4: 1}
    for k, buffer in enumerate(buffers):
        read, written = traffic.of(buffer)
        assert (read == (reads[0] if k == 1 else 1)).all()
        assert (written == writes[k]).all()
    assert (traffic.of(copy)[1] == 1).all()
    clones = 5 * 8 * 5000
    print(f"\nadamw: {traffic.total() / 5000:.1f} bytes per parameter, eager PyTorch", end=" ")
    print(f"{(eager.total - clones) / 5000:.1f}")
