"""A batch: which images, which random numbers, and what the network is told beside them."""

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

HELD_OUT_BATCH = 64  # images at a time, of those held out


@dataclass(frozen=True)
class Batch:
    """Which images and draws; an objective makes a batch of them with `noised`."""

    images: Tensor
    """uint8 or float32 (M, H, W, C): the whole set, or, with a population, this process's."""
    labels: Tensor | None
    """int64, of the whole set; of the images where those are taken in order."""
    population: int
    """Size of the set, where `images` holds the batch's alone; otherwise 0."""
    size: int
    first: int
    """Position of the first image in the global batch."""
    update: Tensor
    """Number of the update: int64, one element, on the device."""
    seed: int
    round_: int
    flip: bool
    dtype: torch.dtype
    """The networks'."""
    label_dropout: float = 0.0
    """Share of the images whose class is not told."""
    guidance: tuple[float, ...] = ()
    """Interval that guidance weights are drawn from, uniformly; () for none."""
    rows: Tensor | None = None
    """Numbers of the images that are drawn from, int64, on the device; None for all."""
    fixed: bool = False
    """Of the streams of the fixed batch, and of the images held out."""
    in_order: bool = False
    """The images are not drawn: they are those given, of a population, one after the other."""
    shuffled_by: int = 0
    """Size of the global batch, where images are drawn without replacement; otherwise 0."""
    phase: Tensor | None = None
    """Round, number of steps N, and how many of the teacher's each merges, int64 (3,), on the
    device. Where it is given, discrete times and all draws of `noised` follow it, so that a
    captured update serves every round: `round_` and the numbers that are passed may then be those
    of another."""

    def part(self, n: int, parts: int) -> "Batch":
        """The n-th of equal parts."""
        size = self.size // parts
        images = self.images[n * size : (n + 1) * size] if self.population else self.images
        return dataclasses.replace(self, images=images, size=size, first=self.first + n * size)

    def next(self) -> "Batch":
        """That of the next update."""
        return dataclasses.replace(self, update=self.update + 1)

    def noised(
        self,
        grid: Grid,
        num_steps: int,
        parameterization: Parameterization | None = None,
        merged: int = 0,
    ) -> tuple[Noised, Conditioning]:
        """The batch at N times (0: continuous) of a schedule's grid, and what a network is told.

        `parameterization`: with the data's target for it. `merged`: see NoiseOptions.
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
        """The counters of the batch's dropout masks."""
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
    """This process's part of the batch of update `number` (0), and what brings its images.

    `fixed`: of the batch that the loss is watched on, which is of the same images as training.
    `phase`: see Batch.
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

    `into`: the images of an earlier batch of the same settings, whose place they take.
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
    """Return the global batch size for `data.order` "epochs", or 0 for "independent"."""
    return cfg.batch if config.data.order == "epochs" else 0


def held_out_batches(config: Config, data: Dataset, model: Model, round_: int) -> Iterator[Batch]:
    """This process's share of the images held out, each of them once, at one time and noise.

    Their draws are those of their positions, the same for any number of processes.
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
