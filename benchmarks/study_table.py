"""The table of study_rounds.py: its lines, and the page made from them."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from study_rows import BASE, TEACHER

STEPS = (8, 4, 2, 1)
SPREADS = 2  # spreads of the base by which a row must be better to be marked so
CHEAPER = 0.6  # share of the base's evaluations, for figures that are no worse
BETTER = {4: 0.95, 2: 0.92, 1: 0.88}  # share of the base's figures, for no more evaluations

SHARES, AT = (", ".join(map(str, values)) for values in (BETTER.values(), BETTER))
INTRODUCTION = f"""\
# What rounds cost and give, on Fashion-MNIST at 16x16

All rows have one teacher, that of benchmarks/study_rounds.toml (seed 0), and differ in the flags of
`pdfast distill --config benchmarks/study_rounds.toml`: the settings of the config fashion_mnist16
before the study. Each machine trained the teacher anew: the teachers differ by rounding alone, as
their distances below show. Figures are distances of 2,000 samples (clipped DDIM,
one noise for all rows) from all 60,000 images: lower is better. After each distance stands the
number of network evaluations (forward passes of one image; a backward pass counts two more) in all
rounds up to that student. The teacher's training and the evaluated samples are not counted. In
brackets: the ratio to the row `{BASE}` at the same number of steps.

Names of rows: `batch-N`, N images per update (base: 32); `start-N`, a plan that begins at N steps
instead of 8192; `slow-start`, small learning rates in the first rounds; `-0.6` and `-equal`,
updates for 0.6 and 1 times the base's evaluations; `huber`, the pseudo-Huber loss; `wide-...`,
rounds that merge more than two steps, to these students; `live`, the student takes the second step;
`data`, the data take the first; `moments`, AdamW's moments are kept; `averages`, a choice among
averages of the weights; `early-ema`, an average of decay 0.9 in the first rounds; `rate-2`, twice
the learning rate; `v-weight`, the loss weight v_mse.

- \u00b1: the standard deviation between seeds of the distillation.
- Bold: better than the base by more than {SPREADS} times its spread, at any evaluations.
- \u2020: no worse than the base, at {CHEAPER} times its evaluations or fewer.
- \u2021: at most {SHARES} times its figure at {AT} steps, at no more evaluations.
- An empty cell: the plan has no student of so many steps.

Seconds are of a row's updates, on one thread, beside another row and other work on the machine:
read them as a rough size.

    pdfast data /usr/share/datasets/fashion-mnist --size 16 --out fashion_mnist16.npz
    pdfast train --config benchmarks/study_rounds.toml --out teacher
    python benchmarks/study_rounds.py --teacher teacher/teacher --rows all --jobs 2

benchmarks/study_table.py makes this page of study_rounds.tsv, which lies beside it.
"""


class Line(NamedTuple):
    """The result of a row with one seed at one number of steps."""

    row: str
    seed: int
    flags: str
    steps: int
    fd_pixel: float
    fd_lite0: float
    floor_pixel: float
    floor_lite0: float
    evaluations: int
    """Network evaluations, each of one image, in all rounds so far; without the teacher's."""
    seconds: float
    """Seconds of the updates so far."""
    commit: str

    def text(self) -> str:
        """Return the line of the table."""
        return "\t".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in self) + "\n"


HEADER = "\t".join(Line._fields) + "\n"
METRICS: dict[str, Callable[[Line], float]] = {
    "FD-pixel": lambda line: line.fd_pixel,
    "FD-Lite0": lambda line: line.fd_lite0,
}


def read(table: str) -> list[Line]:
    """Read the lines of a table's text; lines that begin with # name machines."""
    lines = [line for line in table.splitlines() if not line.startswith("#")]
    if lines and lines[0] != HEADER.strip():
        raise ValueError(f"not a table of the study: {lines[0][:80]}")
    types = Line.__annotations__.values()
    found = []
    for line in lines[1:]:
        cells = zip(types, line.split("\t"), strict=True)
        found.append(Line(*(kind(cell) for kind, cell in cells)))
    return found


def machines(table: str) -> list[str]:
    """Return the machines that the lines were measured on."""
    return [line.removeprefix("# ") for line in table.splitlines() if line.startswith("#")]


class Mean(NamedTuple):
    """A row at one number of steps, over its seeds."""

    value: float
    spread: float | None
    """Standard deviation of the sample of seeds; None for one seed."""
    evaluations: float


def mean(lines: Sequence[Line], value: Callable[[Line], float]) -> Mean:
    """Average lines that differ in their seed."""
    values = [value(line) for line in lines]
    spread = statistics.stdev(values) if len(values) > 1 else None
    spent = statistics.fmean(line.evaluations for line in lines)
    return Mean(statistics.fmean(values), spread, spent)


def cell(found: Mean, base: Mean | None, steps: int) -> str:
    """Format a figure, its ratio to the base's, its evaluations and their ratio, with marks."""
    text = f"{found.value:.3f}"
    if found.spread is not None:
        text += f" \u00b1 {found.spread:.3f}"
    spent = f"{found.evaluations / 1000:.0f} k"
    if base is None or found == base:
        return f"{text}; {spent}"
    ratio, cost = found.value / base.value, found.evaluations / base.evaluations
    if base.spread is not None and base.value - found.value > SPREADS * base.spread:
        text = f"**{text}**"
    marks = "\u2020" * (cost <= CHEAPER and ratio <= 1)
    marks += "\u2021" * (cost <= 1 and ratio <= BETTER.get(steps, 0))
    return f"{text}{marks} ({ratio:.2f}x); {spent} ({cost:.2f}x)"


def figures(lines: Iterable[Line], value: Callable[[Line], float]) -> list[str]:
    """Return the rows of one metric's table, without its head."""
    by_row: dict[str, dict[int, list[Line]]] = {}
    for line in lines:
        by_row.setdefault(line.row, {}).setdefault(line.steps, []).append(line)
    base = {k: mean(found, value) for k, found in by_row.get(BASE, {}).items()}
    rows = []
    for name, by_steps in by_row.items():
        cells = [
            cell(mean(by_steps[k], value), base.get(k), k) if k in by_steps else "" for k in STEPS
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def page(table: str) -> str:
    """Format the page of a table's text, in Markdown."""
    lines = read(table)
    of_teacher = [line for line in lines if line.row == TEACHER]
    of_rows = [line for line in lines if line.row != TEACHER]
    text = [INTRODUCTION]
    for metric, value in METRICS.items():
        text += [f"## {metric}", ""]
        heads = [f"{k} step" + "s" * (k > 1) for k in STEPS]
        text += [f"| row | {' | '.join(heads)} |"]
        text += ["| :-- |" + " --: |" * len(STEPS), *figures(of_rows, value), ""]
        floors = {getattr(line, f"floor_{metric[3:].lower()}") for line in lines}
        said = [
            f"the teacher at {line.steps} steps, commit {line.commit}, {value(line):.4f}"
            for line in of_teacher
        ]
        said += [f"resampled data, the floor, {floor:.3f}" for floor in sorted(floors)]
        text += [f"For comparison: {'; '.join(said)}.", ""]
    text += ["## Rows", "", "| row | seeds | flags | seconds | commit |"]
    text += ["| :-- | :-- | :-- | --: | :-- |"]
    for name in dict.fromkeys(line.row for line in of_rows):
        own = sorted(line for line in of_rows if line.row == name)
        seeds = {line.seed: max(x.seconds for x in own if x.seed == line.seed) for line in own}
        cells = [name, ", ".join(map(str, seeds)), f"`{own[0].flags}`"]
        cells += [", ".join(f"{seconds:.0f}" for seconds in seeds.values())]
        cells += [", ".join(dict.fromkeys(line.commit for line in own))]
        text.append(f"| {' | '.join(cells)} |")
    text += ["", *(f"Measured on: {machine}" for machine in machines(table))]
    return "\n".join(text) + "\n"
