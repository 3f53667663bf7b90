"""The engine on a GPU: graphs replay what calls compute, and nothing waits, allocates or leaks.

Skipped without a GPU.
"""

import contextlib
import copy
import dataclasses
import gc
import itertools

import pytest
import torch
from engine_cases import apart, digits, distilled, flat, random_model, run_engine, set_of
from gpu_phase import CPU, DEVICE, UPDATES, Phase, coloured, with_engine

import pdfast
from pdfast.data.dataset import Dataset
from pdfast.distillation import rounds as distillation_rounds
from pdfast.distillation.objectives import DataObjective, Fit, Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.errors import PdfastError
from pdfast.kernels.dropout import dropout
from pdfast.models.captured import FEWEST
from pdfast.models.cuda_graph import Replay
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.training import loop as training_loop
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def fit_guided(student, num_steps, weight, _):
    """Make the first fit, to a teacher guided by the student's own weights."""
    cfg = dataclasses.replace(student.cfg.unguided(), label_dropout=0.1)
    teacher = Model(cfg).to(DEVICE).eval()
    teacher.net.load_state_dict(student.net.state_dict(), strict=False)
    return Fit(cast_to_precision(teacher, "bf16" if low(student) else "fp32"), num_steps, weight)


def low(model):
    return model.net_dtype == torch.bfloat16


# By phase: options of [engine], of the loop and the network, and the objective.
CASES = {
    "train": {},
    "train streamed": {"data": "stream"},
    "train accumulate": {"accumulate": 2},
    "train checkpoint": {"checkpoint": True},
    "distill": {},
    "distill streamed": {"data": "stream"},
    "distill accumulate": {"accumulate": 2, "data": "stream", "teacher_stream": True},
    "distill checkpoint": {"checkpoint": True},
    "distill tabulated": {"tabulate_film": True},
    "distill teacher-stream": {"teacher_stream": True},
    "distill pipelined": {"kind": Pipelined},
    "distill betas": {
        "schedule": "linear",
        "timesteps": 1000,
        "betas": (1e-4, 0.02),
        "embedding": "timestep",
    },
    "distill guided": {"kind": Pipelined, "guidance": (0.0, 4.0)},
    "distill fit": {"kind": fit_guided, "guidance": (0.0, 4.0)},
    "train compiled": {"compile": "on"},
    "train compiled checkpoint": {"compile": "on", "checkpoint": True},
    "distill compiled": {"compile": "on"},
    "distill compiled pipelined": {"compile": "on", "kind": Pipelined},
    "train label-dropout": {"label_dropout": 0.25},
    "distill pipelined, all": {
        "kind": Pipelined,
        "teacher_stream": True,
        "tabulate_film": True,
        "data": "stream",
        "checkpoint": True,
    },
}
LOOP = ("accumulate", "checkpoint", "kind")
NETWORK = ("guidance", "label_dropout", "schedule", "timesteps", "betas", "embedding")
CHANGED = -2  # the optimizer's tensors up to the counters of skipped updates and of the last line


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_replays_are_calls_bit_for_bit(small, deterministic, case, precision):
    """Compared with those of resident images and one stream, whatever the case."""
    options, phase = CASES[case], case.split()[0]
    loop = {key: value for key, value in options.items() if key in LOOP}
    net = {key: value for key, value in options.items() if key in NETWORK}
    ours = {key: value for key, value in options.items() if key not in (*LOOP, *NETWORK)}
    small = dataclasses.replace(small, model=dataclasses.replace(small.model, **net))
    data = coloured()
    if ours.get("tabulate_film"):  # only for a model without classes
        model = dataclasses.replace(small.model, num_classes=0)
        small, data = dataclasses.replace(small, model=model), Dataset(data.images, None)
    computed = ("tabulate_film", "compile")  # options that change how numbers are rounded
    plain = {key: value for key, value in ours.items() if key in computed}
    called = Phase(with_engine(small, **plain), phase, precision, data=data, **loop)
    start = [t.clone() for t in called.optimizer.tensors()]
    expected = called.ready(graph=False).run().result()
    replayed = Phase(with_engine(small, **ours), phase, precision, data=data, **loop).ready().run()
    assert (called.calls, replayed.calls) == (UPDATES, training_loop.Replay.WARM_UPS + 1)
    found = replayed.result()
    assert not any(torch.equal(a, b) for a, b in zip(start[:CHANGED], expected, strict=False))
    assert expected[-1].isfinite().all()
    assert [torch.equal(a, b) for a, b in zip(expected, found, strict=True)] == [True] * len(found)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_samples_of_a_captured_call_are_those_of_calls(
    small, deterministic, precision, sampler, monkeypatch
):
    """Three batches, the last half empty, with classes; the second sampling captures anew."""
    model = cast_to_precision(random_model(small.model, 0, torch.float32).to(DEVICE), precision)
    arguments = {"num": 160, "steps": FEWEST, "seed": 3, "sampler": sampler}
    seen = []
    model.net.register_forward_pre_hook(lambda *_: seen.append(0))
    found = [model.sample(**arguments) for _ in range(2)]
    assert len(seen) == 2 * (Replay.WARM_UPS + 1)
    monkeypatch.setattr(Model, "denoiser", lambda model, calls: contextlib.nullcontext(model))
    expected = model.sample(**arguments)
    assert expected.isfinite().all()
    assert all(torch.equal(images, expected) for images in found)


@pytest.mark.parametrize("kind", [Rollout, Pipelined])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_warming_up_leaves_all_as_it_was(small, fast, kind, precision):
    phase = Phase(small, "distill", precision, kind)
    phase.optimizer.rate.fill_(1e-2)
    parts = [*phase.state(), *phase.model.parameters()]
    before = [t.detach().clone() for t in parts]
    phase.ready()
    assert phase.calls == training_loop.Replay.WARM_UPS + 1
    assert all(torch.equal(a, b) for a, b in zip(before, parts, strict=True))
    phase.repeat()
    after = phase.optimizer.tensors()[:CHANGED]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=False))


@pytest.mark.parametrize("kind", [Rollout, Pipelined])
@pytest.mark.parametrize("place", ["device", "stream"])
def test_no_replay_allocates(small, fast, kind, place):
    phase = Phase(with_engine(small, data=place, teacher_stream=True), "distill", "bf16", kind)
    phase.ready()
    held = torch.cuda.memory_allocated()
    assert torch.cuda.max_memory_allocated() > held  # the peak is the captured update's
    phase.once()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(UPDATES):
        phase.once()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    phase.source.close()


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replay_skips_what_is_not_finite(small, fast, where, precision):
    """The captured update reads a number that the test makes NaN or infinite between replays."""
    phase = Phase(small, "distill", precision, max_skipped=2)
    optimizer, poison = phase.optimizer, torch.zeros((), device=DEVICE)
    backward, step = optimizer.backward, optimizer.step

    def poisoned_backward(out, grad_out, loss, first):
        backward(out, grad_out, loss + poison, first)

    def poisoned_step():
        optimizer.grads[3].add_(poison)
        step()

    if where == "loss":
        optimizer.backward = poisoned_backward
    else:
        optimizer.step = poisoned_step
    phase.ready()
    kept = [t for t in optimizer.tensors()[:CHANGED] if t.numel() > 1]
    assert len(kept) == (5 if precision == "bf16" else 4)
    nan, inf, changes, counts = float("nan"), float("inf"), [], []
    for value in (nan, 0.0, inf, 0.0, -inf, nan, 0.0):
        before = [t.clone() for t in kept]
        poison.fill_(value)
        phase.once()
        changes.append({not torch.equal(a, b) for a, b in zip(before, kept, strict=True)})
        counts.append(optimizer.skipped.tolist())
    # The last follows two skipped in a row.
    assert changes == [{False}, {True}, {False}, {True}, {False}, {False}, {False}]
    assert counts == [[1, 1], [1, 0], [2, 1], [2, 0], [3, 1], [4, 2], [5, 3]]
    assert optimizer.done.item() == len(counts)
    assert optimizer.loss_sum.isfinite()
    assert all(t.isfinite().all() for t in kept)


def test_a_run_of_updates_that_are_not_finite_ends(small, fast, tmp_path, monkeypatch):
    """In a captured phase: read without waiting, stopped at one point, with a dump."""
    real = Optimizer.step

    def poisoned(self):  # from update 5 on, in a way that a graph can compute
        self.grads[3].masked_fill_(self.done[0] >= 5, float("nan"))
        real(self)

    monkeypatch.setattr(Optimizer, "step", poisoned)
    for log_every in (1, 7, 1000):
        loop = dataclasses.replace(small.train, max_skipped=3)
        config = dataclasses.replace(small, train=loop, log_every=log_every)
        model = random_model(config.model, 1, torch.float32).to(DEVICE)
        path, objective = tmp_path / str(log_every), DataObjective(loop.loss_weight)
        with pytest.raises(PdfastError, match="after update 5 the loss or the gradient was not fi"):
            run_engine(config, "train", objective, model, coloured().to(DEVICE), path)
        (dump,) = path.glob("not-finite-*")
        tensors, tables, _ = files.read(dump)
        assert tables["state.json"]["update"] == 5
        assert tensors["moments.safetensors"]["step"].tolist() == [5]


def test_compiled_networks_teach_the_same(small, deterministic):
    """Captured; they differ from uncompiled ones only by rounding."""
    start = flat(Phase(small, "distill").model)
    found = []
    for compile in ("off", "on"):
        phase = Phase(with_engine(small, compile=compile), "distill", kind=Pipelined).ready().run()
        phase.result()
        found.append(flat(phase.model))
    assert (found[0] - found[1]).norm() < 1e-2 * (found[0] - start).norm()


def test_two_graphs_take_turns(small, deterministic):
    def phases():
        return Phase(small, "train", "bf16"), Phase(small, "distill", "fp32", Pipelined)

    alone = [phase.ready().run().result() for phase in phases()]
    together = [phase.ready() for phase in phases()]
    for _ in range(UPDATES):
        for phase in together:
            phase.run(1)
    for expected, phase in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, phase.result(), strict=True))


# ------------------------------------------------------------------------------------------
# The loop itself


@pytest.mark.parametrize("kind", [Rollout, Pipelined])
@pytest.mark.parametrize("place", ["device", "stream"])
def test_the_loop_never_waits_for_the_device(tiny, fast, kind, place, tmp_path, monkeypatch):
    """Except for the last update's line of metrics."""
    seen = []

    class Strict(training_loop.Replay):
        def __call__(self):
            if not seen:  # reads before the loop wait for the device
                torch.cuda.set_sync_debug_mode("error")
                with pytest.raises(RuntimeError, match="synchroniz"):
                    self_check.item()
            super().__call__()
            seen.append(torch.cuda.get_sync_debug_mode())
            if len(seen) == UPDATES:
                torch.cuda.set_sync_debug_mode("default")

    self_check = torch.ones(1, device=DEVICE)
    monkeypatch.setattr(training_loop, "Replay", Strict)
    config = dataclasses.replace(tiny, save_every=10_000, log_every=3)
    config = set_of(config, "distill", updates=UPDATES)
    try:
        distilled(config, tmp_path, kind, precision="bf16", place=place, device=DEVICE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == [2] * UPDATES  # error


@pytest.mark.parametrize("place", ["device", "stream"])
def test_memory_is_flat_over_2000_updates(tiny, fast, place, tmp_path, monkeypatch):
    used, number = {}, itertools.count(1)

    class Watched(training_loop.Replay):
        def __call__(self):
            super().__call__()
            k = next(number)
            if k % 200 == 0:
                used[k] = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    monkeypatch.setattr(training_loop, "Replay", Watched)
    config = dataclasses.replace(tiny, save_every=10_000, log_every=7)
    config = set_of(config, "distill", updates=2000)
    distilled(config, tmp_path, precision="bf16", place=place, device=DEVICE)
    assert len(used) == 10
    assert len(set(used.values())) == 1, used


@pytest.mark.parametrize(
    "options", [{}, {"pipeline_teacher": True, "teacher_stream": True}, {"data": "stream"}]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_capture_serves_all_rounds(
    tiny, deterministic, precision, options, tmp_path, monkeypatch
):
    """The students have the same bits as with a capture each, and as with plain calls."""
    made = []

    class Counted(training_loop.Replay):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self._graph is not None)

    monkeypatch.setattr(training_loop, "Replay", Counted)
    rounds = dataclasses.replace(tiny.distill, start_steps=16, rounds=3, updates=UPDATES)
    config = dataclasses.replace(
        tiny, distill=rounds, precision=precision, deterministic=True, save_every=10_000
    )

    def students(name, **more):
        made.clear()
        out, given = tmp_path / name, with_engine(config, **options, **more)
        pdfast.distill(given, out=out, device="cuda:0", quiet=True)
        return [path.read_bytes() for path in sorted(out.glob("round-*/model.safetensors"))]

    together = students("a")
    assert made == [True] * 2  # one for the teacher, one for the rounds
    assert students("b", graph=False) == together
    assert not any(made)
    monkeypatch.setattr(distillation_rounds, "of_one_network", lambda *_: False)
    assert students("c") == together
    assert made == [True] * 4
    assert len(set(together)) == 3


def test_rounds_leave_nothing_behind(tiny, fast, tmp_path, monkeypatch):
    """Memory is the same after the second round and every later one, but less after the last,
    which leaves no engine.
    """
    used, one_round = [], distillation_rounds._distill_round

    def watched(*args):
        student = one_round(*args)
        gc.collect()
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
        return student

    monkeypatch.setattr(distillation_rounds, "_distill_round", watched)
    rounds = dataclasses.replace(tiny.distill, start_steps=16, rounds=4)
    config = dataclasses.replace(tiny, distill=rounds)
    config = with_engine(config, teacher_stream=True)
    pdfast.distill(config, out=tmp_path, device="cuda:0", quiet=True)
    assert len(used) == 4
    assert used[1] == used[2] > used[3], used


def test_a_streamed_run(tiny, fast, tmp_path):
    config = with_engine(tiny, data="stream", pipeline_teacher=True)
    student = pdfast.distill(config, out=tmp_path, device="cuda:0", quiet=True)
    assert all(p.isfinite().all() for p in student.parameters())


# ------------------------------------------------------------------------------------------
# Results


@pytest.mark.parametrize("kind", [Rollout, Pipelined])
def test_streamed_images_are_the_resident_ones(tiny, deterministic, kind, tmp_path):
    config = set_of(tiny, "distill", updates=UPDATES)
    options = {"kind": kind, "precision": "bf16", "device": DEVICE}
    start, resident = distilled(config, tmp_path / "a", place="device", **options)
    _, streamed = distilled(config, tmp_path / "b", place="stream", **options)
    assert not torch.equal(flat(start), flat(resident))
    assert torch.equal(flat(resident), flat(streamed))


def test_bf16_learns_what_float32_learns(tiny, fast, tmp_path):
    config = set_of(tiny, "distill")
    start, exact = distilled(config, tmp_path / "a", device=DEVICE)
    _, rounded = distilled(config, tmp_path / "b", precision="bf16", device=DEVICE)
    ways = (flat(exact) - flat(start), flat(rounded) - flat(start))
    towards = torch.nn.functional.cosine_similarity(*ways, dim=0)
    print(f"cosine of the two ways: {towards:.3f}")
    assert towards > 0.9
    assert not torch.equal(*ways)


def test_a_gpu_distils_what_a_cpu_does(tiny, fast, tmp_path):
    config = set_of(tiny, "distill", grad_clip=0.05, ema_decay=0.9)
    start, on_cpu = distilled(config, tmp_path / "a")
    _, on_gpu = distilled(config, tmp_path / "b", device=DEVICE)
    found = apart(start, on_cpu, on_gpu.cpu())
    print(f"weights apart by {found:.2e} of the way")
    assert found <= 0.01


def test_a_gpu_trains_what_a_cpu_does(tiny, fast, tmp_path):
    """With dropout, whose masks are the same."""
    config = set_of(tiny, "train", grad_clip=0.05, ema_decay=0.9, dropout=0.25)
    config = dataclasses.replace(config, precision="fp32")
    start = random_model(config.model, 1, torch.float32)
    trained = {}
    for device in (CPU, DEVICE):
        model = trained[device] = copy.deepcopy(start).to(device)
        objective = DataObjective(config.train.loss_weight)
        data, path = digits().to(device), tmp_path / device.type
        run_engine(config, "train", objective, model, data, path)
    found = apart(start, trained[CPU], trained[DEVICE].cpu())
    print(f"weights apart by {found:.2e} of the way")
    assert found <= 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_masks_are_a_cpus(dtype):
    x = torch.randn(3, 20, 7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    draws = {"seed": 5, "round_": 2, "update": 2**33 + 7, "layer": 9, "first": 11}
    on_cpu = dropout(x, 0.3, **draws)
    assert 0.6 < (on_cpu != 0).float().mean() < 0.8
    assert torch.equal(dropout(x.cuda(), 0.3, **draws).cpu(), on_cpu)
