"""[train] and [distill] of a config: the training loops of the teacher and of the rounds."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pdfast.config.formats import Since
from pdfast.config.names import LOSS_WEIGHTS, First, LossKind, LossWeight, Second
from pdfast.config.serialization import check

_WEIGHTS = "Weight of the loss by noise level, on ||x - x-hat||^2: {}.".format(
    ", ".join(f"{name} {terms.on_x()}" for name, terms in LOSS_WEIGHTS.items())
)

# Bounds beyond any sensible config, so that no config can make pdfast hang or overflow.
MAX_COUNT = 10**8  # of updates and samples
MAX_STEPS = 2**20  # of a sampler; beyond it, neighbouring noise levels are equal in float32
MAX_ROUNDS = 20

SNR_AT_1 = math.exp(-20.0)  # of the cosine schedule at u = 1, the only level of a 1-step sampler
LEAST = 1e-6  # weight of the loss below which a round learns nothing
MAX_AVERAGES = 4  # one pass of `adamw` keeps no more
PLAN = re.compile(r"\d{1,7}( *, *\d{1,7})+", re.ASCII)  # steps of each round


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The fields that [train] and [distill] share: one optimizer loop."""

    updates: int = 50_000
    """Number of optimizer updates."""
    batch: int = 128
    """Images per update."""
    lr: float = 2e-4
    """Peak learning rate of AdamW (betas 0.9 and 0.999)."""
    warmup: int = 0
    """Updates over which the learning rate rises linearly from 0."""
    anneal: Literal["none", "linear"] = "none"
    """linear: the learning rate falls linearly to 0 at the last update."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    ema_decay: float = 0.0
    """Decay per update of the EMA weights, which become the model; 0: no EMA."""
    ema_warmup: Annotated[bool, Since(2, before=False)] = True
    """Average over fewer updates at first: the decay after k updates is at most (1 + k) / (10 + k),
    so that the average covers about the last tenth of the updates and forgets the first ones."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""
    max_skipped: int = 10
    """Number of updates in a row with a non-finite loss or gradient after which the run stops. Each
    such update is skipped."""
    loss_weight: Annotated[LossWeight, tyro.conf.arg(help=_WEIGHTS)] = "snr_trunc"
    """Weight of the loss by noise level; see `LOSS_WEIGHTS` in names.py."""
    accumulate: int = 1
    """Parts in which each batch is computed, one after another, to save memory; must divide
    batch."""
    checkpoint: bool = False
    """Keep only the inputs of the blocks for the backward pass and recompute the rest, to save
    memory, for a third more work in the network that is trained."""

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

    def rate(self, update: int) -> float:
        """Return the learning rate of update 0, 1, ..."""
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        fall = 1.0 - update / self.updates if self.anneal == "linear" else 1.0
        return self.lr * rise * fall

    @property
    def averages(self) -> tuple[float, ...]:
        """Decays of the averaged weights to keep."""
        return (self.ema_decay,) if self.ema_decay else ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """[train]: training of a teacher, in continuous time."""

    updates: int = 800_000
    warmup: int = 1000
    ema_decay: float = 0.9999


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """[distill]: rounds that merge sampling steps: progressive distillation, TRACT, consistency."""

    updates: int = 50_000
    """Updates of each round. The rounds to 2 steps and to 1 step get twice as many, unless
    `round_updates` says otherwise."""
    start_steps: int = 8192
    """Sampling steps of the first round's teacher."""
    rounds: Annotated[
        int | str, tyro.conf.arg(name="rounds", prefix_name=False, aliases=["--distill.rounds"])
    ] = 11
    """Number of halvings: 11 take 8192 steps to 4. Or the steps of each round's student, such as
    "64,16,4,1", each a divisor of the one before; `start_steps` may come first."""
    first: Annotated[First, Since(4, before="teacher")] = "teacher"
    """First step of the target, from time t to m. teacher: by the frozen teacher. data: from the
    image and the noise that z_t was made of (consistency training)."""
    second: Annotated[Second, Since(4, before="teacher")] = "teacher"
    """Second step of the target, from m to the end s of the student's step. teacher: by the frozen
    teacher, with m halfway, in rounds that halve (Algorithm 2). student: by the student without a
    gradient, with m one teacher step below t, in rounds of any ratio (TRACT, multistep consistency
    distillation; consistency distillation in a round to 1 step)."""
    teacher: Annotated[
        str, tyro.conf.arg(name="teacher", prefix_name=False, aliases=["--distill.teacher"])
    ] = ""
    """Model directory of a teacher to start from, which is copied into the run. By default it is
    the teacher in the run directory, or the config's own, which is trained first."""
    round_updates: tuple[tuple[int, int], ...] = ()
    """Updates of single rounds: pairs of the student's steps and its updates (in TOML a table).
    By default the rounds to 2 steps and to 1 step get twice `updates`."""
    round_lr: Annotated[tuple[tuple[int, float], ...], Since(4, before=())] = ()
    """Peak learning rates of single rounds: pairs of the student's steps and its rate."""
    ema_decays: Annotated[tuple[float, ...], Since(4, before=())] = ()
    """Decays of several averages, all kept at once. After each round, the student is the best of
    them and the raw weights: the one whose samples are closest to its teacher's, from the same
    noise. With `ema_decay` instead, the one average is the student."""
    round_ema_decay: Annotated[tuple[tuple[int, float], ...], Since(4, before=())] = ()
    """`ema_decay` of single rounds: pairs of the student's steps and its decay."""
    loss: Annotated[LossKind, Since(4, before="l2")] = "l2"
    """Loss of an image whose weighted mean squared error is e. l2: e. huber: the pseudo-Huber loss
    sqrt(e + c^2) - c, which is less sensitive to outliers."""
    huber_c: Annotated[float, Since(4, before=0.00054)] = 0.00054
    """Constant c of the pseudo-Huber loss, in units of sqrt(e). The default is that of Song and
    Dhariwal (2023): 0.00054 sqrt(d) for a norm over d numbers."""
    keep_moments: Annotated[bool, Since(4, before=False)] = False
    """Start each round with AdamW's moments of the round before, instead of zeros."""
    fit_updates: int = 0
    """Updates of an additional first round at the teacher's number of steps, for a student that
    cannot start as its teacher: one with another network, or one that predicts v where the teacher
    predicts eps. 0: no such round (for eps, four times `updates`)."""
    fit_lr: float = 2e-4
    """Peak learning rate of the round of `fit_updates`."""
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
        check(
            self.loss == "huber" or self.huber_c == DistillConfig.huber_c,
            "distill.huber_c is for distill.loss huber: set that, or omit huber_c",
        )
        least = LOSS_WEIGHTS[self.loss_weight].at(SNR_AT_1)
        others = [name for name, terms in LOSS_WEIGHTS.items() if terms.at(SNR_AT_1) > LEAST]
        check(
            least > LEAST or self.plan[-1] > 1,
            f"the {self.loss_weight} weight is {least:.0e} at the only noise level of a 1-step "
            f"sampler, so nothing would be learned there: set distill.loss_weight to one of "
            f"{', '.join(others)}, or use one round fewer",
        )

    def _check_plan(self) -> None:
        """Refuse `rounds` that are not a valid plan, or that do not fit `second`."""
        if isinstance(self.rounds, int):
            check(
                1 <= self.rounds <= MAX_ROUNDS,
                f"rounds (distill.rounds) must be in 1 .. {MAX_ROUNDS} halvings; a plan of one "
                "round names its start too, such as 64,4",
            )
            check(
                self.start_steps % 2**self.rounds == 0,
                f"{self.rounds} rounds cannot halve {self.start_steps} steps exactly: "
                f"use at most {halvings(self.start_steps)} rounds, or start_steps a multiple of "
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
        """Return whether any plan has such a round, since a table may serve several plans."""
        if isinstance(self.rounds, int):
            return steps >= 1 and any(steps == self.start_steps >> r for r in range(1, 64))
        return 1 <= steps < self.start_steps and self.start_steps % steps == 0

    @property
    def averages(self) -> tuple[float, ...]:
        """Decays of the averaged weights to keep."""
        return self.ema_decays or super().averages

    @property
    def plan(self) -> tuple[int, ...]:
        """Sampling steps of each round's student, without the round of `fit_updates`."""
        if isinstance(self.rounds, int):
            return tuple(self.start_steps >> k for k in range(1, self.rounds + 1))
        steps = tuple(map(int, self.rounds.split(",")))
        return steps[1:] if steps[0] == self.start_steps else steps

    @property
    def num_rounds(self) -> int:
        """Number of rounds; the round of `fit_updates`, if any, is round 1."""
        return len(self.plan) + bool(self.fit_updates)

    def with_fit(self, begun: int = 0) -> "DistillConfig":
        """Return a copy with a first fit, of `fit_updates` or else `begun` or 4 `updates`."""
        updates = self.fit_updates or begun or min(4 * self.updates, MAX_COUNT)
        return dataclasses.replace(self, fit_updates=updates)

    def steps_after(self, round_: int) -> int:
        """Return the sampling steps of round `round_`'s student (1, 2, ...); 0 beyond the plan."""
        place = round_ - bool(self.fit_updates)
        if isinstance(self.rounds, int):
            return self.start_steps >> place
        made = self.start_steps, *self.plan
        return made[place] if place < len(made) else 0

    def merged(self, steps: int) -> int:
        """Return how many of its teacher's steps a student of `steps` steps merges into one."""
        if isinstance(self.rounds, int):
            return 2
        made = self.start_steps, *self.plan
        return made[made.index(steps) - 1] // steps

    @property
    def c_of_huber(self) -> float:
        """Constant c of the pseudo-Huber loss; 0 for the squared error."""
        return self.huber_c if self.loss == "huber" else 0.0

    def loop_of(self, steps: int) -> "DistillConfig":
        """Return the settings of the round whose student has `steps` steps."""
        lr = self.fit_lr if steps == self.start_steps else dict(self.round_lr).get(steps, self.lr)
        decay = dict(self.round_ema_decay).get(steps, self.ema_decay)
        # The round's own decay replaces the table.
        return dataclasses.replace(
            self, updates=self.updates_of(steps), lr=lr, ema_decay=decay, round_ema_decay=()
        )

    def updates_of(self, steps: int) -> int:
        """Return the updates of the round whose student has `steps` steps (paper, section 5.2)."""
        if steps == self.start_steps:
            return self.fit_updates
        return dict(self.round_updates).get(steps, self.updates * (2 if steps <= 2 else 1))


def halvings(steps: int) -> int:
    """Return how often a number of steps can be halved."""
    return (steps & -steps).bit_length() - 1
