"""The configuration: frozen dataclasses, one per TOML table, checked before anything starts.

A config is a TOML file (see `configs/`), read by `load_config`. Every field is also a flag of the
command line. A wrong value raises a `UsageError` that names the key and the fix. This module does
not import torch, so that `--help` is quick.
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
RUN = "run"  # an additional table in the config.toml of a run; see runs/record.py
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
    """digits (scikit-learn's); a folder of images, or a .zip (with EDM's dataset.json); an .npz
    with uint8 NHWC `images`; MNIST's file ...images-idx3-ubyte[.gz] or its folder; CIFAR-10's or
    CIFAR-100's binary or python .tar.gz; WebDataset's .tar or .tgz shards (a folder, or
    a{00..09}.tar); emoji:FONT, an emoji font with bitmaps; or hf:NAME[:SPLIT[:COLUMN]], one of
    Hugging Face's datasets (a folder by save_to_disk, a .parquet file, a folder of them, or a name
    on the hub; COLUMN: the labels, the images, or IMAGES,LABELS). See docs/data.md for them all.
    Empty: none, so that one must be given where images are needed."""
    labels: Annotated[LabelFolders, Since(2, before="top-as-text")] = "auto"
    """Which sub-folders of a folder of images are its classes. auto: the folders directly below the
    source, which must hold the images themselves. top: the folders directly below the source,
    however deep the images lie. parent: the folders that hold the images. Names that are numbers
    are sorted as numbers, others alphabetically. top-as-text: top as in pdfast 0.1.0, with all
    names sorted alphabetically, fewer image formats, and symbolic links not followed."""
    resize: Annotated[Resize, Since(2, before="bicubic")] = "bicubic"
    """How images are resized after the centre crop to a square: bicubic (antialiased), or area (the
    mean over the area of each pixel), as in the published ImageNet models."""
    skip_bad: Annotated[bool, Since(2, before=False)] = False
    """Skip images that cannot be read, and list them; by default they are an error."""
    order: Annotated[Order, Since(2, before="independent")] = "epochs"
    """How training draws images. epochs: each image once per epoch, in a new order each time.
    independent: each draw from all images, as in pdfast 0.1.0."""
    horizontal_flip: bool = False
    """Mirror each training image with probability 1/2 (wrong for digits and text)."""
    holdout: Annotated[int, Since(2, before=0)] = 0
    """Number of images, drawn by the seed, that are never trained on. The loss on all of them is
    computed before and after each phase. 0: that loss is of a fixed batch of training images."""

    def __post_init__(self) -> None:
        check(
            not self.source or bool(self.source.strip("\0 ")),
            "data.source must name a folder or a file, or be empty",
        )
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
    """[eval]: evaluation of samples by Frechet distances."""

    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Sampling steps of the report: the teacher at each, and each student at its own."""
    baseline_steps: int = 64
    """Sampling steps of the teacher's baseline, with which the students are compared."""
    num: int = 0
    """Samples per distance; 0: as many as the data set has images."""
    detector: str = "pixel"
    """Features that the Frechet distance compares. pixel: the pixels themselves (FD-pixel).
    inception:PATH: InceptionV3 with that weights file (FID); inception alone downloads it. lite0:
    EfficientNet-Lite0 (FD-Lite0). For samples that are not pictures, pixel means their numbers."""
    classes: Annotated[ClassShares, Since(2, before="even")] = "data"
    """Classes of the evaluated and shown samples of a class-conditional model. data: drawn in the
    proportions of the data, so that a perfect sampler reaches the floor. even: drawn uniformly from
    the classes in the data."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance of the evaluated samples, x-hat(class) + w (x-hat(class)
    - x-hat(no class)); 0: no guidance."""

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
    """[backends]: kernels of other libraries, instead of pdfast's or PyTorch's."""

    group_norm: Literal["pdfast", "apex"] = "pdfast"
    """GroupNorm: pdfast's group_norm_silu, or NVIDIA apex's contrib.group_norm."""
    optimizer: Literal["pdfast", "apex"] = "pdfast"
    """Optimizer: pdfast's adamw, or the kernel of NVIDIA apex's FusedAdam."""
    attention: Literal["torch", "xformers"] = "torch"
    """Attention: PyTorch's scaled_dot_product_attention, or xformers'."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """[engine]: how updates are run. Results stay the same, up to rounding."""

    data: Literal["auto", "device", "stream"] = "auto"
    """Place of the images. device: in the device's memory. stream: in host memory, with each batch
    gathered ahead of its update. auto: device where they take at most a quarter of its free
    memory."""
    pipeline_teacher: bool = False
    """Evaluate the teacher at t_mid of one batch and at t of the next in one call with twice the
    batch."""
    tabulate_film: bool = False
    """Compute the teacher's FiLM parameters for each of its steps once per round, where it has at
    most 1024 steps and no classes."""
    teacher_stream: bool = False
    """Evaluate the teacher on a separate CUDA stream, in parallel with the student's forward
    pass."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the networks around pdfast's ops. auto: on a GPU, where a phase has enough
    updates to repay the compilation, the network is not a custom one, and [backends] are the
    defaults."""
    graph: bool = True
    """On a GPU, capture the update as a CUDA graph; a custom network may not allow it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a run: all that decides what it computes.

    It is immutable; `dataclasses.replace` makes a changed copy. Every field is checked when it is
    made.

    Example:
        ```python
        config = pdfast.load_config("digits")
        config = dataclasses.replace(config, seed=1, log_every=50)
        ```

    Raises:
        UsageError: A field has a wrong value, or fields contradict each other. The message names
            the key.
    """

    name: str = "custom"
    """Name of the config; without --out, the run directory is `runs/<name>`."""
    seed: int = 0
    """Seed of every random draw, 0 to 2^32 - 1."""
    log_every: int = 100
    """Updates between two lines of metrics."""
    save_every: int = 1000
    """Updates between two saved states, from which the same command resumes."""
    precision: AutoPrecision = "auto"
    """Precision of the networks' convolutions and linear layers: bf16 (auto on a GPU), tf32
    (float32 with products rounded to TF32), or fp32 (auto on a CPU). All else is always float32."""
    deterministic: bool = False
    """On a GPU, use only deterministic algorithms, which are slower; on a CPU all are."""
    data: DataConfig = DataConfig()
    model: NetConfig = NetConfig()
    """[model]: all that defines a network except its weights."""
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
            "distill.first data takes the first step from the data, which have no guidance "
            "weight: set distill.first teacher, or omit model.guidance",
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
    """Raise UsageError for a config that `train` allows but no round can distil."""
    check(
        config.model.parameterization != "eps",
        "model.parameterization eps cannot be distilled, since near pure noise its x-hat divides "
        "by a tiny alpha: leave model.parameterization at v, so that the first round converts an "
        "eps teacher, or train a teacher of v, x or x_eps",
    )
    check_guided_students(config)


def check_guided_students(config: Config) -> None:
    """Raise UsageError for guided evaluation of students that take no guidance weight."""
    check(
        not config.eval.guidance or bool(config.model.guidance),
        "eval.guidance is set, but the students take no guidance weight: set model.guidance to the "
        "least and the largest that they are to take, such as 0 4",
    )


def check_trainable(config: Config) -> None:
    """Raise UsageError for a schedule that is only for distillation, or guidance of no use."""
    check(
        config.model.label_dropout > 0 or not (config.model.guidance or config.eval.guidance),
        "guidance needs a teacher that also learns without the class: set model.label_dropout to "
        "0.1, or omit eval.guidance and model.guidance",
    )
    check(
        config.model.schedule == "cosine",
        f"model.schedule {config.model.schedule} is only for distilling a teacher that has it: "
        "pass that teacher by --teacher (to train one here, set model.schedule to cosine)",
    )


def check_own_teacher(config: Config) -> None:
    """Raise UsageError for a config whose teacher `distill` cannot train first."""
    check_trainable(config)
    check(
        bool(config.model.guidance) or not config.distill.fit_updates,
        "distill.fit_updates is for students that cannot start as their teacher, and this config "
        "trains its own: leave it 0, or pass --teacher",
    )


# ------------------------------------------------------------------------------------------
# TOML in and out


def load_config(name_or_path: str | Path) -> Config:
    """Read a config.

    Fields that are missing have their defaults. In the config.toml of a run by an older version
    they mean what they did in that version.

    Example:
        ```python
        config = pdfast.load_config("digits")
        config = pdfast.load_config("my_config.toml")
        ```

    Args:
        name_or_path: The name of a config that comes with pdfast, or the path of a .toml file.

    Returns:
        The config.

    Raises:
        UsageError: There is no such config, or the file is not a valid one. The message names the
            file and the key.
        PdfastError: Another version of pdfast wrote the file, and this one cannot read it.
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith(".toml") else CONFIG_DIR / f"{text}.toml"
    if not path.is_file():
        raise UsageError(_no_config(text))
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


def _no_config(text: str) -> str:
    """Return the message for a config that does not exist, with what was probably meant."""
    if text.endswith(".toml"):
        folder = Path(text).parent
        there = [str(folder / path.name) for path in folder.glob("*.toml")]
        looked = "" if Path(text).is_absolute() else f" (in {Path.cwd()})"
        return f"{text} does not exist{looked}{nearest(text, there)}"
    names = config_names()
    if Path(f"{text}.toml").is_file():
        return f"no config comes with pdfast as '{text}'; did you mean '{text}.toml'?"
    known = ", ".join(names)
    return (
        f"no config '{text}'{nearest(text, names)} (known names: {known}; or give the path of a "
        ".toml file)"
    )


def written(path: Path, table: dict[str, Any]) -> tuple[Written | None, dict[str, Any]]:
    """Return who wrote a config's table, None for a user, and its [run], which is removed from it.

    Args:
        path: The file, for messages.
        table: The table.

    Raises:
        OtherVersion: The file has a newer format.
        ValueError: No version wrote this [run].
    """
    run = table.pop(RUN, None)
    if run is None:
        return FIRST if formats.is_first(Config, table) else None, {}
    check(
        isinstance(run, dict) and "format" in run,
        f"[{RUN}] is for the runs that pdfast writes: remove it",
    )
    return formats.written(path, run["format"], run.get("pdfast")), run


def config_names() -> list[str]:
    """Return the names of the configs that come with pdfast."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.toml"))


def dump_config(config: Config) -> str:
    """Return the config as TOML text that `load_config` reads back."""
    return tomli_w.dumps(to_table(config))


def is_dumped(text: str) -> bool:
    """Return whether `dump_config`, of this version or an earlier one, made the text."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    whole = {"name", "seed", "data", "model", "train", "distill", "eval"} <= table.keys()
    return whole and tomli_w.dumps(table) == text
