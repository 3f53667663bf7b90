"""A diffusion model: the U-Net, what its output means, and its noise schedule."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal, Unpack, overload

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pdfast.config.former import formerly
from pdfast.config.names import Sampler
from pdfast.config.schema import NetConfig
from pdfast.config.serialization import to_table
from pdfast.diffusion import angles
from pdfast.diffusion.betas import schedule_of
from pdfast.diffusion.conditioning import UNCONDITIONAL, Conditioning
from pdfast.diffusion.rng import Draws, Stream, index_below
from pdfast.diffusion.samplers import check_arguments, denoised
from pdfast.diffusion.schedules import logsnr_of, phi_of
from pdfast.distributed import collectives
from pdfast.errors import PdfastError, UsageError
from pdfast.models import outputs
from pdfast.models.former_names import FormerNames
from pdfast.models.images import to_uint8
from pdfast.models.lanes import Lanes
from pdfast.models.outputs import Output, SampleArguments, SamplingStep
from pdfast.models.unet import UNet

# Images per network call while sampling. Every call has this size, the last one filled up, so that
# the arithmetic of image k, and with it every bit, is the same for any number of images.
SAMPLE_BATCH = 64
LANE_SIZE = 2**14  # numbers, at most, in an image's first feature map, to sample it in a lane


def _finite(images: Tensor) -> Tensor:
    if not images.isfinite().all():
        raise PdfastError(
            "the model's samples hold numbers that are not finite: it has diverged, or computes in "
            "too few digits (--precision fp32)"
        )
    return images


@formerly(head="parameterization")
class Model(FormerNames, nn.Module):
    """A network with its parameterization and schedule.

    `steps` is the number of sampling steps that the model was distilled to, 0 for a teacher.
    Calling the model gives the network's raw output.
    """

    clip: tuple[float, float] | None = (-1.0, 1.0)
    """Where samplers cut x-hat, if they are to."""
    calls: ClassVar[int] = 1
    """Evaluations of the network in a sampling step."""
    in_double: ClassVar[bool] = True
    """Whether it computes in float64 after `.double()`."""
    class_names: tuple[str, ...] = ()
    """Names of its classes, by number, as the data that it learned from had them; () for none."""

    def __init__(self, cfg: NetConfig, steps: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.steps = steps
        self.parameterization = cfg.parameterization
        self.logsnr_min, self.logsnr_max = cfg.logsnr_min, cfg.logsnr_max
        self.schedule = schedule_of(cfg)
        self.net = UNet(cfg)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0: unconditional."""
        return self.cfg.num_classes

    @property
    def label_dropout(self) -> float:
        """Share of images whose class it is not told in training; 0 for a student."""
        return self.cfg.label_dropout

    @property
    def guidance(self) -> tuple[float, ...]:
        """Least and largest guidance weight that it takes as an input; () for none."""
        return self.cfg.guidance

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.cfg.channels, self.cfg.image_size, self.cfg.image_size

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: the same."""
        return self.image_shape

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of images and of the parameters that are never rounded: float32 or float64."""
        return self.net.emb0.weight.dtype

    @property
    def net_dtype(self) -> torch.dtype:
        """Of the convolutions, their input and the raw output: `dtype`, or bfloat16."""
        return self.net.conv_in.weight.dtype

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """Raw output (B, C or 2C, H, W) at z (B, C, H, W), logsnr (B,), label int64 (B,).

        `guidance`: weights (B,), of a guided student. `conditioning` has these two, and whatever
        else there is to tell. Raises ValueError for a wrong shape.
        """
        if z.shape[1:] != self.image_shape or logsnr.shape != z.shape[:1]:
            raise ValueError(
                f"z must have shape (B, {', '.join(map(str, self.image_shape))}) and logsnr (B,), "
                f"not {tuple(z.shape)} and {tuple(logsnr.shape)}"
            )
        z, told = z.to(self.net_dtype), conditioning or Conditioning(label, guidance)
        return self.net(z, logsnr, conditioning=told)  # type: ignore[no-any-return]

    def forward_at_angle(
        self, z: Tensor, phi: Tensor, conditioning: Conditioning = UNCONDITIONAL
    ) -> Tensor:
        """Raw output at z (B, C, H, W) and angle phi (B,), in radians."""
        return self(z, logsnr_of(phi), conditioning=conditioning)  # type: ignore[no-any-return]

    def predict_x_at_angle(
        self, z: Tensor, phi: Tensor, conditioning: Conditioning = UNCONDITIONAL
    ) -> Tensor:
        """x-hat (B, C, H, W) at z (B, C, H, W) and angle phi (B,), unclipped."""
        out = self.forward_at_angle(z, phi, conditioning).to(z)
        return angles.predict_x(z, out, phi, self.parameterization)

    def films_at_angle(self, phi: Tensor) -> Tensor:
        """FiLM parameters of all residual blocks at angle phi (B,), without classes."""
        return self.net.films(logsnr_of(phi))

    def predict_x(self, z: Tensor, logsnr: Tensor | float, label: Tensor | None = None) -> Tensor:
        """x-hat (B, C, H, W), unclipped, at z (B, C, H, W) and logsnr (B,), in z's dtype.

        A number for `logsnr` is that of all.
        """
        if not isinstance(logsnr, Tensor):
            logsnr = torch.full((len(z),), logsnr, dtype=z.dtype, device=z.device)
        return angles.predict_x(
            z, self(z, logsnr, label).to(z), phi_of(logsnr), self.parameterization
        )

    def lanes(self, batches: int) -> Lanes:
        """The lanes that so many batches are sampled in: on a CPU, of a small network.

        A larger one keeps all cores busy, and needs the memory.
        """
        _, height, width = self.image_shape
        small = self.cfg.ch * height * width <= LANE_SIZE
        return Lanes(batches if small and self.device.type == "cpu" else 0)

    @property
    def pictures(self) -> bool:
        """Whether samples are pictures: of 1 or 3 channels, in [-1, 1]."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3) and self.clip == (-1.0, 1.0)

    @overload
    def sample(
        self,
        num: int,
        steps: int = 0,
        seed: int = 0,
        label: Tensor | None = None,
        noise: Tensor | None = None,
        clip: bool = True,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        *,
        output: Literal["pt"] = "pt",
        callback: Callable[[SamplingStep], object] | None = None,
    ) -> Tensor: ...

    @overload
    def sample(
        self, num: int, steps: int = 0, *, output: Literal["np"], **more: Unpack[SampleArguments]
    ) -> NDArray[Any]: ...

    @overload
    def sample(
        self, num: int, steps: int = 0, *, output: Literal["pil"], **more: Unpack[SampleArguments]
    ) -> list[Image.Image]: ...

    def sample(
        self,
        num: int,
        steps: int = 0,
        seed: int = 0,
        label: Tensor | None = None,
        noise: Tensor | None = None,
        clip: bool = True,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        *,
        output: Output = "pt",
        callback: Callable[[SamplingStep], object] | None = None,
    ) -> Tensor | NDArray[Any] | list[Image.Image]:
        """Images (num, C, H, W) in [-1, 1], in the model's dtype and on its device; of a network of
        one's own samples (num, *shape), cut where it was given an interval.

        `steps` 0: the number that the model was distilled to. Image k depends on (seed, k) alone,
        whatever `num` is. `label`, int64 of shape (num,), is
        for a class-conditional model; left out, classes are drawn by counter. `noise`,
        (num, *shape), replaces the drawn start. `sampler` is "ddim" or "ancestral", the latter
        with `variance` from 0 (small) to 1 (large).

        `output`: "pt" for that tensor; "np" for an array, uint8 (num, H, W, C) of pictures, of
        other samples (num, *shape) as they are; "pil" for a list of pictures. `callback` is called
        after each step of each batch with a `SamplingStep`: how many are done, and the x-hats; what
        it raises ends the sampling. Raises UsageError for a wrong argument, PdfastError for samples
        that are to be pictures and are not finite.
        """
        outputs.check(output, self.pictures, self.shape)
        if noise is not None:
            if noise.shape != (num, *self.shape):
                raise UsageError(
                    f"noise must have shape {(num, *self.shape)}, not {tuple(noise.shape)}"
                )
            noise = noise.reshape(num, *self.image_shape)
        steps = steps or self.steps
        total, done = steps * -(-num // SAMPLE_BATCH), itertools.count(1)

        def report(first: int, left: int, x_hat: Tensor) -> None:
            if callback is not None:
                copied = x_hat.reshape(-1, *self.shape).clone()
                callback(SamplingStep(next(done), total, first, (left + 1) / steps, copied))

        batches = self.sample_batches(
            num, steps, seed, label, noise, clip, sampler, variance, on_x_hat=report
        )
        samples = torch.cat(list(batches)).reshape(num, *self.shape)
        if output == "pt":
            return samples
        finite = _finite(samples)
        if output == "pil":
            return outputs.to_pictures(finite)
        return outputs.to_array(finite, self.pictures)

    @torch.no_grad()
    def sample_batches(
        self,
        num: int,
        steps: int,
        seed: int = 0,
        label: Tensor | None = None,
        noise: Tensor | None = None,
        clip: bool = True,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        on_step: Callable[[], None] = lambda: None,
        batches: range | None = None,
        on_x_hat: Callable[[int, int, Tensor], None] = lambda first, left, x_hat: None,
    ) -> Iterator[Tensor]:
        """What `sample` returns, a batch at a time; `on_step` is called at each network call.

        `on_x_hat` is called after it, with the number of the batch's first image, the steps left
        and x-hat (B, C, H, W), which it must not change.
        `batches` chooses some of the batches 0, 1, ... of SAMPLE_BATCH images; all if left out.
        """
        check_arguments(steps, sampler, variance, self.schedule.most_steps)
        self.check_steps(steps)
        if num < 1:
            raise UsageError(f"num must be at least 1, not {num}")
        if not 0 <= seed < 2**32:
            raise UsageError(f"seed must be in 0 .. 4294967295, not {seed}")
        if self.guidance:
            raise UsageError(
                "this model is a guided student: pass --guidance, in Python sample of "
                "pdfast.guided(model, w)"
            )
        if label is not None:
            self._check_label(label, num)
        chosen = range(-(-num // SAMPLE_BATCH)) if batches is None else batches
        draws = Draws(seed, Stream.SAMPLE, device=self.device)

        @torch.no_grad()
        def denoising(start: int, used: int) -> Iterator[Tensor]:
            """The x-hats of a batch, step by step; of `used` of its images they are asked for."""

            def normal(step: int) -> Tensor:
                return draws.normal(step, start, SAMPLE_BATCH, self.image_shape).to(self.dtype)

            z, labels = normal(0), self._labels(draws, start)
            if noise is not None:
                z[:used] = noise[start : start + used].to(z)
            if label is not None and labels is not None:
                labels[:used] = label[start : start + used].to(labels)
            yield from denoised(
                self,
                z,
                steps,
                clip=self.clip if clip else None,
                conditioning=Conditioning(labels),
                sampler=sampler,
                variance=variance,
                noise=normal,
            )

        training = self.training
        lanes = self.lanes(len(chosen))
        try:
            self.eval()
            for first in range(0, len(chosen), lanes.number):
                starts = [k * SAMPLE_BATCH for k in chosen[first : first + lanes.number]]
                used = [min(SAMPLE_BATCH, num - start) for start in starts]
                runs = [denoising(*batch) for batch in zip(starts, used, strict=True)]
                for left in reversed(range(steps)):
                    for _ in runs:
                        on_step()
                    x_hats = lanes.together([partial(next, run) for run in runs])
                    for start, n, x_hat in zip(starts, used, x_hats, strict=True):
                        on_x_hat(start, left, x_hat[:n])
                yield from (x_hat[:n] for n, x_hat in zip(used, x_hats, strict=True))
        finally:
            lanes.close()
            self.train(training)

    def sample_images(
        self,
        num: int,
        steps: int,
        seed: int = 0,
        label: Tensor | None = None,
        *,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        on_step: Callable[[], None] = lambda: None,
        first: int = 0,
    ) -> Tensor:
        """What `sample` returns, as `to_stored` has it; the processes of a run share the work.

        Every process gets all images, and their bits do not depend on how many processes there
        are. `on_step` is called steps * calls_for(num) times on each. `first`, a multiple of
        SAMPLE_BATCH: the images are those from there on, and `label` is theirs.
        """
        if label is not None and first:
            self._check_label(label, num)
            label = torch.cat([label.new_zeros(first), label])  # of those that are not made
        mine, before = collectives.dealt(-(-num // SAMPLE_BATCH)), first // SAMPLE_BATCH
        batches = range(before + mine.start, before + mine.stop, mine.step)
        made = self.sample_batches(
            first + num, steps, seed, label, None, True, sampler, variance, on_step, batches
        )
        images = [self.to_stored(_finite(batch)) for batch in made]
        for _ in range(steps * (self.calls_for(num) - len(images))):
            on_step()  # in which processes may wait for one another
        return collectives.gather(images, num, SAMPLE_BATCH).to(self.device)

    def drawn_labels(self, num: int, seed: int) -> Tensor | None:
        """The classes, int64 (num,) on the CPU, of the images that `sample` makes when left to
        draw them; None of an unconditional model.
        """
        if not self.num_classes:
            return None
        draws = Draws(seed, Stream.SAMPLE, device=self.device)
        parts = (self._labels(draws, first) for first in range(0, num, SAMPLE_BATCH))
        return torch.cat([part.cpu() for part in parts if part is not None])[:num]

    def to_stored(self, images: Tensor) -> Tensor:
        """Samples (N, C, H, W) as they are kept and judged: uint8 (N, H, W, C)."""
        return to_uint8(images)

    @staticmethod
    def calls_for(num: int) -> int:
        """Network calls of each sampling step for `num` images: those of the first process."""
        return -(-num // (SAMPLE_BATCH * collectives.size()))

    # -- what training and files need ------------------------------------------------------

    def remove_dropout(self) -> None:
        """Change the config for distillation, which uses no dropout, of labels neither."""
        self.cfg = self.cfg.without_dropout()

    def set_checkpoint(self, on: bool) -> None:
        """Whether the net keeps its blocks' inputs alone for the backward pass."""
        self.net.checkpoint = on

    def check_steps(self, steps: int) -> None:
        """Nothing: it was trained for all noise levels of its schedule."""

    def describe(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "model": to_table(self.cfg),
            "steps": self.steps,
            "classes": list(self.class_names),
        }

    def weights(self) -> dict[str, Tensor]:
        """What model.safetensors holds, by name."""
        return self.net.state_dict()

    def _check_label(self, label: Tensor, num: int) -> None:
        if not self.num_classes:
            raise UsageError("this model is unconditional: leave label out")
        ok = label.shape == (num,) and not label.is_floating_point()
        if not ok or label.min() < 0 or label.max() >= self.num_classes:
            raise UsageError(f"label must hold {num} whole numbers in 0 .. {self.num_classes - 1}")

    def _labels(self, draws: Draws, first: int) -> Tensor | None:
        if not self.num_classes:
            return None
        return index_below(draws.class_words(first, SAMPLE_BATCH), self.num_classes)
