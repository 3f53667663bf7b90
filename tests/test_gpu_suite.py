"""The suite that runs on a GPU: its parts, their order and limits, and what it leaves behind."""

import json
import sys
import tarfile

import bench_options
import bench_update
import gpu_suite
import pytest
from gpu_suite import FIRST, LIMITS, Work, chosen, commands, main, run, why_not_built

from pdfast.kernels import group_norm_silu

PARTS = ["build", "launch", "gpu", "soak", "nccl", "update", "norm", "fashion"]
PARTS += ["sampling", "options", "kernels", "sanitize", "compiled"]


@pytest.fixture
def work(tmp_path):
    """Of a run on a GPU."""
    return Work(tmp_path / "out", tmp_path, False, None)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_every_part_is_there_in_its_order(flags, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--list", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == PARTS
    assert all(f"{part}, " in line for part, line in zip(PARTS, lines, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_the_first_eight_take_ten_minutes_at_most():
    assert list(FIRST) == PARTS[:8]
    assert sum(FIRST.values()) <= 600
    assert list(LIMITS) == PARTS


def test_choosing():
    assert chosen("all") == PARTS
    assert chosen("first") + chosen("rest") == PARTS
    assert chosen("compiled,build") == ["build", "compiled"]
    assert chosen("rest,build") == ["build", *PARTS[8:]]
    with pytest.raises(ValueError, match="no part soaks: choose from all, first, rest, build, "):
        chosen("build,soaks")


def test_what_is_named_exists(work):
    """The names of benchmarks' tests, of which a GPU has more than pytest shows on a CPU."""
    updates = {f"{p}-{phase}" for p in bench_update.PROCESSES for phase in ("distill", "train")}
    known = {f"bench_update.py::test_update[cifar10-{name}]" for name in updates}
    known |= {f"bench_options.py::test_option[cifar10-{name}]" for name in bench_options.OPTIONS}
    named = [word for command in commands(work).values() for word in command if "::" in word]
    assert {name.removeprefix("benchmarks/") for name in named} <= known
    assert len(named) == 4 + 6 + 5
    for word in commands(work)["gpu"][-3:]:
        assert (gpu_suite.ROOT / word).exists()
    for name in (gpu_suite.SOAK, gpu_suite.NORM, "tests/training/test_one_process.py"):
        assert (gpu_suite.ROOT / name).is_file()


def test_without_a_build_a_sentence_says_what_to_do(monkeypatch, tmp_path, capsys):
    assert why_not_built(dry=True) == ""
    with monkeypatch.context() as patch:
        patch.setattr(group_norm_silu, "HAS_CUDA", False)
        assert "is built without CUDA: run the part build first" in why_not_built(dry=False)
        assert why_not_built(dry=True) == ""
    monkeypatch.setattr(group_norm_silu, "HAS_CPU", False)
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "out"), "--dry-run", "--parts", "update"])
    assert "extension is not built in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_run_is_left_out_with_the_reason(work, monkeypatch):
    monkeypatch.setattr(gpu_suite.shutil, "which", lambda name: None)
    for part, words in (
        ("fashion", "--fashion fashion_mnist16.npz"),
        ("sanitize", "not installed"),
    ):
        report = run(part, work)
        assert report["well"]
        assert report["status"].startswith("left out: ")
        assert words in report["status"]


def python(text):
    """A stand-in for a part's command."""
    return [sys.executable, "-c", text]


ROW = {"op": "z", "shape": "s", "who": "eager", "seconds": 1.0, "bytes": 10**9}
SCRIPTS = {
    "build": "print('built')",
    "launch": "import time; print('begun', flush=True); time.sleep(60)",
    "gpu": "raise SystemExit(3)",
    "update": "",
    "kernels": "print('last')",
}


def test_every_part_leaves_what_it_had(tmp_path, monkeypatch):
    seen = []

    def scripts(work):
        seen.append(sorted(p.name for p in work.out.iterdir()))
        measured = f"open({str(work.rows('update'))!r}, 'w').write({json.dumps([ROW])!r})"
        return {part: python(text or measured) for part, text in SCRIPTS.items()}

    monkeypatch.setattr(gpu_suite, "commands", scripts)
    monkeypatch.setattr(gpu_suite, "DRY_LIMIT", 3)
    out = tmp_path / "out"
    asked = ["--out", str(out), "--dry-run", "--parts", ",".join(SCRIPTS)]
    assert main(asked) == 1
    files = ["gpu_suite.json", "gpu_suite.md", "logs.tar.gz"]
    assert seen == [[], *[files] * 4]
    report = json.loads((out / "gpu_suite.json").read_text())
    assert {part: found["status"] for part, found in report["parts"].items()} == {
        "build": "exit 0",
        "launch": "stopped after 3 s",
        "gpu": "exit 3",
        "update": "exit 0",
        "kernels": "exit 0",
    }
    assert report["parts"]["launch"]["tail"] == ["begun"]
    assert report["parts"]["update"]["rows"] == [ROW]
    text = (out / "gpu_suite.md").read_text()
    assert "| launch | stopped after 3 s |" in text
    assert "| s | eager | 1000 | 1 |  | 1.00x |" in text
    with tarfile.open(out / "logs.tar.gz") as tar:
        assert tar.getnames() == sorted(f"{part}.log" for part in SCRIPTS)
    with pytest.raises(SystemExit):  # another report is not overwritten
        main(asked)


def test_after_a_failed_build_nothing_is_tried(tmp_path, monkeypatch):
    scripts = {"build": python("raise SystemExit(1)"), "gpu": python("print(1)")}
    monkeypatch.setattr(gpu_suite, "commands", lambda work: scripts)
    assert main(["--out", str(tmp_path / "out"), "--dry-run", "--parts", "build,gpu"]) == 1
    report = json.loads((tmp_path / "out" / "gpu_suite.json").read_text())
    assert list(report["parts"]) == ["build"]


def test_the_run_on_real_data_ends_in_its_table(tmp_path, monkeypatch):
    """Of its report, which the run writes beside the models."""

    def scripts(work):
        path = work.folder / "fashion"
        make = f"from pathlib import Path; p = Path({str(path)!r}); p.mkdir()"
        return {"fashion": python(f"{make}; (p / 'report.md').write_text('# T')")}

    monkeypatch.setattr(gpu_suite, "commands", scripts)
    assert main(["--out", str(tmp_path / "out"), "--dry-run", "--parts", "fashion"]) == 0
    assert "\n# T\n" in (tmp_path / "out" / "gpu_suite.md").read_text()
