"""Losses and gradients that are not finite: skipped, counted, logged; many in a row end a run."""

import copy
import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from engine_cases import ROUND, STEPS, digits, flat, objective_of, random_model, run_engine, set_of
from torchrun import run as torchrun

from pdfast.cli.main import main
from pdfast.config.schema import Config, DistillConfig, TrainConfig
from pdfast.config.serialization import from_table
from pdfast.console.progress import Screen
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.distributed import collectives, signals
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.kernels.adamw import AdamWHyperparameters, adamw
from pdfast.kernels.add_noise import NoiseOptions, draw_indices
from pdfast.runs.run import Run
from pdfast.storage import files
from pdfast.training import loop
from pdfast.training.batch import Batch
from pdfast.training.optimizer import Optimizer

INF, NAN = float("inf"), float("nan")
UPDATES, FIRST, LIMIT = 20, 7, 3
TIMING = {"images_per_s", "memory_mb", "seconds"}
STATE = f"round-{ROUND:02d}-update-{FIRST:09d}"


def inject(monkeypatch, where, value, at, rank=0):
    """Set the loss, or one number of the gradient or the input, to `value` in updates `at`."""
    if where == "loss":
        real = Optimizer.backward

        def backward(self, out, grad_out, loss, first):
            hit = int(self.done) in at and collectives.rank() == rank
            real(self, out, grad_out, loss + value if hit else loss, first)

        monkeypatch.setattr(Optimizer, "backward", backward)
    elif where == "gradient":
        real_step = Optimizer.step

        def step(self):
            if int(self.done) in at and collectives.rank() == rank:
                self.grads[3] = value
            real_step(self)

        monkeypatch.setattr(Optimizer, "step", step)
    else:
        real_noised = Batch.noised

        def noised(self, *args):
            draw, labels = real_noised(self, *args)
            if int(self.update) in at and not self.fixed and collectives.rank() == rank:
                draw.z_in[-1, 0, 3, 4] = value
            return draw, labels

        monkeypatch.setattr(Batch, "noised", noised)


def config_of(tiny, phase, **options):
    """Return a config with averages and clipping, and lines and states around skipped updates."""
    top = {k: options.pop(k) for k in ("log_every", "save_every") if k in options}
    defaults = {"updates": UPDATES, "ema_decay": 0.9, "grad_clip": 0.05, "max_skipped": LIMIT}
    config = dataclasses.replace(tiny, **top)
    return set_of(config, phase, **(defaults | {"weight_decay": 0.01} | options))


def fit(config, case, path):
    """Return the weights after a phase of a model that always starts the same."""
    phase = case.split()[0]
    cfg = getattr(config, phase)
    teacher = random_model(config.model, 0, torch.float32)
    model = copy.deepcopy(teacher)
    model.steps = STEPS if phase == "distill" else 0
    objective = objective_of(phase, cfg, teacher)
    if case == "distill pipelined":
        objective = Pipelined(teacher, STEPS, cfg.loss_weight)
    run_engine(config, phase, objective, model, digits(), path)
    return flat(model)


def buffers_of(optimizer):
    """Return the tensors that an update changes."""
    averages = () if optimizer.ema is None else optimizer.ema
    return [optimizer.weights, optimizer.exp_avg, optimizer.exp_avg_sq, *averages]


def strict(text):
    """Parse JSON without NaN and Infinity, which JSON does not have."""

    def refused(word):
        raise AssertionError(f"{word} in {text}")

    return json.loads(text, parse_constant=refused)


def metrics(path):
    lines = map(strict, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def states(path):
    return sorted(int(p.name[-9:]) for p in (path / "state").glob("round-*"))


# ------------------------------------------------------------------------------------------
# One at a time


@pytest.mark.parametrize("case", ["train", "distill", "distill pipelined"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["loss", "gradient", "data"])
def test_a_skipped_update_changes_nothing(tiny, tmp_path, monkeypatch, where, value, case):
    """The first, one in the middle, the last. The other updates remain the same AdamW steps."""
    skipped, updates, changes, taken, start = (0, 4, 8), 9, [], [], []
    inject(monkeypatch, where, value, skipped)
    real = Optimizer.step

    def watched(self):
        if not start:
            start.extend([self, *(b.clone() for b in buffers_of(self))])
        before = [b.view(torch.uint8).clone() for b in buffers_of(self)]
        real(self)
        after = [b.view(torch.uint8) for b in buffers_of(self)]
        changes.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
        if all(changes[-1]):
            taken.append((self.grads.clone(), self.rate.clone()))

    monkeypatch.setattr(Optimizer, "step", watched)
    phase = case.split()[0]
    config = config_of(tiny, phase, updates=updates, log_every=3, save_every=100)
    fit(config, case, tmp_path)
    assert changes == [[k not in skipped] * 4 for k in range(updates)]

    optimizer, weights, exp_avg, exp_avg_sq, ema = start
    options = AdamWHyperparameters(
        max_norm=0.05, max_skipped=1, weight_decay=0.01, ema_decays=(0.9,), ema_warmup=True
    )
    for n, (grad, rate) in enumerate(taken, 1):
        count, one, none = torch.tensor([n]), torch.ones(()), torch.tensor([0, 0])
        adamw(weights, grad, exp_avg, exp_avg_sq, ema[None], None, rate, count, one, none, options)
    expected = [ema, exp_avg, exp_avg_sq, ema]  # the averages have become the weights
    assert all(torch.equal(a, b) for a, b in zip(buffers_of(optimizer), expected, strict=True))

    lines = [m for m in metrics(tmp_path) if "loss" in m]
    assert [(m["update"], m["skipped"]) for m in lines] == [(3, 1), (6, 1), (9, 1)]
    assert [m["grad_norm"] is None for m in lines] == [False, False, True]
    assert all(0 < m["loss"] < 1e3 for m in lines)


def test_skipped_updates_are_said_and_their_losses_left_out(tiny, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, "gradient", NAN, (2, 3, 5))  # their losses are finite
    losses, real = [], Optimizer.step

    def watched(self):
        real(self)
        losses.append(float(self.loss))

    monkeypatch.setattr(Optimizer, "step", watched)
    monkeypatch.setattr("engine_cases.Screen", lambda quiet: Screen())
    config = config_of(tiny, "train", updates=7, log_every=2, max_skipped=5, ema_decay=0.0)
    fit(config, "train", tmp_path)
    lines = [m for m in metrics(tmp_path) if "loss" in m]
    assert [m.get("skipped") for m in lines] == [None, 2, 1, None]
    assert [m["loss"] for m in lines] == [sum(losses[:2]) / 2, None, losses[4], losses[6]]
    assert [m["grad_norm"] is None for m in lines] == [False, True, True, False]
    output = capsys.readouterr().out
    assert "train: update 4/7  loss none  grad norm none" in output
    warnings = [line for line in output.splitlines() if "warning" in line]
    assert warnings == [
        f"warning: train: update {skipped} skipped: loss or gradient not finite)"
        for skipped in ("4/7  (2 updates", "6/7  (1 update")
    ]


# ------------------------------------------------------------------------------------------
# Many in a row


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights and losses of undisturbed phases, by case."""
    from conftest import TINY

    found = {}

    def of(case, log_every=4):
        if (case, log_every) not in found:
            path = tmp_path_factory.mktemp("straight")
            config = config_of(from_table(Config, TINY), case.split()[0], log_every=log_every)
            weights = fit(config, case, path)
            found[case, log_every] = weights, metrics(path)
        return found[case, log_every]

    return of


CASES = [("train", "loss", NAN, log_every) for log_every in (1, 4, 1000)]
CASES += [("distill", "gradient", INF, 4), ("distill pipelined", "data", NAN, 4)]


@pytest.mark.parametrize(("case", "where", "value", "log_every"), CASES)
def test_one_less_goes_on(tiny, tmp_path, monkeypatch, case, where, value, log_every):
    config = config_of(tiny, case.split()[0], log_every=log_every)
    # As many as are allowed, one good update, and again as many.
    at = (FIRST, FIRST + 1, FIRST + 3, FIRST + 4)
    inject(monkeypatch, where, value, at)
    assert fit(config, case, tmp_path).isfinite().all()
    lines = metrics(tmp_path)
    assert sum(m.get("skipped", 0) for m in lines) == 4
    assert lines[-1]["update"] == UPDATES
    assert not list(tmp_path.glob("not-finite-*"))


@pytest.mark.parametrize(("case", "where", "value", "log_every"), CASES)
def test_so_many_stop_the_run(tiny, straight, tmp_path, monkeypatch, case, where, value, log_every):
    """At one point, whenever the host looks; with a dump that repeats it, and the last state."""
    phase = case.split()[0]
    config = config_of(tiny, phase, log_every=log_every)
    cfg, path = getattr(config, phase), tmp_path / "run"
    dump = path / f"not-finite-{STATE}"
    message = (
        f"{phase}: after update {FIRST} the loss or the gradient was not finite {LIMIT} times in a "
        f"row; {dump} holds what repeats it; start again with a lower learning rate and another "
        "--out (finished models and saved states are whole)"
    )

    def fails(at):
        with monkeypatch.context() as patch:
            inject(patch, where, value, at)
            with pytest.raises(PdfastError) as error:
                fit(config, case, path)
        assert str(error.value) == message
        assert error.value.exit_code == 1

    fails(range(FIRST, FIRST + LIMIT))
    assert states(path) == [5]  # the one before, though others were due when it was found
    tensors, tables, _ = files.read(dump)
    first = tensors["moments.safetensors"]
    assert (first["step"].tolist(), first["skipped"].tolist()) == ([FIRST], [0, 0])
    assert tables["state.json"]["update"] == FIRST
    strict((dump / "not-finite.json").read_text())
    table = tables["not-finite.json"]
    numbers = range(FIRST, FIRST + LIMIT)
    expected = {"round": ROUND, "update": FIRST, "skipped": LIMIT, "seed": 0, "batch": cfg.batch}
    assert {key: table[key] for key in expected} == expected
    assert table["steps"] == (STEPS if phase == "distill" else 0)
    draw = NoiseOptions(seed=0, round_=ROUND, num=cfg.batch, population=50, shuffled_by=cfg.batch)
    drawn = {k: draw_indices(draw, k).tolist() for k in numbers}
    assert table["images"] == {str(k): indices for k, indices in drawn.items()}
    rates = [table["lr"][str(k)] for k in numbers]
    assert rates == [pytest.approx(cfg.lr * (1 - k / UPDATES)) for k in numbers]
    if log_every == 1:
        assert table["last"]["update"] == numbers[-1]
        assert table["last"]["loss" if where != "gradient" else "grad_norm"] == str(value)
    assert all(m["update"] <= UPDATES for m in metrics(path))

    # The dump, used as a state, fails at once. Once nothing is wrong any more, both it and the last
    # state resume to the bits of an undisturbed run.
    for state in ("state", "dump"):
        if state == "dump":
            shutil.rmtree(path / "state")
            shutil.copytree(dump, path / "state" / STATE)
            before = {f.name: f.read_bytes() for f in dump.glob("*.safetensors")}
            shutil.rmtree(dump)
            fails(numbers)
            assert {f.name: f.read_bytes() for f in dump.glob("*.safetensors")} == before
        weights, logged = straight(case, log_every)
        assert torch.equal(fit(config, case, path), weights)
        assert metrics(path) == logged
        shutil.rmtree(path / "state")
        fails(numbers)


@pytest.mark.parametrize("first", [0, UPDATES - LIMIT])
def test_the_first_updates_and_the_last_stop_the_run_too(
    tiny, straight, tmp_path, monkeypatch, first
):
    config, numbers = config_of(tiny, "train"), range(first, first + LIMIT)
    with monkeypatch.context() as patch:
        inject(patch, "data", INF, numbers)
        with pytest.raises(PdfastError, match=f"train: after update {first} the loss or the grad"):
            fit(config, "train", tmp_path)
    (dump,) = tmp_path.glob("not-finite-*")
    assert dump.name == f"not-finite-round-{ROUND:02d}-update-{first:09d}"
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    shutil.copytree(dump, tmp_path / "state" / dump.name.removeprefix("not-finite-"))
    weights, logged = straight("train")
    assert torch.equal(fit(config, "train", tmp_path), weights)
    assert metrics(tmp_path) == logged


def test_the_images_of_the_dump_are_those_of_the_batch(tiny, tmp_path, monkeypatch):
    """Found in the engine's own batches, whose images show their number."""
    seen, real = {}, Batch.noised

    def noised(self, *args):
        draw, labels = real(self, *args)
        if not self.fixed:
            seen[str(int(self.update))] = draw.chosen.tolist()
        return draw, labels

    monkeypatch.setattr(Batch, "noised", noised)
    inject(monkeypatch, "loss", NAN, range(FIRST, UPDATES))
    with pytest.raises(PdfastError):
        fit(config_of(tiny, "train"), "train", tmp_path)
    table = strict((tmp_path / f"not-finite-{STATE}" / "not-finite.json").read_text())
    assert list(table["images"]) == [str(k) for k in range(FIRST, FIRST + LIMIT)]
    assert all(seen[k] == images for k, images in table["images"].items())


def test_no_state_is_saved_among_skipped_updates(tiny, tmp_path, monkeypatch):
    """A state that is due waits for an update that is made."""
    inject(monkeypatch, "loss", NAN, (4, 5, 9))
    fit(config_of(tiny, "train", save_every=5, updates=14), "train", tmp_path)
    assert states(tmp_path) == [7, 11]
    for update, skipped in ((7, 2), (11, 3)):
        state = tmp_path / "state" / f"round-{ROUND:02d}-update-{update:09d}"
        moments = files.read(state)[0]["moments.safetensors"]
        assert (moments["step"].tolist(), moments["skipped"].tolist()) == ([update], [skipped, 0])


@pytest.mark.parametrize("log_every", [1, 4, 1000])
def test_a_signal_among_skipped_updates_saves_what_was_before_them(
    tiny, straight, tmp_path, monkeypatch, log_every
):
    config = config_of(tiny, "train", log_every=log_every)
    weights, logged = straight("train", log_every)
    with monkeypatch.context() as patch:
        inject(patch, "gradient", NAN, (FIRST, FIRST + 1))
        count, real = iter(range(UPDATES)), loop.update

        def counted(*args):
            if next(count) == FIRST + 1:
                patch.setattr(signals, "_requested", signal.SIGTERM)
            return real(*args)

        patch.setattr(loop, "update", counted)
        with pytest.raises(Stopped, match=f"train is saved at update {FIRST}; the same command"):
            fit(config, "train", tmp_path)
    assert states(tmp_path) == [5, FIRST]
    assert torch.equal(fit(config, "train", tmp_path), weights)
    assert metrics(tmp_path) == logged


def test_skipped_updates_survive_a_stop(tiny, tmp_path, monkeypatch):
    """Between two lines: the next line counts them without their losses, as without the stop."""
    config = config_of(tiny, "train", log_every=10)
    inject(monkeypatch, "loss", NAN, (2, 11, 15))
    weights = fit(config, "train", tmp_path / "a")
    with monkeypatch.context() as patch:
        count, real = iter(range(UPDATES)), loop.update

        def counted(*args):
            if next(count) == 12:
                patch.setattr(signals, "_requested", signal.SIGTERM)
            return real(*args)

        patch.setattr(loop, "update", counted)
        with pytest.raises(Stopped):
            fit(config, "train", tmp_path / "b")
    assert torch.equal(fit(config, "train", tmp_path / "b"), weights)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert [m["skipped"] for m in metrics(tmp_path / "a") if "loss" in m] == [1, 2]


# ------------------------------------------------------------------------------------------
# The command line, the config, the fixed batch


def test_the_command_says_it_in_one_line(tiny_toml, tmp_path, capsys, handlers):
    """At a learning rate at which the first update ruins the weights."""
    out = tmp_path / "run"
    args = ["train", "--config", tiny_toml, "--out", out, "--train.lr", "1e30"]
    args += ["--train.grad-clip", "0", "--train.warmup", "0", "--train.max-skipped", "2"]
    assert main([str(a) for a in args]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("pdfast: teacher: after update 1 the loss or the gradient was not")
    assert errors.count("\n") == 1
    assert (out / "not-finite-round-00-update-000000001" / "manifest.json").is_file()
    assert not (out / "teacher").exists()


@pytest.mark.parametrize("kind", [TrainConfig, DistillConfig])
def test_one_update_at_least_may_be_skipped(kind):
    assert kind().max_skipped == 10
    with pytest.raises(UsageError, match=r"(train|distill)\.max_skipped must be at least 1"):
        kind(max_skipped=0)


def test_a_start_that_is_not_finite_is_an_error(tiny, tmp_path):
    teacher = random_model(tiny.model, 0, torch.float32)
    with torch.no_grad():
        next(teacher.parameters())[0] = NAN
    config = config_of(tiny, "distill")
    objective = objective_of("distill", config.distill, teacher)
    with pytest.raises(PdfastError, match="distill: the loss of the initial model is not finite"):
        run_engine(config, "distill", objective, copy.deepcopy(teacher), digits(), tmp_path)


def test_metrics_are_strict_json(tiny, tmp_path):
    run = Run(tmp_path, tiny, Screen(quiet=True)).start()
    with pytest.raises(PdfastError, match=r"no longer finite \(round 0, loss nan\)"):
        run.log(round=0, loss=NAN)
    assert run.metrics() == []


# ------------------------------------------------------------------------------------------
# Two processes

TOGETHER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import pytest
import torch
from conftest import TINY
from pdfast.distributed import collectives
from pdfast.config.schema import Config
from pdfast.config.serialization import from_table
from pdfast.errors import PdfastError
from test_nonfinite import FIRST, LIMIT, config_of, fit, inject

tiny = from_table(Config, TINY)
with collectives.session("cpu", 1):
    for where in ("loss", "gradient", "data"):
        with pytest.MonkeyPatch.context() as patch:
            inject(patch, where, float("nan"), (0, 4), rank=1)
            weights = fit(config_of(tiny, "train", updates=6), "train", Path(where))
        torch.save(weights, f"{where}-{collectives.rank()}.pt")
    with pytest.MonkeyPatch.context() as patch:
        inject(patch, "data", float("nan"), range(FIRST, FIRST + LIMIT), rank=1)
        with pytest.raises(PdfastError) as error:
            fit(config_of(tiny, "distill"), "distill", Path("stopped"))
    Path(f"{collectives.rank()}.txt").write_text(str(error.value))
"""


@pytest.mark.slow
def test_what_one_process_finds_all_skip(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    ended = torchrun(tmp_path, "together.py", *Path(__file__).parents[:2])
    assert ended.codes == {}, ended.errors
    for where in ("loss", "gradient", "data"):
        first, second = (torch.load(tmp_path / f"{where}-{rank}.pt") for rank in range(2))
        assert torch.equal(first, second)
        assert first.isfinite().all()
        lines = metrics(tmp_path / where)
        assert [m["skipped"] for m in lines if "loss" in m] == [1, 1]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert said[0].startswith(f"distill: after update {FIRST} the loss or the gradient was not fin")
    (dump,) = (tmp_path / "stopped").glob("not-finite-*")
    assert dump.name == f"not-finite-{STATE}"
    assert files.read(dump)[1]["state.json"]["update"] == FIRST
    assert states(tmp_path / "stopped") == [5]
