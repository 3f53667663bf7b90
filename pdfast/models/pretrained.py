"""Models that come with pdfast: a teacher and its students, by name.

They lie in pdfast/pretrained as model directories, NAME-teacher and NAME-STEPS, with the report of
the run that made them, NAME.md; `python -m pdfast.pretrained` put them there.
"""

from pathlib import Path

from pdfast.errors import UsageError

FOLDER = Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
    """Names of the models that come with pdfast, sorted."""
    return sorted(path.name.removesuffix("-teacher") for path in FOLDER.glob("*-teacher"))


def students(name: str) -> list[int]:
    """Sampling steps of a name's students, most first."""
    found = (path.name.removeprefix(f"{name}-") for path in FOLDER.glob(f"{name}-*"))
    return sorted((int(steps) for steps in found if steps.isdecimal()), reverse=True)


def find(model: str | Path, steps: int = 0) -> Path:
    """Return the model directory that `model` means.

    A path that is there is meant itself. Otherwise a name of `names` means its student of `steps`
    sampling steps, or, where there is no such student, its teacher. Anything else is returned as
    the path that it is.
    """
    path = Path(model)
    if is_name(model):
        student = FOLDER / f"{model}-{steps}"
        return student if student.is_dir() else FOLDER / f"{model}-teacher"
    return path


def is_name(model: str | Path) -> bool:
    """Whether `model` is the name of a model that comes with pdfast, and no path that is there."""
    return not Path(model).exists() and str(model) in names()


def check_steps(model: str | Path, steps: int) -> None:
    """Raise UsageError for a number of steps that would choose among the models of a path."""
    if steps and not is_name(model):
        known = ", ".join(names())
        raise UsageError(
            f"steps choose a student of a model that comes with pdfast ({known}), and {model} is a "
            "path: leave steps out, and pass them to sample"
        )
