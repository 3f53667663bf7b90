"""What stands beside every figure, so that it can be had again, and compared with others."""

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

SHOWN = 16  # digits of a SHA-256, where all of them would not be read
DRAWN = {"data": "drawn by the class shares", "even": "drawn evenly among the classes"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How figures were measured; report.json and eval.json hold it as it is."""

    metric: str
    samples: int
    seed: int
    sampler: str
    reference: str
    reference_images: int
    """All of the set's, those held out of training too."""
    reference_held_out: int
    """How many of them the config holds out of training."""
    reference_sha256: str
    """Of the tensor of images, as the model sees them."""
    reading: str
    """What was done to images to give them the model's size."""
    detector: str
    detector_resize: str
    detector_sha256: str
    """Of the file of its weights; "" where it has none."""
    features: int
    classes: str
    """How the classes of samples are drawn: "data" or "even", as eval.classes; "" without any."""
    data_classes: list[dict[str, Any]]
    """Of the set, by number: name, count and share of the images; [] where it has none."""
    class_shares: str
    """The same in words."""
    weights: dict[str, str]
    """Of each model: averaged over updates or raw."""
    precision: str
    torch: str

    def table(self) -> dict[str, Any]:
        """As JSON has it."""
        table = dataclasses.asdict(self)
        del table["class_shares"]
        return table

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table to read."""
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
        """All of it, a line each."""
        return "\n".join(f"{what}: {value}" for what, value in self.rows())

    @property
    def rank_note(self) -> str:
        """What to say where there are too few samples; empty where there are not."""
        least = min(self.samples, self.reference_images)
        if least > self.features:
            return ""
        return (
            f" {least:,} are too few for a covariance of {self.features:,} features to have full "
            f"rank, which takes {self.features + 1:,}: such distances are for comparing models at "
            "this number of samples only."
        )


def facts_of(evaluator: Evaluator, config: Config, model: Model, weights: dict[str, str]) -> Facts:
    """Facts about an evaluator's figures; for the first process. `weights` as in `Facts`."""
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
    """What the weights of a run's model are."""
    manifest = files.read_manifest(model_dir)
    if "source" in manifest:  # adopted, see distillation.adopt_teacher
        return "as they were given"
    cfg = config.distill if student else config.train
    # Of a student: its round's own, or what was chosen.
    decay = manifest["average"] if type(manifest.get("average")) is float else cfg.ema_decay
    warmed_up = ", warmed up" if cfg.ema_warmup else ""
    return f"EMA {decay:g}{warmed_up}" if decay else "raw"
