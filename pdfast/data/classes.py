"""The classes of a set: names, numbers and counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pdfast.config.class_names import merged, ranges, shown
from pdfast.data.dataset import Dataset

WIDTH = 200  # of the lines that list all classes
FEW = 20  # classes that are listed one by one within a sentence


@dataclass(frozen=True)
class Classes:
    """The classes of a model and of the images of a set."""

    names: tuple[str, ...]
    """Class names by number, "" for a class without one; there may be fewer than classes."""
    counts: tuple[int, ...]
    """Images of each, by number."""

    @classmethod
    def of(
        cls, data: Dataset, num_classes: int, model_names: Sequence[str] = ()
    ) -> "Classes | None":
        """The classes of a set for a model of so many; None where either has no classes."""
        if data.labels is None or not num_classes:
            return None
        counts = torch.bincount(data.labels.cpu(), minlength=num_classes)
        return cls(merged(model_names, data.names, num_classes), tuple(counts.tolist()))

    @property
    def present(self) -> list[int]:
        """Numbers of the classes that have images."""
        return [label for label, count in enumerate(self.counts) if count]

    @property
    def absent(self) -> list[int]:
        """Numbers of the others."""
        return [label for label, count in enumerate(self.counts) if not count]

    def name(self, label: int) -> str:
        """Of a class; "" where it has none."""
        return self.names[label] if label < len(self.names) else ""

    def shown(self, label: int) -> str:
        """Number and name, for a reader."""
        return shown(label, self.names)

    def lines(self) -> list[str]:
        """Number, name and count of each class that has images, on as few lines as are legible."""
        parts = [f"{self.shown(label)} ({self.counts[label]:,})" for label in self.present]
        lines = ["classes (images of each):"]
        for k, part in enumerate(parts):
            text = part + ("," if k + 1 < len(parts) else "")
            if len(lines[-1]) + 1 + len(text) > WIDTH:
                lines.append(" ")
            lines[-1] += f" {text}"
        return lines

    @property
    def missing(self) -> str:
        """The classes without images, in words; "" where there are none."""
        absent = self.absent
        if not absent:
            return ""
        if len(absent) <= FEW and any(self.name(label) for label in absent):
            return f"{_class_or_classes(absent)} {', '.join(map(self.shown, absent))}"
        return f"{_class_or_classes(absent)} {ranges(absent)}"

    def table(self) -> list[dict[str, Any]]:
        """Number, name, count and share of each class that has images or a name, as JSON has it."""
        total = sum(self.counts)
        return [
            {"number": k, "name": self.name(k), "count": count, "share": count / total}
            for k, count in enumerate(self.counts)
            if count or self.name(k)
        ]

    @property
    def summary(self) -> str:
        """The shares in a few words."""
        present, none = self.present, f"; no images of {self.missing}" if self.absent else ""
        if len(present) <= FEW:
            total = sum(self.counts)
            parts = (f"{self.shown(k)}: {100 * self.counts[k] / total:.3g} %" for k in present)
            return ", ".join(parts) + none
        counts = [self.counts[k] for k in present]
        return f"{len(present):,} classes of {min(counts):,} to {max(counts):,} images each{none}"


def _class_or_classes(labels: Sequence[int]) -> str:
    return "class" if len(labels) == 1 else "classes"
