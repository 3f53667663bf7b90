"""README, CONTRIBUTING and docs/: commands parse, links resolve, names exist, snippets run."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

import pdfast
from pdfast.cli.commands import COMMANDS
from pdfast.cli.flags import flags_of
from pdfast.cli.main import parse
from pdfast.config.names import LOSS_WEIGHTS
from pdfast.config.schema import Config, load_config
from pdfast.config.serialization import to_table
from pdfast.distillation import custom
from pdfast.models.model import Model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "README.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *([EXAMPLES] if EXAMPLES.is_file() else []),
]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TORCHRUN = re.compile(r"torchrun .* -m -- (pdfast .*)")
RESULTS = ROOT / "benchmarks" / "results"


def named(page):
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    """A block of code of a page."""

    page: Path
    language: str
    text: str


def fenced(page):
    """The fenced blocks, their text as it is outside a list."""
    for indent, language, text in FENCE.findall(page.read_text("utf-8")):
        yield Block(page, language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))


def lines_of_code(page):
    """Lines that stand in fenced or indented blocks, continued ones joined."""
    text = page.read_text("utf-8")
    inside = [line for block in fenced(page) for line in block.text.splitlines()]
    outside = FENCE.sub("", text).splitlines()
    indented = [line.strip() for line in outside if line.startswith("    ")]
    return re.sub(r"\\\n\s*", "", "\n".join([*inside, *indented])).splitlines()


def commands(page):
    """The `pdfast` commands of the blocks, as words without `pdfast`."""
    for line in lines_of_code(page):
        line = found[1] if (found := TORCHRUN.match(line)) else line
        if line.startswith("pdfast "):
            yield shlex.split(line, comments=True)[1:]


ALL = [
    pytest.param(words, id=f"{named(p)}: {' '.join(words)}") for p in PAGES for words in commands(p)
]


def test_there_are_commands():
    assert {words.values[0][0] for words in ALL} == set(COMMANDS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the configs are that the pages speak of."""
    for block in itertools.chain.from_iterable(map(fenced, PAGES)):
        if block.language == "toml" and (name := re.match(r"# (\w+\.toml)\n", block.text)):
            (tmp_path / name[1]).write_text(block.text)
    for name in ("ddpm.toml", "edm.toml"):  # which an import would write
        (tmp_path / name).write_text("seed = 1\n")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", ALL)
def test_a_command_is_one_of_the_program(words, folder):
    """No flag, value or config that does not exist."""
    assert isinstance(parse(words), COMMANDS[words[0]])


def test_a_command_with_a_wrong_flag_would_be_found(folder):
    with pytest.raises(pdfast.UsageError, match="--round is no option"):
        parse(["distill", "--config", "birds.toml", "--round", "11"])


def test_torchrun_takes_its_own_flags():
    parser, found = get_args_parser(), 0
    for line in itertools.chain.from_iterable(map(lines_of_code, PAGES)):
        if line.startswith("torchrun "):
            args = parser.parse_args(shlex.split(line)[1:])
            assert (args.module, args.training_script) == (True, "pdfast")
            found += 1
    assert found >= 4
    flag = "--signals-to-handle"
    assert f"`{flag}=" in (ROOT / "docs" / "operations.md").read_text()
    assert flag in parser._option_string_actions


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_flags_in_a_sentence_exist(page):
    """Of commands in backticks, which may leave arguments out."""
    for span in re.findall(r"`pdfast ([^`]+)`", FENCE.sub("", page.read_text("utf-8"))):
        word, *rest = span.split()
        if word not in COMMANDS:
            assert word in ("--version", "COMMAND"), span
            continue
        known = {name for flag in flags_of(COMMANDS[word]) for name in flag.names()}
        given = [part.partition("=")[0] for part in rest if part.startswith("--")]
        assert set(given) <= known, span


def test_configs_in_toml_blocks_are_read(folder, tmp_path):
    for n, block in enumerate(b for page in PAGES for b in fenced(page) if b.language == "toml"):
        (tmp_path / f"{n}.toml").write_text(block.text)
        assert load_config(tmp_path / f"{n}.toml").model.image_size > 0


def test_other_commands_name_what_is_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    setup = (ROOT / "setup.py").read_text()
    extras = set(re.findall(r'^        "(\w+)": ', setup, re.MULTILINE))
    seen = set()
    for line in itertools.chain.from_iterable(map(lines_of_code, PAGES)):
        words = (
            shlex.split(line, comments=True)
            if line.startswith(("make ", "python ", "pytest ", "pip ", "bash "))
            else []
        )
        if not words:
            continue
        seen.add(words[0])
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "pip":
            for group in re.findall(r"\.\[([\w,]+)\]", line):
                assert set(group.split(",")) <= extras, line
        elif "OP" not in words[1]:
            assert (ROOT / words[1]).is_file(), line
    assert seen == {"make", "python", "pytest", "pip"} | ({"bash"} & seen)


# ------------------------------------------------------------------------------------------
# Links

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def headings(page):
    """Titles of a page's headings, code blocks left out."""
    text = FENCE.sub("", page.read_text("utf-8"))
    include = re.search(r"^<!-- include: (\S+) -->$", text, re.MULTILINE)
    inner = headings(ROOT / include[1]) if include else []
    return inner + re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def on_github(title):
    plain = re.sub(r"[^\w\- ]", "", title.lower())
    return plain.replace(" ", "-")


def on_the_site(title):
    """As Python-Markdown's toc makes it."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "findings" / "README.md", *RESULTS.glob("*.md")], ids=named
)
def test_links_resolve(page):
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            titles = headings(there)
            assert anchor in map(on_github, titles), target
            assert anchor in map(on_the_site, titles), target


def test_every_page_is_in_the_site_and_in_its_list():
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = (ROOT / "docs" / "index.md").read_text() + "(index.md)"
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf": {page.name}$|- {page.name}$", nav, re.MULTILINE), page.name
        assert f"({page.name})" in listed, page.name


def test_the_site_loads_nothing_from_elsewhere():
    """The theme's fonts are off, and no extra script or style has a host."""
    text = (ROOT / "mkdocs.yml").read_text() + (ROOT / "docs" / "site.css").read_text()
    assert "font: false" in text
    assert "//" not in text


# ------------------------------------------------------------------------------------------
# Python

PYTHON = [
    pytest.param(block, id=f"{named(block.page)}-{n}")
    for page in PAGES
    for n, block in enumerate(b for b in fenced(page) if b.language == "python")
]


def chain(node):
    """`a.b.c` as ["a", "b", "c"]; [] for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := chain(node.value)):
        return [*before, node.attr]
    return []


@pytest.mark.parametrize("block", PYTHON)
def test_python_compiles_and_its_names_of_pdfast_exist(block):
    tree = ast.parse(block.text)
    names = {"pdfast": pdfast}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pdfast"):
            module = importlib.import_module(node.module)
            names |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
    for node in ast.walk(tree):
        parts = chain(node)
        if len(parts) > 1 and parts[0] in names:
            value = names[parts[0]]
            for part in parts[1:]:
                value = getattr(value, part)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        parts = chain(call.func)
        if not parts or parts[0] not in names:
            continue
        function = names[parts[0]]
        for part in parts[1:]:
            function = getattr(function, part)
        known = inspect.signature(function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            assert {k.arg for k in call.keywords if k.arg} <= set(known), ast.unparse(call)


def section(page, title):
    """The text below a heading, up to the next."""
    return page.read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def python_of(text):
    return "\n".join(code for _, language, code in FENCE.findall(text) if language == "python")


def run_python(code, cwd):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_own_tensors(tmp_path):
    """4 steps of the student are nearer to the data than 4 of its teacher, by far."""
    code = python_of(section(ROOT / "README.md", "Your own tensors"))
    after = "import numpy\nnumpy.save('samples.npy', samples.numpy())\n"
    run_python(f"import torch\ntorch.manual_seed(0)\n{code}\n{after}", tmp_path)
    report = json.loads((tmp_path / "runs" / "ring" / "report.json").read_text())
    assert report["metric"] == "FD-raw"
    assert report["student"]["4"] < 0.5 * report["teacher"]["4"]
    assert np.load(tmp_path / "samples.npy").shape == (16, 2)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_first_picture(page, tmp_path):
    code = python_of(section(ROOT / page, "A first picture"))
    output = run_python(f"{code}\nprint(tuple(images.shape), model.steps)", tmp_path)
    assert output.splitlines()[-1] == "(64, 1, 8, 8) 4"


class Mean(torch.nn.Module):
    """A network of samples (1, 64)."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, logsnr, label=None):
        return self.scale * z


def test_the_snippets_of_custom_networks(tmp_path, monkeypatch):
    """As they stand, with two updates a round in place of 10,000."""
    monkeypatch.chdir(tmp_path)
    distill = dataclasses.replace(custom.DEFAULT.distill, updates=2, batch=4)
    monkeypatch.setattr(custom, "DEFAULT", dataclasses.replace(custom.DEFAULT, distill=distill))
    names = {"module": Mean(), "velocity": Mean(), "signals": torch.randn(16, 1, 64)}
    first, second = (b for b in fenced(ROOT / "docs" / "networks.md") if b.language == "python")
    exec(first.text, names)
    assert names["samples"].shape == (16, 1, 64)
    assert torch.equal(names["again"].net.scale, names["student"].net.scale)
    exec(second.text, names)
    assert names["teacher"].schedule == pdfast.wrappers.FlowMatching()


@pytest.fixture
def student():
    """A network as that of the digits, which has learned nothing."""
    torch.manual_seed(0)
    return Model(load_config("digits").model, steps=4).eval()


def test_the_method_lists_every_loss_weight():
    table = (ROOT / "docs" / "method.md").read_text().split("| `loss_weight` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(LOSS_WEIGHTS)


def test_the_snippets_of_the_python_api(tmp_path, monkeypatch, student):
    """With a model in place of the demo's, whose run .ci/run makes."""
    monkeypatch.chdir(tmp_path)
    pdfast.save(student, "runs/digits/round-11-steps-0004")
    calls = []
    for name in ("distill", "compare"):
        monkeypatch.setattr(pdfast, name, lambda *a, **k: calls.append((a, k)), raising=False)
    names = {}
    first, second = (b for b in fenced(ROOT / "docs" / "api.md") if b.language == "python")
    exec(first.text, names)
    assert names["images"].shape == (64, 1, 8, 8)
    assert names["images"].abs().max() <= 1
    assert names["x_hat"].shape == (64, 1, 8, 8)
    assert len(names["pictures"]) == 64
    assert names["pictures"][0].size == (8, 8)
    assert torch.equal(names["x_hats"][-1], names["images"])
    exec(second.text, names)
    assert calls[-1][1]["stop"]() is False
    assert len(calls) == 3


def test_the_snippet_of_an_export_to_diffusers(tmp_path, monkeypatch, student):
    monkeypatch.chdir(tmp_path)
    pdfast.export(student, "digits-diffusers", to="diffusers")
    blocks = fenced(ROOT / "docs" / "teachers.md")
    block = next(b for b in blocks if "digits-diffusers" in b.text and b.language == "python")
    names = {}
    exec(block.text, names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 16


# ------------------------------------------------------------------------------------------
# Shell

STUBS = {
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" > requeued; else echo localhost; fi\n',
    # As SLURM: a process a task, the signal to each once the run is under way, the highest status.
    "srun": """
shift  # --kill-on-bad-exit=0
before=$(cat run/log.txt 2> /dev/null | wc -l)
before=$((before + 1))
for k in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$k SLURM_LOCALID=$k "$@" &
    pids="$pids $!"
done
until tail -n "+$before" run/log.txt 2> /dev/null | grep -q "update .* loss"; do
    kill -0 $! 2> /dev/null || exit 1
    sleep 0.1
done
kill -USR1 $pids
code=0
for pid in $pids; do wait $pid; status=$?; [ $status -gt $code ] && code=$status; done
exit $code
""",
    "pdfast": f'exec "{sys.executable}" -m pdfast "$@"\n',
}


@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_slurm_script_puts_the_job_back_and_it_resumes(tasks, tmp_path, tiny_toml):
    (script,) = (b.text for b in fenced(ROOT / "docs" / "operations.md") if b.language == "bash")
    (tmp_path / "pdfast.sbatch").write_text(script)
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    slurm = {"NTASKS": tasks, "NTASKS_PER_NODE": tasks, "JOB_ID": 7, "JOB_NODELIST": "here"}
    environment = os.environ | {f"SLURM_{k}": str(v) for k, v in slurm.items()}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = ["bash", "pdfast.sbatch", "train", "--config", str(tiny_toml), "--out", "run"]
    command += ["--device", "cpu", "--log-every", "1", "--train.updates"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "100000"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 138, done.stderr
        assert (tmp_path / "requeued").read_text() == "7\n"
        (tmp_path / "requeued").unlink()
        assert list((tmp_path / "run" / "state").iterdir())
        assert not (tmp_path / "run" / "teacher").exists()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"(going on|resum\w+) (from|at) update [1-9]", log)


# ------------------------------------------------------------------------------------------
# Numbers, and what is generated


def rows(text):
    """The cells of a page's table rows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_the_gpus_numbers_are_those_of_the_results(page):
    measured = {
        row[1]: row for row in rows((RESULTS / "h200-2026-11-28.md").read_text()) if len(row) == 5
    }
    text = (ROOT / page).read_text()
    shown = [
        row
        for row in rows(text)
        if row[0].startswith(("published", "the published", "pdfast, bf16"))
    ]
    assert [row[1] for row in shown] == ["195.7", "202.9", "76.9", "72.2", "56.2"]
    for row in shown:
        full = measured[row[1]]
        assert row[2] == full[2]
        assert row[3] == "1" or row[3] == f"{195.7 / float(row[1]):.2f}x"
        assert row[4:] in ([], [full[4]])


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_numbers_of_fashion_mnist_are_those_of_the_results(page):
    measured = {row[0]: row for row in rows((RESULTS / "fashion_mnist16-cpu.md").read_text())}
    table = rows(
        section(ROOT / page, "What was measured" if page == "README.md" else "Fashion-MNIST")
    )
    head = next(n for n, row in enumerate(table) if row[:2] == ["sampling steps", "256"])
    steps, teacher, student = (table[head + k][1:] for k in (0, 2, 3))
    assert len(steps) == 7
    for n, first, second in zip(steps, teacher, student, strict=True):
        assert measured[n][1:3] == [first, second]


@pytest.mark.parametrize(
    ("page", "first", "count"),
    [("quickstart", "64", 5), ("benchmarks", "8x256x32x32, FiLM, SiLU", 2)],
)
def test_a_table_of_the_readme_is_that_of_its_page(page, first, count):
    tables = [rows((ROOT / name).read_text()) for name in ("README.md", f"docs/{page}.md")]
    starts = (next(n for n, row in enumerate(table) if row[0] == first) for table in tables)
    readme, docs = (t[n : n + count] for t, n in zip(tables, starts, strict=True))
    assert readme == docs
    assert len({tuple(row) for row in readme}) == count


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_commands_and_configs_have_all(generate):
    text = generate.commands()
    for name, kind in COMMANDS.items():
        part = text.split(f"## {name}\n")[1].split("\n## ")[0]
        own = [f for f in flags_of(kind) if "." not in f.name and f.name != "--help"]
        fields = {f"--{name.replace('_', '-')}" for name in to_table(Config())}
        for flag in own:
            if name not in ("train", "distill") or flag.name not in fields | {
                "--rounds",
                "--teacher",
            }:
                assert f"`{flag.name}` (" in part, flag.name
    assert "Not described" not in text
    config, keys = generate.config_fields(), []

    def walk(table, prefix=""):
        for key, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                keys.append(f"{prefix}{key}")

    walk(to_table(Config()))
    assert len(keys) > 80
    for key in keys:
        assert f"`{key}` (" in config, key
    assert "Not described" not in config
    assert "`train.updates` (whole number, default `800_000`)" in config


def test_the_picture_of_the_packages_is_that_of_the_layers(generate):
    """Otherwise: python docs/generate.py."""
    assert generate.PICTURE.read_text("utf-8") == generate.picture()
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = json.dumps(table["tool"]["importlinter"]["contracts"])
    assert all(f"pdfast.{name}" in text for row in generate.layers() for name in row)


def test_links_out_of_the_site_become_words(generate):
    text = "[a](../kernels/adamw.py) [b](rounds.md#averages) "
    text += "[c](../CONTRIBUTING.md#where-things-are) ![d](x.png)"
    text += " [e](../benchmarks/results/study_rounds.md) [f](https://a.b/c)"
    assert generate.relinked(text, "docs", "kernels.md") == (
        "a [b](rounds.md#averages) [c](contributing.md#where-things-are) ![d](x.png) "
        "[e](results/study_rounds.md) [f](https://a.b/c)"
    )
