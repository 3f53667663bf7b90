"""Whether a model and a set mean the same classes by the same numbers, by the names of the classes.

A teacher whose class 0 is a cat, distilled on data whose class 0 is a dog, would learn wrong labels
without a word. Where one side has no names there is nothing to compare.
"""

from pathlib import Path

from pdfast.config.class_names import difference
from pdfast.console.progress import Screen
from pdfast.data.classes import Classes
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.errors import UsageError
from pdfast.models.checkpoint import class_names_of
from pdfast.models.model import Model


def check_run(path: Path, given: Model | None, name: str, data: Dataset) -> tuple[str, ...]:
    """Raise UsageError if the data name classes otherwise than the teacher of a run.

    `given`: the teacher from elsewhere, which lies at `name`, "" where it is none of a directory.
    Gives the teacher's names. Reached by all processes.
    """
    names = () if given is None else given.class_names
    what = f"the teacher {name}" if name else "the network given"
    if differ := difference(what, names, data.names):
        raise UsageError(
            f"{differ}: number the data's classes as the teacher has them, or, where they are the "
            "same classes under other names, give it no names (in Python: class_names = ())"
        )
    kept = collectives.from_first(lambda: list(class_names_of(path / "teacher")))
    if differ := difference(str(path / "teacher"), kept, data.names):
        raise UsageError(
            f"{differ}: give the data's classes the names of before, or choose another --out"
        )
    return names or tuple(kept)


def check_judged(
    what: Path, names: tuple[str, ...], data: Dataset, other_data: bool, screen: Screen
) -> None:
    """Raise UsageError if the data that a model is compared with name its classes otherwise.

    `other_data`: they are meant, which a warning then says.
    """
    differ = difference(str(what), names, data.names)
    if differ and other_data:
        screen.warn(f"{differ}: figures compare classes of one number")
    elif differ:
        raise UsageError(
            f"{differ}: number the data's classes as the model has them, or pass --other-data (in "
            "Python other_data=True) if these are meant"
        )


def missing(data: Dataset, num_classes: int, names: tuple[str, ...] = ()) -> list[str]:
    """A line of the classes of a model that the data have no images of, if there are any."""
    found = Classes.of(data, num_classes, names)
    if found is None or not found.absent:
        return []
    return [f"the data have no images of {found.missing}: no sample of them is judged or shown"]


def described(data: Dataset, num_classes: int, names: tuple[str, ...]) -> list[str]:
    """Lines of all classes of the data, with what a model calls those without a name."""
    found = Classes.of(data, num_classes, names)
    return [] if found is None else [*found.lines(), *missing(data, num_classes, names)]
