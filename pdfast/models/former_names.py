"""Methods of a model under their names of version 0.1."""

import warnings
from typing import Any

from torch import Tensor

from pdfast.diffusion.conditioning import Conditioning


def _renamed(old: str, new: str) -> None:
    """Warn of a method's old name, at the line that called the method."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


class FormerNames:
    """Methods under their old names, each with a deprecation warning."""

    def at(
        self: Any,
        z: Tensor,
        phi: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Call `forward_at_angle`, under its old name."""
        _renamed("Model.at", "Model.forward_at_angle(z, phi, Conditioning(label, guidance))")
        return self.forward_at_angle(z, phi, Conditioning(label, guidance))  # type: ignore[no-any-return]

    def predict_x_at(self: Any, z: Tensor, phi: Tensor, label: Tensor | None = None) -> Tensor:
        """Call `predict_x_at_angle`, under its old name."""
        _renamed("Model.predict_x_at", "Model.predict_x_at_angle(z, phi, Conditioning(label))")
        return self.predict_x_at_angle(z, phi, Conditioning(label))  # type: ignore[no-any-return]
