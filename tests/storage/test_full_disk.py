"""A disk that fills up, turns read-only, or loses the run: one sentence, and nothing is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_cases import assert_same_run, stop_after

import pdfast
from pdfast.errors import PdfastError, Stopped
from pdfast.storage import files
from pdfast.training import loop

# In a mount namespace of its own, which ends with the process: a small disk, and the command line
# again and again, with so many kB free, then on a disk that turns read-only, then undisturbed.
DRIVER = """
import contextlib, io, json, os, shutil, subprocess, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pdfast.distillation import rounds
from pdfast.storage import files
from pdfast.training import loop
from pdfast.cli.main import main

rounds.MONITOR_IMAGES = 64  # as in conftest.py

disk, config, result, *levels = sys.argv[1:]
run, ballast = Path(disk, "run"), Path(disk, "ballast")
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)

def attempt(what):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(["distill", "--config", config, "--out", str(run), "--threads", "1"])
    states = sorted(run.glob("state/*"))
    for state in states:
        files.verify(state)
    left = [p.name for p in run.rglob(".*")]
    print(json.dumps([what, code, errors.getvalue(), [s.name[-2:] for s in states], left]))

for level in levels:
    ballast.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    ballast.write_bytes(bytes(free - 1024 * int(level)))
    attempt(level)
ballast.unlink()

def read_only(*args, real=loop.update):
    if not os.statvfs(disk).f_flag & os.ST_RDONLY:
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
    return real(*args)

whole, loop.update = loop.update, read_only
attempt("turns read-only")
loop.update = whole
attempt("is read-only")
subprocess.run(["umount", disk], check=True)
attempt("the end")
shutil.copytree(run, result)
"""


def test_a_disk_that_fills_up_and_turns_read_only(straight, tiny_toml, tmp_path):
    disk, result = tmp_path / "disk", tmp_path / "result"
    disk.mkdir()
    # The first state of 280 kB fits into the last of these alone, and the second nowhere.
    levels = ["0", "8", "40", "150", "250", "450"]
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", DRIVER, disk, tiny_toml, result, *levels],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *attempts, read_only, still, end = map(json.loads, done.stdout.splitlines())
    for (what, code, errors, states, left), level in zip(attempts, levels, strict=True):
        assert (what, code, left) == (level, 1, []), errors
        assert errors.count("\n") == 1
        assert "no space left on device" in errors
        assert states == (["05"] if level == "450" else [])
    for _, code, errors, states, _ in (read_only, still):
        assert (code, states) == (1, ["05"])
        assert errors.count("\n") == 1
        assert "read-only file system" in errors
    assert end == ["the end", 0, "", [], []], end
    assert_same_run(straight, result)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(("updates", "replaced"), [(5, False), (7, False), (5, True), (17, True)])
def test_a_run_that_is_removed_is_not_made_again(
    straight, tiny, tmp_path, monkeypatch, updates, replaced
):
    """Before a state is saved or a line is logged; with or without another run in its place."""
    run, real, count = tmp_path / "run", loop.update, iter(range(1, 1000))

    def removing(*args):
        if next(count) == updates:
            shutil.rmtree(run)
            if replaced:
                shutil.copytree(straight, run)
        return real(*args)

    monkeypatch.setattr(loop, "update", removing)
    with pytest.raises(PdfastError, match=r"run is gone: it, or the \.lock in it, was removed"):
        pdfast.distill(tiny, out=run, quiet=True)
    if replaced:
        assert_same_run(straight, run)
    assert run.exists() == replaced


def test_a_removed_folder_of_states_is_made_again(straight, tiny, tmp_path, monkeypatch, capsys):
    """A warning says so, because the metrics show how far the run was."""
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            pdfast.distill(tiny, out=tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run" / "state")
    pdfast.distill(tiny, out=tmp_path / "run")
    assert "warning: round 0: 4 updates came after the last saved state" in capsys.readouterr().out
    assert_same_run(straight, tmp_path / "run")


def test_a_state_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    """The second of the two renames fails, so the first is undone."""
    path = tmp_path / "made"
    files.write(path, {}, {"t.json": {"n": 1}})
    real = Path.rename

    def failing(self, target):
        if ".tmp." in self.name:
            raise OSError(30, "Read-only file system")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PdfastError, match="read-only file system; nothing was changed"):
        files.write(path, {}, {"t.json": {"n": 2}})
    assert files.read(path).tables == {"t.json": {"n": 1}}
    assert list(tmp_path.iterdir()) == [path]
