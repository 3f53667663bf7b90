"""The configuration: frozen dataclasses, one per TOML table, checked before anything starts.

A config is a TOML file (`configs/`), read by `load_config`; every field is also a flag of the
command line. A mistake is a `UsageError` that names the key and the fix. This module imports no
torch, so that `--help` is quick.
"""

import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w

from pdfast.config import detectors, formats
from pdfast.config.formats import FIRST, Since, Written
from pdfast.config.loops import MAX_COUNT as MAX_COUNT
from pdfast.config.loops import MAX_STEPS as MAX_STEPS
from pdfast.config.loops import DistillConfig as DistillConfig
from pdfast.config.loops import LoopConfig as LoopConfig
from pdfast.config.loops import TrainConfig as TrainConfig
from pdfast.config.model import MAX_LIST, MAX_WEIGHT
from pdfast.config.model import NetConfig as NetConfig
from pdfast.config.names import LossWeight as LossWeight
from pdfast.config.names import Parameterization as Parameterization
from pdfast.config.names import Precision
from pdfast.config.serialization import check, from_table, nearest, read_toml, to_table
from pdfast.errors import UsageError

CONFIG_DIR = Path(__file__).parents[1] / "configs"
RUN = "run"  # the table that the config.toml of a run has beside the config; see runs/record.py
AutoPrecision = Literal["auto", Precision]
LabelFolders = Literal["auto", "top", "parent", "top-as-text"]
Resize = Literal["bicubic", "area"]
Order = Literal["epochs", "independent"]
ClassShares = Literal["data", "even"]


# ------------------------------------------------------------------------------------------
# One dataclass per table


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[data]: where the images come from."""

    source: str = "digits"
    """"digits" (scikit-learn's), a folder of images or a .zip (with EDM's dataset.json), an .npz
    with uint8 NHWC `images`, a file ...images-idx3-ubyte[.gz] as of MNIST or its folder, CIFAR-10's
    or CIFAR-100's binary or python .tar.gz, WebDataset's .tar or .tgz shards (a folder, or
    a{00..09}.tar), emoji:FONT of an emoji font with bitmaps, or hf:NAME[:SPLIT[:COLUMN]] of Hugging
    Face's datasets (what save_to_disk wrote, a .parquet file, a folder of them, or a name on the
    hub; COLUMN: that of the labels, or of the images, or IMAGES,LABELS); all are in the README."""
    labels: Annotated[LabelFolders, Since(2, before="top-as-text")] = "auto"
    """Which sub-folders of a folder of images are its classes. auto: those directly below the
    source, which hold the images themselves; other folders are refused. top: those directly below
    the source, however deep the images lie. parent: those that hold the images. Names that are
    numbers are in the order of the numbers, others in that of the alphabet. top-as-text: as pdfast
    0.1.0 read folders, which is as top, but all names in the order of the alphabet, fewer kinds of
    images, and no links followed."""
    resize: Annotated[Resize, Since(2, before="bicubic")] = "bicubic"
    """How images are resized after the centre crop to a square: bicubic, antialiased, or area, the
    mean of what each pixel covers, as of the published ImageNet models."""
    skip_bad: Annotated[bool, Since(2, before=False)] = False
    """Leave out images that cannot be read, and list them; otherwise they are refused by name."""
    order: Annotated[Order, Since(2, before="independent")] = "epochs"
    """How training draws its images. epochs: each once before any comes again, in an order of its
    own each time. independent: each draw from all images, as pdfast 0.1.0 did."""
    horizontal_flip: bool = False
    """Mirror each training image with probability 1/2 (wrong for digits and text)."""
    holdout: Annotated[int, Since(2, before=0)] = 0
    """Images that are never trained on, drawn by the seed; before and after each phase the loss is
    computed on all of them. 0: none, and that loss is of a fixed batch of training images."""

    def __post_init__(self) -> None:
        check(bool(self.source.strip("\0 ")), "data.source must name a folder or a file")
        check(
            "\0" not in self.source and len(self.source) <= 4096,
            "data.source must be a path, of at most 4096 characters",
        )
        check(
            0 <= self.holdout <= MAX_COUNT,
            f"data.holdout must be 0 (none) or more, at most {MAX_COUNT}",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """[eval]: how samples are judged."""

    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Step counts of the report: the teacher at each, and each student at its own."""
    baseline_steps: int = 64
    """The teacher is also sampled at this many steps, to compare the students with."""
    num: int = 0
    """Samples per distance; 0: as many as the set has images."""
    detector: str = "pixel"
    """What the Frechet distance compares: pixel, the pixels themselves (FD-pixel); inception:PATH,
    features of InceptionV3 with that weights file (FID), inception alone downloads it; lite0,
    features of EfficientNet-Lite0 (FD-Lite0). Samples that are no pictures: their numbers."""
    classes: Annotated[ClassShares, Since(2, before="even")] = "data"
    """Classes of the samples that a class-conditional model is judged and shown by. data: drawn by
    the shares of the classes in the data, so that a perfect sampler scores the floor. even: all
    classes that the data have are drawn alike."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance of the samples that are judged: the prediction is
    x-hat(class) + w (x-hat(class) - x-hat(no class)); 0: none."""

    def __post_init__(self) -> None:
        detectors.split(self.detector)
        check(len(self.steps) >= 1 and min(self.steps) >= 1, "eval.steps must all be at least 1")
        check(len(self.steps) <= MAX_LIST, f"eval.steps must hold at most {MAX_LIST} step counts")
        check(max(self.steps) <= MAX_STEPS, f"eval.steps must all be at most {MAX_STEPS}")
        check(
            1 <= self.baseline_steps <= MAX_STEPS,
            f"eval.baseline_steps must be at least 1, at most {MAX_STEPS}",
        )
        check(0 <= self.guidance <= MAX_WEIGHT, f"eval.guidance must be in 0 .. {MAX_WEIGHT}")
        check(
            self.num == 0 or 2 <= self.num <= MAX_COUNT,
            f"eval.num must be 0 (all) or at least 2, at most {MAX_COUNT}",
        )


@dataclass(frozen=True, kw_only=True)
class BackendsConfig:
    """[backends]: other libraries' kernels in place of pdfast's own, where they are installed."""

    group_norm: Literal["pdfast", "apex"] = "pdfast"
    """GroupNorm: pdfast's group_norm_silu, or NVIDIA apex's contrib.group_norm."""
    optimizer: Literal["pdfast", "apex"] = "pdfast"
    """Optimizer: pdfast's adamw, or the kernel of NVIDIA apex's FusedAdam."""
    attention: Literal["torch", "xformers"] = "torch"
    """Attention: PyTorch's scaled_dot_product_attention, or xformers'."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """[engine]: how the updates are run. What is computed stays the same but for rounding."""

    data: Literal["auto", "device", "stream"] = "auto"
    """Where the images lie: on the device, or in host memory, each batch gathered ahead of its
    update; auto: on the device where they take at most a quarter of its free memory."""
    pipeline_teacher: bool = False
    """Evaluate the teacher at t_mid of one batch and at t of the next in one call, of twice the
    batch."""
    tabulate_film: bool = False
    """Compute the teacher's FiLM parameters once per round for each of its steps, where it has at
    most 1024 of them and no classes."""
    teacher_stream: bool = False
    """Evaluate the teacher on a CUDA stream of its own, beside the student's forward pass."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the networks around pdfast's ops; auto: on a GPU, where a phase has so many
    updates that they repay the compiling, the network is pdfast's own, and [backends] are its
    own."""
    graph: bool = True
    """On a GPU, capture the update as a CUDA graph; a network of one's own may not allow it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a run computes."""

    name: str = "custom"
    """Name of the config; a run goes to runs/<name> unless --out says otherwise."""
    seed: int = 0
    """Seed of every random draw, 0 to 2^32 - 1."""
    log_every: int = 100
    """Updates between two lines of metrics."""
    save_every: int = 1000
    """Updates between two saved states, from which the same command resumes."""
    precision: AutoPrecision = "auto"
    """Of the networks' convolutions and linear layers: bfloat16 (auto on a GPU), float32 products
    rounded to TF32, or float32 (auto on a CPU). All else is float32 always."""
    deterministic: bool = False
    """On a GPU, only algorithms that repeat to the bit, which are slower; a CPU's always do."""
    data: DataConfig = DataConfig()
    model: NetConfig = NetConfig()
    """[model]: all that defines a network but its weights."""
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    eval: EvalConfig = EvalConfig()
    engine: EngineConfig = EngineConfig()
    backends: BackendsConfig = BackendsConfig()

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed must be in 0 .. 4294967295")
        for name in ("log_every", "save_every"):
            check(
                1 <= getattr(self, name) <= MAX_COUNT,
                f"{name} must be at least 1, at most {MAX_COUNT}",
            )
        check(
            not (self.engine.pipeline_teacher and self.distill.accumulate > 1),
            "engine.pipeline_teacher joins whole batches: set distill.accumulate to 1",
        )
        check(
            not self.engine.pipeline_teacher
            or (self.distill.first, self.distill.second) == ("teacher", "teacher"),
            "engine.pipeline_teacher joins two steps of a frozen teacher, which distill.first data "
            "or distill.second student do not take: set engine.pipeline_teacher to false",
        )
        check(
            not (self.distill.first == "data" and self.model.guidance),
            "distill.first data follows the data, which know no guidance weight: set distill.first "
            "teacher, or leave model.guidance out",
        )
        check(
            self.name.isprintable() and "/" not in self.name and not self.name.startswith("."),
            "name must be a plain folder name",
        )
        check(1 <= len(self.name.encode()) <= 100, "name must be 1 to 100 bytes long")
        guidance = self.model.guidance
        check(
            not guidance or guidance[0] <= self.eval.guidance <= guidance[1],
            f"eval.guidance {self.eval.guidance:g} is outside model.guidance",
        )


formats.learn(Config)


def check_distillable(config: Config) -> None:
    """Refuse what `train` allows but no round can distil."""
    check(
        config.model.parameterization != "eps",
        "model.parameterization eps cannot be distilled: at u = 1 it divides by alpha = 4.5e-5, "
        "which amplifies its error 2.2e4 times; train the teacher with v (or x, or x_eps); one of "
        "eps from elsewhere is distilled by a config of v, whose first round fits v to it",
    )
    check_guided_students(config)


def check_guided_students(config: Config) -> None:
    """Refuse guidance of samples whose students know none."""
    check(
        not config.eval.guidance or bool(config.model.guidance),
        "eval.guidance is set, but the students take no guidance weight: set model.guidance to the "
        "least and the largest that they are to take, such as 0 4",
    )


def check_trainable(config: Config) -> None:
    """Refuse a schedule that only distils, and guidance that the teacher does not learn."""
    check(
        config.model.label_dropout > 0 or not (config.model.guidance or config.eval.guidance),
        "guidance needs a teacher that learns to do without the class: set model.label_dropout to "
        "0.1, or leave eval.guidance and model.guidance out",
    )
    check(
        config.model.schedule == "cosine",
        f"model.schedule {config.model.schedule} cannot be trained with, since a teacher is "
        "trained in continuous time: use cosine, or distil a teacher that has this schedule, by "
        "--teacher",
    )


def check_own_teacher(config: Config) -> None:
    """Refuse what keeps `distill` from training the config's teacher first."""
    check_trainable(config)
    check(
        bool(config.model.guidance) or not config.distill.fit_updates,
        "distill.fit_updates is for students that cannot start as their teacher, and this config "
        "trains its own: leave it 0, or pass --teacher",
    )


# ------------------------------------------------------------------------------------------
# TOML in and out


def load_config(name_or_path: str | Path) -> Config:
    """Read a config by name (one of `config_names()`) or by the path of a TOML file.

    What the config.toml of an older version's run lacks means what it did there.
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith(".toml") else CONFIG_DIR / f"{text}.toml"
    if not path.is_file():
        names = config_names()
        raise UsageError(
            f"no config '{text}'{nearest(text, names)} "
            f"(known names: {', '.join(names)}; or give the path of a .toml file)"
        )
    table = read_toml(path)
    try:
        by, _ = written(path, table)
        if by is not None:
            table = formats.upgraded(Config, table, path, by)
        else:
            table, former = formats.with_new_names(table)
            if former:
                warnings.warn(f"{path}: {', '.join(former)}", FutureWarning, stacklevel=2)
        return from_table(Config, {"name": path.stem, **table})
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def written(path: Path, table: dict[str, Any]) -> tuple[Written | None, dict[str, Any]]:
    """Who wrote the table of a config, None for a user; and its [run], which is taken out of it.

    Raises OtherVersion for one of a newer format, ValueError for a [run] that no version wrote.
    """
    run = table.pop(RUN, None)
    if run is None:
        return FIRST if formats.is_first(Config, table) else None, {}
    check(isinstance(run, dict) and "format" in run, f"[{RUN}] is what pdfast writes into its runs")
    return formats.written(path, run["format"], run.get("pdfast")), run


def config_names() -> list[str]:
    """Names of the configs that come with pdfast."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.toml"))


def dump_config(config: Config) -> str:
    """The config as TOML text that `load_config` reads back."""
    return tomli_w.dumps(to_table(config))


def is_dumped(text: str) -> bool:
    """Whether `dump_config` of this version or an earlier one made the text."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    whole = {"name", "seed", "data", "model", "train", "distill", "eval"} <= table.keys()
    return whole and tomli_w.dumps(table) == text
