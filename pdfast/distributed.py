"""Several processes of one run, as torchrun starts them, one to a GPU; alone, all is a no-op.

Outside a `session`, and with one process, `size()` is 1 and every function does nothing more than
its one process needs. Inside, all processes must reach the same functions in the same order.

- Words of the host (`largest`, `from_first`), samples (`gather`) and features (`to_first`) go by
  gloo and never touch the GPU's queue; tensors of the device (`all_reduce`, `broadcast`) go by nccl
  on CUDA, by gloo on a CPU.
- Waiting has no limit of its own, for process 0 may work alone for long. A process that has ended
  is noticed by its closed connection: a waiting one raises `ProcessLost` at once, and one that is
  held up elsewhere, by the GPU say, is ended after `GRACE` seconds, with the same words.
- Process 0 alone writes. The others read what it wrote, so all need the same file system.
"""

import contextlib
import faulthandler
import functools
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pdfast import failure
from pdfast.config import Config
from pdfast.device import choose_device
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.launch import launched
from pdfast.log import last_words

T = TypeVar("T")
GRACE = 10.0  # seconds that a process has to notice, in its own work, that another one has ended
JOIN_LIMIT = 600.0  # seconds for all processes to start
FOREVER = timedelta(days=365)
WATCH_TAG = 1  # of the words below; no other message has a tag
GOODBYE, FAILED = 1, 2  # what a process that leaves tells the ones that watch it


class ProcessLost(PdfastError):  # noqa: N818  # the error is the other process's
    """Another process of the run has ended, so that this one cannot go on."""

    def __init__(self) -> None:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        super().__init__(
            f"process {rank} of {size}: another process of this run has ended; its own message "
            "says why; the last saved state is whole, and the same command goes on from there"
        )


@dataclass(frozen=True)
class _Session:
    rank: int
    size: int
    of_device: dist.ProcessGroup | None
    """The group of the device's tensors; None: gloo's, which is the default group."""
    left: threading.Event
    watchers: tuple[threading.Thread, ...]


_session: _Session | None = None
_sessions = itertools.count()


def first_to_say(text: str) -> bool:
    """Whether no other process of this run has said this; True where that cannot be known.

    A mistake that every process finds is so told once.
    """
    if not launched() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        return bool(_store().add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1)
    except (RuntimeError, ValueError):
        return True


@functools.cache
def _store() -> Any:
    """The run's board of notes, which torchrun keeps (or process 0, under another launcher)."""
    store = next(rendezvous("env://"))[0]
    return PrefixStore(f"pdfast/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


# ------------------------------------------------------------------------------------------
# Coming and going


@contextlib.contextmanager
def session(
    device: str, threads: int, poll: Callable[[], None] = lambda: None
) -> Iterator[torch.device]:
    """Work together with the other processes while the block runs; gives this process's device.

    `device` and `threads` are those of `choose_device`. All leave the block together; one that
    leaves it by an exception ends the others. `poll` is called first, and while processes are
    waited for. Raises UsageError as `choose_device` does, ProcessLost if not all come.
    """
    where = choose_device(device, threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # whose streams, events and graphs are meant from here on
    if not launched():
        poll()
        yield where
        return
    global _session
    joined = _session = _join(where, poll)
    word = FAILED
    try:
        yield where
        barrier()
        word = GOODBYE
    finally:
        _session = None
        joined.left.set()
        for peer in _watched(joined.rank, joined.size):  # they watch this one as well
            with contextlib.suppress(RuntimeError):
                sending = dist.isend(torch.tensor([word]), peer, tag=WATCH_TAG)
                assert sending is not None
                sending.wait(timedelta(seconds=5))
        if word == GOODBYE:  # after a failure a collective may be stuck, which this would wait for
            for watcher in joined.watchers:
                watcher.join()
            dist.destroy_process_group()


def _join(device: torch.device, poll: Callable[[], None]) -> _Session:
    if dist.is_initialized():
        raise UsageError(
            "torch.distributed is in use already, by your script or by a call of pdfast that "
            "failed: start the processes anew, and leave its set-up to pdfast"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    of_device, left = None, threading.Event()
    store = PrefixStore(f"session-{next(_sessions)}", _store())
    _meet(store, rank, size, poll)
    with _peers():  # one may end while the others connect
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=FOREVER)
        dist.all_reduce(torch.zeros(1))  # none goes on, maybe to fail, before all are connected
        if device.type == "cuda":
            # nccl's own watchdog would abort the process, without a word of ours.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
            of_device = dist.new_group(backend="nccl", timeout=FOREVER)
            # Connects, which must have happened before a graph is captured.
            dist.all_reduce(torch.zeros(1, device=device), group=of_device)
    watchers = [
        threading.Thread(target=_watch, args=(peer, left), daemon=True)
        for peer in _watched(rank, size)
    ]
    for watcher in watchers:
        watcher.start()
    return _Session(rank, size, of_device, left, tuple(watchers))


def _meet(store: Any, rank: int, size: int, poll: Callable[[], None]) -> None:
    """Wait until all processes are here; then either all go on, or all give up."""
    store.set(f"here/{rank}", "")
    limit = time.monotonic() + JOIN_LIMIT
    while not store.check([f"here/{other}" for other in range(size)]):
        try:
            if time.monotonic() > limit or store.check(["verdict"]):
                raise ProcessLost
            poll()
        except PdfastError:
            if store.compare_set("verdict", "", "give up") == b"give up":
                raise
            return  # too late, the others are going on
        time.sleep(0.05)
    if store.compare_set("verdict", "", "go on") != b"go on":
        raise ProcessLost


def _watched(rank: int, size: int) -> Sequence[int]:
    """Whom a process watches: 0 all others, they 0; so the end of any ends all in two steps."""
    return [0] if rank else range(1, size)


def _watch(peer: int, left: threading.Event) -> None:
    """Wait for the peer's last word, or for its connection to close."""
    word = torch.zeros(1, dtype=torch.int64)
    with contextlib.suppress(RuntimeError):
        dist.recv(word, peer, tag=WATCH_TAG)
    if int(word) == GOODBYE or left.wait(GRACE):
        return
    if failure.debugging():
        faulthandler.dump_traceback()
    last_words(f"pdfast: {ProcessLost()}")
    print(f"pdfast: {ProcessLost()}", file=sys.stderr, flush=True)
    os._exit(ProcessLost.exit_code)


# ------------------------------------------------------------------------------------------
# Inside a session


def rank() -> int:
    """Number of this process, from 0; 0 outside a session."""
    return _session.rank if _session else 0


def size() -> int:
    """How many processes work together; 1 outside a session, and while one works alone."""
    return _session.size if _session else 1


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """What goes wrong between processes, as ProcessLost."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and nccl's
        raise ProcessLost from error


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """This process works by itself: nothing in the block waits for the others."""
    global _session
    session, _session = _session, None
    try:
        yield
    finally:
        _session = session


def all_reduce(tensor: Tensor) -> None:
    """Sum a contiguous tensor of the device over all processes, in place.

    On CUDA it is queued on the current stream, also while a graph is captured. The sum has the
    same bits on every process.
    """
    if _session:
        with _peers():
            dist.all_reduce(tensor, group=_session.of_device)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of process 0, in place: one message a type of number.

    The tensors lie on the session's device, and have the same shapes and types everywhere.
    """
    if not _session:
        return
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor.detach())
    for group in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with _peers():
            dist.broadcast(flat.view(torch.uint8), 0, group=_session.of_device)
        start = 0
        for tensor in group:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()


def barrier() -> None:
    """Wait until every process is here."""
    if _session:
        largest(0)


def largest(number: int) -> int:
    """The largest of the processes' whole numbers."""
    if not _session:
        return number
    word = torch.tensor([number])
    with _peers():
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
    return int(word)


def dealt(count: int) -> range:
    """Which of the batches 0 .. count - 1 are this process's."""
    return range(rank(), count, size())


def gather(mine: Sequence[Tensor], num: int, batch: int) -> Tensor:
    """All `num` images, in order, on every process, from batches dealt by `dealt`.

    `mine`: this process's batches, uint8 or float32 (B, H, W, C), B = `batch` but for the last of
    all. Gives (num, H, W, C), where `mine` is for one process, on the CPU for more.
    """
    if not _session:
        return torch.cat(list(mine))
    # Some processes may have no batch to know the shape by.
    shape = [largest(mine[0].shape[n] if mine else 0) for n in (1, 2, 3)]
    floats = largest(int(any(part.is_floating_point() for part in mine)))
    whole = torch.empty(num, *shape, dtype=torch.float32 if floats else torch.uint8)
    for k in range(-(-num // batch)):
        part, owner = whole[k * batch : (k + 1) * batch], k % size()
        if owner == rank():
            part.copy_(mine[k // size()])
        with _peers():
            dist.broadcast(part, owner)
    return whole


def to_first(mine: Sequence[Tensor], lengths: Sequence[int]) -> Iterator[list[Tensor]]:
    """The tensors of each process, in order of their ranks, on the first; on the others nothing.

    Process k gives tensors of `lengths[k]` rows, the other sizes and the types of the first's;
    those from len(lengths) on give none. They come by way of the CPU, and lie where the first's do.
    """
    if rank():
        for tensor in mine:
            with _peers():
                dist.send(tensor.cpu().contiguous(), 0)
        return
    yield list(mine)
    for other in range(1, len(lengths)):
        theirs = [torch.empty(lengths[other], *t.shape[1:], dtype=t.dtype) for t in mine]
        for tensor in theirs:
            with _peers():
                dist.recv(tensor, other)
        yield [tensor.to(mine[0].device) for tensor in theirs]


def from_first(function: Callable[[], T]) -> T:
    """What `function` gives on process 0, which alone calls it, on every process.

    The value goes as JSON. A PdfastError of process 0 is raised on all.
    """
    if not _session:
        return function()
    told, error = "", None
    if rank() == 0:
        value, error = _attempt(function)
        told = _packed(error) if error else json.dumps({"value": value})
    told = _tell(told, 0)
    table = json.loads(told)
    if "value" not in table:
        raise _unpacked(table) from error
    return table["value"]  # type: ignore[no-any-return]


def together(function: Callable[[], T]) -> T:
    """What `function` gives on each process, which may take any time; all leave together.

    Where it raises a PdfastError, that of the first such process is raised on all.
    """
    if not _session:
        return function()
    value, error = _attempt(function)
    failed = size() - largest(size() - rank() if error else 0)
    if failed < size():
        raise _unpacked(json.loads(_tell(_packed(error) if error else "", failed))) from error
    return value  # type: ignore[return-value]


def _attempt(function: Callable[[], T]) -> tuple[T | None, PdfastError | None]:
    with _alone():
        try:
            return function(), None
        except PdfastError as error:
            return None, error


def _tell(text: str, source: int) -> str:
    """The text of one process, on all."""
    payload = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    length = torch.tensor([len(payload)])
    with _peers():
        dist.broadcast(length, source)
        if rank() != source:
            payload = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(payload, source)
    return bytes(payload.numpy()).decode()


def _packed(error: PdfastError) -> str:
    kind = next(k for k in (Stopped, UsageError, PdfastError) if isinstance(error, k))
    return json.dumps({"kind": kind.__name__, "text": str(error), "code": error.exit_code})


def _unpacked(table: dict[str, Any]) -> PdfastError:
    kinds = {kind.__name__: kind for kind in (Stopped, UsageError, PdfastError)}
    error = PdfastError.__new__(kinds[table["kind"]], table["text"])
    error.exit_code = table["code"]
    return error


def check_batch(config: Config, *tables: str) -> None:
    """Refuse a batch of [train] or [distill] that the processes cannot share evenly."""
    for table in tables:
        loop = getattr(config, table)
        micro = loop.accumulate
        parts = size() * micro
        if loop.batch % parts:
            fits = max(1, (2 * loop.batch + parts) // (2 * parts)) * parts
            each = f" in {micro} parts each" if micro > 1 else ""
            processes = f"{size()} process{'es' if size() > 1 else ''}"
            raise UsageError(
                f"{table}.batch {loop.batch} cannot be shared evenly by {processes}{each}: "
                f"use {fits}"
            )
