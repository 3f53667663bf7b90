"""The engine's updates against a plain PyTorch loop of the published formulas; its options."""

import copy
import dataclasses

import pytest
import torch
from engine_cases import (
    ROUND,
    STEPS,
    apart,
    digits,
    distilled,
    flat,
    objective_of,
    random_model,
    run_engine,
    set_of,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pdfast import reference
from pdfast.config.schema import EngineConfig
from pdfast.data.dataset import Dataset
from pdfast.diffusion.conditioning import UNCONDITIONAL, Conditioning, DropoutRng
from pdfast.distillation.objectives import Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.distillation.signal_check import measure
from pdfast.errors import UsageError
from pdfast.kernels import philox
from pdfast.kernels.philox import Stream
from pdfast.kernels.shuffle import shuffled
from pdfast.training import image_stream
from pdfast.training.batch import open_batch
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision, precision_of
from pdfast.training.update import update

# By phase: options that differ from the plainest loop.
OPTIONS = {
    "plain": {"grad_clip": 0.0},
    "clip": {"grad_clip": 0.05},
    "ema": {"ema_decay": 0.9},
    "ema, plain": {"ema_decay": 0.9, "ema_warmup": False},
    "accumulate": {"accumulate": 4},
    "checkpoint": {"checkpoint": True},
    "dropout": {"dropout": 0.25},
    "independent": {"order": "independent"},
    "all": {
        "grad_clip": 0.05,
        "ema_decay": 0.9,
        "accumulate": 2,
        "checkpoint": True,
        "dropout": 0.25,
        "weight_decay": 0.01,
    },
}


def plain_loop(config, phase, model, teacher, data):
    """Make the same updates as a reader of the paper would write them."""
    cfg, dtype = getattr(config, phase), model.dtype
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters, betas=(0.9, 0.999), weight_decay=cfg.weight_decay)
    averages = [p.detach().clone() for p in parameters]
    for k in range(cfg.updates):
        update = torch.tensor([k])
        words = philox.words(philox.key_of(config.seed, Stream.BATCH, ROUND), update, 0, cfg.batch)
        noise = philox.key_of(config.seed, Stream.NOISE, ROUND)
        chosen = philox.index_below(words[:, 0], len(data))
        if config.data.order == "epochs":
            draws = torch.arange(k * cfg.batch, (k + 1) * cfg.batch)
            chosen = shuffled(draws, len(data), philox.key_of(config.seed, Stream.BATCH, ROUND))
        x = data.images[chosen].permute(0, 3, 1, 2)
        x = torch.where((words[:, 1] & 1).bool()[:, None, None, None], x.flip(3), x)
        x = (x.float() / 127.5 - 1).to(dtype)  # images are float32 whatever the network's dtype
        eps = philox.normal(noise, update, 0, cfg.batch, (1, 8, 8)).to(dtype)

        def student(z, logsnr, label=None, update=update):
            rng = DropoutRng(config.seed, ROUND, update, 0)
            return model(z, logsnr, conditioning=Conditioning(label, dropout_rng=rng))

        student.parameterization = model.parameterization
        student.logsnr_min, student.logsnr_max = model.logsnr_min, model.logsnr_max
        if phase == "train":
            u = philox.uniform_of(words[:, 2], words[:, 3]).to(dtype)
            losses = reference.training_loss(student, x, eps, u, cfg.loss_weight)
        else:
            i = philox.index_below(words[:, 2], STEPS)
            weight = cfg.loss_weight
            losses, _ = reference.distillation_loss(student, teacher, x, eps, i, STEPS, weight)
        adamw.zero_grad()
        losses.mean().backward()
        if cfg.grad_clip:
            torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        rise, fall = min(1, (k + 1) / cfg.warmup), 1 - k / cfg.updates
        adamw.param_groups[0]["lr"] = cfg.lr * rise * fall
        adamw.step()
        decay = min(cfg.ema_decay, (1 + k) / (10 + k)) if cfg.ema_warmup else cfg.ema_decay
        with torch.no_grad():
            for average, p in zip(averages, parameters, strict=True):
                average.lerp_(p, 1 - decay if k else 1.0)
    with torch.no_grad():
        for average, p in zip(averages, parameters, strict=True):
            p.copy_(average)  # at decay 0 the weights themselves


# Some options in float64 alone, where rounding hides nothing, and in training: the loop is shared.
@pytest.mark.parametrize(
    ("phase", "option", "dtype"),
    [
        pytest.param(phase, option, dtype, id=f"{phase}-{option}-{name}")
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64))
        for phase in ("train", "distill")
        for option in (OPTIONS if (name, phase) == ("float64", "train") else ("plain", "all"))
    ],
)
def test_the_updates_of_a_plain_loop(tiny, phase, option, dtype, tmp_path):
    config = set_of(tiny, phase, **OPTIONS[option])
    teacher = random_model(config.model, 0, dtype)
    start = random_model(config.model, 1, dtype) if phase == "train" else teacher
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    cfg, data = getattr(config, phase), digits()
    run_engine(config, phase, objective_of(phase, cfg, teacher), ours, data, tmp_path)
    plain_loop(config, phase, theirs, teacher, data)
    moved = (flat(theirs) - flat(start)).norm()
    apart = (flat(ours) - flat(theirs)).norm()
    print(f"{phase} {option} {dtype} moved {moved:.3g} apart {apart / moved:.3g}")
    assert moved > 0.01
    assert apart <= moved * {torch.float32: 1e-2, torch.float64: 1e-7}[dtype]


# ------------------------------------------------------------------------------------------
# Options that change how an update runs, not its results


@pytest.fixture
def short(tiny):
    return set_of(tiny, "distill", updates=12)


@pytest.fixture
def labelled(short):
    """A class-conditional run, and its data."""
    config = dataclasses.replace(short, model=dataclasses.replace(short.model, num_classes=10))
    return config, Dataset(digits().images, torch.arange(50) % 10)


def test_streamed_images_are_the_resident_ones(labelled, tmp_path):
    config, data = labelled
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, accumulate=2))
    _, resident = distilled(config, tmp_path / "a", data=data, place="device")
    _, streamed = distilled(config, tmp_path / "b", data=data, place="stream")
    assert torch.equal(flat(resident), flat(streamed))


def test_a_set_to_be_streamed_stays_in_host_memory(tiny):
    elsewhere = torch.device("meta")
    for place, where in (("stream", "cpu"), ("device", "meta")):
        config = dataclasses.replace(tiny, engine=EngineConfig(data=place))
        assert image_stream.place(digits(), config, elsewhere).images.device.type == where


@pytest.mark.parametrize("conditional", [False, True])
def test_a_pipelined_teacher_teaches_the_same(short, labelled, conditional, tmp_path):
    config, data = labelled if conditional else (short, digits())
    start, plain = distilled(config, tmp_path / "a", data=data)
    _, pipelined = distilled(config, tmp_path / "b", Pipelined, data=data)
    assert apart(start, plain, pipelined) < 1e-3


def test_tabulated_film_is_the_computed_one(short, tmp_path):
    start, plain = distilled(short, tmp_path / "a")
    _, tabulated = distilled(short, tmp_path / "b", tabulate_film=True)
    assert apart(start, plain, tabulated) < 1e-3
    objective = Rollout(start, STEPS, "snr_trunc", EngineConfig(tabulate_film=True))
    assert len(objective._films) == 2 * STEPS
    u = torch.arange(1, 2 * STEPS + 1, dtype=torch.float64) / (2 * STEPS)
    z = torch.randn(2 * STEPS, 1, 8, 8)
    phi = start.schedule.phi(u)
    torch.testing.assert_close(
        objective._teacher_at(z, phi, UNCONDITIONAL), start.forward_at_angle(z, phi)
    )


@pytest.mark.slow
def test_compiled_networks_teach_the_same(short, tmp_path):
    config = dataclasses.replace(short, distill=dataclasses.replace(short.distill, updates=3))
    start, plain = distilled(config, tmp_path / "a")
    _, compiled = distilled(config, tmp_path / "b", compile=True)
    assert apart(start, plain, compiled) < 1e-3


class Casts(TorchDispatchMode):
    """Records the casts to bfloat16."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and out.dtype == torch.bfloat16:
            self.shapes.append(tuple(out.shape))
        return out


def test_bf16_keeps_float32_masters_and_casts_no_weight(short, tmp_path):
    teacher = random_model(short.model, 0, torch.float32)
    student, low = copy.deepcopy(teacher), cast_to_precision(teacher, "bf16")
    optimizer = Optimizer(student, short.distill, torch.bfloat16)
    objective = Rollout(low, STEPS, "snr_trunc")
    batch, _ = open_batch(short, short.distill, digits(), student, 1, optimizer.done)
    optimizer.rate.fill_(1e-3)
    with Casts() as casts:
        for _ in range(3):
            update(student, objective, optimizer, batch)
    weights = {tuple(p.shape) for p in student.parameters() if p.dtype == torch.bfloat16}
    assert not weights & set(casts.shapes)
    precise = {id(p) for m in student.net.precise() for p in m.parameters()}
    for name, p in student.net.named_parameters():
        assert p.dtype == (torch.float32 if id(p) in precise else torch.bfloat16), name
    assert batch.dtype == torch.bfloat16
    draw, _ = batch.noised(student.schedule.grid(STEPS, student.device), STEPS)
    assert (draw.z_t.dtype, draw.z_in.dtype) == (torch.float32, torch.bfloat16)
    for buffer in (optimizer.weights, optimizer.grads, optimizer.exp_avg, optimizer.exp_avg_sq):
        assert buffer.dtype == torch.float32
    assert torch.equal(optimizer.copy, optimizer.weights.bfloat16())
    assert not torch.equal(optimizer.copy.float(), optimizer.weights)
    optimizer.release()
    assert student.net_dtype == torch.float32
    assert torch.equal(flat(student), masters(optimizer, student))


def masters(optimizer, model):
    """Return the master weights without the padding between parameters."""
    views = optimizer._views(optimizer.weights)
    return torch.cat([views[name].double().flatten() for name, _ in model.net.named_parameters()])


@pytest.mark.slow
def test_bf16_learns_what_float32_learns(tiny, tmp_path):
    config = set_of(tiny, "distill")
    start, exact = distilled(config, tmp_path / "a")
    _, rounded = distilled(config, tmp_path / "b", precision="bf16")
    towards = torch.nn.functional.cosine_similarity(
        flat(exact) - flat(start), flat(rounded) - flat(start), dim=0
    )
    print(f"cosine of the two ways: {towards:.3f}")
    assert towards > 0.9


# ------------------------------------------------------------------------------------------
# Signal and rounding


def test_the_signal_is_the_references(tiny):
    """In float64, it is |v_target - v_student| by the published formulas."""
    teacher = random_model(tiny.model, 0, torch.float64)
    batch, _ = open_batch(tiny, tiny.distill, digits(), teacher, 1, fixed=True)
    found = measure(teacher, teacher, STEPS, batch)
    draw, _ = batch.noised(teacher.schedule.grid(STEPS, teacher.device), STEPS)
    logsnr = -2 * torch.log(torch.tan(draw.phi_t))
    u = (draw.phi_t - teacher.schedule.b) / teacher.schedule.a
    i = (u * STEPS).round().long() - 1
    alpha, sigma = (f(draw.phi_t)[:, None, None, None] for f in (torch.cos, torch.sin))
    chosen = digits().images[draw.chosen].permute(0, 3, 1, 2)
    x = (chosen.float() / 127.5 - 1).double()
    eps = (draw.z_t - alpha * x) / sigma
    _, x_target = reference.distillation_loss(teacher, teacher, x, eps, i, STEPS, "v_mse")
    x_hat, _ = reference.predict(teacher, draw.z_t, logsnr, None)
    v = (x_hat - x_target) / sigma
    assert found.signal == pytest.approx(
        v.square().mean((1, 2, 3)).sqrt().median().item(), rel=1e-8
    )
    assert found.rounding < 1e-12


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_more_steps_leave_less_to_learn(tiny, precision):
    """The signal falls with N, the rounding does not."""
    teacher = random_model(tiny.model, 0, torch.float32)
    low = cast_to_precision(teacher, precision)
    loop = dataclasses.replace(tiny.distill, batch=64)
    batch, _ = open_batch(tiny, loop, digits(), low, 1, fixed=True)
    few, many = (measure(teacher, low, n, batch) for n in (8, 512))
    assert few.signal > 4 * many.signal
    assert 0.1 < few.rounding / many.rounding < 10
    scale = {"fp32": 1e-7, "bf16": 1e-3}[precision]
    assert scale / 30 < few.rounding < scale * 30
    assert few.ratio == few.signal / few.rounding


# ------------------------------------------------------------------------------------------
# Precision and its errors


def test_precisions(tiny):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [precision_of("auto", d) for d in (cpu, gpu)] == ["fp32", "bf16"]
    assert precision_of("tf32", gpu) == "tf32"
    with pytest.raises(UsageError, match="tf32 needs a GPU"):
        precision_of("tf32", cpu)
    halves = dataclasses.replace(tiny.distill, accumulate=2)
    with pytest.raises(UsageError, match=r"set distill\.accumulate to 1"):
        dataclasses.replace(tiny, distill=halves, engine=EngineConfig(pipeline_teacher=True))
    with pytest.raises(UsageError, match=r"accumulate 3 does not divide distill\.batch 4"):
        dataclasses.replace(tiny.distill, accumulate=3)
