"""Custom networks on a GPU: captured or called, the student is the same.

Skipped without a GPU.
"""

import dataclasses

import pytest
import torch
from own_cases import CONFIG, Dense, distill

from pdfast.errors import PdfastError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIG = dataclasses.replace(CONFIG, deterministic=True)
CALLED = dataclasses.replace(CONFIG, engine=dataclasses.replace(CONFIG.engine, graph=False))


class Waits(Dense):
    """A network that reads a number on the host, which a graph cannot contain."""

    def forward(self, z, logsnr, label):
        out = super().forward(z, logsnr, label)
        return out if float(z.sum()) > 0 else 1 * out


def test_captured_or_called(tmp_path):
    captured, called = (
        distill(tmp_path / name, config=config, device="cuda")
        for name, config in (("graph", CONFIG), ("calls", CALLED))
    )
    pairs = zip(captured.net.parameters(), called.net.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_can_be_called(tmp_path):
    distill(tmp_path / "calls", Waits(), config=CALLED, device="cuda")


def test_what_cannot_be_captured(tmp_path):
    """conftest.py runs it last: after it, PyTorch up to 2.11 captures nothing in this process."""
    with pytest.raises(PdfastError, match=r"set engine.graph to false"):
        distill(tmp_path / "graph", Waits(), device="cuda")
