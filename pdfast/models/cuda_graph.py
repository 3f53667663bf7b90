"""CUDA graphs that own all the memory they touch, so that every replay is valid.

By itself a graph does not own the workspaces of cuBLAS. PyTorch keeps them in one map of the
process, by handle and stream, and handles belong to a thread (autograd's has others). A workspace
made by a warm-up lies outside the graph's memory pool, while its address is in the graph. Once
anything clears the map, as Inductor's CUDA graphs do around each recording and CUDAGraph.reset does
for its stream (pytorch #175276, #193402), the graph writes to freed memory. So the map is cleared
before a capture, which puts the workspaces into the graph's own pool, and after it, so that no
later call finds them there.
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

    It also frees the workspaces that this process keeps for other graphs. So capture those by this
    function as well, or after it.

    Raises:
        RuntimeError: The work cannot be captured, or this PyTorch cannot free the workspaces.
    """
    clear = getattr(torch._C, CLEAR, None)
    if clear is None:
        raise RuntimeError(
            f"PyTorch {torch.__version__} has no torch._C.{CLEAR}, without which a graph would "
            "share memory with others"
        )
    graph = torch.cuda.CUDAGraph()
    # A workspace may be freed only when no launched kernel still writes to it.
    torch.cuda.synchronize(stream.device)
    clear()
    try:
        # Other threads may use the device meanwhile: NCCL's, and the thread that gathers images.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    finally:
        clear()
    return graph


def rehearse(work: Callable[[], object], state: Iterable[Tensor], times: int = 1) -> None:
    """Run `work` so many times, and restore the tensors that it changes and reads again."""
    saved = [(tensor, tensor.to("cpu", copy=True)) for tensor in state]
    for _ in range(times):
        work()
    for tensor, before in saved:
        tensor.copy_(before)


class Replay:
    """Work to repeat: called on a CPU, replayed as a CUDA graph on a GPU."""

    WHAT, FIX = "the update", "set engine.graph to false"  # for the error
    NEW_PEAK = True  # whether the peak of memory is counted anew
    WARM_UPS = 3  # cuDNN chooses algorithms, Triton compiles
    AHEAD = 2  # replays that may wait in the stream, so that the host hears of a signal in time

    def __init__(
        self,
        work: Callable[[], object],
        state: Iterable[Tensor],
        device: torch.device,
        graph: bool = True,
    ) -> None:
        """Capture the work on a GPU.

        Args:
            work: The work to repeat.
            state: Tensors that `work` changes and reads again; they are restored.
            device: Device of the work.
            graph: Whether to capture; otherwise `work` is called on a GPU too.

        Raises:
            PdfastError: The work cannot be captured.
        """
        self._work, self._graph = work, None
        if device.type != "cuda" or not graph:
            return
        # Warm up on the stream of the capture. The nodes in which autograd sums gradients keep
        # their first stream; they then exist already, outside the graph's memory.
        side = side_stream(device, "update")
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            rehearse(work, state, self.WARM_UPS)
        here.wait_stream(side)
        if self.NEW_PEAK:  # a replay allocates nothing: the peak is that of the capture
            torch.cuda.reset_peak_memory_stats(device)
        try:
            self._graph = capture(work, side)
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # which a failed capture does not restore
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise PdfastError(
                f"{self.WHAT} cannot be captured as a CUDA graph ({str(error).splitlines()[0]}): "
                f"{self.FIX}"
            ) from error
        self._waiting: deque[torch.cuda.Event] = deque()

    def __call__(self) -> None:
        """Run the work once more; on a GPU, enqueue it."""
        if self._graph is None:
            self._work()
            return
        if len(self._waiting) == self.AHEAD:
            self._waiting.popleft().synchronize()
        self._graph.replay()
        self._waiting.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        self._waiting[-1].record()

    def may_stay(self) -> bool:
        """Return whether the free memory is at least that of the graph.

        Otherwise other work that would fit after `close` might not fit beside the graph.
        """
        if self._graph is None:
            return True
        torch.cuda.empty_cache()  # so that PyTorch's cache counts as free
        pool = self._graph.pool()
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        taken = sum(s["total_size"] for s in segments if s["segment_pool_id"] == pool)
        return bool(torch.cuda.mem_get_info()[0] >= taken)

    def close(self) -> None:
        """Free the graph's memory."""
        if self._graph is not None:
            self._graph = None
            torch.cuda.empty_cache()  # PyTorch keeps the graph's pool reserved until then
        self._work = _closed


def _closed() -> None:
    raise RuntimeError("this work is closed")
