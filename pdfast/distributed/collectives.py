"""Several processes of one run, as torchrun starts them, one to a GPU; alone, all is a no-op.

Outside a `session`, and with one process, `size()` is 1 and every function does nothing more than
its one process needs. Inside, all processes must reach the same functions in the same order: what
decides whether one is reached is the same on all, as the config is, or is told by `from_first`.

- Words of the host (`largest`, `from_first`), samples (`gather`) and features (`to_first`) go by
  gloo and never touch the GPU's queue; tensors of the device (`all_reduce`, `broadcast`) go by nccl
  on CUDA, by gloo on a CPU.
- Waiting has no limit of its own, for process 0 may work alone for long. A process that has ended,
  or that does not answer, is noticed by `heartbeat`, and a waiting one raises `ProcessLost`.
- Process 0 alone writes. The others read what it wrote, so all need the same file system.
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
    """Work together with the other processes while the block runs; gives this process's device.

    `device` and `threads` are those of `choose_device`. All leave the block together; one that
    leaves it by an exception ends the others. `poll` is called first, and while processes are
    waited for. One that does not answer ends the others within `timeout` seconds. Raises UsageError
    as `choose_device` does, ProcessLost if not all come.
    """
    check_timeout(timeout)
    where = choose_device(device, threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # whose streams, events and graphs are meant from here on
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
        if word == GOODBYE:  # after a failure a collective may be stuck, which this would wait for
            dist.destroy_process_group()


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
    assert _session is not None
    session = _session
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and nccl's
        raise session.lost() from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
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
    with alone():
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


def check_alike(what: str, mine: str) -> None:
    """Raise UsageError, on all processes, unless this text is the same on all."""
    first = from_first(lambda: mine)
    other = size() - largest(size() - rank() if mine != first else 0)
    if other < size():
        theirs = _tell(mine, other)
        raise UsageError(
            f"process {other} has {what} {theirs}, where process 0 has {first}: give all the same"
        )


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
