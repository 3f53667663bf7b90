"""CUDA graphs that own all the memory they touch: a replay is valid whatever the process does.

cuBLAS's workspaces are the memory that a graph does not own by itself. PyTorch keeps them in one
map of the process, by handle and stream, and handles are a thread's own (autograd's has others).
One that a warm-up made lies outside the graph's memory pool, while its address is in the graph:
once anything clears the map, as Inductor's CUDA graphs do around each recording and as
CUDAGraph.reset does for its stream (pytorch #175276, #193402), the graph writes to freed memory.
So the map is cleared before a capture, whose workspaces then lie in the graph's own pool, and
after it, so that no later call finds them there.
"""

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pdfast.distributed.device import side_stream
from pdfast.errors import PdfastError

CLEAR = "_cuda_clearCublasWorkspaces"  # of torch._C: private, and not in a CPU build


def capture(work: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Capture `work`, which has been warmed up, on `stream` as a CUDA graph.

    Workspaces that this process keeps for graphs captured by others are freed too: capture those
    by this function as well, or after it. Raises PdfastError where PyTorch cannot free them,
    RuntimeError where the work cannot be captured.
    """
    clear = getattr(torch._C, CLEAR, None)
    if clear is None:
        raise PdfastError(
            f"PyTorch {torch.__version__} has no torch._C.{CLEAR}, without which a CUDA graph "
            "would share memory with others: set engine.graph to false, or install another PyTorch"
        )
    graph = torch.cuda.CUDAGraph()
    # A workspace may be freed only once nothing that was launched still writes to it.
    torch.cuda.synchronize(stream.device)
    clear()
    try:
        # Other threads may use the device meanwhile: NCCL's, and the one that gathers images.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    finally:
        clear()
    return graph


def rehearse(work: Callable[[], object], state: Iterable[Tensor], times: int = 1) -> None:
    """Do `work` so many times, and put the tensors that it changes and reads again back."""
    saved = [(tensor, tensor.to("cpu", copy=True)) for tensor in state]
    for _ in range(times):
        work()
    for tensor, before in saved:
        tensor.copy_(before)


class Replay:
    """Work to be done again and again: called on a CPU, a replayed CUDA graph on a GPU."""

    WARM_UPS = 3  # cuDNN chooses algorithms, Triton compiles
    AHEAD = 2  # replays that may wait in the stream, so that the host hears of a signal in time

    def __init__(
        self,
        work: Callable[[], object],
        state: Iterable[Tensor],
        device: torch.device,
        graph: bool = True,
    ) -> None:
        """`state`: the tensors that `work` changes and reads again; they are left as they were.

        Without `graph` it is called on a GPU too. Raises PdfastError if it cannot be captured.
        """
        self._work, self._graph = work, None
        if device.type != "cuda" or not graph:
            return
        # Of the capture too: the nodes that autograd sums gradients in, which a stream is given
        # once, are then there, and no part of the graph's memory.
        side = side_stream(device, "update")
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            rehearse(work, state, self.WARM_UPS)
        here.wait_stream(side)
        # A replay allocates nothing: the peak is that of the capture.
        torch.cuda.reset_peak_memory_stats(device)
        try:
            self._graph = capture(work, side)
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # which a capture that fails does not put back
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise PdfastError(
                f"the update cannot be captured as a CUDA graph ({str(error).splitlines()[0]}): "
                "set engine.graph to false"
            ) from error
        self._waiting: deque[torch.cuda.Event] = deque()

    def __call__(self) -> None:
        """Do it once more; on a GPU, enqueue it."""
        if self._graph is None:
            self._work()
            return
        if len(self._waiting) == self.AHEAD:
            self._waiting.popleft().synchronize()
        self._graph.replay()
        self._waiting.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        self._waiting[-1].record()

    def may_stay(self) -> bool:
        """Whether other work finds as much memory while this is kept as the graph itself takes.

        Otherwise what fits after `close` might not fit beside it.
        """
        if self._graph is None:
            return True
        torch.cuda.empty_cache()  # so that what PyTorch keeps for later counts as free
        pool = self._graph.pool()
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        taken = sum(s["total_size"] for s in segments if s["segment_pool_id"] == pool)
        return bool(torch.cuda.mem_get_info()[0] >= taken)

    def close(self) -> None:
        """Give the graph's memory back."""
        if self._graph is not None:
            self._graph = None
            torch.cuda.empty_cache()  # until then PyTorch keeps the graph's pool reserved
        self._work = _closed


def _closed() -> None:
    raise RuntimeError("this work is closed")
