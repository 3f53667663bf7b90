"""A tiny distillation as one process of a session, beside the same run without a session.

torchrun --nproc-per-node 1 one_process.py DEVICE FOLDER

A run of one process joins no session by itself: it has nobody to communicate with. Here it is made
to join one, so that one GPU is enough to put nccl's sums into its CUDA graphs.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product

import torch
import torch.distributed as dist
from conftest import TINY

import pdfast
from pdfast.config.schema import Config
from pdfast.config.serialization import from_table
from pdfast.distributed import collectives


def main():
    name, folder = sys.argv[1], Path(sys.argv[2])
    config = from_table(Config, TINY | {"deterministic": True})
    alone = pdfast.distill(config, out=folder / "alone", device=name, quiet=True)
    sums, real = [], dist.all_reduce

    def counted(tensor, *args, group=None, **options):
        sums.append((tensor.device.type, dist.get_backend(group), tensor.numel()))
        return real(tensor, *args, group=group, **options)

    dist.all_reduce, collectives.launched = counted, lambda: True
    joined = pdfast.distill(config, out=folder / "joined", device=name, quiet=True)
    assert not dist.is_initialized()

    kind = torch.device(name).type
    backend = {"cuda": "nccl", "cpu": "gloo"}[kind]
    parameters = sum(p.numel() for p in alone.parameters())
    gradients = [(on, by) for on, by, size in sums if size >= parameters]
    assert set(gradients) == {(kind, backend)}, sums
    pairs = zip(alone.parameters(), joined.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    print(f"{backend}: {len(gradients)} sums of the gradient were called or captured")


if __name__ == "__main__":
    main()
