"""Communication between the processes of one run, started by torchrun, one to a GPU.

Outside a `session`, and with one process, `size()` is 1, and every function does no more than its
one process needs. Inside, all processes must call the same functions in the same order. So a
decision to call one must be the same on all processes: it depends on the config, or on a value
from `from_first`.

- Numbers and text of the host (`largest`, `from_first`), samples (`gather`) and features
  (`to_first`) go through gloo and never touch the GPU's queue. Tensors of the device (`all_reduce`,
  `broadcast`) go through nccl on CUDA and gloo on a CPU.
- Waiting has no time limit of its own, because process 0 may work alone for long. `heartbeat`
  notices a process that has ended or does not answer, and the waiting ones raise `ProcessLost`.
- Only process 0 writes. The others read its files, so all need the same file system.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pdfast.config.schema import Config
from pdfast.distributed.device import choose_device
from pdfast.distributed.heartbeat import FAILED, GOODBYE
from pdfast.distributed.joining import Session, join
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.launch import TIMEOUT, check_timeout, launched

T = TypeVar("T")

_session: Session | None = None


@contextlib.contextmanager
def session(
    device: str,
    threads: int,
    poll: Callable[[], None] = lambda: None,
    timeout: float = TIMEOUT,
) -> Iterator[torch.device]:
    """Work together with the other processes while the block runs; yield this process's device.

    All processes leave the block together. One that leaves it by an exception ends the others.

    Args:
        device: Name of the device, as for `choose_device`.
        threads: Number of CPU threads, as for `choose_device`.
        poll: Called first, and while other processes are waited for.
        timeout: Seconds within which a process that does not answer ends the others.

    Raises:
        ProcessLost: Not all processes arrive.
        UsageError: `choose_device` refuses the device or the threads.
    """
    check_timeout(timeout)
    where = choose_device(device, threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # so that streams, events and graphs are of this device
    if not launched():
        poll()
        yield where
        return
    global _session
    joined = _session = join(where, poll, timeout)
    word = FAILED
    try:
        yield where
        barrier()
        word = GOODBYE
    finally:
        _session = None
        joined.heartbeat.close(word)
        if word == GOODBYE:  # after a failure a collective may hang, and this would wait for it
            dist.destroy_process_group()


# ------------------------------------------------------------------------------------------
# Inside a session


def rank() -> int:
    """Return the number of this process, from 0; 0 outside a session."""
    return _session.rank if _session else 0


def size() -> int:
    """Return the number of processes that work together; 1 outside a session and in `alone`."""
    return _session.size if _session else 1


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Raise errors of the communication in the block as ProcessLost."""
    assert _session is not None
    session = _session
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # from gloo or nccl
        raise session.lost() from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself: nothing in the block waits for the others."""
    global _session
    session, _session = _session, None
    try:
        yield
    finally:
        _session = session


def all_reduce(tensor: Tensor) -> None:
    """Sum a contiguous tensor of the device over all processes, in place.

    On CUDA the sum is queued on the current stream, also while a graph is captured. It has the same
    bits on every process.
    """
    if _session:
        with _peers():
            dist.all_reduce(tensor, group=_session.of_device)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of process 0, in place, with one message per dtype.

    Args:
        tensors: Tensors on the session's device, of the same shapes and dtypes on all processes.
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
    """Wait until every process has called this."""
    if _session:
        largest(0)


def largest(number: int) -> int:
    """Return the largest of the processes' integers."""
    if not _session:
        return number
    word = torch.tensor([number])
    with _peers():
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
    return int(word)


def dealt(count: int) -> range:
    """Return which of the batches 0 .. count - 1 this process works on."""
    return range(rank(), count, size())


def gather(mine: Sequence[Tensor], num: int, batch: int) -> Tensor:
    """Collect the images of all processes, in order, from batches dealt by `dealt`.

    Args:
        mine: This process's batches, uint8 or float32 (B, H, W, C); B is `batch`, except in the
            last batch of all.
        num: Number of images in all.
        batch: Number of images in a batch.

    Returns:
        The images (num, H, W, C), on every process: on the CPU, or with one process on the device
        of `mine`.
    """
    if not _session:
        return torch.cat(list(mine))
    # A process without a batch does not know the shape.
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
    """Yield the tensors of each process, in order of ranks, on process 0; nothing on the others.

    The tensors are sent through the CPU, and arrive on the device of process 0's tensors.

    Args:
        mine: This process's tensors. Their dtypes, and all their sizes but the first, are the same
            in every process.
        lengths: Rows of the tensors of processes 0 .. len(lengths) - 1; later processes send
            nothing.
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
    """Call `function` on process 0 only, and return its result on every process.

    The result is sent as JSON.

    Raises:
        PdfastError: `function` raised it on process 0; raised on all processes.
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
    """Call `function` on every process, and return each one's result once all are done.

    The calls may take any time.

    Raises:
        PdfastError: `function` raised it on some processes; the first one's is raised on all.
    """
    if not _session:
        return function()
    value, error = _attempt(function)
    failed = size() - largest(size() - rank() if error else 0)
    if failed < size():
        raise _unpacked(json.loads(_tell(_packed(error) if error else "", failed))) from error
    return value  # type: ignore[return-value]


def _attempt(function: Callable[[], T]) -> tuple[T | None, PdfastError | None]:
    with alone():
        try:
            return function(), None
        except PdfastError as error:
            return None, error


def _tell(text: str, source: int) -> str:
    """Send the text of process `source` to all, and return it."""
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


def check_alike(what: str, mine: str) -> None:
    """Raise UsageError on all processes unless the text `mine` about `what` is the same on all."""
    first = from_first(lambda: mine)
    other = size() - largest(size() - rank() if mine != first else 0)
    if other < size():
        theirs = _tell(mine, other)
        raise UsageError(
            f"process {other} has {what} {theirs}, but process 0 has {first}: give all the same"
        )


def check_batch(config: Config, *tables: str) -> None:
    """Raise UsageError if a batch of the tables [train] or [distill] cannot be shared evenly."""
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
