"""A diffusion model: a U-Net with its parameterization and noise schedule."""

import contextlib
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
from pdfast.diffusion.samplers import Denoiser, check_arguments, denoised
from pdfast.diffusion.schedules import logsnr_of, phi_of
from pdfast.distributed import collectives
from pdfast.errors import PdfastError, UsageError
from pdfast.models import outputs
from pdfast.models.captured import denoiser_of
from pdfast.models.former_names import FormerNames
from pdfast.models.images import to_uint8
from pdfast.models.lanes import Lanes
from pdfast.models.outputs import Labels, Output, SampleArguments, SamplingStep
from pdfast.models.unet import UNet

# Images per network call while sampling. Every call has this size; the last one is padded, so that
# the bits of image k are the same for any number of images.
SAMPLE_BATCH = 64
LANE_SIZE = 2**14  # largest first feature map of an image, in numbers, of a model sampled in lanes


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

    Calling the model returns the network's raw output. `steps` is the number of sampling steps that
    the model was distilled to; 0 for a teacher.

    Example:
        ```python
        model = pdfast.load("digits", steps=4)
        images = model.sample(16, output="pil")
        ```
    """

    clip: tuple[float, float] | None = (-1.0, 1.0)
    """Interval that samplers clip x-hat to; None for no clipping."""
    calls: ClassVar[int] = 1
    """Evaluations of the network per sampling step."""
    in_double: ClassVar[bool] = True
    """Whether the network computes in float64 after `.double()`."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the training data, by number; () for none."""

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
        """Number of classes; 0 for an unconditional model."""
        return self.cfg.num_classes

    @property
    def label_dropout(self) -> float:
        """Share of training images whose class is hidden from the network; 0 for a student."""
        return self.cfg.label_dropout

    @property
    def guidance(self) -> tuple[float, ...]:
        """Range of the guidance weight that the network takes as an input; () for none."""
        return self.cfg.guidance

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.cfg.channels, self.cfg.image_size, self.cfg.image_size

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample; differs from `image_shape` only for custom networks."""
        return self.image_shape

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of images and of the parameters that stay in full precision: float32 or float64."""
        return self.net.emb0.weight.dtype

    @property
    def net_dtype(self) -> torch.dtype:
        """Type of the convolutions, their input and the raw output: `dtype`, or bfloat16."""
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
        """Return the network's raw output.

        Args:
            z: Noisy images (B, C, H, W).
            logsnr: Noise levels log(alpha^2 / sigma^2), (B,).
            label: Classes, int64 (B,), of a class-conditional model.
            guidance: Guidance weights (B,), of a guided student.
            conditioning: All conditioning at once; replaces `label` and `guidance`.

        Returns:
            Raw output (B, C, H, W), of `net_dtype`; (B, 2C, H, W) for x_eps.

        Raises:
            ValueError: A shape is wrong, or a required input is missing.
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
        """Return the raw output at z (B, C, H, W) and angle phi (B,), in radians."""
        return self(z, logsnr_of(phi), conditioning=conditioning)  # type: ignore[no-any-return]

    def predict_x_at_angle(
        self, z: Tensor, phi: Tensor, conditioning: Conditioning = UNCONDITIONAL
    ) -> Tensor:
        """Return x-hat (B, C, H, W), unclipped, at z (B, C, H, W) and angle phi (B,) in radians."""
        out = self.forward_at_angle(z, phi, conditioning).to(z)
        return angles.predict_x(z, out, phi, self.parameterization)

    def films_at_angle(self, phi: Tensor) -> Tensor:
        """Return the FiLM parameters of all residual blocks at angle phi (B,), without classes."""
        return self.net.films(logsnr_of(phi))

    def predict_x(self, z: Tensor, logsnr: Tensor | float, label: Labels | None = None) -> Tensor:
        """Return the prediction x-hat of the clean images, unclipped.

        Args:
            z: Noisy images (B, C, H, W).
            logsnr: Noise levels log(alpha^2 / sigma^2), (B,), or one number for all images.
            label: Classes of a class-conditional model: B whole numbers, as a tensor, an array or a
                list.

        Returns:
            x-hat (B, C, H, W), of z's dtype.

        Raises:
            ValueError: A shape is wrong, or `label` is missing.
        """
        if label is not None and not isinstance(label, Tensor):
            label = self._asked_labels(label, len(z)).to(z.device)
        if not isinstance(logsnr, Tensor):
            logsnr = torch.full((len(z),), logsnr, dtype=z.dtype, device=z.device)
        return angles.predict_x(
            z, self(z, logsnr, label).to(z), phi_of(logsnr), self.parameterization
        )

    def lanes(self, batches: int) -> Lanes:
        """Return lanes to sample that many batches in parallel.

        Only a small network on a CPU uses more than one lane. A larger one keeps all cores busy by
        itself, and parallel batches would need more memory.
        """
        _, height, width = self.image_shape
        small = self.cfg.ch * height * width <= LANE_SIZE
        return Lanes(batches if small and self.device.type == "cpu" else 0)

    def denoiser(self, calls: int) -> contextlib.AbstractContextManager[Denoiser]:
        """Provide what the sampler calls that many times: on a GPU a CUDA graph of the call."""
        return denoiser_of(self, SAMPLE_BATCH, calls)

    @property
    def pictures(self) -> bool:
        """Whether samples are pictures: 1 or 3 channels, clipped to [-1, 1]."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3) and self.clip == (-1.0, 1.0)

    @overload
    def sample(
        self,
        num: int,
        steps: int = 0,
        seed: int = 0,
        label: Labels | None = None,
        noise: Tensor | NDArray[Any] | None = None,
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
        label: Labels | None = None,
        noise: Tensor | NDArray[Any] | None = None,
        clip: bool = True,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        *,
        output: Output = "pt",
        callback: Callable[[SamplingStep], object] | None = None,
    ) -> Tensor | NDArray[Any] | list[Image.Image]:
        """Draw samples, from pure noise in `steps` sampling steps.

        Sample k depends on (seed, k) alone, not on `num`. For classifier-free guidance of weight w,
        sample `pdfast.guided(model, w)`.

        Args:
            num: Number of samples.
            steps: Number of sampling steps; 0 for the number that the model was distilled to. A
                teacher needs it.
            seed: Seed, 0 to 2^32 - 1.
            label: Classes of a class-conditional model: `num` whole numbers, as a tensor, an array
                or a list; None draws them.
            noise: Initial noise (num, *shape), a tensor or an array; None draws it.
            clip: Clip x-hat at every step, to [-1, 1] or a custom network's own interval.
            sampler: "ddim" (deterministic) or "ancestral".
            variance: Variance of the ancestral sampler, from 0 (small) to 1 (large); see
                `diffusion.samplers.ancestral_to`.
            output: "pt" for a tensor, "np" for an array, "pil" for a list of pictures.
            callback: Called with a `SamplingStep` after each step of each batch. An exception that
                it raises ends the sampling.

        Returns:
            "pt": a tensor (num, C, H, W), or (num, *shape) of a custom network, of the model's
            dtype and on its device. "np": uint8 (num, H, W, C) if the samples are pictures, else
            the tensor as an array. "pil": a list of `num` pictures.

        Raises:
            UsageError: An argument is wrong.
            PdfastError: `output` is "np" or "pil", and the samples are not finite.
        """
        outputs.check(output, self.pictures, self.shape)
        if noise is not None:
            noise = torch.as_tensor(noise)
            if noise.shape != (num, *self.shape):
                raise UsageError(
                    f"noise must have shape {(num, *self.shape)}, not {tuple(noise.shape)}"
                )
            noise = noise.reshape(num, *self.image_shape)
        steps = steps or self.steps
        if not steps:
            raise UsageError(
                "this model is a teacher, made for any number of steps: pass steps, such as 64"
            )
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
        label: Labels | None = None,
        noise: Tensor | None = None,
        clip: bool = True,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        on_step: Callable[[], None] = lambda: None,
        batches: range | None = None,
        on_x_hat: Callable[[int, int, Tensor], None] = lambda first, left, x_hat: None,
    ) -> Iterator[Tensor]:
        """Yield the samples of `sample` one batch at a time.

        Args:
            num: Number of samples.
            steps: Number of sampling steps, at least 1.
            seed: As in `sample`.
            label: As in `sample`.
            noise: Initial noise (num, C, H, W); None draws it.
            clip: As in `sample`.
            sampler: As in `sample`.
            variance: As in `sample`.
            on_step: Called before each network call.
            batches: Numbers of the batches to draw, each of SAMPLE_BATCH samples; None for all.
            on_x_hat: Called after each network call with the number of the batch's first sample,
                the steps left, and x-hat (B, C, H, W), which it must not change.

        Yields:
            Samples (B, C, H, W); B is SAMPLE_BATCH, or less in the last batch of all.

        Raises:
            UsageError: An argument is wrong.
        """
        check_arguments(steps, sampler, variance, self.schedule.most_steps)
        self.check_steps(steps)
        if num < 1:
            raise UsageError(f"num must be at least 1, not {num}")
        if not 0 <= seed < 2**32:
            raise UsageError(f"seed must be in 0 .. 4294967295, not {seed}")
        if self.guidance:
            raise UsageError(
                "this model is a guided student: sample pdfast.guided(model, w), with a weight w"
            )
        asked = None if label is None else self._asked_labels(label, num)
        chosen = range(-(-num // SAMPLE_BATCH)) if batches is None else batches
        draws = Draws(seed, Stream.SAMPLE, device=self.device)

        @torch.no_grad()
        def denoising(denoiser: Denoiser, start: int, used: int) -> Iterator[Tensor]:
            """Yield the x-hats of a batch step by step; `used` of its images are returned."""

            def normal(step: int) -> Tensor:
                return draws.normal(step, start, SAMPLE_BATCH, self.image_shape).to(self.dtype)

            z, labels = normal(0), self._labels(draws, start)
            if noise is not None:
                z[:used] = noise[start : start + used].to(z)
            if asked is not None and labels is not None:
                labels[:used] = asked[start : start + used].to(labels)
            yield from denoised(
                denoiser,
                z,
                steps,
                clip=self.clip if clip else None,
                conditioning=Conditioning(labels),
                sampler=sampler,
                variance=variance,
                noise=normal,
            )

        training = self.training
        self.eval()
        try:
            with (
                contextlib.closing(self.lanes(len(chosen))) as lanes,
                self.denoiser(steps * len(chosen)) as denoiser,
            ):
                for first in range(0, len(chosen), lanes.number):
                    starts = [k * SAMPLE_BATCH for k in chosen[first : first + lanes.number]]
                    used = [min(SAMPLE_BATCH, num - start) for start in starts]
                    runs = [denoising(denoiser, *batch) for batch in zip(starts, used, strict=True)]
                    for left in reversed(range(steps)):
                        for _ in runs:
                            on_step()
                        x_hats = lanes.together([partial(next, run) for run in runs])
                        for start, n, x_hat in zip(starts, used, x_hats, strict=True):
                            on_x_hat(start, left, x_hat[:n])
                    yield from (x_hat[:n] for n, x_hat in zip(used, x_hats, strict=True))
        finally:
            self.train(training)

    def sample_images(
        self,
        num: int,
        steps: int,
        seed: int = 0,
        label: Labels | None = None,
        *,
        sampler: Sampler = "ddim",
        variance: float = 1.0,
        on_step: Callable[[], None] = lambda: None,
        first: int = 0,
    ) -> Tensor:
        """Draw samples as `sample` does, in the stored form; the processes of a run share the work.

        Every process gets all images. Their bits do not depend on the number of processes.

        Args:
            num: Number of images.
            steps: Number of sampling steps, at least 1.
            seed: As in `sample`.
            label: Classes of these images, int64 (num,); None draws them.
            sampler: As in `sample`.
            variance: As in `sample`.
            on_step: Called steps * calls_for(num) times in every process.
            first: Number of the first image, a multiple of SAMPLE_BATCH.

        Returns:
            Images as `to_stored` returns them, on the model's device.

        Raises:
            UsageError: An argument is wrong.
            PdfastError: The samples are not finite.
        """
        if label is not None and first:
            label = self._asked_labels(label, num)
            label = torch.cat([label.new_zeros(first), label])  # for the images before `first`
        mine, before = collectives.dealt(-(-num // SAMPLE_BATCH)), first // SAMPLE_BATCH
        batches = range(before + mine.start, before + mine.stop, mine.step)
        made = self.sample_batches(
            first + num, steps, seed, label, None, True, sampler, variance, on_step, batches
        )
        images = [self.to_stored(_finite(batch)) for batch in made]
        for _ in range(steps * (self.calls_for(num) - len(images))):
            on_step()  # every process needs the same number of calls, in which it may wait
        return collectives.gather(images, num, SAMPLE_BATCH).to(self.device)

    def drawn_labels(self, num: int, seed: int) -> Tensor | None:
        """Return the classes that `sample` draws if none are passed.

        Args:
            num: Number of images.
            seed: Seed of the samples.

        Returns:
            int64 (num,), on the CPU; None for an unconditional model.
        """
        if not self.num_classes:
            return None
        draws = Draws(seed, Stream.SAMPLE, device=self.device)
        parts = (self._labels(draws, first) for first in range(0, num, SAMPLE_BATCH))
        return torch.cat([part.cpu() for part in parts if part is not None])[:num]

    def to_stored(self, images: Tensor) -> Tensor:
        """Return samples (N, C, H, W) as they are stored and evaluated: uint8 (N, H, W, C)."""
        return to_uint8(images)

    @staticmethod
    def calls_for(num: int) -> int:
        """Return the first process's network calls per sampling step of `num` images."""
        return -(-num // (SAMPLE_BATCH * collectives.size()))

    # -- for training and files ------------------------------------------------------------

    def remove_dropout(self) -> None:
        """Set dropout and label dropout of the config to 0, as for distillation."""
        self.cfg = self.cfg.without_dropout()

    def set_checkpoint(self, on: bool) -> None:
        """Turn activation checkpointing on or off; see `UNet.checkpoint`."""
        self.net.checkpoint = on

    def check_steps(self, steps: int) -> None:
        """Accept any number of steps; custom networks may refuse some."""

    def describe(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        return {
            "model": to_table(self.cfg),
            "steps": self.steps,
            "classes": list(self.class_names),
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the contents of model.safetensors: the tensors, by name."""
        return self.net.state_dict()

    def _asked_labels(self, label: Labels, num: int) -> Tensor:
        """Return the classes of a call as a tensor (num,); raise UsageError for wrong ones."""
        if not self.num_classes:
            raise UsageError("this model is unconditional: omit label")
        wrong = UsageError(f"label must hold {num} whole numbers in 0 .. {self.num_classes - 1}")
        try:
            asked = torch.as_tensor(label)
        except (TypeError, ValueError, RuntimeError):  # such as names, and lists of lists
            raise wrong from None
        ok = asked.shape == (num,) and not asked.is_floating_point()
        if not ok or asked.min() < 0 or asked.max() >= self.num_classes:
            raise wrong
        return asked

    def _labels(self, draws: Draws, first: int) -> Tensor | None:
        if not self.num_classes:
            return None
        return index_below(draws.class_words(first, SAMPLE_BATCH), self.num_classes)
