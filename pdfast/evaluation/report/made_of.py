"""What a run's report was made of, so that the same one is not made again: eval-state/report.json.

A JSON object of facts and of the SHA-256 of the files that were made of them. Losing it costs the
time to make them again, nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from pdfast.errors import PdfastError
from pdfast.evaluation.report.price import PRICE
from pdfast.evaluation.resume import FOLDER
from pdfast.runs.run import Run
from pdfast.storage import files

NAME = "report.json"
ALWAYS = {"report.html", "report.json", "report.md", "report.png"}
# Of samples that can be drawn, and of students whose evaluations are known.
MAYBE = {"samples/compare.png", PRICE}


class Record:
    """The facts of the report of a run; for the first process alone."""

    def __init__(self, run: Run, facts: Callable[[], dict[str, str]]) -> None:
        """`facts` gives all that decides what the files hold, as texts."""
        self._run, self._path, self._told = run, run.path / FOLDER / NAME, facts

    @cached_property
    def _facts(self) -> dict[str, str]:
        return self._told()

    def holds(self) -> bool:
        """Whether all files are there, as they were made, of these facts."""
        try:
            table = files.read_json(self._path)
        except PdfastError:  # damaged, or not there
            return False
        made = table.get("files")
        return (
            table.get("made_of") == self._facts
            and isinstance(made, dict)
            and ALWAYS <= made.keys() <= ALWAYS | MAYBE
            and all(digest_of(self._run.path / name) == sha256 for name, sha256 in made.items())
        )

    def forget(self) -> None:
        """Before the files are written: until all are, they are of nothing."""
        self._path.unlink(missing_ok=True)

    def keep(self, names: Iterable[str]) -> None:
        """The files are whole."""
        made = {name: digest_of(self._run.path / name) for name in names}
        table = {"made_of": self._facts, "files": made}
        files.make_folder(self._path.parent)
        self._run.write_text(f"{FOLDER}/{NAME}", json.dumps(table, indent=1) + "\n")


def digest(content: bytes | str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_of(path: Path) -> str:
    """Of a file; empty where there is none."""
    return files.sha256(path) if path.is_file() else ""
