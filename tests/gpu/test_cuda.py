"""Plain eager CUDA: the same draws, and a run of seconds. Skipped without a GPU."""

import dataclasses
import json

import pytest
import torch

import pdfast
from pdfast.diffusion.rng import Draws, Stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_integers_are_equal_and_normals_within_one_ulp():
    cpu, gpu = (Draws(3, Stream.NOISE, 1, device) for device in ("cpu", "cuda"))
    assert torch.equal(gpu.words(7, 0, 1000, 16).cpu(), cpu.words(7, 0, 1000, 16))
    a, b = (d.normal(7, 0, 1000, (3, 8, 8)).cpu().contiguous() for d in (cpu, gpu))
    steps = a.view(torch.int32).long() - b.view(torch.int32).long()
    assert steps.abs().max() <= 1


def test_a_run(tiny, tmp_path):
    student = pdfast.distill(tiny, out=tmp_path / "run", device="cuda:0", quiet=True)
    assert student.device.type == "cuda"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["student"]) == {"2", "4"}


def test_a_model_samples_the_same_on_both(tiny, tmp_path):
    short = dataclasses.replace(tiny, distill=dataclasses.replace(tiny.distill, rounds=1))
    pdfast.distill(short, out=tmp_path / "run", device="cpu", quiet=True)
    path = tmp_path / "run" / "round-01-steps-0004"
    on_cpu = pdfast.load(path).double().sample(8, 4)
    on_gpu = pdfast.load(path, "cuda").double().sample(8, 4)
    assert torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-5)
