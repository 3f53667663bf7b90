"""Models that come with pdfast: a teacher and its students, by name.

They are the model directories NAME-teacher and NAME-STEPS in pdfast/pretrained, beside NAME.md, the
report of the run that made them. `python -m pdfast.pretrained` makes these files.
"""

from pathlib import Path

from pdfast.errors import UsageError

FOLDER = Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
    """Return the names of the models that come with pdfast, sorted."""
    return sorted(path.name.removesuffix("-teacher") for path in FOLDER.glob("*-teacher"))


def students(name: str) -> list[int]:
    """Return the sampling steps of a name's students, most first."""
    found = (path.name.removeprefix(f"{name}-") for path in FOLDER.glob(f"{name}-*"))
    return sorted((int(steps) for steps in found if steps.isdecimal()), reverse=True)


def find(model: str | Path, steps: int = 0) -> Path:
    """Return the model directory of a path or a name.

    Args:
        model: A path, or one of `names`. An existing path of that name takes precedence.
        steps: With a name, the sampling steps of the student; without such a student the teacher's
            directory is returned.
    """
    path = Path(model)
    if is_name(model):
        student = FOLDER / f"{model}-{steps}"
        return student if student.is_dir() else FOLDER / f"{model}-teacher"
    return path


def is_name(model: str | Path) -> bool:
    """Whether `model` is the name of a model that comes with pdfast, and not an existing path."""
    return not Path(model).exists() and str(model) in names()


def check_steps(model: str | Path, steps: int) -> None:
    """Raise UsageError if `steps` is given with a path, which is a single model."""
    if steps and not is_name(model):
        known = ", ".join(names())
        raise UsageError(
            f"steps choose a student of a model that comes with pdfast ({known}), and {model} is a "
            "path: omit steps here, and pass them to sample"
        )
