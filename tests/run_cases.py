"""Helpers shared by the tests of whole runs; the uninterrupted run is the fixture `straight`."""

import json
import signal

from pdfast.cli.main import main
from pdfast.distributed import signals
from pdfast.models import checkpoint
from pdfast.training import loop

TIMING = {"images_per_s", "memory_mb", "seconds"}


def metrics(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def weights(path):
    return checkpoint.load_model(path).state_dict()


def assert_same_tensors(a, b):
    """Check that two states or models have the same files of tensors, byte for byte."""
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    tensors = [name for name in names if name.endswith(".safetensors")]
    assert tensors
    for name in tensors:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def kept(run, pattern):
    """Return the names of the directories with such a file, without those that were set aside."""
    names = sorted(path.parent.name for path in run.glob(pattern))
    return [name for name in names if ".damaged" not in name]


def assert_same_run(a, b):
    """Check that two finished runs have equal metrics, models and reports, and no leftovers.

    If rounds keep their moments, both runs must have equal ones.
    """
    assert metrics(a) == metrics(b)
    models = kept(a, "*/config.json")
    assert models == kept(b, "*/config.json")
    assert "teacher" in models
    for name in models:
        assert_same_tensors(a / name, b / name)
    assert (a / "report.json").read_text() == (b / "report.json").read_text()
    moments = kept(a, "state/moments-round-*/state.json")
    for name in moments:
        assert_same_tensors(a / "state" / name, b / "state" / name)
    for run in (a, b):
        assert kept(run, "state/*/state.json") == moments
        assert not list(run.rglob(".*"))


def stop_after(monkeypatch, updates):
    """Ask the run to stop after so many updates, as a signal would."""
    real, count = loop.update, iter(range(1, 1000))

    def counted(*args):
        if next(count) == updates:
            monkeypatch.setattr(signals, "_requested", signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop, "update", counted)


def run(capsys, *args):
    """Return (exit code, stdout, stderr) of a command line."""
    code = main([str(a) for a in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
