"""What a network's output means, and how its loss is weighted. Imports nothing."""

from typing import Literal

Head = Literal["x", "eps", "v", "both"]
LossWeight = Literal["constant", "snr", "snr_trunc", "v_mse"]
