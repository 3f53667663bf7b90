"""The cost and quality of rounds: rows of settings, all from one teacher, on Fashion-MNIST 16x16.

    pdfast data /usr/share/datasets/fashion-mnist --size 16 --out fashion_mnist16.npz
    pdfast train --config benchmarks/study_rounds.toml --out teacher
    python benchmarks/study_rounds.py --teacher teacher/teacher --rows base start-64

Run it in the folder of fashion_mnist16.npz. Each row of study_rows.py is a `pdfast distill`, which
leaves its students under study/. study_judge.py then judges them, all with one noise, 2,000 samples
each, against all images. The results go into results/study_rounds.tsv, a line for each row, seed
and number of steps, and from there into results/study_rounds.md. A row that has its lines is
skipped; one that was interrupted resumes. `--rows all` takes every row; without `--rows` only the
page is written again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from study_judge import DETECTORS
from study_rows import ROWS, TEACHER
from study_table import HEADER, STEPS, Line, machines, page, read

from pdfast.config.schema import Config, DistillConfig, load_config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLE, PAGE = "study_rounds.tsv", "study_rounds.md"
CONFIG = str(ROOT / "benchmarks" / "study_rounds.toml")
TEACHER_STEPS = 64
# For the run's own report, which would otherwise sample the teacher in every row.
NO_REPORT = ["--eval.steps", "1", "--eval.baseline-steps", "1", "--eval.num", "2"]

FORWARD, BACKWARD = 1, 2  # network evaluations of an image


class Spent(NamedTuple):
    """The cost of a student, including all rounds before it."""

    evaluations: int
    seconds: float
    """Seconds of the updates."""


def evaluations(distill: DistillConfig, steps: int) -> int:
    """Return the network evaluations, each of one image, up to the student with so many steps.

    They follow from the config. The quick distances that rounds are watched by do not count.
    """
    if distill.ema_decays:
        raise ValueError(
            "the evaluations of a choice among averages do not follow from a config: "
            "read metrics.jsonl"
        )
    first = FORWARD if distill.first == "teacher" else 0  # the data's first step needs no network
    second, student = FORWARD, FORWARD + BACKWARD
    rounds = distill.plan[: distill.plan.index(steps) + 1]
    updates = sum(distill.updates_of(made) for made in rounds)
    return updates * distill.batch * (first + second + student)


def spent(config: Config, metrics: Iterable[Mapping[str, Any]], steps: int) -> Spent:
    """Add up a run's metrics.jsonl; evaluations follow from the config if no line has them."""
    ends = {line["steps"]: line for line in metrics if line["round"] and "seconds" in line}
    rounds = [ends[made] for made in config.distill.plan if made >= steps]
    seconds = sum(line["seconds"] for line in rounds)
    if any("evaluations" in line for line in rounds):
        return Spent(sum(line["evaluations"] for line in rounds), seconds)
    return Spent(evaluations(config.distill, steps), seconds)


class Study:
    """Runs rows, and keeps their results."""

    def __init__(self, teacher: Path, folder: Path, results: Path, names: Iterable[str]) -> None:
        """`folder` holds the runs, `results` the table and the page.

        Raises ValueError if the lines of a row were made with other flags than it has now.
        """
        self.teacher, self.folder = teacher.resolve(), folder
        self.table, self.page = results / TABLE, results / PAGE
        self.machine, self.commit = machine(), commit()
        self.left: list[tuple[str, int]] = []
        """(row, seed) of rows that have no lines yet."""
        lines = read(self.text())
        self.teacher_left = not any(line.row == TEACHER for line in lines)
        for name in names:
            for seed in ROWS[name].seeds:
                flags = {line.flags for line in lines if (line.row, line.seed) == (name, seed)}
                if not flags:
                    self.left.append((name, seed))
                elif flags != {ROWS[name].flags}:
                    raise ValueError(
                        f"{self.table} has lines of row {name} made with other flags ({flags}): "
                        "remove them"
                    )

    def text(self) -> str:
        """Return the present table, or an empty one."""
        return self.table.read_text() if self.table.is_file() else HEADER

    def lines(self, name: str, seed: int) -> list[Line]:
        """Run a row, and judge its students. The teacher has no row to run: it is only judged.

        Raises CalledProcessError if a command fails; its output is in the row's log.
        """
        run = f"{name}-{seed}"
        if name == TEACHER:
            judged = self._judged({TEACHER_STEPS: self.teacher}, run)
            return [
                Line(name, seed, "", k, *found, 0, 0.0, self.commit) for k, found in judged.items()
            ]
        flags, path = ROWS[name].flags, self.folder / run
        command = ["-m", "pdfast", "distill", "--config", CONFIG, "--teacher", str(self.teacher)]
        command += ["--seed", str(seed), "--out", str(path), *NO_REPORT, *flags.split()]
        self._python(command, run)
        config = load_config(path / "config.toml")
        metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        models = {}
        for steps in (k for k in STEPS if k in config.distill.plan):
            (models[steps],) = path.glob(f"round-*-steps-{steps:04d}")
        return [
            Line(name, seed, flags, k, *figures, *spent(config, metrics, k), self.commit)
            for k, figures in self._judged(models, run).items()
        ]

    def _judged(self, models: Mapping[int, Path], run: str) -> dict[int, list[float]]:
        """Return, by steps, the distance by each detector; then each detector's floor."""
        out = self.folder / f"{run}.json"
        pairs = [f"{steps}={path}" for steps, path in models.items()]
        self._python([str(ROOT / "benchmarks" / "study_judge.py"), CONFIG, str(out), *pairs], run)
        found = json.loads(out.read_text())
        floors = [found[name]["floor"] for name in DETECTORS]
        return {k: [*(found[name][str(k)] for name in DETECTORS), *floors] for k in models}

    def _python(self, arguments: list[str], run: str) -> None:
        """Run this Python on one thread, with its output in the row's log."""
        with (self.folder / f"{run}.log").open("a") as log:
            subprocess.check_call(
                [sys.executable, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def keep(self, lines: Iterable[Line]) -> None:
        """Add a row's lines, below the machine's name if it is another one than before."""
        before = self.text()
        if machines(before)[-1:] != [self.machine]:
            before += f"# {self.machine}\n"
        self.table.write_text(before + "".join(line.text() for line in lines))
        self.write_page()

    def write_page(self) -> None:
        """Write the page of all lines."""
        self.page.write_text(page(self.text()))


def commit() -> str:
    """Return the commit of the working tree, with a + if its code has changed since."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    code = ("pdfast", "kernels", "csrc", "configs")
    return head + "+" * bool(subprocess.check_output([*git, "status", "--short", *code]))


def machine() -> str:
    """Return the processor, the system and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {name}, {platform.system()}; {versions}"


def main(args: list[str] | None = None) -> int:
    """Run the named rows; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="model directory that all rows start from")
    parser.add_argument("--rows", nargs="*", default=[], help=f"all, or some of: {', '.join(ROWS)}")
    parser.add_argument("--jobs", type=int, default=2, help="rows at once, of one thread each")
    parser.add_argument("--folder", type=Path, default=Path("study"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    asked = parser.parse_args(args)
    names = list(ROWS) if asked.rows == ["all"] else asked.rows
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no rows {', '.join(unknown)}")
    if names and asked.teacher is None:
        parser.error("--rows needs --teacher")
    study = Study(asked.teacher or Path(), asked.folder, asked.results, names)
    if names:
        study.folder.mkdir(parents=True, exist_ok=True)
    if names and study.teacher_left:  # first, alone: the others reuse the features of all images
        study.keep(study.lines(TEACHER, 0))
    failed = False
    with ThreadPoolExecutor(asked.jobs) as pool:
        begun = {pool.submit(study.lines, *row): row for row in study.left}
        for done in as_completed(begun):
            name, seed = begun[done]
            try:
                study.keep(done.result())
                print(f"{name}, seed {seed}: done", flush=True)
            except (subprocess.CalledProcessError, OSError, LookupError, ValueError) as error:
                failed = True
                print(f"{name}, seed {seed}: failed: {error}", flush=True)
    if not names:
        study.write_page()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
