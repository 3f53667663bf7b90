"""Classifier-free guidance (Ho & Salimans 2022), at sampling and in a distilled student.

The guided prediction is y(class) + w (y(class) - y(no class)), with w = 0 for no guidance. (The
guidance scale of diffusers is 1 + w.) It is the same in x-hat, eps-hat and v-hat, which are linear
in the network's raw output, and takes two evaluations per step. A student distilled with the
guidance weight as an input (Meng et al. 2022) takes one.
"""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from pdfast.config.model import MAX_WEIGHT
from pdfast.diffusion.conditioning import NO_CLASS, Conditioning
from pdfast.diffusion.schedules import logsnr_of
from pdfast.errors import UsageError
from pdfast.kernels.angles import per_image
from pdfast.models.model import Model


def guided(model: Model, weight: float) -> Model:
    """Return the model with classifier-free guidance of a weight.

    Example:
        ```python
        teacher = pdfast.load("runs/digits_guided/teacher")  # trained with label dropout
        images = pdfast.guided(teacher, 1.5).sample(16, steps=64)
        ```

    Args:
        model: A teacher trained with label dropout, or a guided student.
        weight: w, at least 0.

    Returns:
        For a teacher, a model that shares its parameters. For a guided student, an ordinary
        class-conditional copy with the weight fixed.

    Raises:
        UsageError: The model cannot be guided, or not with this weight.
    """
    if not 0 <= weight <= MAX_WEIGHT:
        raise UsageError(f"guidance must be in 0 .. {MAX_WEIGHT}, not {weight}")
    if model.guidance:
        least, most = model.guidance
        if not least <= weight <= most:
            raise UsageError(
                f"guidance {weight:g} is outside {least:g} .. {most:g}, which this student learned"
            )
        return _fixed(model, weight)
    if not weight:
        return model
    if not model.label_dropout:
        raise UsageError(
            "this model cannot be guided, since it was always given the class: train a "
            "class-conditional teacher with model.label_dropout 0.1, or, where a label of an "
            "imported network means no class, import it again with --null-class"
            if model.num_classes
            else "this model is unconditional and cannot be guided: omit guidance"
        )
    return Guided(model, weight)


def _fixed(student: Model, weight: float) -> Model:
    """Return a copy of a guided student with the weight's embedding folded into a bias."""
    model = copy.deepcopy(student)
    net = model.net
    with torch.no_grad():
        w = torch.full((1,), weight, device=model.device, dtype=model.dtype)
        net.emb0.bias.add_(net.guide(w)[0])
    net.emb_guidance = None
    model.cfg = dataclasses.replace(model.cfg, guidance=())
    net.cfg = dataclasses.replace(net.cfg, guidance=())
    return model


class Guided(Model):
    """A teacher that is evaluated with and without the class at each step."""

    calls = 2

    def __init__(self, model: Model, weight: float) -> None:
        nn.Module.__init__(self)
        self.cfg, self.steps, self.parameterization = model.cfg, model.steps, model.parameterization
        self.logsnr_min, self.logsnr_max = model.logsnr_min, model.logsnr_max
        self.schedule, self.net, self.weight = model.schedule, model.net, weight
        self.class_names = model.class_names

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """Return the guided raw output, of the images' dtype; see `Model.forward`."""
        label = label if conditioning is None else conditioning.label
        assert label is not None
        both = super().forward(*_twice(z, logsnr, label))
        return _combined(both.to(self.dtype), self.weight)


def guided_out(teacher: Model, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
    """Return the teacher's raw output, guided by a weight for each image.

    Args:
        teacher: A class-conditional teacher trained with label dropout.
        z: Noisy images (B, C, H, W).
        phi: Angles in radians (B,).
        conditioning: Classes and guidance weights of the images.

    Returns:
        Raw output (B, C or 2C, H, W), float32, or float64 if the teacher is float64.
    """
    assert conditioning.label is not None
    assert conditioning.guidance is not None
    both = teacher(*_twice(z, logsnr_of(phi), conditioning.label)).to(teacher.dtype)
    return _combined(both, per_image(conditioning.guidance, both))


def _twice(z: Tensor, logsnr: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch with its classes followed by the same batch without them."""
    labels = torch.cat([label, torch.full_like(label, NO_CLASS)])
    return torch.cat([z, z]), torch.cat([logsnr, logsnr]), labels


def _combined(both: Tensor, w: float | Tensor) -> Tensor:
    told, untold = both.chunk(2)
    return told + w * (told - untold)
