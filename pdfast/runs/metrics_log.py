"""metrics.jsonl: the measurements of a run, one JSON object per line, each with its round."""

import json
from pathlib import Path
from typing import Any

from pdfast.errors import PdfastError
from pdfast.runs.watched_loss import WORDS, renamed
from pdfast.storage import files

MAY_BE_NULL = ("loss", "grad_norm", "rounding")  # null where there is no number
# Keys that come together: a line with any key of an entry has all keys of one set in it.
TOGETHER = (
    [{f"{name}_start", f"{name}_end", "seconds"} for name in WORDS],
    [{"signal", "rounding"}],
)


def _is_whole(values: dict[str, Any]) -> bool:
    """Return whether a line has numbers only, and all keys that come together."""
    counts = values["round"], values.get("update", 0)
    numbers = [v for key, v in values.items() if v is not None or key not in MAY_BE_NULL]
    return (
        all(type(count) is int for count in counts)
        and all(type(number) in (int, float) for number in numbers)
        and all(
            not any(keys & values.keys() for keys in kinds)
            or any(keys <= values.keys() for keys in kinds)
            for kinds in TOGETHER
        )
    )


class Metrics:
    """The lines of one metrics file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Read all lines, with the current names of the losses, sorted by round.

        A round may appear again if it was repeated.

        Raises:
            PdfastError: A line is damaged; the message names it.
        """
        if not self.path.is_file():
            return []
        lines = []
        for number, line in enumerate(self.path.read_text("utf-8", "replace").splitlines(), 1):
            try:
                values = renamed(json.loads(line))
                if not _is_whole(values):
                    raise ValueError
                lines.append(values)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise PdfastError(
                    f"{self.path}, line {number}, is damaged: remove that line (it holds no "
                    "weights)"
                ) from None
        return sorted(lines, key=lambda values: values["round"])

    def append(self, values: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            PdfastError: A value is not finite, or the file cannot be written.
        """
        try:
            line = json.dumps(values, allow_nan=False)
        except ValueError:
            bad = ", ".join(f"{key} {value}" for key, value in values.items())
            raise PdfastError(
                f"a number of the run is no longer finite ({bad}); start again with a lower "
                "learning rate and another --out (finished models are whole)"
            ) from None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise PdfastError(
                f"cannot write {self.path}: {files.reason(error)}; finished models and the last "
                "saved state are whole"
            ) from None

    def sync(self) -> None:
        """Make all lines outlast a loss of power."""
        if self.path.is_file():
            files.fsync(self.path)

    def drop_partial_line(self) -> None:
        """Remove a last line that a crash or a full disk cut short."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        if content and not content.endswith(b"\n"):
            whole = content[: content.rfind(b"\n") + 1]
            files.write_file(self.path, lambda stage: stage.write_bytes(whole))

    def has(self, round_: int) -> bool:
        """Return whether any line is of this round."""
        return any(values["round"] == round_ for values in self.read())

    def rewind(self, round_: int, update: int) -> int:
        """Drop a round's lines after an update.

        Args:
            round_: The round; 0: the teacher.
            update: The last update whose lines are kept; a negative number keeps none.

        Returns:
            How many updates the dropped lines reached beyond `update`.
        """
        lines = self.read()
        kept = [m for m in lines if m["round"] != round_ or 0 <= m.get("update", -1) <= update]
        if len(kept) < len(lines):
            text = "".join(json.dumps(m) + "\n" for m in kept)
            files.write_file(self.path, lambda stage: stage.write_text(text, "utf-8"))
        reached = [m.get("update", 0) for m in lines if m["round"] == round_]
        return max(0, max(reached, default=0) - max(0, update))
