"""`pdfast compare`: writes compare.html, compare.md and compare.json into a folder."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pdfast.console.progress import Screen
from pdfast.errors import UsageError
from pdfast.evaluation.compare import tables
from pdfast.evaluation.compare.read import Compared, read
from pdfast.evaluation.report.html import Figure, Picture, Section, plain_page
from pdfast.evaluation.report.markdown import section_lines
from pdfast.evaluation.report.price import plot_price
from pdfast.evaluation.report.tables import evaluations_note
from pdfast.storage import files

PLOT = "compare.png"
NO_PLOT = "No evaluations were recorded, so there is no plot against them."
POINTS = (
    "A point is a student, labelled with its sampling steps, at the evaluations of all rounds up "
    "to its own."
)


def compare(
    runs: Sequence[str | Path], out: str | Path = "compare", *, quiet: bool = False
) -> Path:
    """Compare runs side by side: distances, evaluations, seconds, settings, a plot and samples.

    Example:
        ```python
        pdfast.compare(["runs/a", "runs/b"], out="compare")  # writes compare/compare.html
        ```

    Args:
        runs: Two or more run directories with a report, or folders that `evaluate` wrote for one
            model. They stay unchanged.
        out: The folder for compare.html, compare.md, compare.json and the pictures. An earlier
            comparison in it is replaced.
        quiet: Print warnings only.

    Returns:
        The path of `out`.

    Raises:
        UsageError: A folder of `runs` is neither, or `out` holds anything else.
    """
    if not isinstance(out, str | Path) or out == "" or "\0" in str(out):
        raise UsageError(f"out {out!r} is not a path: name a folder, or omit it")
    screen, folder = Screen(quiet), Path(out)
    found = read(runs)
    for run in found:
        if run.path.resolve() in folder.resolve().parents:
            raise UsageError(f"{folder} lies in {run.path}, which must not change: choose another")
    files.check_replaceable(folder)
    if warning := tables.warning(found):
        screen.warn(warning[0].lower() + warning[1:])
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from None
    files.write_folder(folder.absolute(), lambda stage: _fill(stage, found, warning))
    screen.say(f"compared: {folder / 'compare.html'}, {folder / 'compare.md'}")
    return folder


def _fill(stage: Path, runs: Sequence[Compared], warning: str) -> None:
    title = "Compared: " + ", ".join(run.name for run in runs)
    students = tables.students(runs)
    sections = [
        Section("Distance by sampling steps", students, evaluations_note(students)),
        _plot(runs),
        _settings(runs),
    ]
    last = [
        Section("Teachers", tables.teachers(runs), ""),
        Section("What was compared", tables.facts(runs), ""),
    ]
    last = [section for section in last if section.table]
    pictures = []
    for k, run in enumerate(runs, 1):
        if run.samples is not None:
            name = f"samples-{k}.png"
            shutil.copyfile(run.samples, stage / name)
            picture = Picture(name, f"samples of {run.name}", (stage / name).read_bytes())
            pictures.append(Figure(run.name, picture))
    for section in sections:
        if section.picture:
            (stage / section.picture.file).write_bytes(section.picture.png)
    text = plain_page(title, warning, sections, pictures, last)
    (stage / "compare.html").write_text(text, "utf-8")
    parts = [f"# {title}", *([f"**{warning}**"] if warning else [])]
    for section in sections:
        parts += section_lines(section)
    if pictures:
        parts += ["## Samples", _pictures(pictures)]
    for section in last:
        parts += section_lines(section)
    (stage / "compare.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    table = json.dumps(tables.as_json(runs), indent=1, allow_nan=False)
    (stage / "compare.json").write_text(table + "\n", "utf-8")
    files.seal(stage, compared=[run.name for run in runs])


def _plot(runs: Sequence[Compared]) -> Section:
    panels = tables.panels(runs)
    if not panels:
        return Section("Distance against evaluations", None, NO_PLOT)
    file = io.BytesIO()
    plot_price(panels).savefig(file)
    picture = Picture(PLOT, "distance against evaluations", file.getvalue())
    return Section("Distance against evaluations", None, POINTS, picture)


def _settings(runs: Sequence[Compared]) -> Section:
    table = tables.settings(runs)
    note = "" if table else "All runs have the same [distill] and [model]."
    if sum(run.settings is not None for run in runs) < 2:
        note = "The settings of fewer than two runs are known."
    return Section("Settings that differ", table, note)


def _pictures(pictures: Sequence[Figure]) -> str:
    """Return pictures side by side, as a Markdown table."""
    names = [figure.caption.replace("|", "\\|") for figure in pictures]
    shown = [f"![samples]({figure.picture.file})" for figure in pictures]
    rows = [names, ["---"] * len(names), shown]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
