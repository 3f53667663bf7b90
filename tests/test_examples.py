"""The scripts of examples/, run as a user would."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_signals(tmp_path):
    """The student's 4 steps beat its teacher's own 4, by far."""
    command = [sys.executable, EXAMPLES / "signals_1d.py", "--out", tmp_path / "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["metric"] == "FD-raw"
    assert report["student"]["4"] < 0.5 * report["teacher"]["4"]
    assert f"{report['student']['4']:7.3f}" in done.stdout
    assert Image.open(tmp_path / "run" / "samples" / "compare.png").width > 1000
