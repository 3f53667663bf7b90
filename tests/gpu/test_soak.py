"""Thirteen rounds in one process: one graph serves them, and the last round frees all memory.

Skipped without a GPU.
"""

import dataclasses
import gc

import pytest
import torch
from engine_cases import changed

import pdfast
from pdfast.distillation import rounds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROUNDS = 13
ORDINARY = (0, 0)  # the pool of memory that no graph owns


def test_memory_is_flat_over_the_rounds(tiny, tmp_path, monkeypatch):
    """Allocated and reserved memory never exceeds that after the second round.

    The first still finds algorithms, makes streams and loads libraries. The last leaves no graph.
    """
    used, one_round = [], rounds._distill_round

    def watched(*args):
        student = one_round(*args)
        gc.collect()
        torch.cuda.synchronize()
        pools = {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot()}
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        used.append((allocated, reserved, len(pools - {ORDINARY})))
        print(f"round {len(used)}: {allocated:,} bytes allocated, {reserved:,} reserved")
        return student

    monkeypatch.setattr(rounds, "_distill_round", watched)
    config = changed(
        tiny,
        distill={"start_steps": 2**ROUNDS, "rounds": ROUNDS},
        engine={"pipeline_teacher": True, "teacher_stream": True},
    )
    pdfast.distill(
        dataclasses.replace(config, save_every=10_000), out=tmp_path, device="cuda:0", quiet=True
    )
    assert len(used) == ROUNDS
    allocated, reserved, pools = zip(*used, strict=True)
    assert pools == (*[1] * (ROUNDS - 1), 0), f"graphs' pools that are still reserved: {pools}"
    assert set(allocated[1:-1]) == {allocated[1]}, allocated
    assert allocated[-1] < allocated[1], allocated
    assert max(reserved[1:]) == reserved[1], reserved
