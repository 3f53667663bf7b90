"""A session of one process: the same bits as without one, by gloo on a CPU, by nccl on a GPU."""

from pathlib import Path

import one_process
import pytest
import torch
from torchrun import run

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        pytest.param("cpu", "gloo", marks=pytest.mark.slow),
        pytest.param("cuda:0", "nccl", marks=[pytest.mark.gpu, ON_GPU]),
    ],
)
def test_a_session_of_one(device, backend, tmp_path):
    ended = run(tmp_path, Path(one_process.__file__), device, ".", processes=1)
    assert ended.codes == {}, ended.errors
    assert ended.output.startswith(f"{backend}: ")
    print(ended.output)
