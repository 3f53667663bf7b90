"""What the phases of a run have spent, by its metrics: network evaluations and seconds.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TEACHER = 0  # the teacher's number among the rounds


@dataclass(frozen=True)
class Spent:
    """What making a model took; None where it is unknown."""

    evaluations: int | None = None
    """Of networks; see training/update.py."""
    seconds: float | None = None

    def then(self, later: "Spent") -> "Spent":
        """Both phases' together, of what both have."""
        evaluations = seconds = None
        if self.evaluations is not None and later.evaluations is not None:
            evaluations = self.evaluations + later.evaluations
        if self.seconds is not None and later.seconds is not None:
            seconds = round(self.seconds + later.seconds, 1)  # as the metrics have it
        return Spent(evaluations, seconds)


UNKNOWN = Spent()


class Account:
    """The phases of a run."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """`lines`: those of metrics.jsonl."""
        self._phases: dict[int, Spent] = {}
        self._rounds: dict[int, int] = {}  # by the student's steps
        for line in lines:
            if "seconds" not in line:
                continue
            round_ = line["round"]
            self._phases[round_] = Spent(line.get("evaluations"), line["seconds"])
            if round_ != TEACHER and "steps" in line:
                self._rounds[line["steps"]] = round_

    @property
    def teacher(self) -> Spent:
        """Its training; unknown of one from elsewhere."""
        return self._phases.get(TEACHER, UNKNOWN)

    def student(self, steps: int) -> Spent:
        """All rounds up to the student with so many steps, without the teacher's training."""
        total = UNKNOWN
        for round_ in range(1, self._rounds.get(steps, 0) + 1):
            phase = self._phases.get(round_, UNKNOWN)
            total = phase if round_ == 1 else total.then(phase)
        return total
