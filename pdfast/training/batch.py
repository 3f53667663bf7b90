"""A batch: its images, its random numbers, and the conditioning of the network."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pdfast.config.schema import Config, LoopConfig, Parameterization
from pdfast.data.dataset import Dataset
from pdfast.diffusion.angles import Noised, NoiseOptions, add_noise
from pdfast.diffusion.conditioning import NO_CLASS, Conditioning, DropoutRng
from pdfast.diffusion.schedules import Grid
from pdfast.distributed import collectives
from pdfast.models.model import Model
from pdfast.training.image_stream import Resident, Streamed, open_source

HELD_OUT_BATCH = 64  # held-out images in a batch


@dataclass(frozen=True)
class Batch:
    """The images and draws of a batch; `noised` makes the noisy batch for an objective."""

    images: Tensor
    """The whole set (M, H, W, C), uint8 or float32; with a population, this process's images."""
    labels: Tensor | None
    """Class labels of the whole set, int64; of the images if these are taken in order."""
    population: int
    """Size of the set, if `images` holds only the batch's images; otherwise 0."""
    size: int
    """Number of images."""
    first: int
    """Position of the first image in the global batch."""
    update: Tensor
    """Number of the update, int64 (1,), on the device."""
    seed: int
    round_: int
    flip: bool
    """Whether half of the images are mirrored."""
    dtype: torch.dtype
    """Dtype of the networks."""
    label_dropout: float = 0.0
    """Share of the images whose class is hidden from the network."""
    guidance: tuple[float, ...] = ()
    """Interval that guidance weights are drawn from, uniformly; () for no guidance weight."""
    rows: Tensor | None = None
    """Numbers of the images that may be drawn, int64, on the device; None: all of them."""
    fixed: bool = False
    """Whether draws come from the streams of the fixed batch and the held-out images."""
    in_order: bool = False
    """Whether the images are not drawn, but taken in order from a population."""
    shuffled_by: int = 0
    """Size of the global batch, if images are drawn without replacement; otherwise 0."""
    phase: Tensor | None = None
    """Round, number of steps N, and number of teacher steps that each merges, int64 (3,), on the
    device; or None. Where it is given, discrete times and all draws of `noised` follow it instead
    of `round_` and the numbers passed, so that a captured update serves every round."""

    def part(self, n: int, parts: int) -> "Batch":
        """Return the n-th of equal parts."""
        size = self.size // parts
        images = self.images[n * size : (n + 1) * size] if self.population else self.images
        return dataclasses.replace(self, images=images, size=size, first=self.first + n * size)

    def next(self) -> "Batch":
        """Return the batch of the next update."""
        return dataclasses.replace(self, update=self.update + 1)

    def noised(
        self,
        grid: Grid,
        num_steps: int,
        parameterization: Parameterization | None = None,
        merged: int = 0,
    ) -> tuple[Noised, Conditioning]:
        """Return the batch with noise, and the conditioning of the network.

        Args:
            grid: The schedule's grid of angles.
            num_steps: Number N of the discrete times; 0: continuous times.
            parameterization: What the network predicts, to make the target of training on data;
                None: no target.
            merged: Number of teacher steps that each step merges; see NoiseOptions.
        """
        options = NoiseOptions(
            seed=self.seed,
            round_=self.round_,
            num=self.size,
            first=self.first,
            num_steps=num_steps,
            merged=merged,
            flip=self.flip,
            parameterization=parameterization,
            net_dtype=self.dtype,
            fixed=self.fixed,
            population=self.population,
            shuffled_by=self.shuffled_by,
        )
        images, phase = self.images.permute(0, 3, 1, 2), self.phase if num_steps else None
        noised = add_noise(images, grid, self.update, options, self.rows, phase)
        return noised, self._conditioning(noised)

    def _conditioning(self, noised: Noised) -> Conditioning:
        label = guidance = None
        if self.labels is not None:
            label = self.labels if self.in_order else self.labels[noised.chosen]
        if label is not None and self.label_dropout:
            label = torch.where(noised.spare < self.label_dropout, NO_CLASS, label)
        if self.guidance:
            least, most = self.guidance
            guidance = least + (most - least) * noised.spare
        return Conditioning(label, guidance)

    def dropout_rng(self) -> DropoutRng:
        """Return the counters of the batch's dropout masks."""
        return DropoutRng(self.seed, self.round_, self.update, self.first)


def open_batch(
    config: Config,
    cfg: LoopConfig,
    data: Dataset,
    model: Model,
    round_: int,
    number: Tensor | None = None,
    fixed: bool = False,
    phase: Tensor | None = None,
) -> tuple[Batch, Resident | Streamed]:
    """Open this process's part of a batch, and the source of its images.

    Args:
        config: The run's config.
        cfg: The config's table of the phase.
        data: The set.
        model: The model in training.
        round_: Round of the distillation; 0 for the teacher's training.
        number: Number of the update, int64 (1,) on the device; None: 0.
        fixed: Whether it is the batch that the loss is watched on, of the same images as training.
        phase: See Batch.
    """
    size = cfg.batch // collectives.size()
    source = open_images(config, cfg, data, model.device, round_, fixed)
    batch = Batch(
        images=source.images,
        labels=None if data.labels is None else data.labels.to(model.device),
        population=source.population,
        size=size,
        update=torch.zeros(1, dtype=torch.int64, device=model.device) if number is None else number,
        flip=config.data.horizontal_flip,
        dtype=model.net_dtype,
        first=collectives.rank() * size,
        seed=config.seed,
        round_=round_,
        label_dropout=0.0 if fixed else model.label_dropout,
        guidance=model.guidance,
        rows=None if data.trained is None else data.trained.to(model.device),
        fixed=fixed,
        shuffled_by=0 if fixed else shuffled_by(config, cfg),
        phase=phase,
    )
    return batch, source


def open_images(
    config: Config,
    cfg: LoopConfig,
    data: Dataset,
    device: torch.device,
    round_: int,
    fixed: bool = False,
    into: Tensor | None = None,
) -> Resident | Streamed:
    """Open the source of the images of `open_batch`.

    Args:
        config: The run's config.
        cfg: The config's table of the phase.
        data: The set.
        device: Device of the model.
        round_: Round of the distillation.
        fixed: Whether it is the batch that the loss is watched on.
        into: Images of an earlier batch with the same settings, to be overwritten.
    """
    size = cfg.batch // collectives.size()
    return open_source(
        data,
        device,
        num=size,
        first=collectives.rank() * size,
        seed=config.seed,
        round_=round_,
        fixed=fixed,
        rows=data.trained,
        shuffled_by=0 if fixed else shuffled_by(config, cfg),
        stream=config.engine.data == "stream",
        into=into,
    )


def shuffled_by(config: Config, cfg: LoopConfig) -> int:
    """Return the global batch size for `data.order` "epochs", and 0 for "independent"."""
    return cfg.batch if config.data.order == "epochs" else 0


def held_out_batches(config: Config, data: Dataset, model: Model, round_: int) -> Iterator[Batch]:
    """Yield this process's share of the held-out images, each image at one time and one noise.

    An image's draws depend on its position, so they are the same for any number of processes.
    """
    assert data.held_out is not None
    for start in collectives.dealt(-(-len(data.held_out) // HELD_OUT_BATCH)):
        first = start * HELD_OUT_BATCH
        rows = data.held_out[first : first + HELD_OUT_BATCH]
        yield Batch(
            images=data.images[rows].to(model.device),
            labels=None if data.labels is None else data.labels[rows].to(model.device),
            population=len(data),
            size=len(rows),
            first=first,
            update=torch.zeros(1, dtype=torch.int64, device=model.device),
            seed=config.seed,
            round_=round_,
            flip=config.data.horizontal_flip,
            dtype=model.net_dtype,
            guidance=model.guidance,
            fixed=True,
            in_order=True,
        )
