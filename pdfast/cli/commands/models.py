"""`pdfast sample`, `pdfast eval` and `pdfast compare`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from pdfast.cli.commands.shared import Common, Force, Machines, check_alone, check_resize
from pdfast.config.names import Sampler
from pdfast.config.schema import AutoPrecision, ClassShares, DataConfig, Resize
from pdfast.config.serialization import check


@dataclass(frozen=True, kw_only=True)
class Sample(Machines):
    """Sample images from a model directory."""

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """Model directory, such as runs/digits/round-11-steps-0004. Or digits, whose models come with
    pdfast: for --steps 8, 4, 2 or 1 the student, for other numbers the teacher."""
    steps: int = 0
    """Sampling steps; 0: the number that the model was distilled to."""
    num: int = 64
    """Number of images."""
    seed: int = 0
    """Seed; image k depends only on the seed and k."""
    out: Path = Path("samples")
    """Folder for PNG files, or an .npz (uint8 NHWC, arr_0), or a .png (a grid). Steps, seed and
    each image's label go into samples.json in the folder, or into OUT.json beside a file."""
    force: Force = False
    """Replace --out, if pdfast wrote it and nothing was changed or added since."""
    label: str | None = None
    """Class of every image, for a class-conditional model: its number, or its name where the model
    keeps names. By default classes are drawn uniformly. Write name:X or number:X where X is the
    name of one class and the number of another."""
    guidance: float | None = None
    """Weight w of classifier-free guidance, x-hat(class) + w (x-hat(class) - x-hat(no class)). A
    guided student needs it."""
    sampler: Sampler = "ddim"
    """ddim is deterministic; ancestral adds noise at each step."""
    variance: float | None = None
    """Variance of the ancestral sampler, from 0 (small) to 1 (large, the default)."""
    precision: AutoPrecision = "auto"
    """Precision of the network's convolutions and linear layers: bf16 (auto on a GPU), tf32, or
    fp32 (auto on a CPU)."""

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
    """Measure Frechet distances of a model, a run (for its report) or samples (--against)."""

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """Model directory or run directory. With --against, samples: a folder of images, an .npz with
    arr_0, a zip of images, or another data source."""
    against: str | None = None
    """Reference for samples: a data source; or an .npz of statistics (mu, sigma) by pdfast stats,
    EDM or pytorch-fid; or ADM's reference batch."""
    steps: tuple[int, ...] = ()
    """Sampling steps to measure at; by default the config's."""
    num: int | None = None
    """Samples per distance, 0 for as many as the data set has images; by default the config's."""
    config: str | None = None
    """Config with the data and the settings; by default that of the run directory."""
    data: Annotated[str | None, arg(name="data.source")] = None
    """Images to compare with, as data.source; by default the config's. A model outside a run
    directory needs --data.source or --config."""
    out: Path | None = None
    """Folder for the numbers of a single model or of samples; by default eval-<its name> beside
    it."""
    precision: AutoPrecision | None = None
    """As for sample; by default the config's."""
    detector: str | None = None
    """pixel, inception[:PATH] or lite0, as eval.detector. By default the config's; with --against,
    that of the statistics by pdfast stats, or else pixel."""
    classes: ClassShares | None = None
    """Classes of the samples: data (in the proportions of the data set) or even, as eval.classes;
    by default the config's."""
    guidance: float | None = None
    """Weight of classifier-free guidance, as eval.guidance; by default the config's."""
    other_data: FlagCreatePairsOff[bool] = False
    """Allow data other than the run was begun with, or data whose classes have other names than the
    model's."""
    size: int = 0
    """With --against: centre-crop and resize samples and data to this height and width. By default
    neither is resized, and each must have one square size."""
    resize: Resize | None = None
    """With --size: bicubic (antialiased, the default) or area, as data.resize."""
    skip_bad: FlagCreatePairsOff[bool] = False
    """With --against: skip images that cannot be read, and list them."""

    def run(self) -> None:
        """Run the command."""
        if self.against is not None:
            self._judge(self.against)
            return
        alone = {"--size": self.size, "--resize": self.resize, "--skip-bad": self.skip_bad}
        _check_none(alone, "is for samples: name their reference with --against")
        check(min(self.steps, default=1) >= 1, "--steps must all be at least 1")
        from pdfast.api import evaluate

        evaluate(
            self.model,
            config=self.config,
            data=self.data,
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

    def _judge(self, against: str) -> None:
        """Measure the distance of samples, which any tool may have written."""
        of_models = {
            "--steps": self.steps,
            "--num": self.num is not None,
            "--config": self.config,
            "--data.source": self.data,
            "--precision": self.precision,
            "--classes": self.classes,
            "--guidance": self.guidance is not None,
            "--other-data": self.other_data,
        }
        _check_none(
            of_models,
            "is for models, and --against for samples: pass one of them",
        )
        check_alone("eval --against")
        check_resize(self.size, self.resize)
        from pdfast.evaluation.against import Reading
        from pdfast.evaluation.judge import judge

        judge(
            DataConfig(source=str(self.model)).source,
            DataConfig(source=against).source,
            Reading(self.size, self.resize or "bicubic", self.skip_bad),
            detector=self.detector,
            out=self.out,
            device=self.device,
            threads=self.threads,
        )


def _check_none(given: Mapping[str, object], why: str) -> None:
    """Raise UsageError for the first flag that was given."""
    for flag, value in given.items():
        check(not value, f"{flag} {why}")


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Compare the reports of runs on one page: distances, evaluations, settings."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Run directories that have a report, and folders that eval wrote for a single model."""
    out: Path = Path("compare")
    """Folder to write; an earlier comparison in it is replaced."""

    def run(self) -> None:
        """Run the command."""
        check_alone("compare")
        from pdfast.evaluation.compare.write import compare

        compare(self.runs, self.out)
