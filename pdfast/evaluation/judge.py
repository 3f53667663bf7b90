"""`pdfast eval SAMPLES --against`: samples of any tool compared with a data set or statistics.

Figures and detectors are the same as for a model's samples. eval.json and eval.md record how they
were measured, and warn if the two sides differ in more than their content.
"""

import contextlib
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pdfast.config import detectors
from pdfast.console.progress import Screen
from pdfast.data.readers import registry
from pdfast.distributed import collectives
from pdfast.distributed.settings import kept
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError
from pdfast.evaluation import set_facts
from pdfast.evaluation.against import Against, Reading, open_against, read_set
from pdfast.evaluation.collected import Collected
from pdfast.evaluation.evaluator import SampleMetrics
from pdfast.evaluation.frechet import frechet_distance
from pdfast.evaluation.reference_set import features_of
from pdfast.evaluation.report.markdown import lines
from pdfast.evaluation.report.tables import scores_of
from pdfast.evaluation.set_facts import SetFacts
from pdfast.storage import files
from pdfast.storage.digests import SHOWN
from pdfast.training.precision import set_precision
from pdfast.version import __version__

TABLE, TEXT = "eval.json", "eval.md"
KEYS = {"metric", "distance", "facts", "warnings"}  # some keys of TABLE
OF_MODELS = ("config.toml", "model.safetensors")  # files of run and model directories


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """The figures of samples, and how they were measured."""

    samples: SetFacts
    against: Against
    figure: SampleMetrics
    warnings: tuple[str, ...]

    def figures(self) -> list[tuple[str, float]]:
        """Return (name, value) of each figure."""
        detector, floor = self.against.detector, self.against.floor
        found = [(detector.metric, self.figure.distance)]
        if floor is not None:
            found += [("resampled data (floor)", floor[0])]
        names = [(name.replace("_", " "), value) for name, value in scores_of(self.figure).items()]
        return found + names

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) of how the figures were measured, for a table."""
        detector = self.against.detector
        by = f"{detector.name}, {len(self.against.gaussian.mean):,} features"
        if detector.weights:
            by += f", weights SHA-256 {detector.weights[:SHOWN]}"
        rows = self.samples.rows("samples") + self.against.facts.rows("reference")
        if self.against.statistics_sha256:
            rows.append(("statistics: SHA-256", self.against.statistics_sha256[:SHOWN]))
        return [
            *rows,
            ("detector", by),
            ("resize before the detector", detector.resize),
            ("versions", f"pdfast {__version__}, PyTorch {torch.__version__}"),
        ]

    def table(self) -> dict[str, Any]:
        """Return the contents of eval.json."""
        against, detector = self.against, self.against.detector
        floor, floor_std = against.floor or (None, None)
        return {
            "metric": detector.metric,
            "distance": self.figure.distance,
            "floor": floor,
            "floor_std": floor_std,
            "scores": scores_of(self.figure),
            "facts": {
                "samples": dataclasses.asdict(self.samples),
                "reference": dataclasses.asdict(against.facts),
                "statistics_sha256": against.statistics_sha256,
                "detector": detector.name,
                "detector_resize": detector.resize,
                "detector_sha256": detector.weights,
                "features": len(against.gaussian.mean),
                "pdfast": __version__,
                "torch": torch.__version__,
            },
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """Return the text of eval.md."""
        figures = [[name, f"{value:.4f}"] for name, value in self.figures()]
        parts = [
            f"# {self.samples.source}: {self.against.detector.metric}",
            lines((["figure", "value"], figures)),
            *(f"Warning: {warning}." for warning in self.warnings),
            "## How the figures were measured",
            lines((["what", "value"], [list(row) for row in self.rows()])),
        ]
        return "\n\n".join(parts) + "\n"


def judge(
    samples: str,
    against: str,
    how: Reading,
    *,
    detector: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
) -> Judged:
    """Compare samples with a set or statistics; print the figures, and write them to `out`.

    Args:
        samples: The samples, named as in `data.source`.
        against: The reference, named in the same way, or an .npz of statistics.
        how: Options of reading both.
        detector: The detector, as in `eval.detector`; None for the one that pdfast's statistics
            name, otherwise "pixel".
        out: Folder of the results; None for eval-<samples> beside the samples.
        device: The device, or "auto".
        threads: CPU threads; 0 for PyTorch's default.
        quiet: Print warnings only.

    Raises:
        PdfastError: Samples, reference or `out` are not usable. The message names the fix.
    """
    screen = Screen(quiet)
    folder = _folder(samples, out)
    _refuse_models(samples)
    if detector is not None:
        detectors.split(detector)
    with kept(), collectives.session(device, threads, poll) as where:
        set_precision("fp32", where)
        check_out(folder)
        read = read_set(samples, how, where, screen)
        reference = open_against(against, detector, read, how, where, screen)
        facts = SetFacts.of(samples, read)
        collected = Collected(len(read.data), reference.detector)
        for found in features_of(reference.detector, read.data.images, screen):
            collected.add(found)
        images = reference.images
        figure = SampleMetrics(
            frechet_distance(reference.gaussian, collected.gaussian()),
            collected.inception_score(),
            None if images is None else collected.manifold(lambda: images.near),
        )
        judged = Judged(
            samples=facts,
            against=reference,
            figure=figure,
            warnings=tuple(_warnings(facts, reference)),
        )
        _write(folder, judged)
    _show(judged, folder, screen)
    return judged


def _warnings(samples: SetFacts, against: Against) -> list[str]:
    detector, reference = against.detector, against.facts
    found = [detector.warning] if detector.warning else []
    found += [*against.warnings, *set_facts.differences(samples, reference, detector)]
    least, width = (
        min(samples.images, reference.images or samples.images),
        len(against.gaussian.mean),
    )
    if least <= width:
        found.append(
            f"{least:,} images are too few for a covariance of {width:,} features to have full "
            f"rank, which takes {width + 1:,}: compare only distances of as many images"
        )
    return found


def _refuse_models(samples: str) -> None:
    """Raise UsageError for a run or a model, which pdfast samples by itself."""
    for name in OF_MODELS:
        if (Path(samples) / name).is_file():
            raise UsageError(
                f"{samples} is a run or model directory, which is sampled and compared with its "
                "data: omit --against, or name a folder of samples"
            )


def _folder(samples: str, out: Path | None) -> Path:
    if out is not None:
        return out
    if registry.by_text(samples) is not None:
        raise UsageError(f"{samples} has no folder to write beside: pass --out")
    path = Path(samples).absolute()
    return path.parent / f"eval-{path.stem}"


def check_out(folder: Path) -> None:
    """Raise UsageError if `judge` would replace files that it did not write."""
    earlier = False
    if (folder / TABLE).is_file():
        with contextlib.suppress(files.Damaged):
            earlier = files.read_json(folder / TABLE).keys() >= KEYS
    for name in (TABLE, TEXT):
        if not earlier:
            files.check_replaceable(folder / name)


def _write(folder: Path, judged: Judged) -> None:
    check_out(folder)  # reading may have taken long
    texts = {TEXT: judged.text(), TABLE: json.dumps(judged.table(), indent=1) + "\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from None
    for name, text in texts.items():
        files.write_file(folder / name, partial(_save, text))


def _save(text: str, stage: Path) -> None:
    stage.write_text(text, "utf-8")


def _show(judged: Judged, folder: Path, screen: Screen) -> None:
    for warning in judged.warnings:
        screen.warn(warning)
    for name, value in judged.figures():
        screen.say(f"{name}: {value:.4f}")
    for what, fact in judged.rows():
        screen.say(f"{what}: {fact}")
    screen.say(f"report: {folder / TABLE}, {folder / TEXT}")
