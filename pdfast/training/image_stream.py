"""Where a batch's images come from: a set on the device, or one in host memory, gathered ahead.

Both give the same draws: which images a batch holds is a function of the counters alone, so the
host can know it before the device does.
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
        """Nothing is to be done: every image is there."""

    def close(self) -> None:
        """Nothing is to be done."""


class Streamed:
    """One batch on the device at a time; the next is gathered meanwhile by a thread."""

    SLOTS = 2  # staging buffers: one being copied to the device, one being filled

    def __init__(
        self,
        data: Dataset,
        indices: Callable[[int], Tensor],
        num: int,
        device: torch.device,
        into: Tensor | None = None,
    ) -> None:
        """`indices`: of the `num` images of an update, int64 on the CPU.

        `into`: the images on the device of an earlier one, which is closed.
        """
        self._set, self._indices = data.images, indices
        self.population = len(data)
        shape, dtype = (num, *data.images.shape[1:]), data.images.dtype
        on_gpu = device.type == "cuda"
        self.images = torch.zeros(shape, dtype=dtype, device=device) if into is None else into
        self._slots = [
            torch.empty(shape, dtype=dtype, pin_memory=on_gpu) for _ in range(self.SLOTS)
        ]
        self._copied: list[torch.cuda.Event] = []  # the device has the slot's content
        if on_gpu:
            self._copied = [torch.cuda.Event() for _ in self._slots]  # type: ignore[no-untyped-call]
        self._pool = ThreadPoolExecutor(1, "pdfast-gather")
        self._begun: tuple[int, Future[Tensor]] | None = None

    def _gather(self, update: int) -> Tensor:
        """Into a staging buffer, once the device has its last content."""
        slot = update % self.SLOTS
        if self._copied:
            self._copied[slot].synchronize()
        return torch.index_select(self._set, 0, self._indices(update), out=self._slots[slot])

    def load(self, update: int) -> None:
        """Have the images of `update` in `self.images`, by the time the device's stream gets there.

        Calls in the order of updates find them gathered; the next update's are begun.
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
    """Whether images of so many bytes are left in host memory; see EngineConfig.data."""
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
    """The images of batches of `num` from position `first`; streamed if asked, or if elsewhere.

    `rows`, wherever they lie, and `shuffled_by`: as for `add_noise`. `into`: see Streamed.
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
    """Read the set by `function` on all processes; the first alone prepares pictures."""

    def prepare() -> None:
        function()

    several = collectives.size() > 1  # which from_first hides from what it calls
    if several and collectives.from_first(lambda: sources.resizes(source)):
        collectives.from_first(prepare)
    return collectives.together(function)


def place(data: Dataset, config: Config, device: torch.device) -> Dataset:
    """The set on the device, or left in host memory to be streamed; see EngineConfig.data."""
    shape, labels = tuple(data.images.shape), "no labels" if data.labels is None else "labels"
    collectives.check_alike("data of", f"shape {shape}, {data.images.dtype}, {labels}")
    streamed = is_streamed(config.engine.data, data.images.nbytes, device)
    return data if streamed else data.to(device)
