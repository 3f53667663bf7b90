"""Pictures decoded and compared on all cores: Pillow and hashlib work outside Python's lock."""

import hashlib
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdfast.console.progress import Screen
from pdfast.data.readers.pictures import Held, Pictures, pixels
from pdfast.data.readers.reading import Wanted, listen
from pdfast.errors import UsageError

FEW = 16  # pictures that a thread takes at a time
BLOCK = 1024  # images looked at together


def threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


class Decoded(NamedTuple):
    """A picture, or why it cannot be used."""

    name: str
    image: NDArray[np.uint8] | None
    why: str


def decoded(
    wanted: Wanted, found: Pictures, start: int, on_picture: Callable[[], None]
) -> Iterator[Decoded]:
    """Each picture in order, or why it cannot be used; Pillow works outside Python's lock."""

    def some(few: list[tuple[str, Held]]) -> list[Decoded]:
        return [one(*picture) for picture in few]

    def one(name: str, file: Held) -> Decoded:
        try:
            return Decoded(name, pixels(name, file, wanted, wanted.channels or 3), "")
        except UsageError as error:
            return Decoded(name, None, str(error))

    Image.init()  # not by several threads at once
    begun: deque[Future[list[Decoded]]] = deque()
    files, most = found.files(start), 2 * threads()
    pool = ThreadPoolExecutor(threads(), "pdfast-decode")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of oddities in what they can read
            while few := list(itertools.islice(files, FEW)):
                on_picture()
                begun.append(pool.submit(some, few))
                if len(begun) > most:
                    yield from begun.popleft().result()
            while begun:
                on_picture()
                yield from begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_all(wanted: Wanted, found: Pictures) -> None:
    """Decode pictures and discard them. Raises UsageError for the first that cannot be used."""
    for _, image, why in decoded(wanted, found, 0, listen):
        if image is None and not wanted.skip_bad:
            raise UsageError(why)


def first_alike(
    images: NDArray[np.uint8],
    kept: NDArray[np.bool_],
    screen: Screen,
    on_part: Callable[[], None],
) -> NDArray[np.int64]:
    """For each image the number of the first that has the same pixels, of those kept."""
    digests = np.zeros((len(images), 2), np.uint64)

    def digest(start: int) -> None:
        for n in range(start, min(start + BLOCK, len(images))):
            found = hashlib.sha256(images[n].data).digest()  # the second half would say no more
            digests[n] = np.frombuffer(found, np.uint64, 2)

    starts = range(0, len(images), BLOCK)
    with (
        screen.task("comparing", len(starts)) as task,
        ThreadPoolExecutor(threads(), "pdfast-compare") as pool,
    ):
        for _ in pool.map(digest, starts):
            on_part()
            task.advance()
    rows = np.flatnonzero(kept)
    order = rows[np.lexsort(digests[rows].T)]  # which keeps the order of those alike
    begins = np.ones(len(order), bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(1)
    first = np.arange(len(images))
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def is_grey(images: NDArray[np.uint8]) -> bool:
    """Whether the three channels of all images are alike."""
    return all(
        (images[k : k + FEW, ..., :1] == images[k : k + FEW]).all()
        for k in range(0, len(images), FEW)
    )
