"""One capture serves all rounds of a distillation, and no round that it is not valid for."""

import contextlib
import copy
import dataclasses

import own_cases
import pytest
import torch
from engine_cases import STEPS, changed, digits, random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pdfast.config.schema import EngineConfig
from pdfast.console.progress import Screen
from pdfast.data.dataset import Dataset
from pdfast.distillation import rounds
from pdfast.distillation.objectives import Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.training import compilation, loop
from pdfast.training.batch import open_batch
from pdfast.training.loop import Engine
from pdfast.training.model_run import ModelRun
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision, recast

CPU = torch.device("cpu")
ROUNDS = 3


class Places(TorchDispatchMode):
    """Records the addresses of tensors that are read but were not created inside."""

    def __init__(self):
        super().__init__()
        self.outside, self.made = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        constant = func.overloadpacket.__name__.startswith("lift_fresh")  # of Python's numbers
        for tensor in self._tensors((args, kwargs)):
            place = tensor.untyped_storage().data_ptr()
            if constant:
                self.made.add(place)
            elif place not in self.made:
                self.outside.add(place)
        fresh = {t.untyped_storage().data_ptr() for t in self._tensors(out)} - self.outside
        self.made |= fresh
        return out

    @staticmethod
    def _tensors(tree):
        return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.numel()]


class Graph:
    """A stand-in for a captured update: each replay uses Python's numbers of the capture.

    It fails if the first replay of a later phase would read other tensors than the first replay of
    all did.
    """

    captured = 0
    stays = True

    def __init__(self, work, state, device, graph=True):
        type(self).captured += 1
        _, self.objective, self.optimizer, self.batch = work.args
        self.work, self.host, self.places = work, self.numbers(), None

    def numbers(self):
        return self.objective.num_steps, self.optimizer.cfg

    def set(self, numbers):
        self.objective.num_steps, self.optimizer.cfg = numbers

    def __call__(self):
        now, first = self.numbers(), not int(self.optimizer.done)
        self.set(self.host)
        with Places() if first else contextlib.nullcontext() as places:
            self.work()
        self.set(now)
        if first:
            self.places = self.places or places.outside
            assert places.outside == self.places

    def may_stay(self):
        return self.stays

    def close(self):
        self.work = None


@pytest.fixture
def captures(monkeypatch):
    """Capture updates, and do not evaluate rounds."""
    graph = type("Counted", (Graph,), {})
    monkeypatch.setattr(loop, "Replay", graph)
    monkeypatch.setattr(rounds, "_distance", lambda *_: 0.0)
    monkeypatch.setattr(rounds, "drawable", lambda model: False)
    return graph


def distilled(config, path, teacher=None, data=None):
    """Return the files of all rounds' students."""
    with ModelRun(path, config, Screen(quiet=True)).start() as run:
        run.save_model(teacher or random_model(config.model, 0, torch.float32), run.teacher_dir)
        rounds.distill_rounds(run, data or digits(), CPU)
        files = [run.round_dir(k + 1) for k in range(config.distill.num_rounds)]
        return [(path / "model.safetensors").read_bytes() for path in files]


BETAS = {
    "schedule": "linear",
    "timesteps": 1000,
    "betas": (1e-4, 0.02),
    "embedding": "timestep",
}
EVERYTHING = {
    "precision": "bf16",
    "model": BETAS | {"num_classes": 10},
    "distill": {"ema_decay": 0.9, "anneal": "linear", "warmup": 2, "grad_clip": 0.05},
    "engine": {"data": "stream", "pipeline_teacher": True},
    "data": {"order": "epochs", "horizontal_flip": True},
}
KEPT = {"distill": {"ema_decays": (0.3, 0.9), "keep_moments": True, "updates": 4}}
SEVERAL = {"distill": {"accumulate": 2, "checkpoint": True, "round_updates": ((4, 9),)}}
PLAN = {"rounds": "8,2,1", "second": "student"}
CASES = {
    "plain": {},
    "plan": {"model": BETAS, "distill": PLAN},
    "everything": EVERYTHING,
    "averages and moments": KEPT,
    "betas": {"model": BETAS},
    "accumulate": SEVERAL,
    "independent": {"precision": "bf16", "data": {"order": "independent"}},
}
FAST = ("plain", "everything", "plan", "averages and moments")


def case_of(tiny, **tables):
    plain = {key: tables.pop(key) for key in ("precision",) if key in tables}
    loop = {"start_steps": 16, "rounds": ROUNDS, "updates": 3}
    config = changed(tiny, distill=loop, eval={"steps": (2,)})
    return dataclasses.replace(changed(config, **tables), **plain)


def labelled(config):
    """Return digits, with classes if the network is conditional."""
    given = torch.arange(50) % 10 if config.model.num_classes else None
    return Dataset(digits().images, given)


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_one_capture_gives_what_one_a_round_gives(tiny, captures, case, tmp_path, monkeypatch):
    config = case_of(tiny, **CASES[case])
    data = labelled(config)
    together = distilled(config, tmp_path / "a", data=data)
    assert captures.captured == 1
    monkeypatch.setattr(rounds, "of_one_network", lambda *_: False)
    apart = distilled(config, tmp_path / "b", data=data)
    assert captures.captured == 1 + ROUNDS
    assert together == apart
    assert len(set(together)) == ROUNDS


def test_too_little_memory_gives_the_capture_up(tiny, captures, tmp_path, monkeypatch):
    config = case_of(tiny)
    together = distilled(config, tmp_path / "a")
    monkeypatch.setattr(captures, "stays", False)
    assert distilled(config, tmp_path / "b") == together
    assert captures.captured == 1 + ROUNDS


# ------------------------------------------------------------------------------------------
# Rounds that need another capture


def test_tables_of_another_size_are_captured_anew(tiny, captures, tmp_path):
    distilled(case_of(tiny, engine={"tabulate_film": True}), tmp_path)
    assert captures.captured == ROUNDS


def test_a_first_fit_is_captured_alone(tiny, captures, tmp_path):
    config = case_of(tiny, distill={"fit_updates": 5})
    teacher = random_model(dataclasses.replace(config.model, parameterization="eps"), 0, None)
    distilled(config, tmp_path, teacher=teacher)
    assert captures.captured == 2


def test_networks_of_one_s_own_are_captured_anew(captures, tmp_path):
    own_cases.distill(tmp_path)
    assert captures.captured == own_cases.CONFIG.distill.rounds


def test_a_round_that_is_there_takes_the_place_of_what_is_kept(tiny, captures, tmp_path):
    """Round 2 of another run: the student of round 3 starts from its student."""
    config = case_of(tiny)
    expected = distilled(config, tmp_path / "a")
    with ModelRun(tmp_path / "b", config, Screen(quiet=True)).start() as run:
        run.save_model(random_model(config.model, 0, torch.float32), run.teacher_dir)
        second = checkpoint.load_model(tmp_path / "a" / run.round_dir(2).name)
        run.save_model(second, run.round_dir(2), round=2)
        captures.captured = 0
        rounds.distill_rounds(run, digits(), CPU)
        found = [(run.round_dir(k) / "model.safetensors").read_bytes() for k in (1, 2, 3)]
    assert captures.captured == 2
    assert found == expected


def test_another_choice_of_compiling_is_captured_anew(tiny, captures, tmp_path, monkeypatch):
    choices = iter([False, True, True])
    monkeypatch.setattr(compilation, "chosen", lambda *_: next(choices))
    monkeypatch.setattr(compilation, "compiled", lambda nets: contextlib.nullcontext())
    distilled(case_of(tiny), tmp_path)
    assert captures.captured == 2


@pytest.fixture
def engine(tiny):
    """An engine that has run a round."""
    student = random_model(tiny.model, 0, torch.float32)
    objective = Rollout(copy.deepcopy(student), STEPS, "snr_trunc")
    made = Engine(student, objective, tiny.distill, digits(), tiny, 1)
    made.replay(False)()
    made.optimizer.release()
    return made


def test_what_an_engine_serves(engine, tiny):
    args = engine.model, engine.objective, tiny.distill, engine.data, tiny
    assert engine.serves(*args)

    def with_(place, value):
        return engine.serves(*args[:place], value, *args[place + 1 :])

    def settings(**values):
        return with_(2, dataclasses.replace(tiny.distill, **values))

    assert settings(lr=1e-5, updates=7)  # settings of the host
    others = {"batch": 8, "accumulate": 2, "loss_weight": "v_mse", "grad_clip": 2.0}
    others |= {"ema_decays": (0.5,), "keep_moments": True}
    others |= {"ema_decay": 0.5, "weight_decay": 0.1, "checkpoint": True, "max_skipped": 7}
    for name, value in others.items():
        assert not settings(**{name: value}), name
    assert not with_(0, copy.deepcopy(engine.model))
    assert not with_(1, Rollout(engine.objective.teacher, STEPS, "snr_trunc"))
    assert not with_(2, tiny.train)
    assert not with_(3, digits())
    assert not with_(4, changed(tiny, engine={"teacher_stream": True}))
    weight = engine.model.net.conv_in.weight
    weight.data = weight.data.clone()  # as loading into new tensors would
    assert not engine.serves(*args)


def test_a_teacher_in_another_place_is_captured_anew(engine, tiny):
    engine.restart(tiny.distill, 2)
    replay = engine.replay(False)
    assert engine.replay(False) is replay
    weight = engine.objective.teacher.net.conv_in.weight
    weight.data = weight.data.clone()
    assert engine.replay(False) is not replay
    assert engine.replay(True) is not engine.replay(False)


# ------------------------------------------------------------------------------------------
# Tensors written in place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "averages",
    [{"ema_decay": 0.0}, {"ema_decay": 0.9}, {"ema_decays": (0.5, 0.9), "keep_moments": True}],
)
def test_an_optimizer_restarts_as_a_new_one(tiny, dtype, averages):
    cfg = dataclasses.replace(tiny.distill, **averages)
    model = random_model(tiny.model, 0, torch.float32)
    optimizer = Optimizer(model, cfg, dtype)
    optimizer.rate.fill_(1e-2)
    for _ in range(3):
        for view in optimizer._views(optimizer.grads).values():  # without the gaps between them
            view.normal_()
        optimizer.loss.fill_(1.0)
        optimizer.step()
    optimizer.average()
    assert not optimizer.released() or dtype == torch.float32
    optimizer.release()
    assert optimizer.released()
    fresh = copy.deepcopy(model)
    places = [t.data_ptr() for t in optimizer.tensors()]
    shorter = dataclasses.replace(cfg, updates=3)
    optimizer.restart(shorter)
    expected = Optimizer(fresh, shorter, dtype)
    assert places == [t.data_ptr() for t in optimizer.tensors()]
    pairs = zip(optimizer.tensors(), expected.tensors(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert optimizer.lr(2) == expected.lr(2)
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def of_students(teacher, num_steps, *rest):
    """A round whose second steps are the student's; fewer steps are merged for smaller N."""
    merged = 4 if num_steps == STEPS else 3
    return Rollout(teacher, num_steps, *rest, second="student", merged=merged)


@pytest.mark.parametrize("kind", [Rollout, Pipelined, of_students])
@pytest.mark.parametrize("net", [{}, BETAS])
def test_an_objective_goes_on_as_a_new_one(tiny, kind, net):
    """Also on a fixed batch, whose numbers are on the host."""
    config = changed(tiny, model=net)
    teacher, student = (random_model(config.model, seed, torch.float32) for seed in (0, 1))
    went_on, begun = (kind(teacher, n, "snr_trunc", EngineConfig()) for n in (STEPS, STEPS // 4))
    phase = torch.tensor([1, STEPS, went_on.merged])
    batch, _ = open_batch(config, config.distill, digits(), student, 1, phase=phase)
    went_on.begin(batch)
    places = [t.data_ptr() for t in went_on.carried]
    went_on.rearm(STEPS // 4, 3 if kind is of_students else 2)
    phase.copy_(torch.tensor([2, STEPS // 4, went_on.merged]))
    plain, _ = open_batch(config, config.distill, digits(), student, 2)
    fixed, _ = open_batch(config, config.distill, digits(), student, 2, fixed=True)
    for ours, theirs in ((batch, plain), (fixed, fixed)):
        if ours is batch:
            went_on.begin(ours)
            begun.begin(theirs)
        found, expected = went_on(student, ours), begun(student, theirs)
        assert torch.equal(found.loss.per_image, expected.loss.per_image)
        assert torch.equal(found.loss.grad_out, expected.loss.grad_out)
        assert found.loss.per_image.min() > 0
    assert places == [t.data_ptr() for t in went_on.carried]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_is_written_over_as_cast(tiny, precision):
    first, then = (random_model(tiny.model, seed, torch.float32) for seed in (0, 1))
    low = cast_to_precision(first, precision)
    low = copy.deepcopy(first) if low is first else low
    then.steps, then.cfg = 4, dataclasses.replace(then.cfg, dropout=0.0)
    places = [p.data_ptr() for p in low.parameters()]
    expected = cast_to_precision(then, precision)
    assert recast(low, then) is low
    assert low.describe() == expected.describe()
    for ours, theirs in zip(low.parameters(), expected.parameters(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert places == [p.data_ptr() for p in low.parameters()]


def test_what_is_of_one_network(tiny):
    model, wider = Model(tiny.model), Model(dataclasses.replace(tiny.model, ch=16))
    assert rounds.of_one_network(model, copy.deepcopy(model))
    assert not rounds.of_one_network(model, wider)
    model.net = torch.nn.Sequential(model.net)  # a custom network
    assert not rounds.of_one_network(model, model)
