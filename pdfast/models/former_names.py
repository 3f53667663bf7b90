"""Methods of a model by their names of version 0.1."""

import warnings
from typing import Any

from torch import Tensor

from pdfast.diffusion.conditioning import Conditioning


def _renamed(old: str, new: str) -> None:
    """Warn the caller's caller of a method's old name."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


class FormerNames:
    """What a model has under its old names, each with a warning."""

    def at(
        self: Any,
        z: Tensor,
        phi: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """`forward_at_angle`, by its old name."""
        _renamed("Model.at", "Model.forward_at_angle(z, phi, Conditioning(label, guidance))")
        return self.forward_at_angle(z, phi, Conditioning(label, guidance))  # type: ignore[no-any-return]

    def predict_x_at(self: Any, z: Tensor, phi: Tensor, label: Tensor | None = None) -> Tensor:
        """`predict_x_at_angle`, by its old name."""
        _renamed("Model.predict_x_at", "Model.predict_x_at_angle(z, phi, Conditioning(label))")
        return self.predict_x_at_angle(z, phi, Conditioning(label))  # type: ignore[no-any-return]
