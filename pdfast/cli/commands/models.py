"""`pdfast sample`, `pdfast eval` and `pdfast compare`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import FlagCreatePairsOff, Positional

from pdfast.cli.commands.shared import Common, Force, Machines, check_alone
from pdfast.config.names import Sampler
from pdfast.config.schema import AutoPrecision, ClassShares
from pdfast.config.serialization import check


@dataclass(frozen=True, kw_only=True)
class Sample(Machines):
    """Sample images from a model directory."""

    model: Positional[Path]
    """Model directory, such as runs/digits/round-11-steps-0004."""
    steps: int = 0
    """Sampling steps; 0: the number that the model was distilled to."""
    num: int = 64
    """Number of images."""
    seed: int = 0
    """Image k depends on the seed and on k alone."""
    out: Path = Path("samples")
    """A new folder for PNG files, or an .npz (uint8 NHWC, arr_0), or a .png (a grid). Steps, seed
    and each image's label go into samples.json in the folder, or of a file into OUT.json."""
    force: Force = False
    """Replace what is at --out, where pdfast wrote it and nothing was changed or added since."""
    label: str | None = None
    """Class of every image, for a class-conditional model: its number, or its name where the model
    keeps names; drawn at random, all classes alike, if left out. name:X or number:X where X is both
    the name of one class and the number of another."""
    guidance: float | None = None
    """Weight w of classifier-free guidance, x-hat(class) + w (x-hat(class) - x-hat(no class)); of a
    guided student it must be given."""
    sampler: Sampler = "ddim"
    """ddim is deterministic; ancestral adds noise at each step."""
    variance: float | None = None
    """Variance of the ancestral sampler, from 0 (small) to 1 (large, taken if left out)."""
    precision: AutoPrecision = "auto"
    """Of the network's convolutions and linear layers: bf16 (auto on a GPU), tf32, or fp32 (auto on
    a CPU)."""

    def run(self) -> None:
        """Run the command."""
        check(
            self.variance is None or self.sampler == "ancestral",
            "--variance is for --sampler ancestral: ddim adds no noise",
        )
        from pdfast.evaluation.sampling import sample_to

        sample_to(
            self.model,
            self.out,
            num=self.num,
            steps=self.steps,
            seed=self.seed,
            label=self.label,
            guidance=self.guidance,
            sampler=self.sampler,
            variance=1.0 if self.variance is None else self.variance,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            force=self.force,
            timeout=self.timeout,
        )


@dataclass(frozen=True, kw_only=True)
class Eval(Machines):
    """Frechet distance against sampling steps, of a model or of a run (whose report it writes)."""

    model: Positional[Path]
    """Model directory or run directory."""
    steps: tuple[int, ...] = ()
    """Step counts; those of the config if left out."""
    num: int | None = None
    """Number of samples, 0 for as many as there are images; that of the config if left out."""
    config: str | None = None
    """Config that names the data, for a model outside a run directory."""
    out: Path | None = None
    """Where a single model's numbers go; eval-<model> beside the model if left out."""
    precision: AutoPrecision | None = None
    """As for sample; that of the config if left out."""
    detector: str | None = None
    """pixel, inception[:PATH] or lite0, as eval.detector; that of the config if left out."""
    classes: ClassShares | None = None
    """data (by the shares of classes in the data) or even, as eval.classes; that of the config if
    left out."""
    guidance: float | None = None
    """Weight of classifier-free guidance, as eval.guidance; that of the config if left out."""
    other_data: FlagCreatePairsOff[bool] = False
    """Compare a run, or a model in one, with data other than it was begun with, or any model with
    data whose classes have other names."""

    def run(self) -> None:
        """Run the command."""
        check(min(self.steps, default=1) >= 1, "--steps must all be at least 1")
        from pdfast.api import evaluate

        evaluate(
            self.model,
            config=self.config,
            steps=self.steps,
            num=self.num,
            out=self.out,
            device=self.device,
            threads=self.threads,
            timeout=self.timeout,
            precision=self.precision,
            detector=self.detector,
            classes=self.classes,
            guidance=self.guidance,
            other_data=self.other_data,
        )


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Put the reports of runs side by side on one page: distances, evaluations, settings."""

    runs: Positional[tuple[Path, ...]]
    """Run directories that have a report, and folders that eval wrote of one model."""
    out: Path = Path("compare")
    """A new folder, or one that holds an earlier comparison, which is replaced."""

    def run(self) -> None:
        """Run the command."""
        check_alone("compare")
        from pdfast.evaluation.compare.write import compare

        compare(self.runs, self.out)
