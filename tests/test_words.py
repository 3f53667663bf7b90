"""What docs/style.md asks of words, as far as a program can tell."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for folder in ("pdfast", "kernels", "benchmarks", "examples", "tests")
    for file in (ROOT / folder).rglob("*.py")
    if not (folder == "pdfast" and "kernels" in file.parts)  # a link to kernels/
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*.md"))
NATIVE = sorted(file for file in (ROOT / "csrc").iterdir() if file.suffix in (".cpp", ".cu", ".h"))

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
    r"\bput (?:this|that|it) right\b",
    r"is of the call",
    r"in so many words",
)
"""Phrases that read as if translated word by word, or as riddles."""


def docstrings(file):
    """Line and text of each docstring of a module, and of each below a field."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield node.lineno, value.value


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


def test_docstrings_and_comments_have_no_banned_phrase():
    said = []
    for file in SOURCES:
        if file != Path(__file__):
            said += faults(file, [*docstrings(file), *comments(file.read_text("utf-8"), "#")])
    for file in NATIVE:
        said += faults(file, comments(file.read_text("utf-8"), "//"))
    assert not said, "\n".join(said)


def test_pages_have_no_banned_phrase():
    said = []
    for file in PAGES:
        if file.name != "style.md":  # which quotes some
            said += faults(file, enumerate(file.read_text("utf-8").split("\n\n"), 1))
    assert not said, "\n".join(said)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(re.findall(r"\S*\w\S*", text)) <= 1_200
