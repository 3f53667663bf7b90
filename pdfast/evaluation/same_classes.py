"""Check that a model and a set number their classes alike, by the names of the classes.

A teacher whose class 0 is a cat, distilled on data whose class 0 is a dog, would silently learn
wrong labels. If one side has no names, nothing is compared.
"""

from pathlib import Path

from pdfast.config.class_names import difference, shown
from pdfast.console.progress import Screen
from pdfast.data.classes import FEW, Classes
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.errors import UsageError
from pdfast.models.checkpoint import class_names_of
from pdfast.models.model import Model


def check_run(path: Path, given: Model | None, name: str, data: Dataset) -> tuple[str, ...]:
    """Check the data's class names against a run's teacher. Reached by all processes.

    Args:
        path: The run directory.
        given: A teacher to be copied into the run, or None.
        name: Path of that teacher; "" for one without a directory.
        data: The training data.

    Returns:
        The teacher's class names.

    Raises:
        UsageError: The data's class names differ.
    """
    names = () if given is None else given.class_names
    what = f"the teacher {name}" if name else "the network given"
    if differ := difference(what, names, data.names):
        raise UsageError(
            f"{differ}: number the data's classes as the teacher has them, or, if they are the "
            "same classes under other names, give it no names (in Python: class_names = ())"
        )
    kept = collectives.from_first(lambda: list(class_names_of(path / "teacher")))
    if differ := difference(str(path / "teacher"), kept, data.names):
        raise UsageError(
            f"{differ}: give the data's classes their earlier names, or choose another --out"
        )
    return names or tuple(kept)


def check_judged(
    what: Path, names: tuple[str, ...], data: Dataset, other_data: bool, screen: Screen
) -> None:
    """Check the class names of data that a model is compared with.

    Args:
        what: The model or run, for messages.
        names: The model's class names.
        data: The data.
        other_data: Only warn of other names.
        screen: Where the warning goes.

    Raises:
        UsageError: The data's class names differ, and `other_data` is false.
    """
    differ = difference(str(what), names, data.names)
    if differ and other_data:
        screen.warn(f"{differ}: figures compare classes of the same number")
    elif differ:
        raise UsageError(
            f"{differ}: number the data's classes as the model has them, or pass --other-data to "
            "use these"
        )


def missing(data: Dataset, num_classes: int, names: tuple[str, ...] = ()) -> list[str]:
    """Return a line on the model's classes without images in the data, if there are any."""
    found = Classes.of(data, num_classes, names)
    if found is None or not found.absent:
        return []
    return [
        f"the model has {num_classes:,} classes, but the data have no images of {found.missing}: "
        "no sample of them is judged or shown"
    ]


def described(data: Dataset, num_classes: int, names: tuple[str, ...]) -> list[str]:
    """Return lines on the classes of the data; those without a name get the model's name."""
    found = Classes.of(data, num_classes, names)
    return [] if found is None else found.lines()


def unnamed(given: Model | None, data: Dataset) -> list[str]:
    """Return a line on classes of the data that a given teacher has no names to compare with."""
    if given is None or not given.num_classes or any(given.class_names) or not any(data.names):
        return []
    few = [shown(k, data.names) for k in range(min(FEW, len(data.names)))]
    more = ", ..." if len(data.names) > FEW else ""
    return [
        f"the teacher's classes have no names; the data's are {', '.join(few)}{more}: make sure "
        "that the numbers mean the same"
    ]
