"""Lanes: threads that sample batches in parallel on a CPU, one batch per thread.

An operation on a batch of small images is too short to split over all cores: they would wait for
one another after each, hundreds of times per network call. Lanes wait once per sampling step. A
batch is computed by one thread, so that its bits depend neither on the number of threads nor on the
batches sampled in parallel.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
MOST = 8  # more gain little: a small network spends time in Python, one thread at a time


class Lanes:
    """A pool of threads, each of which runs PyTorch on a single core."""

    def __init__(self, batches: int) -> None:
        """Start the threads.

        Args:
            batches: Number of batches to sample. There are as many lanes, up to PyTorch's number of
                threads and MOST. 0 starts none: work runs in the caller's thread, on all of
                PyTorch's threads.
        """
        self._threads, self._pool = torch.get_num_threads(), None
        self.number = max(1, min(self._threads, batches, MOST))
        """Number of pieces of work that run in parallel."""
        if batches:
            # PyTorch's number of threads is per thread once the thread has set it.
            self._pool = ThreadPoolExecutor(
                self.number, "pdfast-lane", initializer=torch.set_num_threads, initargs=(1,)
            )

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run pieces of work in parallel and wait for all of them.

        Args:
            works: Functions without arguments, at most `number` of them.

        Returns:
            Their results, in order.

        Raises:
            BaseException: The first error of a piece, in order, once all have ended.
        """
        if self._pool is None:
            return [work() for work in works]
        found = [self._pool.submit(work) for work in works]
        wait(found)
        return [future.result() for future in found]

    def close(self) -> None:
        """End the threads, and restore PyTorch's number of threads."""
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads)  # new threads inherit the last number set
