"""SIGKILL at moments of a run that nobody chose: the same command still ends at the same bits."""

import random
import subprocess
import sys
import time

import pytest
import torch

import pdfast
from pdfast import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_killed_again_and_again(tiny_toml, tmp_path):
    pdfast.distill(tiny_toml, out=tmp_path / "straight", threads=1, quiet=True)
    command = [sys.executable, "-m", "pdfast", "distill", "--config", str(tiny_toml)]
    command += ["--out", str(tmp_path / "run"), "--threads", "1"]
    start = time.perf_counter()
    subprocess.run([*command[:-4], "--out", str(tmp_path / "timed")], check=True)
    whole = time.perf_counter() - start
    moments, killed = random.Random(0), 0
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
            try:
                run.wait(timeout=moments.uniform(0.3, 1.0) * whole)
            except subprocess.TimeoutExpired:
                run.kill()
                killed += 1
                continue
        assert run.returncode == 0
        break
    assert killed > 0
    subprocess.run(command, check=True)
    for name in ("teacher", "round-01-steps-0004", "round-02-steps-0002"):
        expected = checkpoint.load_model(tmp_path / "straight" / name).state_dict()
        got = checkpoint.load_model(tmp_path / "run" / name).state_dict()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    report = (tmp_path / "run" / "report.json").read_text()
    assert report == (tmp_path / "straight" / "report.json").read_text()
    leftovers = [p.name for p in (tmp_path / "run").iterdir() if p.name.endswith((".tmp", ".old"))]
    assert not leftovers
