"""The configuration: frozen dataclasses, one per TOML table, checked before anything starts.

A config is a TOML file (`configs/`), read by `load_config`; every field is also a flag of the
command line. A mistake is a `UsageError` that names the key and the fix. This module imports no
torch, so that `--help` is quick.
"""

import dataclasses
import math
import re
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro

from pdfast.config import detectors, formats
from pdfast.config.formats import FIRST, Since, Written
from pdfast.config.model import MAX_LIST, MAX_WEIGHT
from pdfast.config.model import NetConfig as NetConfig
from pdfast.config.names import LOSS_WEIGHTS, First, LossKind, Precision, Second
from pdfast.config.names import LossWeight as LossWeight
from pdfast.config.names import Parameterization as Parameterization
from pdfast.config.serialization import check, from_table, nearest, read_toml, to_table
from pdfast.errors import UsageError

CONFIG_DIR = Path(__file__).parents[1] / "configs"
RUN = "run"  # the table that the config.toml of a run has beside the config; see runs/record.py
AutoPrecision = Literal["auto", Precision]
LabelFolders = Literal["auto", "top", "parent", "top-as-text"]
Resize = Literal["bicubic", "area"]
Order = Literal["epochs", "independent"]
ClassShares = Literal["data", "even"]
_WEIGHTS = "Weight of the loss over noise levels: on ||x - x-hat||^2 it is {}.".format(
    ", ".join(terms.on_x() for terms in LOSS_WEIGHTS.values())
)

# Bounds that no sensible config meets, so that a foreign one can neither hang nor overflow.
MAX_COUNT = 10**8  # of updates and samples
MAX_ROUNDS = 20
MAX_AVERAGES = 4
PLAN = re.compile(r"\d{1,7}( *, *\d{1,7})+", re.ASCII)
MAX_STEPS = 2**20  # of a sampler; beyond it neighbouring noise levels are one in float32


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
class LoopConfig:
    """What `train` and `distill` share: one optimizer loop."""

    updates: int = 50_000
    """Number of optimizer updates."""
    batch: int = 128
    """Images per update."""
    lr: float = 2e-4
    """Peak learning rate of AdamW (betas 0.9 and 0.999)."""
    warmup: int = 0
    """Updates over which the learning rate rises linearly from 0."""
    anneal: Literal["none", "linear"] = "none"
    """"linear": the learning rate falls to 0 at the last update."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    ema_decay: float = 0.0
    """Decay per update of the averaged weights, which become the model; 0: none are kept."""
    ema_warmup: Annotated[bool, Since(2, before=False)] = True
    """Average over fewer updates at first: the decay after k updates is at most (1 + k) / (10 + k),
    so that the averages reach over about the last tenth of the updates, and forget the first."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0: not clipped."""
    max_skipped: int = 10
    """Updates whose loss or gradient is not finite to skip in a row before the run stops."""
    loss_weight: Annotated[LossWeight, tyro.conf.arg(help=_WEIGHTS)] = "snr_trunc"
    """Weight of the loss over noise levels; names.py says what each is."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory; divides the batch."""
    checkpoint: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest again, to save
    memory: a third more work for the net in training."""

    def __post_init__(self) -> None:
        table = "distill" if isinstance(self, DistillConfig) else "train"
        for name in ("updates", "batch", "accumulate", "max_skipped"):
            check(getattr(self, name) >= 1, f"{table}.{name} must be at least 1")
        check(self.batch <= 2**40, f"{table}.batch must be at most 2^40")
        check(self.accumulate <= 4096, f"{table}.accumulate must be at most 4096")
        for name in ("updates", "warmup"):
            check(getattr(self, name) <= MAX_COUNT, f"{table}.{name} must be at most {MAX_COUNT}")
        check(
            self.batch % self.accumulate == 0,
            f"{table}.accumulate {self.accumulate} does not divide {table}.batch {self.batch}",
        )
        for name in ("lr", "warmup", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{table}.{name} must be 0 or more, and finite")
        check(0.0 <= self.ema_decay < 1.0, f"{table}.ema_decay must be in [0, 1)")

    @property
    def averages(self) -> tuple[float, ...]:
        """Decays of the averaged weights that are kept."""
        return (self.ema_decay,) if self.ema_decay else ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """[train]: how a teacher is trained, in continuous time."""

    updates: int = 800_000
    warmup: int = 1000
    ema_decay: float = 0.9999


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """[distill]: rounds that merge sampling steps: progressive distillation, TRACT, consistency."""

    start_steps: int = 8192
    """Sampling steps of the teacher of the first round."""
    rounds: Annotated[
        int | str, tyro.conf.arg(name="rounds", prefix_name=False, aliases=["--distill.rounds"])
    ] = 11
    """Number of halvings: 11 take 8192 steps to 4. Or the steps of each round's student, such as
    "64,16,4,1", each a divisor of the one before; `start_steps` may come first."""
    first: Annotated[First, Since(4, before="teacher")] = "teacher"
    """What takes the first step of a target, from t to m: the frozen teacher, or the image and the
    noise that z_t was made of (consistency training)."""
    second: Annotated[Second, Since(4, before="teacher")] = "teacher"
    """What takes the second step, from m to s, where the student's step ends. teacher: the frozen
    one, m halfway, in rounds that halve (Algorithm 2). student: the student itself without a
    gradient, m one of the teacher's steps below t, in rounds of any ratio (TRACT, multistep
    consistency distillation; consistency distillation in a round to 1 step)."""
    teacher: Annotated[
        str, tyro.conf.arg(name="teacher", prefix_name=False, aliases=["--distill.teacher"])
    ] = ""
    """Model directory of a teacher to start from, copied into the run; without it the config's own
    is trained, or taken from the run directory."""
    round_updates: tuple[tuple[int, int], ...] = ()
    """Updates of single rounds: pairs of the student's steps and its updates (in TOML a table).
    By default the 2-step and the 1-step round get twice `updates`."""
    round_lr: Annotated[tuple[tuple[int, float], ...], Since(4, before=())] = ()
    """Peak learning rates of single rounds: pairs of the student's steps and its rate."""
    ema_decays: Annotated[tuple[float, ...], Since(4, before=())] = ()
    """Decays of several averages, all kept at once. After each round the best of them and of the
    raw weights is the round's student: the one whose samples are nearest to its teacher's, from
    the same noise. With `ema_decay` there is one average, which is the student."""
    round_ema_decay: Annotated[tuple[tuple[int, float], ...], Since(4, before=())] = ()
    """`ema_decay` of single rounds: pairs of the student's steps and its decay."""
    loss: Annotated[LossKind, Since(4, before="l2")] = "l2"
    """Of an image's weighted mean square error e over its pixels: l2 is e; huber is
    sqrt(e + c^2) - c, the pseudo-Huber loss, which follows outliers less."""
    huber_c: Annotated[float, Since(4, before=0.00054)] = 0.00054
    """c of the pseudo-Huber loss, in the units of the root of e. The default is that of Song and
    Dhariwal (2023), 0.00054 sqrt(d) of a norm over d numbers."""
    keep_moments: Annotated[bool, Since(4, before=False)] = False
    """Begin a round with the last one's moments of AdamW, instead of none."""
    fit_updates: int = 0
    """Updates of a first round that keeps the number of steps, for a student that cannot start as
    its teacher: one of another network, or of v where the teacher predicts eps; 0: there is none
    (for eps, four times `updates`)."""
    fit_lr: float = 2e-4
    """Peak learning rate of that round."""
    lr: float = 5e-5
    anneal: Literal["none", "linear"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            2 <= self.start_steps <= MAX_STEPS, f"distill.start_steps must be in 2 .. {MAX_STEPS}"
        )
        self._check_plan()
        check("\0" not in self.teacher, "teacher (distill.teacher) must be a path")
        check(
            0 <= self.fit_updates <= MAX_COUNT,
            f"distill.fit_updates must be 0 (no such round) or more, at most {MAX_COUNT}",
        )
        check(0 <= self.fit_lr < math.inf, "distill.fit_lr must be 0 or more, and finite")
        for name in ("round_updates", "round_lr", "round_ema_decay"):
            pairs = getattr(self, name)
            check(len(pairs) == len(dict(pairs)), f"distill.{name} names a round twice")
            for steps, _ in pairs:
                check(
                    self._could_have(steps),
                    f"distill.{name} names {steps} steps, which no round from {self.start_steps} "
                    + ("reaches by halving" if isinstance(self.rounds, int) else "can have"),
                )
        for steps, updates in self.round_updates:
            check(
                1 <= updates <= MAX_COUNT,
                f"distill.round_updates for {steps} steps must be at least 1, at most {MAX_COUNT}",
            )
        for steps, lr in self.round_lr:
            check(
                0 <= lr < math.inf,
                f"distill.round_lr for {steps} steps must be 0 or more, and finite",
            )
        for steps, decay in self.round_ema_decay:
            check(
                0.0 <= decay < 1.0, f"distill.round_ema_decay for {steps} steps must be in [0, 1)"
            )
        check(
            len(self.ema_decays) <= MAX_AVERAGES
            and all(0.0 < decay < 1.0 for decay in self.ema_decays)
            and len(set(self.ema_decays)) == len(self.ema_decays),
            f"distill.ema_decays must be at most {MAX_AVERAGES} different decays in (0, 1)",
        )
        check(
            not self.ema_decays or not (self.ema_decay or self.round_ema_decay),
            "distill.ema_decay and distill.ema_decays are both set: list all averages in "
            "distill.ema_decays, or leave it empty",
        )
        check(0.0 < self.huber_c < math.inf, "distill.huber_c must be above 0, and finite")
        vanishing = [name for name, terms in LOSS_WEIGHTS.items() if terms.sigma2 == 0.0]
        check(
            not (self.loss_weight in vanishing and self.plan[-1] == 1),
            f"the {self.loss_weight} weight is 2e-9 at the only noise level of the 1-step round, "
            "so nothing would be learned there: use distill.loss_weight snr_trunc or v_mse, or one "
            "round fewer",
        )

    def _check_plan(self) -> None:
        """Refuse `rounds` that are no plan, or one that `second` cannot follow."""
        if isinstance(self.rounds, int):
            check(
                1 <= self.rounds <= MAX_ROUNDS,
                f"rounds (distill.rounds) must be in 1 .. {MAX_ROUNDS}",
            )
            check(
                self.start_steps % 2**self.rounds == 0,
                f"{self.rounds} rounds cannot halve {self.start_steps} steps exactly: "
                f"use at most {_halvings(self.start_steps)} rounds, or start_steps a multiple of "
                f"2^{self.rounds}",
            )
            return
        check(
            len(self.rounds) <= 200 and PLAN.fullmatch(self.rounds) is not None,
            "rounds (distill.rounds) must be a number of halvings, or the steps of each round's "
            f'student such as "64,16,4,1", not {self.rounds[:50]!r}',
        )
        check(
            1 <= len(self.plan) <= MAX_ROUNDS,
            f"rounds (distill.rounds) must name the steps of 1 to {MAX_ROUNDS} students",
        )
        for before, steps in zip((self.start_steps, *self.plan), self.plan, strict=False):
            check(
                1 <= steps < before and before % steps == 0,
                f"rounds (distill.rounds) cannot take {before} steps to {steps}: each number must "
                "divide the one before, distill.start_steps first",
            )
            check(
                self.second == "student" or before == 2 * steps,
                f"rounds (distill.rounds) merges {before // steps} steps in one from {before} to "
                f"{steps}, and distill.second teacher only two: halve, or set distill.second "
                "student",
            )

    def _could_have(self, steps: int) -> bool:
        """Whether a round of some plan has so many steps: a table may serve several plans."""
        if isinstance(self.rounds, int):
            return any(steps == self.start_steps >> r for r in range(1, 64))
        return 1 <= steps < self.start_steps and self.start_steps % steps == 0

    @property
    def averages(self) -> tuple[float, ...]:
        """Decays of the averaged weights that are kept."""
        return self.ema_decays or super().averages

    @property
    def plan(self) -> tuple[int, ...]:
        """Sampling steps of each round's student, but for a first fit."""
        if isinstance(self.rounds, int):
            return tuple(self.start_steps >> k for k in range(1, self.rounds + 1))
        steps = tuple(map(int, self.rounds.split(",")))
        return steps[1:] if steps[0] == self.start_steps else steps

    @property
    def num_rounds(self) -> int:
        """The rounds of the plan, and the first fit, if there is one, which is then round 1."""
        return len(self.plan) + bool(self.fit_updates)

    def with_fit(self, begun: int = 0) -> "DistillConfig":
        """The same with a first fit, of `fit_updates`, or those begun with, or four rounds'."""
        updates = self.fit_updates or begun or min(4 * self.updates, MAX_COUNT)
        return dataclasses.replace(self, fit_updates=updates)

    def steps_after(self, round_: int) -> int:
        """Sampling steps N of the student of round `round_` (1, 2, ...)."""
        return (self.start_steps, *self.plan)[round_ - bool(self.fit_updates)]

    def merged(self, steps: int) -> int:
        """How many steps of its teacher one step of the student with `steps` steps stands for."""
        if isinstance(self.rounds, int):
            return 2
        made = self.start_steps, *self.plan
        return made[made.index(steps) - 1] // steps

    @property
    def c_of_huber(self) -> float:
        """c of the pseudo-Huber loss; 0 where the loss is the square."""
        return self.huber_c if self.loss == "huber" else 0.0

    def loop_of(self, steps: int) -> "DistillConfig":
        """The settings of the round whose student has `steps` steps."""
        lr = self.fit_lr if steps == self.start_steps else dict(self.round_lr).get(steps, self.lr)
        decay = dict(self.round_ema_decay).get(steps, self.ema_decay)
        return dataclasses.replace(
            self, updates=self.updates_of(steps), lr=lr, ema_decay=decay, round_ema_decay=()
        )

    def updates_of(self, steps: int) -> int:
        """Updates of the round whose student has `steps` steps (paper, section 5.2)."""
        if steps == self.start_steps:
            return self.fit_updates
        return dict(self.round_updates).get(steps, self.updates * (2 if steps <= 2 else 1))


def _halvings(steps: int) -> int:
    return (steps & -steps).bit_length() - 1


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
    model: NetConfig = NetConfig()  # noqa: RUF009
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
