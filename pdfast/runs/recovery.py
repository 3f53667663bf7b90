"""Damaged models and states of a run that is resumed: what to do about each.

A student can be made again, to the same bits, from the model before it, and a phase can resume from
an earlier state. If only training from the start would remain, PdfastError is raised instead: the
user has to ask for that.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pdfast.config.schema import Config
from pdfast.errors import PdfastError
from pdfast.runs import training_state
from pdfast.storage import model_dir
from pdfast.storage.digests import UNKNOWN, Digest
from pdfast.storage.files import MANIFEST, Damaged


class Finding(NamedTuple):
    """A damaged directory."""

    path: Path
    error: Damaged
    then: str
    """Clause of the message: the next action, once the files are set aside."""


def of_models(teacher: Path, students: Mapping[Path, re.Match[str]]) -> list[Finding]:
    """Find students that are damaged, or of another round than their name says.

    Args:
        teacher: The teacher's model directory.
        students: The students' model directories, with the match of round and steps in the name.

    Raises:
        PdfastError: The teacher is damaged.
    """
    try:
        if teacher.is_dir():
            model_dir.verify(teacher)
    except Damaged as error:
        raise PdfastError(
            f"{error.what}: put a whole copy of the teacher there, or remove {teacher} to have it "
            "trained again from update 0"
        ) from None
    found = []
    for path, name in students.items():
        try:
            manifest = model_dir.verify(path)
            place = {"round": int(name[1]), "steps": int(name[2])}
            if {key: manifest.get(key) for key in place} != place:
                raise Damaged(path / MANIFEST, "is of another round than the directory's name")
        except Damaged as error:
            found.append(Finding(path, error, "the round is made again from the model before it"))
    return found


def of_states(
    folder: Path, config: Config, is_finished: Callable[[int], bool], data: Digest = UNKNOWN
) -> list[Finding]:
    """Find damaged states of unfinished phases.

    Args:
        folder: The folder of the states.
        config: The run's config.
        is_finished: Whether the model of a round (0: the teacher) exists.
        data: Digest of the run's data.

    Raises:
        PdfastError: There are states of the teacher, and none is whole.
        UsageError: A state is of another config or of other data.
    """
    found = []
    planned = config.distill.num_rounds
    for round_ in (k for k in training_state.rounds(folder) if k <= planned):
        whole: list[str] = []
        damaged: list[tuple[Path, Damaged]] = []
        for path in [] if is_finished(round_) else training_state.found(folder, round_):
            try:
                training_state.load(path, config, data)
                whole.append(path.name)
            except Damaged as error:
                damaged.append((path, error))
        if damaged and not whole and not round_:
            raise PdfastError(
                f"no saved state of the teacher in {folder} is whole ({damaged[0][1].what}): "
                "remove that folder to train it again from update 0"
            )
        then = f"the run resumes from {whole[0]}" if whole else f"round {round_} starts again"
        found += [Finding(path, error, then) for path, error in damaged]
    return found
