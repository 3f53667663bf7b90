"""Generate parts of the site from the program, and adapt the links of pages from outside docs/.

MkDocs calls this file as a hook (mkdocs.yml). A page says where generated text goes by a comment:

    <!-- generated: commands -->      the commands and their flags
    <!-- generated: config -->        every field of a config
        <!-- include: CONTRIBUTING.md --> a file of the repository

Text between <!-- github: --> and <!-- /github --> is for readers of the source, not for the site.

`python docs/generate.py` writes architecture.svg, the picture of the packages.
"""

import dataclasses
import html
import os
import posixpath
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from pdfast.cli.commands import COMMANDS
from pdfast.cli.flags import flags_of, help_text
from pdfast.config.schema import Config
from pdfast.config.serialization import to_table

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
MARK = re.compile(r"^<!-- (generated|include): (\S+) -->$", re.MULTILINE)
GITHUB = re.compile(r"^<!-- github: -->$.*?^<!-- /github -->$\n?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
RESULTS = "benchmarks/results"
AT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


# ------------------------------------------------------------------------------------------
# MkDocs


def on_files(files: Any, config: Any) -> Any:
    """Add the results of benchmarks/, and the examples' page where there is one."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / RESULTS).iterdir()):
        uri = f"results/{path.name}"
        files.append(File.generated(config, uri, content=path.read_bytes()))
    if page := examples():
        text = relinked(page.read_text("utf-8"), "examples", "examples.md")
        files.append(File.generated(config, "examples.md", content=text))
        guides = next(part["Guides"] for part in config.nav if "Guides" in part)
        if "examples.md" not in guides:
            guides.append("examples.md")
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace a page's marker comments by their text, and adapt its links to the site."""
    uri = page.file.src_uri
    base = RESULTS if uri.startswith("results/") else "docs"
    if uri == "examples.md":
        return markdown
    text = relinked(GITHUB.sub("", markdown), base, uri)
    return MARK.sub(lambda found: _text(*found.groups(), uri), text)


def _text(kind: str, name: str, uri: str) -> str:
    if kind == "include":
        file = ROOT / name
        return relinked(file.read_text("utf-8"), posixpath.dirname(name), uri)
    return {"commands": commands, "config": config_fields}[name]()


def examples() -> Path | None:
    """Return the page of examples/, or None without such a page."""
    path = ROOT / "examples" / "README.md"
    return path if path.is_file() else None


def relinked(text: str, base: str, uri: str) -> str:
    """Return text of folder `base` with its links as the site's page `uri` needs them.

    A link to a file that the site does not have becomes plain text.
    """

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        place = posixpath.normpath(posixpath.join(base, path))
        if not (ROOT / place).exists() and not place.startswith("docs/"):
            return found[0]
        there = _on_site(place)
        if there is None:
            return words
        near = posixpath.relpath(there, posixpath.dirname(uri) or ".")
        return f"{image}[{words}]({near}{hash_}{anchor})"

    return LINK.sub(link, text)


def _on_site(place: str) -> str | None:
    """Return the site's path for a path of the repository; None if the site lacks it."""
    if place in ("examples", "examples/README.md"):
        return "examples.md" if examples() else None
    if place == "docs":
        return "index.md"
    for folder, there in (("docs/", ""), (f"{RESULTS}/", "results/")):
        if place.startswith(folder):
            return there + place.removeprefix(folder)
    return AT.get(place)


# ------------------------------------------------------------------------------------------
# Commands and configs


def commands() -> str:
    """Return every command with its own flags, in Markdown."""
    parts = []
    for name, kind in COMMANDS.items():
        names = {flag.name.removeprefix("--"): flag for flag in flags_of(kind)}
        parts.append(f"## {name}\n\n{escaped(_doc(kind))}\n")
        hints = typing.get_type_hints(kind, include_extras=True)
        shown, tables = [], []
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(plain := _plain(hints[field.name])):
                tables.append(plain)
                continue
            said = _said(kind, field.name, hints[field.name])
            flag = names.get(_flag_name(field.name, hints[field.name]))
            title = f"`{flag.name}`" if flag else f"`{field.name.upper()}`"
            shown.append(_entry(title, hints[field.name], _default(field), said))
        shown.sort(key=lambda entry: entry.startswith("`--"))  # what has no flag comes first
        parts.append("\n\n".join(shown))
        if Config in tables:
            parts.append(
                "Every [key of a config](config.md) is a flag too: `--train.lr 1e-3`, "
                "`--model.ch-mult 1 2 2`, `--engine.no-graph`. `--rounds` and `--teacher` stand "
                "for `--distill.rounds` and `--distill.teacher`."
            )
        elif tables:
            parts.append("Every key of [[model]](config.md#model) is a flag: `--model.ch 96`.")
    return "\n\n".join(parts)


def config_fields() -> str:
    """Return every field of a config with its type, default and meaning, in Markdown."""
    parts = ["## Top level"]
    _table(Config, Config(), "", parts)
    return "\n\n".join(parts)


def _table(kind: type, value: Any, prefix: str, parts: list[str]) -> None:
    hints = typing.get_type_hints(kind, include_extras=True)
    inner = []
    for field in dataclasses.fields(kind):
        now = getattr(value, field.name)
        if dataclasses.is_dataclass(now):
            inner.append((field.name, type(now), now))
            continue
        key = f"{prefix}{field.name}"
        title = f'<a id="{key}"></a>`{key}`'
        hint = hints[field.name]
        parts.append(_entry(title, hint, _shown(now), _said(kind, field.name, hint)))
    for name, inside, now in inner:
        parts.append(f"## [{prefix}{name}]\n\n{escaped(_doc(inside))}")
        _table(inside, now, f"{prefix}{name}.", parts)


def _entry(title: str, hint: Any, default: str, said: str) -> str:
    choice = _kind(hint)
    if choice == TYPES[bool] and "--" in title:
        choice, default = "switch", ""
    facts = ", ".join(filter(None, (choice, f"default {default}" if default else "")))
    return f"{title} ({facts})\n:   {escaped(said) or 'Not described.'}"


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _flag_name(name: str, hint: Any) -> str:
    named = (getattr(mark, "name", None) for mark in getattr(hint, "__metadata__", ()))
    return next((one for one in named if one), name).replace("_", "-")


def _default(field: Any) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else "the config's"
    return "" if field.default is None else _shown(field.default)


def _shown(value: Any) -> str:
    """Return a default in the form of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", ()):
        return "empty"
    plain = to_table(value)
    return f"`{plain:,}`".replace(",", "_") if type(plain) is int else f"`{plain}`"


def _kind(hint: Any) -> str:
    """Return a type in words."""
    hint = _plain(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        flat = [a for arg in args for a in (typing.get_args(arg) or (arg,))]
        return " \\| ".join(f"`{arg}`" for arg in flat if arg != 0) or "whole number"
    if origin is tuple:
        if typing.get_origin(args[0]) is tuple:
            return "table"
        return f"list of {_kind(args[0])}{'s' if args[0] in (int, float, Path) else ''}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(arg) for arg in args if arg is not types.NoneType)
    return TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def _said(kind: type, name: str, hint: Any) -> str:
    """Return the help text of a field, as the program shows it."""
    for mark in getattr(hint, "__metadata__", ()):
        if text := getattr(mark, "help", None):
            return str(text)
    return help_text(kind, name)


def _doc(kind: type) -> str:
    """Return a class's docstring in one line, without the name of its table."""
    text = re.sub(r"^\[[\w.]+\]( of a config)?: ", "", " ".join((kind.__doc__ or "").split()))
    return text[:1].upper() + text[1:]


def escaped(text: str) -> str:
    """Return Markdown that shows the text literally; text in backticks stays code."""
    parts = text.split("`")
    plain = (part.replace("&", "&amp;").replace("<", "&lt;") for part in parts[::2])
    parts[::2] = [re.sub(r"([\\*{}\[\]>|]|\b_|_\b)", r"\\\1", part) for part in plain]
    return "`".join(parts)


# ------------------------------------------------------------------------------------------
# The picture of the packages

WIDTH, ROW, GAP, MARGIN = 640, 34, 12, 20
SAYS = {
    "cli": "the command line",
    "api": "train, distill, evaluate",
    "interop": "import, export",
    "cost": "--dry-run",
    "trackers": "TensorBoard, W&B",
    "distillation": "teacher, rounds, objectives",
    "evaluation": "distances, report",
    "training": "one update, and its loop",
    "models": "networks, model directories",
    "diffusion": "schedules, angles, samplers",
    "kernels": "fused ops and their references",
    "runs": "run directories",
    "data": "sets and readers",
    "distributed": "processes, devices, signals",
    "storage": "files, whole or absent",
    "console": "screen and log",
    "config": "settings and formats",
    "launch": "torchrun's environment",
    "errors": "what a user can cause",
}


def layers() -> list[list[str]]:
    """Return the layers of import-linter's contract, highest first."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = table["tool"]["importlinter"]["contracts"]
    found = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [[name.strip().removeprefix("pdfast.") for name in row.split("|")] for row in found]


def picture() -> str:
    """Return the packages as SVG, one row per layer; each imports from the rows below it."""
    rows = layers()
    height = 2 * MARGIN + len(rows) * (ROW + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13" role="img">',
        "<title>The packages of pdfast: each imports from rows below its own</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="4" refY="4" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#5c6bc0"/></marker></defs>',
        f'<line x1="{MARGIN}" y1="{MARGIN}" x2="{MARGIN}" y2="{height - MARGIN - 6}" '
        'stroke="#5c6bc0" stroke-width="1.5" marker-end="url(#tip)"/>',
        f'<text transform="translate({MARGIN - 6} {height / 2}) rotate(-90)" '
        'text-anchor="middle" fill="#5c6bc0">imports</text>',
    ]
    left, y = MARGIN + 16, MARGIN
    for names in rows:
        width = (WIDTH - MARGIN - left - GAP * (len(names) - 1)) / len(names)
        for k, name in enumerate(names):
            x = left + k * (width + GAP)
            said = html.escape(SAYS[name])
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" rx="5" '
                'fill="#e8eaf6" stroke="#9fa8da"/>'
                f'<text x="{x + 10:.1f}" y="{y + 21}" fill="#1a237e"><tspan font-weight="bold">'
                f'{name}</tspan><tspan dx="8" font-size="11" fill="#455a64">{said}</tspan></text>'
            )
        y += ROW + GAP
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
    print(os.path.relpath(PICTURE))
