"""Sources of a batch's images: a set on the device, or a set in host memory, gathered ahead.

Both draw the same images: which images a batch holds depends only on the counters, so the host
knows it before the device does.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pdfast.config.schema import Config
from pdfast.data import sources
from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.kernels.add_noise import NoiseOptions, draw_indices


class Resident:
    """The whole set, on the device."""

    population = 0

    def __init__(self, data: Dataset) -> None:
        self.images = data.images

    def load(self, update: int) -> None:
        """Do nothing: every image is on the device."""

    def close(self) -> None:
        """Do nothing: there is no thread to end."""


class Streamed:
    """One batch on the device at a time, while a thread gathers the next one."""

    SLOTS = 2  # staging buffers: one being copied to the device, one being filled

    def __init__(
        self,
        data: Dataset,
        indices: Callable[[int], Tensor],
        num: int,
        device: torch.device,
        into: Tensor | None = None,
    ) -> None:
        """Start the thread and allocate the buffers.

        Args:
            data: The set, in host memory.
            indices: Returns the numbers of an update's images, int64 (num,) on the CPU.
            num: Number of images in a batch.
            device: Device of the batch.
            into: Images on the device of an earlier source that is closed, to be overwritten;
                None: a new tensor.
        """
        self._set, self._indices = data.images, indices
        self.population = len(data)
        shape, dtype = (num, *data.images.shape[1:]), data.images.dtype
        on_gpu = device.type == "cuda"
        self.images = torch.zeros(shape, dtype=dtype, device=device) if into is None else into
        self._slots = [
            torch.empty(shape, dtype=dtype, pin_memory=on_gpu) for _ in range(self.SLOTS)
        ]
        self._copied: list[torch.cuda.Event] = []  # by slot: its content is on the device
        if on_gpu:
            self._copied = [torch.cuda.Event() for _ in self._slots]  # type: ignore[no-untyped-call]
        self._pool = ThreadPoolExecutor(1, "pdfast-gather")
        self._begun: tuple[int, Future[Tensor]] | None = None

    def _gather(self, update: int) -> Tensor:
        """Gather into a staging buffer, once its last content is on the device."""
        slot = update % self.SLOTS
        if self._copied:
            self._copied[slot].synchronize()
        return torch.index_select(self._set, 0, self._indices(update), out=self._slots[slot])

    def load(self, update: int) -> None:
        """Copy the images of `update` to `self.images`, in the order of the device's stream.

        Calls in the order of updates find the images gathered; the next update's are then begun.
        """
        if self._begun is None or self._begun[0] != update:
            self._begun = update, self._pool.submit(self._gather, update)
        gathered = self._begun[1].result()
        self.images.copy_(gathered, non_blocking=True)
        if self._copied:
            self._copied[update % self.SLOTS].record()
        self._begun = update + 1, self._pool.submit(self._gather, update + 1)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def is_streamed(place: str, size: int, device: torch.device) -> bool:
    """Return whether a set of `size` bytes stays in host memory; `place` is EngineConfig.data."""
    if place != "auto":
        return place == "stream"
    return device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] // 4


def open_source(
    data: Dataset,
    device: torch.device,
    *,
    num: int,
    first: int,
    seed: int,
    round_: int,
    fixed: bool = False,
    rows: Tensor | None = None,
    shuffled_by: int = 0,
    stream: bool = False,
    into: Tensor | None = None,
) -> Resident | Streamed:
    """Open the source of the images of batches; streamed if asked, or if not on the device.

    Args:
        data: The set.
        device: Device of the batches.
        num: Number of images of this process in a batch.
        first: Position of the first of them in the global batch.
        seed: Seed of the draws.
        round_: Round of the distillation.
        fixed: Whether to draw from the stream of the fixed batch.
        rows: Numbers of the images that may be drawn, int64, on any device; None: all of them.
        shuffled_by: Size of the global batch, to draw without replacement; 0: independent draws.
        stream: Whether to stream images that are on the device already.
        into: See Streamed.
    """
    if not stream and data.images.device == device:
        return Resident(data)

    on_cpu = None if rows is None else rows.cpu()
    options = NoiseOptions(
        seed=seed,
        round_=round_,
        num=num,
        first=first,
        fixed=fixed,
        population=len(data),
        shuffled_by=shuffled_by,
    )

    def indices(update: int) -> Tensor:
        return draw_indices(options, update, on_cpu)

    return Streamed(data, indices, num, device, into)


def read_by_all(source: str, function: Callable[[], Dataset]) -> Dataset:
    """Read the set by `function` on all processes; only process 0 prepares image files."""

    def prepare() -> None:
        function()

    several = collectives.size() > 1  # read here, since it is 1 inside from_first
    if several and collectives.from_first(lambda: sources.resizes(source)):
        collectives.from_first(prepare)
    return collectives.together(function)


def place(data: Dataset, config: Config, device: torch.device) -> Dataset:
    """Return the set on the device, or in host memory to be streamed; see EngineConfig.data."""
    shape, labels = tuple(data.images.shape), "no labels" if data.labels is None else "labels"
    collectives.check_alike("data of", f"shape {shape}, {data.images.dtype}, {labels}")
    streamed = is_streamed(config.engine.data, data.images.nbytes, device)
    return data if streamed else data.to(device)
