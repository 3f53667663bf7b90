"""The inputs of a run's report, so that an unchanged one is not repeated: eval-state/report.json.

It is a JSON object of facts, and of the SHA-256 of the files made from them. If it is lost, the
report is made again.
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
# With drawable samples, and with students whose evaluations are known.
MAYBE = {"samples/compare.png", PRICE}


class Record:
    """The record of a run's report; for the first process alone."""

    def __init__(self, run: Run, facts: Callable[[], dict[str, str]]) -> None:
        """Create the record of a run.

        Args:
            run: The run.
            facts: Returns everything that the report's files depend on, as strings.
        """
        self._run, self._path, self._told = run, run.path / FOLDER / NAME, facts

    @cached_property
    def _facts(self) -> dict[str, str]:
        return self._told()

    def holds(self) -> bool:
        """Whether all files of the report exist, unchanged, and were made from the same facts."""
        try:
            table = files.read_json(self._path)
        except PdfastError:  # damaged or missing
            return False
        made = table.get("files")
        return (
            table.get("made_of") == self._facts
            and isinstance(made, dict)
            and ALWAYS <= made.keys() <= ALWAYS | MAYBE
            and all(digest_of(self._run.path / name) == sha256 for name, sha256 in made.items())
        )

    def forget(self) -> None:
        """Remove the record, before the report's files are written."""
        self._path.unlink(missing_ok=True)

    def keep(self, names: Iterable[str]) -> None:
        """Write the record, after the report's files are written.

        Args:
            names: The files, relative to the run directory.
        """
        made = {name: digest_of(self._run.path / name) for name in names}
        table = {"made_of": self._facts, "files": made}
        files.make_folder(self._path.parent)
        self._run.write_text(f"{FOLDER}/{NAME}", json.dumps(table, indent=1) + "\n")


def digest(content: bytes | str) -> str:
    """Return the SHA-256 of bytes or a string, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if it does not exist."""
    return files.sha256(path) if path.is_file() else ""
