"""How the processes of a run meet and connect."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from pdfast.distributed import board
from pdfast.distributed.heartbeat import Heartbeat, ProcessLost, give_up
from pdfast.errors import PdfastError, UsageError
from pdfast.storage import processes
from pdfast.storage.processes import Process

START_LIMIT = 60.0  # least seconds for all to start, and then for all to connect
FOREVER = timedelta(days=365)

_sessions = itertools.count()


@dataclass(frozen=True)
class Session:
    """One process's view of the connected processes of a run."""

    rank: int
    size: int
    of_device: dist.ProcessGroup | None
    """Group for the device's tensors; None: gloo's, which is the default group."""
    heartbeat: Heartbeat
    """Threads that notice the loss of another process."""

    def lost(self) -> ProcessLost:
        """Return the error for a collective that failed."""
        return self.heartbeat.lost or ProcessLost.ended()


def join(device: torch.device, poll: Callable[[], None], timeout: float) -> Session:
    """Meet the other processes, and connect.

    Args:
        device: This process's device.
        poll: Called while the others are waited for.
        timeout: Seconds after which a silent process counts as lost, as for `Heartbeat`.

    Raises:
        ProcessLost: Not all processes arrive.
        UsageError: Some processes have a GPU and others have none, or torch.distributed is
            initialized already.
    """
    if dist.is_initialized():
        raise UsageError(
            "torch.distributed is initialized already, by your script or by an earlier call of "
            "pdfast that failed: restart the processes, and let pdfast initialize it"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    of_device, limit = None, max(timeout, START_LIMIT)
    store = PrefixStore(f"session-{next(_sessions)}", board.store())
    _meet(store, rank, size, poll, limit)
    with _connecting(limit):
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=FOREVER)
        gpus = torch.tensor([int(device.type == "cuda")])
        dist.all_reduce(gpus)  # nobody continues, and maybe fails, before all are connected
        if 0 < int(gpus) < size:
            dist.destroy_process_group()
            raise UsageError(
                f"GPUs are seen by {int(gpus)} of the {size} processes: pass "
                "--device cpu, or start processes only where there are GPUs"
            )
        if device.type == "cuda":
            # nccl's own watchdog would abort the process without a message of pdfast's.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
            of_device = dist.new_group(backend="nccl", timeout=FOREVER)
            # Connects; nccl must have connected before a graph is captured.
            dist.all_reduce(torch.zeros(1, device=device), group=of_device)
        peers = {k: Process.parse(store.get(_note(k)).decode()) for k in _watched(rank, size)}
    return Session(rank, size, of_device, Heartbeat(peers, timeout))


def _note(rank: int) -> str:
    return f"here/{rank}"


def _meet(store: Any, rank: int, size: int, poll: Callable[[], None], limit: float) -> None:
    """Wait until all processes are here; then either all continue, or all give up."""
    store.set(_note(rank), str(processes.this()))
    end = time.monotonic() + limit
    while not store.check([_note(other) for other in range(size)]):
        try:
            if store.check(["verdict"]):
                raise ProcessLost.ended()
            if time.monotonic() > end:
                missing = [other for other in range(size) if not store.check([_note(other)])]
                raise ProcessLost.absent(missing, limit)
            poll()
        except PdfastError:
            if store.compare_set("verdict", "", "give up") == b"give up":
                raise
            return  # too late: the others have continued
        time.sleep(0.05)
    if store.compare_set("verdict", "", "go on") != b"go on":
        raise ProcessLost.ended()


@contextlib.contextmanager
def _connecting(limit: float) -> Iterator[None]:
    """Raise ProcessLost if a process ends in the block; end this one if it exceeds the limit.

    The heartbeat has not started yet.
    """
    timer = threading.Timer(limit, lambda: give_up(ProcessLost.unconnected(limit)))
    timer.daemon = True
    timer.start()
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ProcessLost.ended() from error
    finally:
        timer.cancel()


def _watched(rank: int, size: int) -> Sequence[int]:
    """Return the ranks that a process exchanges messages with: 0 with all, the others with 0."""
    return [0] if rank else range(1, size)
