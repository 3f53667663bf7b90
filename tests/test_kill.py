"""SIGKILL at chosen points of a run: the same command still ends at the same bits."""

import signal
import subprocess
import sys

import pytest
import torch

import pdfast
from pdfast import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# The command line in a process that kills itself at the n-th event, an event being an update or a
# step of the path that writes: a checksum, an fsync, a rename.
KILLED = """
import os, pathlib, signal, sys
from pdfast import checkpoint, engine
from pdfast.cli import main

left = int(sys.argv[1])

def counted(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

engine.update = counted(engine.update)
checkpoint._fsync, checkpoint._sha256 = counted(checkpoint._fsync), counted(checkpoint._sha256)
pathlib.Path.rename = counted(pathlib.Path.rename)
sys.exit(main(sys.argv[2:]))
"""
# In the teacher's updates, inside its saves, between the two; then in the rounds.
MOMENTS = (3, 7, 9, 12, 14, 16, 18, 24, 31, 38, 30)


@pytest.mark.parametrize("pipeline", ["false", "true"])
def test_killed_again_and_again(tiny_toml, tmp_path, pipeline):
    tiny_toml.write_text(
        tiny_toml.read_text().replace("pipeline_teacher = false", f"pipeline_teacher = {pipeline}")
    )
    pdfast.distill(tiny_toml, out=tmp_path / "straight", threads=1, quiet=True)
    args = ["distill", "--config", str(tiny_toml), "--out", str(tmp_path / "run"), "--threads", "1"]
    for moment in MOMENTS:
        command = [sys.executable, "-c", KILLED, str(moment), *args]
        killed = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "pdfast", *args], check=True)
    for name in ("teacher", "round-01-steps-0004", "round-02-steps-0002"):
        expected = checkpoint.load_model(tmp_path / "straight" / name).state_dict()
        got = checkpoint.load_model(tmp_path / "run" / name).state_dict()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    report = (tmp_path / "run" / "report.json").read_text()
    assert report == (tmp_path / "straight" / "report.json").read_text()
    left = [p for p in (tmp_path / "run").rglob(".*") if p.name.endswith((".tmp", ".old"))]
    assert not left
