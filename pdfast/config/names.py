"""Names that configs, flags and calls accept, and their meaning. Imports no module of pdfast."""

from collections.abc import Callable
from typing import Literal, NamedTuple

Parameterization = Literal["x", "eps", "v", "x_eps"]
LossWeight = Literal["constant", "snr", "snr_trunc", "v_mse"]
First = Literal["teacher", "data"]
Second = Literal["teacher", "student"]
LossKind = Literal["l2", "huber"]
Precision = Literal["bf16", "tf32", "fp32"]
Sampler = Literal["ddim", "ancestral"]
Resume = Literal["auto", "strict", "never"]
ExportTarget = Literal["diffusers", "onnx"]
Origin = Literal["diffusers", "edm", "google"]
TrackerName = Literal["tensorboard", "wandb"]


class Output(NamedTuple):
    """The raw output of a network."""

    copies: int
    """Output channels per image channel."""
    holds: str
    """Content of the output, in words."""


# Raw output of a network of each parameterization.
OUTPUTS: dict[Parameterization, Output] = {
    "x": Output(1, "x-hat"),
    "eps": Output(1, "eps-hat"),
    "v": Output(1, "v-hat = alpha eps-hat - sigma x-hat"),
    "x_eps": Output(2, "x-hat, then eps-hat, along the channels"),
}


Combined = Literal["sum", "max"]
COMBINE: dict[Combined, Callable[[tuple[float, float]], float]] = {"sum": sum, "max": max}


class WeightTerms(NamedTuple):
    """A weight of the loss: the sum or the maximum of `alpha2` alpha^2 and `sigma2` sigma^2.

    It multiplies the squared error in v, ||v - v_target||^2 = ||x - x_target||^2 / sigma^2. With
    SNR = alpha^2 / sigma^2, the equal weight of the squared error in x is `alpha2` SNR + `sigma2`,
    or max(`alpha2` SNR, `sigma2`), and that of the squared error in eps is this divided by SNR.
    """

    alpha2: float
    """Coefficient of alpha^2."""
    sigma2: float
    """Coefficient of sigma^2. The weight in v must be above 0 and at most 1 at every angle."""
    combined: Combined = "sum"

    def at(self, snr: float) -> float:
        """Return the weight of the squared error in x at an SNR."""
        return COMBINE[self.combined]((self.alpha2 * snr, self.sigma2))

    def on_x(self) -> str:
        """Return the formula of the weight of the squared error in x."""
        snr = "SNR" if self.alpha2 == 1.0 else f"{self.alpha2:g} SNR"
        if self.combined == "max":
            return f"max({snr}, {self.sigma2:g})"
        terms = (snr if self.alpha2 else "", f"{self.sigma2:g}" if self.sigma2 else "")
        return "+".join(filter(None, terms))


# Definition of each weight, for PyTorch, Triton and --help. Comments: the weight of the error in x.
LOSS_WEIGHTS: dict[LossWeight, WeightTerms] = {
    "constant": WeightTerms(0.0, 1.0),  # 1
    "snr": WeightTerms(1.0, 0.0),  # SNR
    "snr_trunc": WeightTerms(1.0, 1.0, "max"),  # max(SNR, 1)
    "v_mse": WeightTerms(1.0, 1.0),  # SNR + 1
}
