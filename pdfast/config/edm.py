"""[model.edm] of a config: what NVlabs/edm's networks have beyond the published network."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pdfast.config.formats import Since
from pdfast.config.serialization import check

Preconditioning = Literal["none", "vp", "ve", "iddpm", "edm"]
CONSTANTS = {  # names of each preconditioning's constants, in order
    "none": (),
    "vp": ("beta_d", "beta_min", "M"),
    "ve": (),
    "iddpm": ("C_1", "C_2", "M"),
    "edm": ("sigma_data",),
}
MOST_TIMES = 2**13  # M of vp and iddpm
MOST_TAPS = 16  # of a resampling filter


@dataclass(frozen=True, kw_only=True)
class EDMNetConfig:
    """[model.edm]: properties of NVlabs/edm's networks (Karras et al. 2022)."""

    preconditioning: Annotated[Preconditioning, Since(4, before="none")] = "none"
    """Scaling of the network's input z and of its output (Karras et al. 2022, table 1). vp and
    iddpm scale neither, ve scales z alone. With model.embedding noise, it also defines the noise
    input of the network."""
    constants: Annotated[tuple[float, ...], Since(4, before=())] = ()
    """Constants of the preconditioning. vp: beta_d, beta_min, M; iddpm: C_1, C_2, M; edm:
    sigma_data."""
    noise_ch: Annotated[int, Since(4, before=0)] = 0
    """Width of the noise embedding; 0: model.ch."""
    fourier: Annotated[bool, Since(4, before=False)] = False
    """Random frequencies in the noise embedding, stored with the weights, as in NCSN++."""
    class_first: Annotated[bool, Since(4, before=False)] = False
    """Add the class to the first layer of the embedding, not to the second, as in DDPM++."""
    group_ch: Annotated[int, Since(4, before=1)] = 1
    """Least channels per group: a narrow GroupNorm has fewer groups than model.groups."""
    residual_scale: Annotated[float, Since(4, before=1.0)] = 1.0
    """Factor of the skip path in every residual sum, sqrt(1/2) in DDPM++. The weights of the other
    path include it already."""
    attention_up: Annotated[Literal["all", "last"], Since(4, before="all")] = "all"
    """On the way up, attention after all residual blocks of a level, or only after its last one, as
    in DDPM++."""
    projection: Annotated[bool, Since(4, before=False)] = False
    """A 1x1 convolution in the shortcut of residual blocks that resample, as in DDPM++."""
    filter: Annotated[tuple[int, ...], Since(4, before=(1, 1))] = (1, 1)
    """Taps of the resampling filter: 1 1, the mean of 2x2 pixels, or 1 3 3 1, as in NCSN++."""
    pyramid: Annotated[bool, Since(4, before=False)] = False
    """On the way down, halve z itself by a convolution too, and add it at every level, as in
    NCSN++."""

    def __post_init__(self) -> None:
        names = CONSTANTS[self.preconditioning]
        check(
            len(self.constants) == len(names),
            f"model.edm.constants must hold {', '.join(names) or 'nothing'} with "
            f"model.edm.preconditioning {self.preconditioning}",
        )
        # C_1 bounds ratios of alpha-bar, which are below 1; betas beyond 1000 leave no signal.
        check(
            all(math.isfinite(value) and 0 < value <= MOST_TIMES for value in self.constants),
            f"model.edm.constants must be above 0, at most {MOST_TIMES}",
        )
        if "M" in names:
            check(
                self.constants[2] == round(self.constants[2]) >= 2,
                f"model.edm.constants: M must be a whole number in 2 .. {MOST_TIMES}",
            )
        if self.preconditioning == "iddpm":
            check(max(self.constants[:2]) < 1, "model.edm.constants: C_1 and C_2 must be below 1")
        check(
            0 <= self.noise_ch <= 2**16 and self.noise_ch % 2 == 0 and self.noise_ch != 2,
            "model.edm.noise_ch must be 0 (for model.ch) or an even number in 4 .. 65536",
        )
        check(1 <= self.group_ch <= 2**16, "model.edm.group_ch must be in 1 .. 65536")
        check(0 < self.residual_scale <= 1, "model.edm.residual_scale must be above 0, at most 1")
        taps = self.filter
        check(
            2 <= len(taps) <= MOST_TAPS
            and len(taps) % 2 == 0
            and all(0 <= tap <= 2**16 for tap in taps)
            and sum(taps) > 0,
            f"model.edm.filter must hold an even number of taps, at most {MOST_TAPS}, none below "
            "0, not all 0",
        )
