"""Lanes: threads that sample batches beside each other on a CPU, each batch by one of them.

An operation on a batch of small images is too little for all cores: they wait for one another at
its end, hundreds of times in a network call. Lanes wait once in a step. The arithmetic of a batch
is that of one thread, so that bits depend neither on the number of threads nor on what is sampled
beside it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
MOST = 8  # part of a small network's time is Python's, of which one thread runs at a time


class Lanes:
    """Threads that do some pieces of work at once."""

    def __init__(self, batches: int) -> None:
        """As many lanes as there are batches, or threads; 0: none, work is done where it is asked
        for, by all of PyTorch's threads.
        """
        self._threads, self._pool = torch.get_num_threads(), None
        self.number = max(1, min(self._threads, batches, MOST))
        """Pieces of work that are done at once."""
        if batches:
            # PyTorch's number is a thread's own once the thread has set it.
            self._pool = ThreadPoolExecutor(
                self.number, "pdfast-lane", initializer=torch.set_num_threads, initargs=(1,)
            )

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each gives, of `number` at most; what one raises is raised when all have ended."""
        if self._pool is None:
            return [work() for work in works]
        found = [self._pool.submit(work) for work in works]
        wait(found)
        return [future.result() for future in found]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads)  # threads to come are given the last number set
