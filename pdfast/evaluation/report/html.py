"""report.html: a run's report as one self-contained page, which also works offline.

It shows grids of samples of teacher and student from the same noise, with a slider for the number
of sampling steps, and the curve, the tables, the config and the versions.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import NamedTuple

from PIL import Image

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # a header, and rows of cells


class View(NamedTuple):
    """The pictures that the slider shows at one number of steps."""

    steps: int
    teacher: Image.Image | None
    student: Image.Image | None
    captions: tuple[str, str]
    """Captions of teacher and student."""


class Picture(NamedTuple):
    """A plot between texts."""

    file: str
    """File name in the report's folder."""
    alt: str
    png: bytes


class Figure(NamedTuple):
    """A picture with a caption, in a row of others."""

    caption: str
    picture: Picture


class Section(NamedTuple):
    """A heading with a table or a plot, and a note."""

    heading: str
    table: Table | None
    note: str
    picture: Picture | None = None


STYLE = """\
:root { color-scheme: light dark; --line: #8884; --soft: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
.words th, .words td { text-align: left; }
th, td { border-bottom: 1px solid var(--line); }
th { font-weight: 600; } tr.chosen { background: var(--soft); }
.scroll { overflow-x: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { flex: 1 1 18rem; margin: 0; }
figure img { width: 100%; background: #fff; }
figcaption { min-height: 3em; }
.slider { display: flex; gap: 1rem; align-items: center; margin: 1rem 0; }
.slider input { flex: 1; } .slider output { min-width: 6rem; font-weight: 600; }
.note { font-size: .85rem; }
.curve { width: 100%; max-width: 40rem; }
pre { overflow-x: auto; background: var(--soft); padding: 1rem; font-size: .85rem; }
"""
HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
<h1>$title</h1>
"""
PAGE = Template(
    HEAD
    + """\
<p>$summary</p>
$samples
<h2>Distance against sampling steps</h2>
<div class="scroll">$distances</div>
$legend
<p><img class="curve" alt="distance against sampling steps" src="$curve"></p>
$more
<h2>Rounds</h2>
<div class="scroll">$rounds</div>
<p class="note">$note</p>
<h2>How it was made</h2>
<div class="scroll">$versions</div>
<details><summary>The resolved config</summary><pre>$config</pre></details>
</html>
"""
)

PLAIN = Template(
    HEAD
    + """\
$body
</html>
"""
)

SAMPLES = Template("""\
<h2>Samples, from the same noise at every number of steps</h2>
<div class="slider"><label for="steps">sampling steps</label>
<input id="steps" type="range" min="0" max="$last" value="$first" step="1" list="counts">
<datalist id="counts">$ticks</datalist><output id="count" for="steps"></output></div>
<div class="pair">
<figure><figcaption id="of-teacher"></figcaption><img id="teacher" alt=""></figure>
<figure><figcaption id="of-student"></figcaption><img id="student" alt=""></figure>
</div>
<script>
const views = $views;
const at = id => document.getElementById(id);
function show() {
  const view = views[at("steps").value];
  at("count").value = view.name;
  for (const [k, who] of ["teacher", "student"].entries()) {
    at("of-" + who).textContent = view.captions[k];
    at(who).hidden = !view.pictures[k];
    at(who).onload = () => {  // enlarged by whole pixels, unless it is reduced
      const small = at(who).naturalWidth < at(who).width;
      at(who).style.imageRendering = small ? "pixelated" : "auto";
    };
    at(who).src = view.pictures[k] || "data:,";
    at(who).alt = "samples of the " + who + ", " + view.name;
  }
  for (const row of document.querySelectorAll("tr[data-steps]"))
    row.classList.toggle("chosen", row.dataset.steps === String(view.steps));
}
at("steps").addEventListener("input", show);
show();
</script>
""")


def page(
    *,
    title: str,
    summary: str,
    views: Sequence[View],
    first: int,
    distances: Table,
    curve: bytes,
    more: Sequence[Section],
    rounds: Table,
    note: str,
    versions: Mapping[str, str],
    config: str,
    legend: str = "",
) -> str:
    """Return the HTML of a run's report. Texts are escaped.

    Args:
        title: Title of the page.
        summary: First paragraph.
        views: Samples at each number of steps; may be empty.
        first: Number of steps that the slider starts at.
        distances: Table whose rows begin with the number of steps.
        curve: Plot of the distances, a PNG.
        more: Sections between the distances and the rounds.
        rounds: Table of the rounds.
        note: Explanation of the columns of `rounds`.
        versions: Versions of programs, by name.
        config: The resolved config.
        legend: Explanation of the columns of `distances`.
    """
    shown = [v for v in views if v.teacher or v.student]
    return PAGE.substitute(
        style=STYLE,
        title=html.escape(title),
        summary=html.escape(summary),
        samples=_samples(shown, first) if shown else "",
        distances=_table(distances, marked=True),
        legend=note_of(legend),
        curve=address(curve),
        more="\n".join(section_of(section) for section in more),
        rounds=_table(rounds),
        note=html.escape(note),
        versions=_table((("what", "version"), list(versions.items()))),
        config=html.escape(config),
    )


def plain_page(
    title: str,
    warning: str,
    sections: Sequence[Section],
    pictures: Sequence[Figure],
    last: Sequence[Section],
) -> str:
    """Return the HTML of a page without a script.

    Args:
        title: Title of the page.
        warning: A warning at the top, or "".
        sections: Sections above the pictures.
        pictures: Pictures, side by side.
        last: Sections below the pictures.
    """
    parts = [f"<p><strong>{html.escape(warning)}</strong></p>"] if warning else []
    parts += map(section_of, sections)
    if pictures:
        figures = "\n".join(
            f"<figure><figcaption>{html.escape(caption)}</figcaption>"
            f'<img alt="{html.escape(of.alt)}" src="{address(of.png)}"></figure>'
            for caption, of in pictures
        )
        parts.append(f'<h2>Samples</h2>\n<div class="pair">\n{figures}\n</div>')
    parts += map(section_of, last)
    return PLAIN.substitute(title=html.escape(title), style=STYLE, body="\n".join(parts))


def section_of(section: Section) -> str:
    """Return the HTML of a section."""
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    if section.table:
        parts.append(f'<div class="scroll">{_table(section.table)}</div>')
    if section.picture:
        alt, source = html.escape(section.picture.alt), address(section.picture.png)
        parts.append(f'<p><img class="curve" alt="{alt}" src="{source}"></p>')
    return "\n".join([*parts, note_of(section.note)]).rstrip()


def note_of(text: str) -> str:
    """Return the HTML of a note under a table; "" for none."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def _samples(views: Sequence[View], first: int) -> str:
    counts = [v.steps for v in views]
    table = [
        {
            "steps": v.steps,
            "name": f"{v.steps} step{'s' * (v.steps > 1)}",
            "captions": v.captions,
            "pictures": [_png(v.teacher), _png(v.student)],
        }
        for v in views
    ]
    return SAMPLES.substitute(
        last=len(views) - 1,
        first=counts.index(first) if first in counts else 0,
        ticks="".join(f'<option value="{k}" label="{n}"></option>' for k, n in enumerate(counts)),
        views=json.dumps(table).replace("<", "\\u003c"),  # keeps a text from closing the script
    )


def _png(picture: Image.Image | None) -> str:
    """Return a picture as a data URL; "" for None."""
    if picture is None:
        return ""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return address(file.getvalue())


def address(png: bytes) -> str:
    """Return a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _table(table: Table, marked: bool = False) -> str:
    header, rows = table
    kind = ' class="words"' if "what" in header[:1] else ""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    for row in rows:
        mark = f' data-steps="{html.escape(row[0])}"' if marked else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f"<table{kind}>\n" + "\n".join(lines) + "\n</table>"
