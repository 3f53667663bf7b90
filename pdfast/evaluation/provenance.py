"""The facts beside every figure, by which it can be reproduced and compared with others."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pdfast.config.schema import Config
from pdfast.data import sources
from pdfast.evaluation.evaluator import Evaluator
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.training.precision import PRECISION_NAMES, precision_of

AS_GIVEN = "as given (EMA or raw is not known)"  # weights of a model from elsewhere
SHOWN = 16  # digits of a SHA-256 to show
DRAWN = {"data": "drawn by the class shares", "even": "drawn evenly among the classes"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How figures were measured; part of report.json and eval.json."""

    metric: str
    samples: int
    seed: int
    sampler: str
    reference: str
    reference_images: int
    """Number of images of the set, including those held out of training."""
    reference_held_out: int
    """Number of images that the config holds out of training."""
    reference_sha256: str
    """SHA-256 of the tensor of images, as the model sees them."""
    reading: str
    """How images were resized to the model's size."""
    detector: str
    detector_resize: str
    detector_sha256: str
    """SHA-256 of the detector's weights file; "" without a network."""
    features: int
    classes: str
    """How the samples' classes are drawn, "data" or "even" (eval.classes); "" without classes."""
    data_classes: list[dict[str, Any]]
    """Name, count and share of each class of the set, by number; [] without classes."""
    class_shares: str
    """`data_classes` in words."""
    weights: dict[str, str]
    """Weights of each model: averaged over updates or raw."""
    precision: str
    torch: str

    def table(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        table = dataclasses.asdict(self)
        del table["class_shares"]
        return table

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) of each fact, for a table."""
        averaged = "; ".join(f"{name}: {value}" for name, value in self.weights.items())
        by = f"{self.detector}, {self.features} features"
        if self.detector_sha256:
            by += f", weights SHA-256 {self.detector_sha256[:SHOWN]}"
        images = f"{self.reference_images:,} images"
        if self.reference_held_out:
            images += f", {self.reference_held_out:,} of them held out (data.holdout)"
        return [
            ("figure", self.metric),
            ("samples", f"{self.samples:,}, seed {self.seed}, {self.sampler}"),
            ("reference set", f"{self.reference}, {images}"),
            ("its SHA-256", self.reference_sha256[:SHOWN]),
            *self._of_classes(),
            ("resize when it is read", self.reading),
            ("detector", by),
            ("resize before the detector", self.detector_resize),
            ("models' weights", averaged),
            ("precision", f"{self.precision}, PyTorch {self.torch}"),
        ]

    def _of_classes(self) -> list[tuple[str, str]]:
        if not self.classes:
            return []
        if not self.data_classes:
            return [("classes of samples", f"{DRAWN['even']} of the model: the set has no labels")]
        return [
            ("classes of samples", f"{DRAWN[self.classes]} of the reference set (eval.classes)"),
            ("classes of the set", self.class_shares),
        ]

    def text(self) -> str:
        """Return all facts, one per line."""
        return "\n".join(f"{what}: {value}" for what, value in self.rows())

    @property
    def rank_note(self) -> str:
        """A note that samples or images are too few for the covariance, or ""."""
        least, needed = min(self.samples, self.reference_images), self.features + 1
        if least >= needed:
            return ""
        what = "samples" if least == self.samples else "images"
        return (
            f" {least:,} {what} are few ({needed:,} would be needed, for a covariance of "
            f"{self.features:,} features): compare these distances only with others of {least:,} "
            f"{what}."
        )


def facts_of(evaluator: Evaluator, config: Config, model: Model, weights: dict[str, str]) -> Facts:
    """Return the facts of an evaluator's figures; for the first process.

    Args:
        evaluator: The evaluator.
        config: The config of the evaluation.
        model: The model that was sampled, or the teacher of a run.
        weights: As in `Facts`.
    """
    data, precision = evaluator.data, precision_of(config.precision, model.device)
    height, width, channels = data.images.shape[1:]
    classes = evaluator.set_classes
    source, reading = config.data.source, "none"
    if data.shape:
        source = "given with the call"
    elif sources.resizes(source):
        how = "antialiased bicubic" if config.data.resize == "bicubic" else "area"
        reading = f"centre crop, {how} resize to {height}x{width}"
        reading += ", grey" if channels == 1 else ""
    sampler = "DDIM" if model.clip is None else "DDIM, x-hat clipped to [{:g}, {:g}]".format(
        *model.clip
    )  # fmt: skip
    if config.model.guidance or config.eval.guidance:
        sampler += f", guidance {config.eval.guidance:g}"
    return Facts(
        metric=evaluator.metric,
        samples=evaluator.num,
        seed=evaluator.seed,
        sampler=sampler,
        reference=source,
        reference_images=len(data),
        reference_held_out=config.data.holdout,
        reference_sha256=evaluator.reference.digest,
        reading=reading,
        detector=evaluator.detector.name,
        detector_resize=evaluator.detector.resize,
        detector_sha256=evaluator.detector.weights,
        features=evaluator.width,
        classes=evaluator.draw.how if evaluator.draw else "",
        data_classes=classes.table() if classes else [],
        class_shares=classes.summary if classes else "",
        weights=weights,
        precision=PRECISION_NAMES[precision],
        torch=torch.__version__,
    )


def averaging(model_dir: Path, config: Config, student: bool) -> str:
    """Return how a run's model was averaged, in words.

    Args:
        model_dir: The model directory.
        config: The run's config.
        student: Whether the model is a student, not the teacher.
    """
    manifest = files.read_manifest(model_dir)
    if "source" in manifest:  # a copied teacher, see distillation.adopt_teacher
        return AS_GIVEN
    cfg = config.distill if student else config.train
    # A student's manifest has the decay that its round chose or set.
    decay = manifest["average"] if type(manifest.get("average")) is float else cfg.ema_decay
    warmed_up = ", warmed up" if cfg.ema_warmup else ""
    return f"EMA {decay:g}{warmed_up}" if decay else "raw"
