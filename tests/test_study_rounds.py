"""The study of rounds: its rows, its counted evaluations, and the table and page it writes."""

import json
import subprocess
from pathlib import Path

import pytest
from study_judge import judge
from study_rounds import CONFIG, NO_REPORT, Spent, Study, evaluations, main, spent
from study_rows import ROWS
from study_table import HEADER, Line, page, read

from pdfast.cli.main import main as command
from pdfast.cli.main import parse
from pdfast.config.schema import dump_config, load_config


def settings(flags):
    """Return the config of a row."""
    arguments = ["distill", "--config", CONFIG, *NO_REPORT, *flags.split()]
    return parse(arguments).fields


def test_every_row_is_one_that_distill_takes():
    for row in ROWS.values():
        assert settings(row.flags).distill.plan[-1] in (4, 1)


def test_the_budgets_are_those_that_are_said():
    made = {
        name: [evaluations(settings(ROWS[name].flags).distill, k) for k in steps]
        for name, steps in {
            "base": (8, 4, 2, 1),
            "batch-16": (8, 4, 2, 1),
            "batch-8": (8, 4, 2, 1),
            "batch-16-start-64": (8, 4),
            "wide-4": (4,),
            "data-halvings": (8, 4),
        }.items()
    }
    assert made["base"] == [150_400, 230_400, 310_400, 390_400]
    assert made["batch-16"] == [75_200, 115_200, 155_200, 195_200]
    assert made["batch-8"] == [90_240, 138_240, 186_240, 234_240]  # 0.6 of the base's
    assert made["batch-16-start-64"] == made["data-halvings"] == [75_200, 115_200]
    assert made["wide-4"] == [115_200]


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        # Rounds to 4, 2 and 1 steps have 3, 5 and 7 updates of 2 images: 8 updates to 2 steps.
        ("", 2 * 8 * (2 + 1 + 2)),  # the teacher twice; the student forward and backward
        ("--distill.second student", 2 * 8 * (1 + 1 + 1 + 2)),
        ("--distill.first data", 2 * 8 * (0 + 1 + 1 + 2)),
    ],
)
def test_evaluations_against_a_count_by_hand(flags, count):
    own = "--distill.start-steps 8 --rounds 3 --distill.batch 2 --engine.no-pipeline-teacher"
    config = settings(f"{own} --distill.round-updates 4 3 2 5 1 7 {flags}")
    assert evaluations(config.distill, 2) == count
    teacher = {"round": 0, "seconds": 100.0}
    lines = [{"round": k, "steps": 8 >> k, "seconds": 2.0**k} for k in (1, 2, 3)]
    update = {"round": 1, "update": 1, "loss": 0.1}
    assert spent(config, [teacher, update, *lines], 2) == Spent(count, 6.0)
    counted = [line | {"evaluations": 10 * line["round"]} for line in lines]
    assert spent(config, [teacher, *counted], 2) == Spent(30, 6.0)


def test_the_choice_among_averages_is_not_guessed():
    config = settings(ROWS["averages"].flags)
    with pytest.raises(ValueError, match="averages"):
        evaluations(config.distill, 8)


def line(row, steps, fd, spent, seed=0, flags="--rounds 13"):
    """Return a line of the table."""
    return Line(row, seed, flags, steps, fd, fd / 4, 0.384, 0.05, spent, 12.5, "abc1234")


def table(*lines):
    """Return the text of a table."""
    return HEADER + "# a machine\n" + "".join(found.text() for found in lines)


def test_page_of_a_small_table():
    base = [line("base", 4, fd, 1000, seed) for seed, fd in enumerate([1.0, 1.125, 1.25])]
    rows = [
        line("cheap", 4, 1.125, 600, flags="--cheap"),  # no worse, at 0.6 of the evaluations
        line("dear", 4, 0.84, 1001),  # better by more than twice 0.125, but dearer
        line("good", 4, 1.0625, 1000),  # 0.944 of 1.125, and no dearer
        line("good", 1, 2.0, 2000),
        line("poor", 4, 1.25, 500),
    ]
    written = table(line("teacher", 64, 1.05, 0, flags=""), *base, *rows)
    assert read(written)[1:] == [*base, *rows]
    found = page(written).splitlines()
    assert found[found.index("## FD-pixel") + 2] == "| row | 8 steps | 4 steps | 2 steps | 1 step |"
    assert "| base |  | 1.125 ± 0.125; 1 k |  |  |" in found
    assert "| cheap |  | 1.125† (1.00x); 1 k (0.60x) |  |  |" in found
    assert "| dear |  | **0.840** (0.75x); 1 k (1.00x) |  |  |" in found
    assert "| good |  | 1.062‡ (0.94x); 1 k (1.00x) |  | 2.000; 2 k |" in found
    assert "| poor |  | 1.250 (1.11x); 0 k (0.50x) |  |  |" in found
    assert "| poor |  | 0.312 (1.11x); 0 k (0.50x) |  |  |" in found  # FD-Lite0
    floor = "resampled data, the floor, 0.384."
    assert f"For comparison: the teacher at 64 steps, commit abc1234, 1.0500; {floor}" in found
    assert "| base | 0, 1, 2 | `--rounds 13` | 12, 12, 12 | abc1234 |" in found
    assert "| cheap | 0 | `--cheap` | 12 | abc1234 |" in found
    assert found[-1] == "Measured on: a machine"
    assert not any(row.startswith("| teacher") for row in found)


def test_what_is_not_the_table_is_refused():
    with pytest.raises(ValueError, match="not a table of the study"):
        read("row\tsteps\n")
    with pytest.raises(ValueError, match="argument"):
        read(f"{HEADER}base\t0\n")


def test_distances_are_those_of_the_report(tiny_toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(["train", "--config", str(tiny_toml), "--out", "a"]) == 0
    report = json.loads(Path("a/report.json").read_text())
    found = judge(load_config("a/config.toml"), {2: Path("a/teacher")}, ("pixel",))
    assert found == {"pixel": {"floor": report["floor"], "2": report["teacher"]["2"]}}


@pytest.fixture
def commands(monkeypatch):
    """Stand in for the subprocesses, with the files they write; return the arguments of each."""
    calls = []

    def distil(arguments):
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir()
        config = parse(arguments).fields
        (out / "config.toml").write_text(dump_config(config))
        plan = enumerate(config.distill.plan, 1)
        ends = [{"round": k, "steps": steps, "seconds": 1.0} for k, steps in plan]
        (out / "metrics.jsonl").write_text("".join(json.dumps(end) + "\n" for end in ends))
        for end in ends:
            (out / f"round-{end['round']:02d}-steps-{end['steps']:04d}").mkdir()

    def check_call(command, *, stdout, stderr, env):
        assert env["OMP_NUM_THREADS"] == "1"
        calls.append(arguments := command[1:])
        if "1e-3" in arguments:
            raise subprocess.CalledProcessError(2, command)
        if arguments[0] == "-m":
            return distil(arguments[2:])
        script, config, out, *pairs = arguments
        assert Path(script).is_file()
        assert config == CONFIG
        models = dict(pair.split("=") for pair in pairs)
        assert all(Path(path).is_dir() for path in models.values())
        found = {"floor": 0.1} | {steps: 0.5 + int(steps) for steps in models}
        Path(out).write_text(json.dumps({"pixel": found, "lite0": found}))

    monkeypatch.setattr(subprocess, "check_call", check_call)
    return calls


def test_rows_run_once(commands, tmp_path, capsys):
    args = ["--jobs", "1", "--teacher", str(tmp_path), "--folder", str(tmp_path / "study")]
    args += ["--results", str(tmp_path), "--rows"]
    assert main([*args, "batch-16-start-64", "wide-4", "rate-2"]) == 1
    assert "rate-2, seed 0: failed: " in capsys.readouterr().out
    lines = read((tmp_path / "study_rounds.tsv").read_text())
    found = [(x.row, x.steps, x.fd_pixel, x.evaluations, x.seconds) for x in sorted(lines)]
    assert found == [
        ("batch-16-start-64", 4, 4.5, 115_200, 4.0),
        ("batch-16-start-64", 8, 8.5, 75_200, 3.0),
        ("teacher", 64, 64.5, 0, 0.0),
        ("wide-4", 4, 4.5, 115_200, 1.0),
    ]
    assert "| wide-4 |  | 4.500; 115 k |" in (tmp_path / "study_rounds.md").read_text()
    commands.clear()
    assert main([*args, "batch-16-start-64", "wide-4"]) == 0
    assert commands == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROWS, "wide-4", ROWS["wide-16-4"])
        with pytest.raises(ValueError, match="row wide-4 made with other flags"):
            Study(tmp_path, tmp_path, tmp_path, ["wide-4"])
