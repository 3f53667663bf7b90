"""Classifier-free guidance (Ho & Salimans 2022), at sampling and in a distilled student.

The guided prediction is y(class) + w (y(class) - y(no class)): what the network makes of the class
counts 1 + w times, w = 0 being no guidance. (Where 1 + w is called the guidance scale, as in
diffusers, that is what is meant.) It is the same in x-hat, eps-hat and v-hat, which are linear in
the network's raw output, and takes two evaluations a step. A student that was distilled with the
weight as an input (Meng et al. 2022) takes one.
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
    """The model with classifier-free guidance of a weight; it shares the model's parameters.

    A guided student becomes one of that weight alone, an ordinary class-conditional model. Raises
    UsageError where the model cannot be guided, or not by this weight.
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
            "class-conditional teacher with model.label_dropout 0.1"
            if model.num_classes
            else "this model is unconditional, and cannot be guided: leave guidance out"
        )
    return Guided(model, weight)


def _fixed(student: Model, weight: float) -> Model:
    """What the weight adds to the embedding is one vector: it goes into that layer's bias."""
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
    """A teacher that is evaluated with the class and without at each step."""

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
        """Guided raw output, in the dtype of images; arguments as of other models."""
        label = label if conditioning is None else conditioning.label
        assert label is not None
        both = super().forward(*_twice(z, logsnr, label))
        return _combined(both.to(self.dtype), self.weight)


def guided_out(teacher: Model, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
    """The teacher's raw output at z (B, C, H, W) and phi (B,), guided by each image's own weight.

    It is float32, or float64 where the teacher is.
    """
    assert conditioning.label is not None
    assert conditioning.guidance is not None
    both = teacher(*_twice(z, logsnr_of(phi), conditioning.label)).to(teacher.dtype)
    return _combined(both, per_image(conditioning.guidance, both))


def _twice(z: Tensor, logsnr: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch with its classes, then without."""
    labels = torch.cat([label, torch.full_like(label, NO_CLASS)])
    return torch.cat([z, z]), torch.cat([logsnr, logsnr]), labels


def _combined(both: Tensor, w: float | Tensor) -> Tensor:
    told, untold = both.chunk(2)
    return told + w * (told - untold)
