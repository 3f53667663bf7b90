"""[model] of a config: all that defines a network except its weights."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pdfast.config.edm import EDMNetConfig
from pdfast.config.formats import Since
from pdfast.config.former import formerly
from pdfast.config.names import OUTPUTS, Parameterization
from pdfast.config.serialization import check

ScheduleKind = Literal[
    "cosine", "linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas", "edm"
]
BETAS_GIVEN = {"linear": 2, "scaled_linear": 2, "squaredcos_cap_v2": 0}  # length of model.betas
MAX_TIMESTEPS = 2**13  # of a schedule by betas
MAX_WEIGHT = 100  # of guidance
LEAST_SIGMA = 1e-6  # least sigma / alpha; its inverse is the largest
MAX_LIST = 64  # entries of a list, more than any sensible config has


def attention_note(net: "NetConfig") -> str:
    """Return a note if no size in `attn_resolutions` occurs; "" if one does, or if it is empty.

    A list may serve networks of several sizes, so that some of its sizes may not occur.
    """
    sizes = [net.image_size >> level for level in range(len(net.ch_mult))]
    asked = net.attn_resolutions
    if not asked or set(asked) & set(sizes):
        return ""
    return (
        f"none of model.attn_resolutions {list(asked)} occurs (the network's sizes are {sizes}), "
        "so only the middle of the network has attention: name one of these sizes, or write [] "
        "for that"
    )


@formerly(head="parameterization")
@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """[model]: all that defines a model except its weights. It is stored with every model."""

    image_size: int = 32
    """Height and width in pixels; images of other sizes are cropped and resized to it."""
    channels: int = 3
    """1 for grey images, 3 for colour."""
    num_classes: int = 0
    """Number of classes of a class-conditional model; 0: unconditional."""
    parameterization: Parameterization = "v"
    """Prediction of the network: x-hat (x), eps-hat (eps), v-hat (v), or both x-hat and eps-hat
    (x_eps)."""
    schedule: ScheduleKind = "cosine"
    """Noise schedule. cosine: the paper's, continuous in time. The others are only for distilling a
    teacher that was trained with them: linear, scaled_linear, squaredcos_cap_v2 and trained_betas,
    as in diffusers, and edm, the noise levels of Karras et al. 2022."""
    logsnr_min: float = -20.0
    """logSNR of the cosine schedule at u = 1, pure noise."""
    logsnr_max: float = 20.0
    """logSNR of the cosine schedule at u = 0, data."""
    timesteps: int = 0
    """Timesteps T of a schedule by betas; 0 for other schedules."""
    betas: tuple[float, ...] = ()
    """Betas of the schedule: the first and the last for linear and scaled_linear, all T for
    trained_betas."""
    sigmas: Annotated[tuple[float, ...], Since(4, before=())] = ()
    """Noise levels of the schedule edm: sigma_min, sigma_max and rho."""
    embedding: Literal["logsnr", "timestep", "noise"] = "logsnr"
    """Noise input of the network. logsnr: logSNR. timestep: t = T u - 1, for a schedule by betas.
    noise: that of model.edm.preconditioning."""
    ch: int = 256
    """Base width in channels."""
    emb_ch: int = 1024
    """Width of the time and class embedding."""
    ch_mult: tuple[int, ...] = (1, 1, 1)
    """Width of each resolution level as a multiple of `ch`; each next level halves the size."""
    num_res_blocks: int = 3
    """Residual blocks per level on the way down (one more on the way up)."""
    attn_resolutions: tuple[int, ...] = (8, 16)
    """Feature-map sizes with self-attention after each residual block; sizes that do not occur are
    ignored."""
    num_heads: int = 1
    """Attention heads; 0: channels / `head_dim`."""
    head_dim: int = 0
    """Channels per attention head, where `num_heads` is 0."""
    groups: int = 32
    """Groups of every GroupNorm; must divide every width."""
    norm_eps: float = 1e-6
    """Term that every GroupNorm adds to the variance."""
    film: bool = True
    """Scale and shift the output of a block's second norm by the embedding (FiLM). false: add the
    embedding before that norm, as in DDPM."""
    resample: Literal["resnet", "conv"] = "resnet"
    """Change of size: inside a residual block (resnet), or by a 3x3 convolution (conv), as in DDPM:
    with stride 2 on the way down, after doubling on the way up."""
    downsample_padding: int = 1
    """Padding of the convolution with stride 2. 1: one pixel on all sides; 0: one pixel only at the
    right and bottom."""
    freq_shift: int = 1
    """Shift in the frequencies of a timestep or noise embedding, 10000^(-k / (ch / 2 -
    freq_shift)): 0 or 1."""
    dropout: float = 0.0
    """Dropout in the residual blocks while a teacher is trained; distillation uses none."""
    label_dropout: float = 0.0
    """Share of the images whose class is hidden while a teacher is trained, which classifier-free
    guidance needs (Ho & Salimans 2022); 0.1 is usual."""
    guidance: tuple[float, ...] = ()
    """Least and largest guidance weight w, where a student takes w as an input and is distilled
    from the teacher's x-hat(class) + w (x-hat(class) - x-hat(no class)) (Meng et al. 2022)."""
    edm: EDMNetConfig = EDMNetConfig()  # noqa: RUF009  # frozen
    """[model.edm]: properties of NVlabs/edm's networks (Karras et al. 2022)."""

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
        self._check_schedule()
        check(self.ch >= 4 and self.ch % 2 == 0, "model.ch must be even and at least 4")
        check(0 < self.norm_eps <= 1, "model.norm_eps must be above 0, at most 1")
        for name in ("downsample_padding", "freq_shift"):
            check(getattr(self, name) in (0, 1), f"model.{name} must be 0 or 1")
        check(
            self.resample == "conv" or self.downsample_padding == 1,
            "model.downsample_padding is for model.resample conv: omit it",
        )
        check(
            self.embedding != "logsnr" or self.freq_shift == 1,
            "model.freq_shift is for model.embedding timestep or noise: omit it",
        )
        check(0.0 <= self.dropout < 1.0, "model.dropout must be in [0, 1)")
        self._check_guidance()
        self._check_edm()
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
            groups = self.groups_of(width)
            check(
                groups > 0 and width % groups == 0,
                f"model.groups {self.groups} does not divide a width of {width} channels: "
                f"choose a divisor of {math.gcd(*self.norm_widths())}"
                if groups == self.groups
                else f"model.edm.group_ch {self.edm.group_ch} gives {groups} groups for a width of "
                f"{width} channels, which they do not divide: choose another group_ch",
            )
        for width in {self.ch * mult for mult in self.ch_mult}:
            check(
                width % (self.num_heads or self.head_dim) == 0,
                f"model.{'num_heads' if self.num_heads else 'head_dim'} "
                f"{self.num_heads or self.head_dim} does not divide a width of {width} channels: "
                f"choose a divisor of {self.ch}",
            )

    def _check_guidance(self) -> None:
        """Check the fields of classifier-free guidance."""
        check(0.0 <= self.label_dropout < 1.0, "model.label_dropout must be in [0, 1)")
        for name in ("label_dropout", "guidance"):
            check(
                not getattr(self, name) or self.num_classes > 0,
                f"model.{name} is for class-conditional models: set model.num_classes, or leave it "
                "out",
            )
        check(
            not self.guidance or (
                len(self.guidance) == 2 and 0 <= self.guidance[0] < self.guidance[1] <= MAX_WEIGHT
            ),
            f"model.guidance must be the least and the largest weight, within 0 .. {MAX_WEIGHT}",
        )  # fmt: skip

    def _check_edm(self) -> None:
        """Check [model.edm] against the other fields."""
        edm = self.edm
        check(
            (self.embedding == "noise") <= (edm.preconditioning != "none"),
            "model.embedding noise needs a model.edm.preconditioning: set that, or use logsnr",
        )
        check(
            edm.preconditioning == "none" or self.schedule == "edm",
            "model.edm.preconditioning is for model.schedule edm: omit it",
        )
        check(
            edm.preconditioning != "edm" or self.parameterization in ("v", "x"),
            "model.edm.preconditioning edm makes v or x of the network's output: set "
            "model.parameterization to one of them",
        )
        check(
            not (edm.fourier or edm.noise_ch) or self.embedding == "noise",
            "model.edm.fourier and model.edm.noise_ch are for model.embedding noise: leave them "
            "out",
        )
        check(
            self.resample == "resnet"
            or not (edm.projection or edm.pyramid or edm.filter != (1, 1)),
            "model.edm.projection, pyramid and filter are for model.resample resnet: leave them "
            "out",
        )

    def _check_schedule(self) -> None:
        """Check that the fields of the schedule fit its kind."""
        by_betas = self.schedule not in ("cosine", "edm")
        for name in () if by_betas else ("timesteps", "betas"):
            check(
                not getattr(self, name),
                f"model.{name} is for a schedule by betas, and model.schedule is {self.schedule}: "
                "omit it",
            )
        check(
            by_betas or self.embedding != "timestep",
            "model.embedding timestep is for a schedule by betas, and model.schedule is "
            f"{self.schedule}: use {'logsnr' if self.schedule == 'cosine' else 'noise'}",
        )
        check(
            self.schedule == "edm" or not self.sigmas,
            f"model.sigmas is for the schedule edm, and model.schedule is {self.schedule}: leave "
            "it out",
        )
        if self.schedule == "cosine":
            return
        check(
            (self.logsnr_min, self.logsnr_max) == (-20.0, 20.0),
            "model.logsnr_min and model.logsnr_max are the cosine schedule's: omit them with "
            f"model.schedule {self.schedule}",
        )
        if self.schedule == "edm":
            check(
                len(self.sigmas) == 3
                and LEAST_SIGMA <= self.sigmas[0] < self.sigmas[1] <= 1 / LEAST_SIGMA
                and 0 < self.sigmas[2] <= MAX_WEIGHT,
                "model.sigmas must be sigma_min, sigma_max and rho, such as 0.002 80 7: the first "
                f"below the second, both within {LEAST_SIGMA:g} .. {1 / LEAST_SIGMA:g}",
            )
            return
        check(
            2 <= self.timesteps <= MAX_TIMESTEPS,
            f"model.timesteps must be in 2 .. {MAX_TIMESTEPS} with model.schedule {self.schedule}",
        )
        number = BETAS_GIVEN.get(self.schedule, self.timesteps)
        check(
            len(self.betas) == number,
            f"model.betas must hold {number or 'no'} numbers with model.schedule {self.schedule}",
        )
        # The last of trained_betas may be 1, at which z is pure noise.
        most = 1.0 if self.schedule == "trained_betas" else math.nextafter(1.0, 0.0)
        check(
            all(0 <= beta < 1 for beta in self.betas[:-1])
            and all(0 <= beta <= most for beta in self.betas[-1:]),
            "model.betas must be in [0, 1) (of trained_betas the last may be 1)",
        )
        check(
            number != 2 or self.betas[0] <= self.betas[1],
            "model.betas must rise: its first is above its last",
        )

    def groups_of(self, width: int) -> int:
        """Return the number of groups of a GroupNorm of `width` channels."""
        return min(self.groups, width // self.edm.group_ch)

    def norm_widths(self) -> set[int]:
        """Return the widths of all GroupNorms: of the levels, and after each concatenation."""
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

    def without_dropout(self) -> "NetConfig":
        """Return the network of a student, which is trained without dropout."""
        return dataclasses.replace(self, dropout=0.0, label_dropout=0.0)

    def unguided(self) -> "NetConfig":
        """Return the network of a guided student's teacher."""
        return dataclasses.replace(self, guidance=())

    @property
    def out_channels(self) -> int:
        """Channels of the network's raw output."""
        return OUTPUTS[self.parameterization].copies * self.channels
