"""How an update is captured: a stand-in for torch.cuda records the order of the calls."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from pdfast.errors import PdfastError
from pdfast.models import cuda_graph
from pdfast.models.captured import CallReplay
from pdfast.models.cuda_graph import Replay

CUDA = torch.device("cuda", 0)


class Recorded:
    """A stand-in for torch.cuda that records calls, in order."""

    def __init__(self):
        self.calls = []
        self.refuse = None  # exception that ends a capture

    def note(self, name):
        return lambda *args, **kwargs: self.calls.append(name)

    def named(self, name):
        """Return a stream."""
        waits = self.note(f"{name} waits")
        return SimpleNamespace(name=name, device=CUDA, wait_stream=waits)

    @contextmanager
    def stream(self, stream):
        self.calls.append(f"on {stream.name}")
        yield
        self.calls.append(f"off {stream.name}")

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        self.calls.append(f"capture on {stream.name}, {capture_error_mode}")
        if self.refuse:
            raise self.refuse
        yield
        self.calls.append("captured")


@pytest.fixture
def recorded(monkeypatch):
    record = Recorded()
    fake = SimpleNamespace(
        CUDAGraph=lambda: SimpleNamespace(replay=record.note("replay")),
        Event=lambda: SimpleNamespace(record=record.note("event"), synchronize=record.note("wait")),
        empty_cache=record.note("empty cache"),
        current_stream=lambda device: record.named("here"),
        graph=record.graph,
        reset_peak_memory_stats=record.note("reset peak"),
        set_stream=record.note("set stream"),
        stream=record.stream,
        synchronize=record.note("synchronize"),
    )
    monkeypatch.setattr(cuda_graph, "side_stream", lambda device, use: record.named("side"))
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch._C, cuda_graph.CLEAR, record.note("clear"), raising=False)
    return record


WARM_UP = ["side waits", "on side", "work", "work", "work", "off side", "here waits", "reset peak"]
BEFORE = ["synchronize", "clear", "capture on side, thread_local"]


def test_workspaces_are_cleared_around_the_capture(recorded):
    state = torch.zeros(1)

    def work():
        recorded.calls.append("work")
        state.add_(1)

    repeat = Replay(work, [state], CUDA)
    assert recorded.calls == [*WARM_UP, *BEFORE, "work", "captured", "clear"]
    assert state.item() == 1  # from the capture, which computes nothing on a GPU
    recorded.calls.clear()
    for _ in range(3):
        repeat()
    assert recorded.calls == ["replay", "event", "replay", "event", "wait", "replay", "event"]
    recorded.calls.clear()
    repeat.close()
    assert recorded.calls == ["empty cache"]
    with pytest.raises(RuntimeError, match="closed"):
        repeat()


def test_a_capture_that_fails_leaves_no_workspace(recorded):
    recorded.refuse = RuntimeError("operation not permitted when stream is capturing\nmore")
    with pytest.raises(PdfastError, match=r"captured .* \(operation not permitted .*\): set engin"):
        Replay(recorded.note("work"), [], CUDA)
    assert recorded.calls == [*WARM_UP, *BEFORE, "clear", "set stream"]


def test_a_sampling_step_keeps_the_peak_of_memory(recorded):
    """The peak that a run logs is that of its update, which may have been captured before."""
    CallReplay(recorded.note("work"), [], CUDA)
    assert recorded.calls == [*WARM_UP[:-1], *BEFORE, "work", "captured", "clear"]
    recorded.refuse = RuntimeError("no")
    with pytest.raises(PdfastError, match=r"a sampling step cannot .* \(no\): sampling continues"):
        CallReplay(recorded.note("work"), [], CUDA)


def test_a_pytorch_that_cannot_clear_them_is_refused(recorded, monkeypatch):
    monkeypatch.delattr(torch._C, cuda_graph.CLEAR)
    with pytest.raises(PdfastError, match=r"has no torch\._C\._cuda_clearCublas.* engine\.graph"):
        Replay(recorded.note("work"), [], CUDA)
    assert recorded.calls == [*WARM_UP, "set stream"]  # and nothing was captured


def test_a_graph_may_stay_where_as_much_is_free_as_it_takes(recorded):
    """Segments of the ordinary pool, and of other graphs, do not count."""
    sizes = [((0, 0), 1_000), ((0, 1), 30), ((0, 2), 500), ((0, 1), 70)]
    segments = [{"segment_pool_id": pool, "total_size": size} for pool, size in sizes]
    torch.cuda.memory_snapshot = lambda: segments
    repeat = Replay(recorded.note("work"), [], CUDA)
    repeat._graph.pool = lambda: (0, 1)
    for free, may_stay in ((99, False), (100, True), (10_000, True)):
        torch.cuda.mem_get_info = lambda free=free: (free, 20_000)
        recorded.calls.clear()
        assert repeat.may_stay() is may_stay
        assert recorded.calls == ["empty cache"]


@pytest.mark.parametrize(("device", "graph"), [("cpu", True), ("cuda", False)])
def test_without_a_graph_the_work_is_called(recorded, device, graph):
    repeat = Replay(recorded.note("work"), [], torch.device(device), graph)
    assert recorded.calls == []
    repeat()
    assert recorded.calls == ["work"]
    assert repeat.may_stay()
    repeat.close()
    with pytest.raises(RuntimeError, match="closed"):
        repeat()
