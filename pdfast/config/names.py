"""Names that a config, a flag or a call may give, and what they mean. Imports nothing."""

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
TrackerName = Literal["tensorboard", "wandb"]


class Output(NamedTuple):
    """A network's raw output."""

    copies: int
    """Its channels for each of the image's."""
    holds: str


# What a network of each parameterization puts out, for all that reads its shape or explains it.
OUTPUTS: dict[Parameterization, Output] = {
    "x": Output(1, "x-hat"),
    "eps": Output(1, "eps-hat"),
    "v": Output(1, "v-hat = alpha eps-hat - sigma x-hat"),
    "x_eps": Output(2, "x-hat, then eps-hat, along the channels"),
}


class WeightTerms(NamedTuple):
    """A weight of the loss: the sum or the larger one of `alpha2` alpha^2 and `sigma2` sigma^2.

    That weighs ||v - v_target||^2, which is ||x - x_target||^2 / sigma^2. On the squared error in x
    it is `alpha2` SNR + `sigma2`, or max(`alpha2` SNR, `sigma2`), with SNR = alpha^2 / sigma^2; on
    that in eps it is this divided by SNR. Both coefficients are from 0 to 1, and so is then the
    weight in v, as alpha^2 + sigma^2 = 1.
    """

    alpha2: float
    sigma2: float
    combined: Literal["sum", "max"] = "sum"

    def on_x(self) -> str:
        """What it is on the squared error in x, as formulas are written."""
        snr = "SNR" if self.alpha2 == 1.0 else f"{self.alpha2:g} SNR"
        if self.combined == "max":
            return f"max({snr}, {self.sigma2:g})"
        terms = (snr if self.alpha2 else "", f"{self.sigma2:g}" if self.sigma2 else "")
        return "+".join(filter(None, terms))


# What each weight is, for PyTorch, for Triton and for --help. On the squared error in x:
LOSS_WEIGHTS: dict[LossWeight, WeightTerms] = {
    "constant": WeightTerms(0.0, 1.0),  # 1
    "snr": WeightTerms(1.0, 0.0),  # SNR
    "snr_trunc": WeightTerms(1.0, 1.0, "max"),  # max(SNR, 1)
    "v_mse": WeightTerms(1.0, 1.0),  # SNR + 1
}
