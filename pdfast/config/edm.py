"""[model.edm] of a config: what the networks of NVlabs/edm have and the published one has not."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pdfast.config.formats import Since
from pdfast.config.serialization import check

Preconditioning = Literal["none", "vp", "ve", "iddpm", "edm"]
CONSTANTS = {  # of each preconditioning, in order
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
    """[model.edm]: what networks of NVlabs/edm (Karras et al. 2022) have beside the published
    one's."""

    preconditioning: Annotated[Preconditioning, Since(4, before="none")] = "none"
    """How z is scaled for the network and its output read (Karras et al. 2022, table 1); of vp and
    iddpm neither is, and of ve z alone. What the network is told of the noise follows where
    model.embedding is noise."""
    constants: Annotated[tuple[float, ...], Since(4, before=())] = ()
    """Constants of the preconditioning: beta_d, beta_min and M of vp; C_1, C_2 and M of iddpm;
    sigma_data of edm."""
    noise_ch: Annotated[int, Since(4, before=0)] = 0
    """Width of the embedding of the noise; 0: model.ch."""
    fourier: Annotated[bool, Since(4, before=False)] = False
    """The embedding of the noise has random frequencies, kept with the weights, as in NCSN++."""
    class_first: Annotated[bool, Since(4, before=False)] = False
    """The class is added to the first layer of the embedding, not to the second, as in DDPM++."""
    group_ch: Annotated[int, Since(4, before=1)] = 1
    """Least channels of a group: a narrow GroupNorm has fewer groups than model.groups."""
    residual_scale: Annotated[float, Since(4, before=1.0)] = 1.0
    """Factor of the carried part of every residual sum, sqrt(1/2) in DDPM++; the weights of the
    other part include it."""
    attention_up: Annotated[Literal["all", "last"], Since(4, before="all")] = "all"
    """Attention on the way up after all residual blocks of a level, or its last one, as in DDPM++.
    """
    projection: Annotated[bool, Since(4, before=False)] = False
    """Residual blocks that resample have a 1x1 convolution in their shortcut, as in DDPM++."""
    filter: Annotated[tuple[int, ...], Since(4, before=(1, 1))] = (1, 1)
    """Taps of the filter that resamples: 1 1, means of 2x2 pixels, or 1 3 3 1, as in NCSN++."""
    pyramid: Annotated[bool, Since(4, before=False)] = False
    """On the way down, z itself is halved by a convolution too, and added at every level, as in
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
            "model.edm.noise_ch must be even, 0 (that of model.ch) or in 4 .. 65536",
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
