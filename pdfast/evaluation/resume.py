"""What an evaluation has done, so that a killed one goes on and none is done again: eval-state/.

A folder for each model at each number of steps, with its samples in parts as they were made, and,
once they are judged, the figure in their place. Samples depend on no detector and are used by any.
format.json says which version of pdfast wrote last. When a report is whole, its figures stay.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdfast.config import formats
from pdfast.config.formats import FIRST, FORMAT
from pdfast.distributed import settings
from pdfast.evaluation.evaluator import SampleMetrics
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.storage import digests, files, kept, staging
from pdfast.storage.files import Damaged
from pdfast.storage.staging import is_left
from pdfast.version import __version__

FOLDER = "eval-state"
MARKER = "format.json"
MODEL = re.compile(r"[0-9a-f]{24}")
PART = re.compile(r"(samples-\d{9}|figure-[0-9a-f]{24})\.safetensors")


class Part(NamedTuple):
    """Samples in order, (N, H, W, C) as stored, and the seconds that they took."""

    samples: Tensor
    seconds: float


class Finished(NamedTuple):
    """A figure, and what is shown beside it."""

    figure: SampleMetrics
    part: Part
    """The first samples, and the seconds that all took."""


def check_format(folder: Path) -> None:
    """Raise OtherVersion if a newer version of pdfast was at work in the folder."""
    try:
        table = files.read_json(folder / MARKER)
        formats.written(folder, table.get("format"), table.get("pdfast"))
    except (Damaged, ValueError):  # it is written again; what is kept is checked by itself
        return


@torch.no_grad()
def fingerprints(model: Model) -> list[str]:
    """SHA-256 of the model, what it computes, and what else the bits of its samples depend on.

    The first is this format's; those of older formats follow, for what they left. One denoising
    stands for what is computed, which the code of a network of one's own, and the precision, decide
    as well; a version whose samplers compute something else has another format.
    """
    kind: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    z = torch.linspace(-1, 1, math.prod(model.image_shape), **kind).reshape(1, *model.image_shape)
    label = torch.zeros(1, dtype=torch.int64, device=model.device) if model.num_classes else None
    with settings.same_choice():
        x_hat = model.predict_x(z, torch.zeros(1, **kind), label)
    weights, found = model.weights(), []
    for format_ in range(FORMAT, 0, -1):
        described = _described(model, format_)
        if described is not None:
            found.append(
                digests.digest({**weights, "x-hat": x_hat, "described": _bytes(described)})
            )
    return found


def _described(model: Model, format_: int) -> str | None:
    """What a format had to say of the model and the machine; None if it knew no such model."""
    told = model.describe()
    del told["classes"]  # names, which no sample depends on
    table = formats.as_before(told, format_)
    versions, device = files.versions(), str(model.device)
    if table is None:
        return None
    if format_ == FIRST.format:
        return json.dumps([table, versions | {"pdfast": FIRST.version}, device])
    del versions["pdfast"]
    return json.dumps([table, versions, device, format_])


def is_one(folder: Path) -> bool:
    """Whether a folder holds what an evaluation has done, and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    of_models = [
        path for path in folder.iterdir() if path.name != MARKER and not is_left(path.name)
    ]
    if not all(path.is_dir() and MODEL.fullmatch(path.name) for path in of_models):
        return False
    inside = (file.name for path in of_models for file in path.iterdir())
    return all(PART.fullmatch(name) or is_left(name) for name in inside)


class EvalState:
    """The samples of one model at one number of steps; for the first process alone."""

    def __init__(
        self,
        folder: Path,
        models: Sequence[str],
        steps: int,
        seed: int,
        drawn: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`models` are its fingerprints; `folder` need not be there. `drawn` as of an evaluator."""
        self._folder, places = folder, []
        for model in models:
            facts = {"model": model, "steps": str(steps), "seed": str(seed), **drawn}
            name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
            places.append((facts, folder / name))
        begun = (place for place in places if place[1].is_dir())
        self._of, self._path = next(begun, places[0])

    def finished(self, evaluator: dict[str, str]) -> Finished | None:
        """The figure of an evaluator of this key, if it was found."""
        found = _load(self._path / _figure_name(evaluator), self._of | evaluator)
        if found is None:
            return None
        table = json.loads(bytes(found["figure"].tolist()))
        part = Part(found["samples"], float(found["seconds"]))
        return Finished(SampleMetrics.from_table(table), part)

    def finish(self, evaluator: dict[str, str], done: Finished) -> None:
        """Keep a figure and the samples shown beside it; the others go."""
        tensors = {
            "figure": _bytes(json.dumps(done.figure.table())),
            "samples": done.part.samples,
            "seconds": torch.tensor(done.part.seconds, dtype=torch.float64),
        }
        self._save(_figure_name(evaluator), tensors, self._of | evaluator)
        for path in self._path.glob("samples-*"):
            path.unlink(missing_ok=True)

    def parts(self, num: int) -> Iterator[Part]:
        """Those that were made of `num` samples, from the first on: whole batches, or all."""
        done = 0
        while done < num:
            found = _load(self._path / _part_name(done), self._of)
            if found is None:
                return
            taken = min(len(found["samples"]), num - done)
            if done + taken < num:
                taken -= taken % SAMPLE_BATCH
            if not taken:
                return
            yield Part(found["samples"][:taken], float(found["seconds"]))
            done += taken

    def keep(self, first: int, part: Part) -> None:
        """Write a part, whose samples are those from `first` on."""
        seconds = torch.tensor(part.seconds, dtype=torch.float64)
        tensors = {"samples": part.samples, "seconds": seconds}
        self._save(_part_name(first), tensors, self._of)

    def _save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(self._path, error) from None
        kept.save(self._path / name, tensors, facts)
        mark = json.dumps({"format": FORMAT, "pdfast": __version__}) + "\n"
        marker = self._folder / MARKER
        if not marker.is_file() or marker.read_text("utf-8", "replace") != mark:
            files.write_file(marker, lambda stage: stage.write_text(mark, "utf-8"), sync=False)


def forget_samples(folder: Path) -> None:
    """Remove all samples but those that are shown beside a figure, and what was half-written."""
    for of_one in [folder, *folder.glob("*/")]:
        with contextlib.suppress(OSError):  # what cannot be removed may stay
            staging.sweep(of_one)
            for path in of_one.glob("samples-*"):
                path.unlink()
            if of_one != folder and not any(of_one.iterdir()):
                of_one.rmdir()


def _load(path: Path, facts: dict[str, str]) -> dict[str, Tensor] | None:
    try:
        return kept.load(path, facts)
    except Damaged:  # it is made again, as what was not yet made
        return None


def _part_name(first: int) -> str:
    return f"samples-{first:09d}.safetensors"


def _figure_name(evaluator: dict[str, str]) -> str:
    return f"figure-{hashlib.sha256(json.dumps(evaluator).encode()).hexdigest()[:24]}.safetensors"


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
