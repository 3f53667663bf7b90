"""What docs/style.md asks of words, as far as a program can tell."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for folder in ("pdfast", "kernels", "benchmarks", "docs", "examples", "tests")
    for file in (ROOT / folder).rglob("*.py")
    if not (folder == "pdfast" and "kernels" in file.parts)  # a link to kernels/
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*.md"))
PAGES += sorted((ROOT / "benchmarks" / "results").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
KINDS = (".cpp", ".cu", ".cuh", ".h")
NATIVE = sorted(file for file in (ROOT / "csrc").iterdir() if file.suffix in KINDS)

BANNED = (
    r"of one's own",
    r"leaves? (?:\S+ )?away",
    r"left away",
    r"goes on (?!\w+ing)",
    r"is none\b",
    r"are none\b",
    r"is so told",
    r"but for\b",
    r"[Tt]hose that there are",
    r"what there is",
    r"that there (?:is|are)\b",
    r"whereof|wherefrom|thereof",
    r"^[Ww]hat \w+ (?:gives|gave|has|had|says|said)\b",
    r"\bput (?:this |that |it )?right\b",
    r"is no (?:whole|name)\b",
    r"is of the call",
    r"in so many words",
)
"""Phrases that read as if translated word by word, or as riddles."""


def texts_of(file):
    """Line and text of each docstring and of each message, a string of several words."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if id(node) in parts:
            continue
        match node:
            case ast.JoinedStr(values=values):
                shown = (v.value if isinstance(v, ast.Constant) else "X" for v in values)
                yield node.lineno, "".join(shown)
            case ast.Constant(value=str(text)) if " " in text:
                yield node.lineno, text


def found(text):
    """Banned phrases in a text."""
    plain = " ".join(text.split())
    return [phrase for phrase in BANNED if re.search(phrase, plain)]


def comments(text, mark):
    """Line and text of each comment after `mark`."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.search(rf"(?:^|\s){mark} ?(.*)", line):
            yield number, match[1]


def faults(file, texts):
    """A line for each banned phrase of a file."""
    name = file.relative_to(ROOT)
    return [f"{name}:{line}: {bad}" for line, text in texts for bad in found(text)]


def test_docstrings_messages_and_comments_have_no_banned_phrase():
    said = []
    for file in SOURCES:
        if file != Path(__file__):
            said += faults(file, [*texts_of(file), *comments(file.read_text("utf-8"), "#")])
    for file in NATIVE:
        said += faults(file, comments(file.read_text("utf-8"), "//"))
    for file in CONFIGS:
        said += faults(file, comments(file.read_text("utf-8"), "#"))
    assert not said, "\n".join(said)


def test_pages_have_no_banned_phrase():
    said = []
    for file in PAGES:
        if file.name != "style.md":  # which quotes some
            said += faults(file, enumerate(file.read_text("utf-8").split("\n\n"), 1))
    for file in NOTEBOOKS:
        cells = json.loads(file.read_text("utf-8"))["cells"]
        said += faults(file, enumerate("".join(cell["source"]) for cell in cells))
    assert not said, "\n".join(said)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(re.findall(r"\S*\w\S*", text)) <= 1_200
