"""A batch: which images, which random numbers, and what the network is told beside them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast import distributed
from pdfast.config import Config, Head, LoopConfig
from pdfast.data import Dataset
from pdfast.method import Noised, add_noise
from pdfast.model import Model
from pdfast.schedule import Grid
from pdfast.streaming import Resident, Streamed, open_source
from pdfast.unet import NO_CLASS, Dropped


class Condition(NamedTuple):
    """What a network is told of a batch beside its noise levels."""

    label: Tensor | None = None
    """int64 (B,); NO_CLASS where the class is not told."""
    guidance: Tensor | None = None
    """Guidance weights, float64 (B,)."""

    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        return [tensor for tensor in self if tensor is not None]

    def of(self, tensors: Sequence[Tensor]) -> "Condition":
        """The same with other tensors, as many as there are."""
        left = iter(tensors)
        return Condition(*(None if own is None else next(left) for own in self))

    def joined(self, other: "Condition") -> "Condition":
        """Of both batches, one after the other."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return self.of([torch.cat(pair) for pair in pairs])


@dataclass(frozen=True)
class Batch:
    """Which images and draws; an objective makes a batch of them with `noised`."""

    images: Tensor
    """uint8 or float32 (M, H, W, C): the whole set, or, with a population, this process's."""
    labels: Tensor | None
    """int64, of the whole set."""
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
    held: bool = False
    """Of the streams of the held batch."""

    def part(self, n: int, parts: int) -> "Batch":
        """The n-th of equal parts."""
        size = self.size // parts
        images = self.images[n * size : (n + 1) * size] if self.population else self.images
        return dataclasses.replace(self, images=images, size=size, first=self.first + n * size)

    def next(self) -> "Batch":
        """That of the next update."""
        return dataclasses.replace(self, update=self.update + 1)

    def noised(
        self, grid: Grid, num_steps: int, head: Head | None = None
    ) -> tuple[Noised, Condition]:
        """The batch at N times (0: continuous) of a schedule's grid, and what goes with it.

        `head`: with the data's target for it.
        """
        noised = add_noise(
            self.images.permute(0, 3, 1, 2),
            grid,
            num_steps,
            seed=self.seed,
            round_=self.round_,
            update=self.update,
            num=self.size,
            first=self.first,
            population=self.population,
            flip=self.flip,
            head=head,
            net_dtype=self.dtype,
            held=self.held,
        )
        return noised, self._condition(noised)

    def _condition(self, noised: Noised) -> Condition:
        label = guidance = None
        if self.labels is not None:
            label = self.labels[noised.chosen]
        if label is not None and self.label_dropout:
            label = torch.where(noised.spare < self.label_dropout, NO_CLASS, label)
        if self.guidance:
            least, most = self.guidance
            guidance = least + (most - least) * noised.spare
        return Condition(label, guidance)

    def dropped(self) -> Dropped:
        """The draws of dropout."""
        return Dropped(self.seed, self.round_, self.update, self.first)


def open_batch(
    config: Config,
    cfg: LoopConfig,
    data: Dataset,
    model: Model,
    round_: int,
    number: Tensor | None = None,
    held: bool = False,
) -> tuple[Batch, Resident | Streamed]:
    """This process's part of the batch of update `number` (0), and what brings its images."""
    size, stream = cfg.batch // distributed.size(), config.engine.data == "stream"
    first = distributed.rank() * size
    source = open_source(
        data,
        model.device,
        num=size,
        first=first,
        seed=config.seed,
        round_=round_,
        held=held,
        stream=stream,
    )
    batch = Batch(
        images=source.images,
        labels=None if data.labels is None else data.labels.to(model.device),
        population=source.population,
        size=size,
        update=torch.zeros(1, dtype=torch.int64, device=model.device) if number is None else number,
        flip=config.data.horizontal_flip,
        dtype=model.net_dtype,
        first=first,
        seed=config.seed,
        round_=round_,
        label_dropout=0.0 if held else model.label_dropout,
        guidance=model.guidance,
        held=held,
    )
    return batch, source
