"""Class names, class numbers and image counts of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pdfast.config.class_names import merged, ranges, shown
from pdfast.data.dataset import Dataset

NAMED = 5  # unused sub-folders that a line names
WIDTH = 200  # characters of a line that lists classes
FEW = 20  # up to this many classes are listed one by one in a sentence


@dataclass(frozen=True)
class Classes:
    """The classes of a model, with the number of images that a set has of each."""

    names: tuple[str, ...]
    """Class names by number, "" for a class without a name; may be shorter than `counts`."""
    counts: tuple[int, ...]
    """Number of images of each class, by class number."""

    @classmethod
    def of(
        cls, data: Dataset, num_classes: int, model_names: Sequence[str] = ()
    ) -> "Classes | None":
        """Count the classes of a set for a model with `num_classes` classes.

        Args:
            data: The set whose labels are counted.
            num_classes: Number of classes of the model; 0 for an unconditional model.
            model_names: Class names of the model by number; they take precedence over the set's
                names.

        Returns:
            The classes, or None if the set has no labels or the model has no classes.
        """
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
        """Numbers of the classes without images."""
        return [label for label, count in enumerate(self.counts) if not count]

    def name(self, label: int) -> str:
        """Return the name of a class, "" if it has none."""
        return self.names[label] if label < len(self.names) else ""

    def shown(self, label: int) -> str:
        """Format the number and the name of a class for messages."""
        return shown(label, self.names)

    def lines(self) -> list[str]:
        """List number, name and count of each class with images, wrapped at WIDTH characters."""
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
        """The classes without images as a phrase; "" if every class has images."""
        absent = self.absent
        if not absent:
            return ""
        if len(absent) <= FEW and any(self.name(label) for label in absent):
            return f"{_class_or_classes(absent)} {', '.join(map(self.shown, absent))}"
        return f"{_class_or_classes(absent)} {ranges(absent)}"

    def table(self) -> list[dict[str, Any]]:
        """Return number, name, count and share of each class with images or a name, for JSON."""
        total = sum(self.counts)
        return [
            {"number": k, "name": self.name(k), "count": count, "share": count / total}
            for k, count in enumerate(self.counts)
            if count or self.name(k)
        ]

    @property
    def summary(self) -> str:
        """The shares of the classes as a short phrase."""
        present, none = self.present, f"; no images of {self.missing}" if self.absent else ""
        if len(present) <= FEW:
            total = sum(self.counts)
            parts = (f"{self.shown(k)}: {100 * self.counts[k] / total:.3g} %" for k in present)
            return ", ".join(parts) + none
        counts = [self.counts[k] for k in present]
        return f"{len(present):,} classes of {min(counts):,} to {max(counts):,} images each{none}"


def unused(names: Sequence[str], fix: str) -> str:
    """Return a line on sub-folders that could be classes; "" for no names.

    Args:
        names: The sub-folders; see `Dataset.unused`.
        fix: What uses them.
    """
    if not names:
        return ""
    listed = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"classes: {len(names):,} sub-folders ({listed}) are not used: {fix}"


def _class_or_classes(labels: Sequence[int]) -> str:
    return "class" if len(labels) == 1 else "classes"
