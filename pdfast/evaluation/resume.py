"""Saved state of an evaluation, eval-state/, from which an interrupted one resumes.

It has a folder for each model at each number of sampling steps. The folder holds the samples in
parts, as they were drawn, and later their metrics in place of most samples. Samples depend on no
detector, and are used by any. format.json records the version of pdfast that wrote last. When a
report is finished, its metrics stay, so that no evaluation is repeated.
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
    """Consecutive samples, and the time that they took."""

    samples: Tensor
    """Samples as stored, (N, H, W, C)."""
    seconds: float
    """Seconds of sampling."""


class Finished(NamedTuple):
    """Metrics of all samples, and the samples shown beside them."""

    figure: SampleMetrics
    """Metrics of all samples."""
    part: Part
    """The first samples, with the seconds of all."""


def check_format(folder: Path) -> None:
    """Raise OtherVersion if a newer version of pdfast wrote to the folder."""
    try:
        table = files.read_json(folder / MARKER)
        formats.written(folder, table.get("format"), table.get("pdfast"))
    except (Damaged, ValueError):  # it is written again; each saved file is verified by itself
        return


@torch.no_grad()
def fingerprints(model: Model) -> list[str]:
    """Return fingerprints of everything that the bits of a model's samples depend on.

    They are SHA-256 digests of the weights, the config, the versions, the device, and the x-hat of
    one denoising, which also depends on the precision and on the code of a custom network. A
    version of pdfast whose samplers compute something else must have another format.

    Args:
        model: The model.

    Returns:
        The fingerprint in the current format, then those in older formats, newest first, which find
        samples that older versions saved.
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
    """Describe the model and the machine in a format; None if it cannot express the model."""
    told = model.describe()
    del told["classes"]  # samples do not depend on the names
    table = formats.as_before(told, format_)
    versions, device = files.versions(), str(model.device)
    if table is None:
        return None
    if format_ == FIRST.format:
        return json.dumps([table, versions | {"pdfast": FIRST.version}, device])
    del versions["pdfast"]
    return json.dumps([table, versions, device, format_])


def is_one(folder: Path) -> bool:
    """Whether a folder holds the saved state of an evaluation and nothing else."""
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
    """Saved samples and metrics of one model at one number of steps; for the first process."""

    def __init__(
        self,
        folder: Path,
        models: Sequence[str],
        steps: int,
        seed: int,
        drawn: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Find the folder of a model; nothing is written.

        Args:
            folder: The folder of all saved states; it need not exist.
            models: Fingerprints of the model. The first one with saved samples is used.
            steps: Number of sampling steps.
            seed: Seed of the samples.
            drawn: As `Evaluator.drawn`.
        """
        self._folder, places = folder, []
        for model in models:
            facts = {"model": model, "steps": str(steps), "seed": str(seed), **drawn}
            name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
            places.append((facts, folder / name))
        begun = (place for place in places if place[1].is_dir())
        self._of, self._path = next(begun, places[0])

    def finished(self, evaluator: dict[str, str]) -> Finished | None:
        """Return the saved metrics for the key of an evaluator, or None."""
        found = _load(self._path / _figure_name(evaluator), self._of | evaluator)
        if found is None:
            return None
        table = json.loads(bytes(found["figure"].tolist()))
        part = Part(found["samples"], float(found["seconds"]))
        return Finished(SampleMetrics.from_table(table), part)

    def finish(self, evaluator: dict[str, str], done: Finished) -> None:
        """Save metrics and the samples shown beside them, and delete all other samples."""
        tensors = {
            "figure": _bytes(json.dumps(done.figure.table())),
            "samples": done.part.samples,
            "seconds": torch.tensor(done.part.seconds, dtype=torch.float64),
        }
        self._save(_figure_name(evaluator), tensors, self._of | evaluator)
        for path in self._path.glob("samples-*"):
            path.unlink(missing_ok=True)

    def parts(self, num: int) -> Iterator[Part]:
        """Yield the saved parts of `num` samples, from the first sample on, without gaps.

        A part that does not reach `num` samples is cut to whole batches.
        """
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
        """Save a part, whose first sample has the number `first`."""
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
    """Delete all samples not shown beside metrics, and unfinished files."""
    for of_one in [folder, *folder.glob("*/")]:
        with contextlib.suppress(OSError):  # files that cannot be deleted do no harm
            staging.sweep(of_one)
            for path in of_one.glob("samples-*"):
                path.unlink()
            if of_one != folder and not any(of_one.iterdir()):
                of_one.rmdir()


def _load(path: Path, facts: dict[str, str]) -> dict[str, Tensor] | None:
    try:
        return kept.load(path, facts)
    except Damaged:  # it is made again, as if it did not exist
        return None


def _part_name(first: int) -> str:
    return f"samples-{first:09d}.safetensors"


def _figure_name(evaluator: dict[str, str]) -> str:
    return f"figure-{hashlib.sha256(json.dumps(evaluator).encode()).hexdigest()[:24]}.safetensors"


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
