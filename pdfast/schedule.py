"""The cosine noise schedule, in angles.

alpha = cos(phi), sigma = sin(phi) with phi(u) = a u + b, so that
logSNR = ln(alpha^2 / sigma^2) = -2 ln tan(phi) runs from `logsnr_max` at u = 0 (data) to
`logsnr_min` at u = 1 (noise). Salimans & Ho 2022, section 2 and the authors' schedules.py.
"""

import math

import torch
from torch import Tensor


class CosineSchedule:
    """Angle of a time u in [0, 1], and the logSNR of an angle; all in float64."""

    def __init__(self, logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> None:
        self.b = math.atan(math.exp(-0.5 * logsnr_max))
        self.a = math.atan(math.exp(-0.5 * logsnr_min)) - self.b

    def phi(self, u: Tensor) -> Tensor:
        """u of any shape -> angle in radians, float64."""
        return self.a * u.double() + self.b


def logsnr_of(phi: Tensor) -> Tensor:
    """Angle in radians -> logSNR = -2 ln tan(phi)."""
    return -2.0 * torch.log(torch.tan(phi))
