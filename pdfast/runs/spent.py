"""Network evaluations and seconds that the phases of a run took, by its metrics.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TEACHER = 0  # the teacher's number among the rounds


@dataclass(frozen=True)
class Spent:
    """The cost of making a model; None where it is unknown."""

    evaluations: int | None = None
    """Network evaluations; see training/update.py."""
    seconds: float | None = None

    def then(self, later: "Spent") -> "Spent":
        """Add the cost of a later phase; unknown if it is unknown for either."""
        evaluations = seconds = None
        if self.evaluations is not None and later.evaluations is not None:
            evaluations = self.evaluations + later.evaluations
        if self.seconds is not None and later.seconds is not None:
            seconds = round(self.seconds + later.seconds, 1)  # the precision of the metrics
        return Spent(evaluations, seconds)


UNKNOWN = Spent()


class Account:
    """The costs of all phases of a run."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Read the costs from the lines of metrics.jsonl."""
        self._phases: dict[int, Spent] = {}
        self._rounds: dict[int, int] = {}  # the student's sampling steps -> round
        for line in lines:
            if "seconds" not in line:
                continue
            round_ = line["round"]
            self._phases[round_] = Spent(line.get("evaluations"), line["seconds"])
            if round_ != TEACHER and "steps" in line:
                self._rounds[line["steps"]] = round_

    @property
    def teacher(self) -> Spent:
        """The cost of training the teacher; unknown for a teacher from elsewhere."""
        return self._phases.get(TEACHER, UNKNOWN)

    def student(self, steps: int) -> Spent:
        """Return the cost of all rounds up to the student with `steps` sampling steps.

        The teacher's training is not included.
        """
        total = UNKNOWN
        for round_ in range(1, self._rounds.get(steps, 0) + 1):
            phase = self._phases.get(round_, UNKNOWN)
            total = phase if round_ == 1 else total.then(phase)
        return total
