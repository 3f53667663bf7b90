"""The configuration: frozen dataclasses, one per TOML table, checked before anything starts.

A config is a TOML file (`configs/`), read by `load_config`; every field is also a flag of the
command line. A mistake is a `UsageError` that names the key and the fix. This module imports no
torch, so that `--help` is quick.
"""

import dataclasses
import difflib
import math
import reprlib
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
import tyro

from pdfast.errors import UsageError
from pdfast.kernels.names import Head as Head
from pdfast.kernels.names import LossWeight as LossWeight

CONFIG_DIR = Path(__file__).parent / "configs"
T = TypeVar("T")
Precision = Literal["auto", "bf16", "tf32", "fp32"]

# Bounds that no sensible config meets, so that a foreign one can neither hang nor overflow.
MAX_TOML = 10**5  # bytes
MAX_NESTING = 50  # dots in a line of TOML, whose parser takes their square in time
MAX_COUNT = 10**8  # of updates and samples
MAX_STEPS = 2**20  # of a sampler; beyond it neighbouring noise levels are one in float32
MAX_LIST = 64


def check(condition: bool, message: str) -> None:
    """Raise `UsageError(message)` unless `condition` holds."""
    if not condition:
        raise UsageError(message)


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    """`; did you mean 'y'?` for the choice most like `word`, or nothing."""
    close = difflib.get_close_matches(word[:100], list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


# ------------------------------------------------------------------------------------------
# One dataclass per table


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[data]: where the images come from."""

    source: str = "digits"
    """"digits" (scikit-learn's), a folder of images, an .npz with uint8 NHWC `images`, a file
    ...images-idx3-ubyte[.gz] as of MNIST, or CIFAR-10's binary or python .tar.gz."""
    horizontal_flip: bool = False
    """Mirror each training image with probability 1/2 (wrong for digits and text)."""

    def __post_init__(self) -> None:
        check(bool(self.source.strip("\0 ")), "data.source must name a folder or a file")
        check(
            "\0" not in self.source and len(self.source) <= 4096,
            "data.source must be a path, of at most 4096 characters",
        )


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """[model]: all that defines a model but its weights; stored with every model."""

    image_size: int = 32
    """Height and width in pixels; other sizes are cropped and resized to it."""
    channels: int = 3
    """1 for grey images, 3 for colour."""
    num_classes: int = 0
    """Number of classes of a class-conditional model; 0: unconditional."""
    head: Head = "v"
    """What the network predicts: x-hat, eps-hat, v-hat, or both x-hat and eps-hat."""
    logsnr_min: float = -20.0
    """logSNR at u = 1, pure noise."""
    logsnr_max: float = 20.0
    """logSNR at u = 0, data."""
    ch: int = 256
    """Base width in channels."""
    emb_ch: int = 1024
    """Width of the time and class embedding."""
    ch_mult: tuple[int, ...] = (1, 1, 1)
    """Width of each resolution level as a multiple of `ch`; each next level halves the size."""
    num_res_blocks: int = 3
    """Residual blocks per level on the way down (one more on the way up)."""
    attn_resolutions: tuple[int, ...] = (8, 16)
    """Feature-map sizes with self-attention after each residual block; sizes that do not occur
    count for nothing."""
    num_heads: int = 1
    """Attention heads; 0: as many as `head_dim` gives."""
    head_dim: int = 0
    """Channels per attention head, where `num_heads` is 0."""
    groups: int = 32
    """Groups of every GroupNorm; must divide every width."""
    dropout: float = 0.0
    """Dropout in the residual blocks while a teacher trains; distillation uses none."""

    def __post_init__(self) -> None:
        for name in ("image_size", "ch", "emb_ch", "num_res_blocks", "groups"):
            check(1 <= getattr(self, name) <= 2**16, f"model.{name} must be in 1 .. 65536")
        check(self.channels in (1, 3), "model.channels must be 1 (grey) or 3 (colour)")
        check(self.num_res_blocks <= 16, "model.num_res_blocks must be in 1 .. 16")
        check(
            0 <= self.num_classes <= 2**20,
            "model.num_classes must be 0 (unconditional) or more, up to 1048576",
        )
        check(
            -30 <= self.logsnr_min < self.logsnr_max <= 30,
            "model.logsnr_min must be below model.logsnr_max, and both within -30 .. 30",
        )
        check(self.ch >= 4 and self.ch % 2 == 0, "model.ch must be even and at least 4")
        check(0.0 <= self.dropout < 1.0, "model.dropout must be in [0, 1)")
        check(
            1 <= len(self.ch_mult) <= 10 and 1 <= min(self.ch_mult) <= max(self.ch_mult) <= 64,
            "model.ch_mult must hold at least one multiple and at most 10, each in 1 .. 64",
        )
        check(
            len(self.attn_resolutions) <= MAX_LIST,
            f"model.attn_resolutions must hold at most {MAX_LIST} sizes",
        )
        check(
            min(self.num_heads, self.head_dim) == 0 < max(self.num_heads, self.head_dim),
            "set one of model.num_heads and model.head_dim, and the other to 0",
        )
        factor = 2 ** (len(self.ch_mult) - 1)
        check(
            self.image_size % factor == 0,
            f"model.image_size {self.image_size} cannot be halved {len(self.ch_mult) - 1} times, "
            f"once between each two of model.ch_mult's levels: make it a multiple of {factor}",
        )
        for width in sorted(self.norm_widths()):
            check(
                width % self.groups == 0,
                f"model.groups {self.groups} does not divide a width of {width} channels: "
                f"choose a divisor of {math.gcd(*self.norm_widths())}",
            )
        for width in {self.ch * mult for mult in self.ch_mult}:
            check(
                width % (self.num_heads or self.head_dim) == 0,
                f"model.{'num_heads' if self.num_heads else 'head_dim'} does not divide a width "
                f"of {width} channels",
            )

    def norm_widths(self) -> set[int]:
        """Channels of every GroupNorm of the net: level widths, and those after each concat."""
        widths = [self.ch * mult for mult in self.ch_mult]
        skips = [self.ch]
        for level, width in enumerate(widths):
            skips += [width] * (self.num_res_blocks + (level < len(widths) - 1))
        found, ch = {self.ch, *widths}, widths[-1]
        for width in reversed(widths):
            for _ in range(self.num_res_blocks + 1):
                found.add(ch + skips.pop())
                ch = width
        return found

    @property
    def out_channels(self) -> int:
        """Channels of the net's raw output: twice the image's for the (x, eps) head."""
        return 2 * self.channels if self.head == "both" else self.channels


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
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0: not clipped."""
    max_skipped: int = 10
    """Updates whose loss or gradient is not finite to skip in a row before the run stops."""
    loss_weight: LossWeight = "snr_trunc"
    """Weight of the loss over noise levels: on ||x - x-hat||^2 it is 1, SNR, max(SNR, 1), SNR+1."""
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """[train]: how a teacher is trained, in continuous time."""

    updates: int = 800_000
    warmup: int = 1000
    ema_decay: float = 0.9999


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """[distill]: rounds of progressive distillation, each halving the sampling steps."""

    start_steps: int = 8192
    """Sampling steps of the teacher of the first round."""
    rounds: Annotated[
        int, tyro.conf.arg(name="rounds", prefix_name=False, aliases=["--distill.rounds"])
    ] = 11
    """Number of halvings: 11 take 8192 steps to 4."""
    teacher: Annotated[
        str, tyro.conf.arg(name="teacher", prefix_name=False, aliases=["--distill.teacher"])
    ] = ""
    """Model directory of a teacher to start from, copied into the run; without it the config's own
    is trained, or taken from the run directory."""
    round_updates: tuple[tuple[int, int], ...] = ()
    """Updates of single rounds: pairs of the student's steps and its updates (in TOML a table).
    By default the 2-step and the 1-step round get twice `updates`."""
    lr: float = 5e-5
    anneal: Literal["none", "linear"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            2 <= self.start_steps <= MAX_STEPS, f"distill.start_steps must be in 2 .. {MAX_STEPS}"
        )
        check(1 <= self.rounds <= 20, "rounds (distill.rounds) must be in 1 .. 20")
        check(
            self.start_steps % 2**self.rounds == 0,
            f"{self.rounds} rounds cannot halve {self.start_steps} steps exactly: "
            f"use at most {_halvings(self.start_steps)} rounds, or start_steps a multiple of "
            f"2^{self.rounds}",
        )
        check("\0" not in self.teacher, "teacher (distill.teacher) must be a path")
        check(
            len(self.round_updates) == len(dict(self.round_updates)),
            "distill.round_updates names a round twice",
        )
        for steps, updates in self.round_updates:
            check(
                any(steps == self.start_steps >> r for r in range(1, 64)),
                f"distill.round_updates names {steps} steps, which no round from "
                f"{self.start_steps} reaches by halving",
            )
            check(
                1 <= updates <= MAX_COUNT,
                f"distill.round_updates for {steps} steps must be at least 1, at most {MAX_COUNT}",
            )
        check(
            not (self.loss_weight == "snr" and self.start_steps >> self.rounds == 1),
            "the snr weight is 2e-9 at the only noise level of the 1-step round, so nothing would "
            "be learned there: use distill.loss_weight snr_trunc or v_mse, or one round fewer",
        )

    def steps_after(self, round_: int) -> int:
        """Sampling steps N of the student of round `round_` (1, 2, ...)."""
        return self.start_steps >> round_

    def updates_of(self, steps: int) -> int:
        """Updates of the round whose student has `steps` steps (paper, section 5.2)."""
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
    features: Literal["pixel"] = "pixel"
    """Feature extractor of the Frechet distance."""

    def __post_init__(self) -> None:
        check(len(self.steps) >= 1 and min(self.steps) >= 1, "eval.steps must all be at least 1")
        check(len(self.steps) <= MAX_LIST, f"eval.steps must hold at most {MAX_LIST} step counts")
        check(max(self.steps) <= MAX_STEPS, f"eval.steps must all be at most {MAX_STEPS}")
        check(
            1 <= self.baseline_steps <= MAX_STEPS,
            f"eval.baseline_steps must be at least 1, at most {MAX_STEPS}",
        )
        check(
            self.num == 0 or 2 <= self.num <= MAX_COUNT,
            f"eval.num must be 0 (all) or at least 2, at most {MAX_COUNT}",
        )


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """[peers]: other libraries' kernels in place of pdfast's own, where they are installed."""

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
    compile: bool = False
    """torch.compile the networks around pdfast's ops."""


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
    precision: Precision = "auto"
    """Of the networks' convolutions and linear layers: bfloat16 (auto on a GPU), float32 products
    rounded to TF32, or float32 (auto on a CPU). All else is float32 always."""
    deterministic: bool = False
    """On a GPU, only algorithms that repeat to the bit, which are slower; a CPU's always do."""
    data: DataConfig = DataConfig()
    model: NetConfig = NetConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    eval: EvalConfig = EvalConfig()
    engine: EngineConfig = EngineConfig()
    peers: PeersConfig = PeersConfig()

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
            self.name.isprintable() and "/" not in self.name and not self.name.startswith("."),
            "name must be a plain folder name",
        )
        check(1 <= len(self.name.encode()) <= 100, "name must be 1 to 100 bytes long")


def check_distillable(config: Config) -> None:
    """Refuse what `train` allows but no round can distil."""
    check(
        config.model.head != "eps",
        "the eps head cannot be distilled: at u = 1 it divides by alpha = 4.5e-5, which amplifies "
        "its error 2.2e4 times; train the teacher with model.head v (or x, or both)",
    )


# ------------------------------------------------------------------------------------------
# TOML in and out


def load_config(name_or_path: str | Path) -> Config:
    """Read a config by name (one of `config_names()`) or by the path of a TOML file."""
    text = str(name_or_path)
    path = Path(text) if text.endswith(".toml") else CONFIG_DIR / f"{text}.toml"
    if not path.is_file():
        names = config_names()
        raise UsageError(
            f"no config '{text}'{nearest(text, names)} "
            f"(known names: {', '.join(names)}; or give the path of a .toml file)"
        )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOML + 1)
        if len(content) > MAX_TOML:
            raise ValueError(f"it is longer than {MAX_TOML:,} bytes")
        if any(line.count(b".") > MAX_NESTING for line in content.splitlines()):
            raise ValueError(f"it has a line of more than {MAX_NESTING} dots")
        table = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return from_table(Config, {"name": path.stem, **table})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def config_names() -> list[str]:
    """Names of the configs that come with pdfast."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.toml"))


def dump_config(config: Config) -> str:
    """The config as TOML text that `load_config` reads back."""
    return tomli_w.dumps(to_table(config))


def to_table(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, tuples of pairs to dicts, for TOML or JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_table(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        pairs = bool(value) and all(isinstance(item, tuple) for item in value)
        return {str(key): item for key, item in value} if pairs else list(value)
    return value


def from_table(cls: type[T], table: dict[str, Any], prefix: str = "") -> T:
    """Build dataclass `cls` from a TOML or JSON table; `UsageError` names the wrong key."""
    hints = typing.get_type_hints(cls)
    for key in table:
        names = [prefix + name for name in hints]
        check(key in hints, f"unknown key '{prefix}{key}'{nearest(prefix + key, names)}")
    return cls(**{key: _convert(hints[key], table[key], prefix + key) for key in table})


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type `hint`, or a `UsageError` that names the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        check(isinstance(value, dict), f"{key} must be a table, [{key}]")
        return from_table(typing.cast(type, hint), value, f"{key}.")
    if origin is Literal:
        expected = ", ".join(args)
        close = nearest(value, args) if isinstance(value, str) else ""
        check(value in args, f"{key} must be one of {expected}{close}")
        return value
    if origin is tuple and typing.get_origin(args[0]) is tuple and isinstance(value, dict):
        for k in value:
            check(
                k.isascii() and k.isdecimal() and len(k) <= 9,
                f"{key} must have whole numbers as keys, of at most 9 digits",
            )
        return tuple((int(k), _convert(int, item, f"{key}.{k}")) for k, item in value.items())
    if origin is tuple:
        check(isinstance(value, list | tuple), f"{key} must be a list")
        if args[-1] is not Ellipsis:
            check(len(value) == len(args), f"{key} must hold {len(args)} values")
        return tuple(_convert(args[0], item, f"{key}[{n}]") for n, item in enumerate(value))
    if hint is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    check(type(value) is hint, f"{key} must be {names[hint]}, not {_shown(value)}")
    check(hint is not int or -(2**63) <= value < 2**63, f"{key} must be a number of 64 bits")
    return value


def _shown(value: Any) -> str:
    """A value for a message, cut short."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        return "a number too long to print"
