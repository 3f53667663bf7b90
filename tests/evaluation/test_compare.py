"""`pdfast compare`: the figures of the reports side by side, nothing written into the runs."""

import json
import shutil

import pytest
from html_cases import Checked
from PIL import Image
from run_cases import run

import pdfast
from pdfast.errors import UsageError


def altered(run, copy, report=None, facts=None, config=None, evaluations=True):
    """Copy a run with other values in its report, and with replaced texts in its config."""
    shutil.copytree(run, copy)
    table = json.loads((copy / "report.json").read_text())
    table |= report or {}
    table["facts"] |= facts or {}
    (copy / "report.json").write_text(json.dumps(table))
    text = (copy / "config.toml").read_text()
    for old, new in (config or {}).items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (copy / "config.toml").write_text(text)
    if not evaluations:
        lines = map(json.loads, (copy / "metrics.jsonl").read_text().splitlines())
        kept = [{k: v for k, v in line.items() if k != "evaluations"} for line in lines]
        (copy / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in kept))
    return copy


def tree(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def compared(tmp_path, *runs):
    """Compare runs; return the contents of compare.json, .md and .html."""
    out = pdfast.compare(runs, tmp_path / "out", quiet=True)
    texts = [(out / f"compare.{kind}").read_text() for kind in ("json", "md", "html")]
    Checked(texts[2])
    return json.loads(texts[0]), texts[1], texts[2]


def rows(markdown, heading):
    """The rows of a section's table, by their first cell."""
    section = markdown.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines}


def test_two_runs_side_by_side(straight, tmp_path, capsys):
    other = altered(
        straight,
        tmp_path / "other",
        report={"student": {"2": 1.25, "1": 3.5}},
        config={"start_steps = 8": "start_steps = 16"},
    )
    before = tree(straight), tree(other)
    table, text, page = compared(tmp_path, straight, other)
    assert (tree(straight), tree(other)) == before
    report = json.loads((straight / "report.json").read_text())
    took = report["evaluations"]["student"]
    students = rows(text, "Distance by sampling steps")
    assert students["2"][:4] == [
        f"{report['student']['2']:.3f}", "1.250", str(took["2"]), str(took["2"])
    ]  # fmt: skip
    assert students["4"][1] == students["4"][3] == ""
    assert students["1"][1] == "3.500"
    assert students["1"][3] == "\u2013"  # the metrics have no line of its round
    teachers = rows(text, "Teachers")
    assert teachers["8"] == [f"{report['teacher']['8']:.3f}"] * 2
    assert teachers["evaluations"] == [str(report["evaluations"]["teacher"]["8"])] * 2
    assert table["settings"] == {"distill.start_steps": [8, 16]}
    assert rows(text, "Settings that differ")["distill.start_steps"] == ["8", "16"]
    assert table["not_comparable"] == {}
    assert "comparable" not in text
    assert [run["name"] for run in table["runs"]] == ["run", "other"]
    assert table["runs"][0]["student"] == report["student"]
    assert table["runs"][0]["student_spent"]["2"]["evaluations"] == took["2"]
    out = tmp_path / "out"
    for k, folder in enumerate((straight, other), 1):
        picture = (folder / "samples" / "compare.png").read_bytes()
        assert (out / f"samples-{k}.png").read_bytes() == picture
    assert Image.open(out / "compare.png").size > (100, 100)
    assert page.count("<img") == 3  # the plot, and the samples of both
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"samples": 32}, "number of samples (run 64, other 32)"),
        ({"seed": 3}, "seed (run 0, other 3)"),
        ({"sampler": "DDIM, guidance 2"}, "sampler or guidance (run DDIM, x-hat clipped to"),
        ({"reference_sha256": "ab" * 32}, "other abababababababab)"),
        ({"detector": "lite0"}, "detector (run pixel, other lite0)"),
        ({"classes": "even"}, "classes of the samples (run none, other even)"),
    ],
)
def test_figures_that_cannot_be_compared(straight, tmp_path, capsys, facts, said):
    other = altered(straight, tmp_path / "other", facts=facts)
    pdfast.compare([straight, other], tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    for name in ("compare.md", "compare.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "The distances are not comparable: they differ in" in text
        assert said in text
    assert said in output
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["not_comparable"]) == 1


def test_a_run_without_evaluations_and_one_model(straight, tmp_path):
    """Neither is in the plot."""
    old = altered(straight, tmp_path / "old", evaluations=False)
    pdfast.evaluate(straight / "teacher", steps=(2,), out=tmp_path / "e", quiet=True)
    table, text, page = compared(tmp_path, old, tmp_path / "e")
    students = rows(text, "Distance by sampling steps")
    report = json.loads((straight / "report.json").read_text())
    assert students["2"][:4] == [
        f"{report['student']['2']:.3f}", f"{report['teacher']['2']:.3f}", "\u2013", "\u2013"
    ]  # fmt: skip
    assert students["2"][4] != "\u2013"
    assert "\u2013: not recorded" in text
    assert "No evaluations were recorded" in text
    assert "fewer than two runs are known" in text
    assert not (tmp_path / "out" / "compare.png").exists()
    assert page.count("<img") == 1
    assert table["runs"][1]["student_spent"] == {}
    compared(tmp_path, straight, tmp_path / "e")  # in place of the earlier one
    assert (tmp_path / "out" / "compare.png").exists()


def test_names_tell_runs_apart(straight, tmp_path):
    for folder in "ab":
        shutil.copytree(straight, tmp_path / folder / "run")
    table, *_ = compared(tmp_path, tmp_path / "a" / "run", tmp_path / "b" / "run")
    assert [run["name"] for run in table["runs"]] == ["a/run", "b/run"]


def test_what_cannot_be_compared_is_refused(straight, tmp_path):
    bare, empty, odd = (tmp_path / name for name in ("bare", "empty", "odd"))
    shutil.copytree(straight, bare)
    (bare / "report.json").unlink()
    empty.mkdir()
    altered(straight, odd, report={"student": {"2": "low"}})
    for runs, said in (
        ([straight], "nothing to compare with"),
        ([straight, straight], "is named twice"),
        ([straight, tmp_path / "absent"], "there is no run directory"),
        ([straight, bare], f"{bare} has no report yet: pdfast eval {bare} writes it"),
        ([straight, empty], f"{empty} is neither a run directory"),
        ([straight, straight / "teacher"], "teacher is neither a run directory"),
        (
            [straight, odd],
            "report.json is damaged, or not a report that this version reads: pdfast e",
        ),
    ):
        with pytest.raises(UsageError, match=said.replace(".", r"\.")):
            pdfast.compare(runs, tmp_path / "out", quiet=True)
    (odd / "report.json").write_text("{")
    with pytest.raises(UsageError, match=r"report\.json is damaged"):
        pdfast.compare([straight, odd], tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_nothing_of_others_is_replaced(straight, tmp_path):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(straight, copy)
    runs = [straight, copy]
    for place, said in ((copy, "holds"), (copy / "inside", "lies in"), ("", "is not a path")):
        with pytest.raises(UsageError, match=said):
            pdfast.compare(runs, place, quiet=True)
    pdfast.compare(runs, out, quiet=True)
    pdfast.compare(runs, out, quiet=True)
    (out / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"notes\.txt.* is not replaced"):
        pdfast.compare(runs, out, quiet=True)
    assert tree(tmp_path) == before
    (out / "notes.txt").unlink()
    (out / "compare.md").write_text("mine")
    with pytest.raises(UsageError, match=r"compare\.md is damaged.* is not replaced"):
        pdfast.compare(runs, out, quiet=True)


def test_the_command(straight, tmp_path, capsys, monkeypatch, handlers):
    other = altered(straight, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(capsys, "compare", straight, other)
    assert (code, errors) == (0, "")
    assert " ".join(output.split()) == "compared: compare/compare.html, compare/compare.md"
    assert (tmp_path / "compare" / "compare.json").is_file()
