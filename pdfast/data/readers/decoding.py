"""Decode and compare pictures on all cores; Pillow and hashlib release Python's GIL."""

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

FEW = 16  # pictures decoded by a thread in one task
BLOCK = 1024  # images hashed by a thread in one task


def threads() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


class Decoded(NamedTuple):
    """A decoded picture, or the reason why it cannot be used."""

    name: str
    image: NDArray[np.uint8] | None
    why: str


def decoded(
    wanted: Wanted, found: Pictures, start: int, on_picture: Callable[[], None]
) -> Iterator[Decoded]:
    """Decode the pictures in parallel threads, and yield them in order.

    Args:
        wanted: Size, channels and resize method of the images.
        found: The pictures.
        start: Number of the first picture to decode.
        on_picture: Called between groups of pictures, so that a signal can interrupt the work.

    Yields:
        Each picture, or why it cannot be used.
    """

    def some(few: list[tuple[str, Held]]) -> list[Decoded]:
        return [one(*picture) for picture in few]

    def one(name: str, file: Held) -> Decoded:
        try:
            return Decoded(name, pixels(name, file, wanted, wanted.channels or 3), "")
        except UsageError as error:
            return Decoded(name, None, str(error))

    Image.init()  # not thread-safe, so before the threads start
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
    """Decode pictures and discard them.

    Raises:
        UsageError: A picture cannot be used, and `wanted.skip_bad` is False.
    """
    for _, image, why in decoded(wanted, found, 0, listen):
        if image is None and not wanted.skip_bad:
            raise UsageError(why)


def first_alike(
    images: NDArray[np.uint8],
    kept: NDArray[np.bool_],
    screen: Screen,
    on_part: Callable[[], None],
) -> NDArray[np.int64]:
    """Find for each image the first kept image with the same pixels.

    Args:
        images: uint8 (N, H, W, C).
        kept: Which images to compare, bool (N,).
        screen: Where progress is shown.
        on_part: Called between blocks of images, so that a signal can interrupt the work.

    Returns:
        Image numbers, int64 (N,): its own for an image that repeats none or is not kept.
    """
    digests = np.zeros((len(images), 2), np.uint64)

    def digest(start: int) -> None:
        for n in range(start, min(start + BLOCK, len(images))):
            found = hashlib.sha256(images[n].data).digest()  # 128 of its bits are enough
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
    order = rows[np.lexsort(digests[rows].T)]  # stable: equal images stay in their order
    begins = np.ones(len(order), bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(1)
    first = np.arange(len(images))
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def is_grey(images: NDArray[np.uint8]) -> bool:
    """Return whether all channels of each image are equal."""
    return all(
        (images[k : k + FEW, ..., :1] == images[k : k + FEW]).all()
        for k in range(0, len(images), FEW)
    )
