"""`pdfast sample`, `pdfast eval` and `pdfast compare`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import FlagCreatePairsOff, Positional

from pdfast.cli.commands.shared import Common, Force, Machines, check_alone, check_resize
from pdfast.config.names import Sampler
from pdfast.config.schema import AutoPrecision, ClassShares, DataConfig, Resize
from pdfast.config.serialization import check


@dataclass(frozen=True, kw_only=True)
class Sample(Machines):
    """Sample images from a model directory."""

    model: Positional[Path]
    """Model directory, such as runs/digits/round-11-steps-0004; or digits, models that come with
    pdfast: the student of --steps 8, 4, 2 or 1, and the teacher of other numbers."""
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
    """Frechet distance against sampling steps, of a model or of a run (whose report it writes); or,
    with --against, of samples that any tool has written."""

    model: Positional[Path]
    """Model directory or run directory; with --against samples: a folder of images, an .npz with
    arr_0, a zip of images, or another data source."""
    against: str | None = None
    """What samples are compared with: a data source, or an .npz of reference statistics, which are
    pdfast stats' own, EDM's or pytorch-fid's (mu, sigma), or ADM's reference batch."""
    steps: tuple[int, ...] = ()
    """Step counts; those of the config if left out."""
    num: int | None = None
    """Number of samples, 0 for as many as there are images; that of the config if left out."""
    config: str | None = None
    """Config that names the data, for a model outside a run directory."""
    out: Path | None = None
    """Where the numbers of a single model, or of samples, go; eval-<its name> beside it if left
    out."""
    precision: AutoPrecision | None = None
    """As for sample; that of the config if left out."""
    detector: str | None = None
    """pixel, inception[:PATH] or lite0, as eval.detector; that of the config if left out, or, with
    --against, that of the statistics that pdfast stats wrote, or else pixel."""
    classes: ClassShares | None = None
    """data (by the shares of classes in the data) or even, as eval.classes; that of the config if
    left out."""
    guidance: float | None = None
    """Weight of classifier-free guidance, as eval.guidance; that of the config if left out."""
    other_data: FlagCreatePairsOff[bool] = False
    """Compare a run, or a model in one, with data other than it was begun with, or any model with
    data whose classes have other names."""
    size: int = 0
    """With --against: centre-crop and resize samples and data to this height and width; if left
    out, both are taken as they are, each of one square size."""
    resize: Resize | None = None
    """With --size: bicubic, antialiased (taken if left out), or area, as data.resize."""
    skip_bad: FlagCreatePairsOff[bool] = False
    """With --against: leave out images that cannot be read, and list them."""

    def run(self) -> None:
        """Run the command."""
        if self.against is not None:
            self._judge(self.against)
            return
        alone = {"--size": self.size, "--resize": self.resize, "--skip-bad": self.skip_bad}
        _check_none(alone, "is for samples: name what they are compared with by --against")
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

    def _judge(self, against: str) -> None:
        """Samples of any tool."""
        of_models = {
            "--steps": self.steps,
            "--num": self.num is not None,
            "--config": self.config,
            "--precision": self.precision,
            "--classes": self.classes,
            "--guidance": self.guidance is not None,
            "--other-data": self.other_data,
        }
        _check_none(
            of_models,
            "is for models, and --against for samples: give one of them",
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
    """Refuse flags that were given."""
    for flag, value in given.items():
        check(not value, f"{flag} {why}")


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
