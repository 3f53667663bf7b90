"""adamw against float64, and against torch.optim.AdamW with clipping and averaging."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DEVICE, FEW, MANY, SEEDS, assert_accepted
from launch_inputs import ARCHS, TYPES, Code, Traffic, values
from torch.library import opcheck

from pdfast.config.schema import TrainConfig
from pdfast.kernels import adamw as file
from pdfast.kernels.adamw import AdamWHyperparameters, adamw, adamw_op, adamw_reference
from pdfast.training import averages

COPIES = [None, torch.bfloat16, torch.float16]
CASE = {
    "size": st.sampled_from([101, 1000, 1024, 5003]),
    "max_norm": st.sampled_from([0.0, 0.01, 1.0, 1e6]),
    "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
    "ema_decays": st.lists(st.sampled_from([0.0, 0.3, 0.9, 0.9999]), max_size=4).map(tuple),
    "ema_warmup": st.booleans(),
    "lr": st.sampled_from([0.0, 1e-4, 0.1]),
    "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.99)]),
    "scale": st.sampled_from([1e-6, 1.0, 1e4]),
    "first_step": st.sampled_from([1, 2, 50_000]),
    "earlier": st.sampled_from([None, 0, 1, 700]),
    "draw": SEEDS,
}
NAMES = ("params", "exp_avg", "exp_avg_sq", "ema")


def start(size, ema, copy, generator):
    """Return buffers before an update: params, grads, exp_avg, exp_avg_sq, `ema` averages, copy."""
    draw = [torch.randn(size, generator=generator).to(DEVICE) for _ in range(5)]
    params, grads, exp_avg, exp_avg_sq, average = draw
    copies = None if copy is None else torch.empty(size, dtype=copy, device=DEVICE)
    more = [torch.randn(size, generator=generator).to(DEVICE) for _ in range(1, ema)]
    kept = torch.stack([average, *more]) if ema else None
    return params, grads, exp_avg / 10, exp_avg_sq.square(), kept, copies


def counters_of(lr, step, loss=1.0, skipped=(0, 0)):
    """Return lr, step, loss and skipped as the tensors that an update takes."""
    numbers = torch.tensor([lr]), torch.tensor([step]), torch.tensor(loss), torch.tensor(skipped)
    return [number.to(DEVICE) for number in numbers]


def count_of(earlier):
    return None if earlier is None else torch.tensor([earlier], device=DEVICE)


def to(buffers, dtype):
    return [None if b is None else b.clone().to(dtype) for b in buffers[:5]] + [None]


def check(
    copy,
    size,
    max_norm,
    weight_decay,
    ema_decays,
    ema_warmup,
    lr,
    betas,
    scale,
    first_step,
    earlier,
    draw,
):
    g = torch.Generator().manual_seed(draw)
    ours = start(size, len(ema_decays), copy, g)
    if first_step == 1 and not earlier:
        ours[2].zero_(), ours[3].zero_()
    exact, eager = to(ours, torch.float64), to(ours, torch.float32)
    hyperparameters = AdamWHyperparameters(
        max_norm=max_norm,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        ema_decays=ema_decays,
        max_skipped=1,
        ema_warmup=ema_warmup,
    )
    for step in range(first_step, first_step + 2):
        grads = scale * torch.randn(size, generator=g).to(DEVICE)
        ours[1].copy_(grads), exact[1].copy_(grads), eager[1].copy_(grads)
        rest = (*counters_of(lr, step), hyperparameters, count_of(earlier))
        norm = adamw(*ours, *rest)
        norm_exact = adamw_reference(*exact, *rest)
        norm_eager = adamw_reference(*eager, *rest)
        assert_accepted(norm, norm_eager, norm_exact)
    for mine, theirs, truth in zip(ours[:4], eager, exact, strict=False):
        assert_accepted(mine, theirs, truth)
    for n in range(len(ema_decays)):
        assert_accepted(ours[4][n], eager[4][n], exact[4][n])
    if copy is not None:
        assert_accepted(ours[5], eager[0].to(copy), exact[0])
    for average, decay in zip(ours[4] if ema_decays else (), ema_decays, strict=True):
        if decay == 0.0:
            assert torch.equal(average, ours[0])


def test_random_cases():
    FEW(given(copy=st.sampled_from(COPIES), **CASE)(lambda **case: check(**case)))()


@pytest.mark.slow
@pytest.mark.parametrize("copy", COPIES, ids=str)
def test_many_random_cases(copy):
    MANY(given(**CASE)(lambda **case: check(copy, **case)))()


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("kernel", [True, False])
def test_torch_adamw_with_clipping_and_averaging(kernel, max_norm, monkeypatch):
    """Each update starts from the same state, and ends at most 1e-6 apart, by buffer, relative."""
    monkeypatch.setattr(file.runtime, "uses_triton", lambda *_: kernel)
    g = torch.Generator().manual_seed(0)
    ours = start(3001, 1, None, g)
    ours[2].zero_(), ours[3].zero_()
    theirs = torch.nn.Parameter(ours[0].clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    average = ours[4][0].clone()
    for step in range(1, 6):
        ours[1].copy_(torch.randn(3001, generator=g))
        theirs.grad = ours[1].clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], max_norm or float("inf"))
        optimizer.param_groups[0]["lr"] = 0.1 / step
        optimizer.step()
        average.lerp_(theirs.detach(), 1.0 if step == 1 else 0.01)
        options = AdamWHyperparameters(
            max_norm=max_norm, max_skipped=1, weight_decay=0.1, ema_decays=(0.99,)
        )
        got = adamw(*ours, *counters_of(0.1 / step, step), options)
        state = optimizer.state[theirs]
        pairs = [(got, norm), (ours[0], theirs.detach()), (ours[4][0], average)]
        pairs += [(ours[2], state["exp_avg"]), (ours[3], state["exp_avg_sq"])]
        for mine, expected in pairs:
            assert (mine - expected).norm() <= 1e-6 * expected.norm()
            mine.copy_(expected)  # the next update starts from the same state


# ------------------------------------------------------------------------------------------
# Updates that are skipped

INF, NAN = float("inf"), float("nan")
# Three blocks in a program, and a fourth one in the first program.
SIZE = 10 * file.BLOCK + 3
KINDS = ["kernel", "reference", "reference on a device", "float64"]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Each way to compute an update; returns the dtype of its buffers."""
    monkeypatch.setattr(file, "PROGRAMS", 4)
    if request.param != "kernel":
        monkeypatch.setattr(file.runtime, "uses_triton", lambda *_: False)
    if request.param == "reference on a device":
        monkeypatch.setattr(file, "ASKED", ())
    return torch.float64 if request.param == "float64" else torch.float32


def changing(dtype):
    """Return buffers (params, grads, ..., copy) with signed zeros, which must keep their bits."""
    buffers = start(SIZE, 1, torch.bfloat16, torch.Generator().manual_seed(0))
    buffers[5].zero_()
    for buffer in buffers:
        buffer[..., 5], buffer[..., -1] = -0.0, 0.0
    return [b if b.dtype == torch.bfloat16 else b.to(dtype) for b in buffers]


def bits(buffers):
    """Return the bytes of all buffers except the gradient."""
    return [b.view(torch.uint8).clone() for b in buffers[:1] + buffers[2:]]


@pytest.mark.parametrize(
    ("loss", "grad", "before", "after"),
    [
        (NAN, None, (0, 0), (1, 1)),
        (-INF, None, (3, 1), (4, 2)),
        (1.0, (0, NAN), (3, 0), (4, 1)),
        (1.0, (SIZE - 1, INF), (0, 0), (1, 1)),
        (1.0, (file.BLOCK, -INF), (7, 2), (8, 3)),
        (NAN, (0, NAN), (7, 2), (8, 3)),
        (1.0, None, (3, 3), (4, 4)),  # finite, but the limit was reached before
        (1.0, None, (9, 5), (10, 6)),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_skipped_update_changes_two_counters_alone(kind, loss, grad, before, after, shape):
    buffers = changing(kind)
    if grad:
        buffers[1][grad[0]] = grad[1]
    expected = bits(buffers)
    options = AdamWHyperparameters(max_norm=1.0, max_skipped=3, ema_decays=(0.9,))
    lr, step, loss, skipped = counters_of(0.1, 20, loss, before)
    norm = adamw(*buffers, lr, step, loss.reshape(shape), skipped, options)
    assert skipped.tolist() == list(after)
    assert all(torch.equal(a, b) for a, b in zip(bits(buffers), expected, strict=True))
    assert bool(norm.isfinite()) == (grad is None)
    assert bool(norm.isnan()) == (grad is not None and grad[1] != grad[1])


@pytest.mark.parametrize("ema_warmup", [False, True])
def test_skipped_updates_are_no_steps(kind, ema_warmup):
    """The bits are those without them: bias correction, first average, and warm-up."""
    options = AdamWHyperparameters(
        max_norm=1.0, max_skipped=3, weight_decay=0.1, ema_decays=(0.9,), ema_warmup=ema_warmup
    )
    with_some, without = changing(kind), changing(kind)
    for buffers in (with_some, without):
        buffers[2].zero_(), buffers[3].zero_()
    skipped, made = torch.tensor([0, 0], device=DEVICE), 0
    for step, loss in enumerate([NAN, INF, 1.0, NAN, 1.0, 1.0, NAN, NAN, 1.0], 1):
        lr, count, value, _ = counters_of(0.1, step, loss)
        adamw(*with_some, lr, count, value, skipped, options)
        if loss == 1.0:
            made += 1
            adamw(*without, *counters_of(0.1, made), options)
            assert torch.equal(with_some[4][0], with_some[0]) == (made == 1)
        pairs = zip(bits(with_some), bits(without), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert (skipped.tolist(), made) == ([5, 0], 4)


# ------------------------------------------------------------------------------------------
# Averages

AVERAGES = [(0.0, True), (0.3, False), (0.8, True), (0.8, False), (0.9999, True)]


@pytest.mark.parametrize(("ema_decay", "ema_warmup"), AVERAGES)
def test_averages_of_weights_that_jump(kind, ema_decay, ema_warmup):
    """Twenty updates with unrelated weights, against the definition in float64."""
    buffers, generator = changing(kind), torch.Generator().manual_seed(0)
    options = AdamWHyperparameters(
        max_norm=0.0, max_skipped=1, ema_decays=(ema_decay,), ema_warmup=ema_warmup
    )
    expected, unit = buffers[0].double(), torch.finfo(kind).eps
    for k in range(20):
        buffers[0].copy_(torch.randn(SIZE, generator=generator))
        adamw(*buffers, *counters_of(0.0, k + 1), options)
        decay = min(ema_decay, (1 + k) / (10 + k)) if ema_warmup else ema_decay
        decay = decay if k else 0.0
        expected = decay * expected + (1 - decay) * buffers[0].double()
        apart = (buffers[4][0].double() - expected).norm()
        assert apart <= 2 * unit * (k + 1) ** 0.5 * expected.norm(), (k, apart)
    assert torch.equal(buffers[4][0], buffers[0]) == (ema_decay == 0.0)


@pytest.mark.parametrize("ema_warmup", [False, True])
def test_several_averages_are_each_what_it_would_be_alone(kind, ema_warmup):
    """To the bit, over four updates, of which the second is skipped; nothing else changes."""
    decays = (0.1, 0.9999, 0.0, 0.15)  # different in the warm-up too
    draw = start(SIZE, 4, torch.float16, torch.Generator().manual_seed(1))
    for size in (SIZE, 1):
        first = [b[..., :size].contiguous() for b in draw]
        first = [b if b.dtype == torch.float16 else b.to(kind) for b in first]
        found = []
        for which in ((0, 1, 2, 3), (0, 1, 2), (3, 1), (0,), (2,)):
            options = AdamWHyperparameters(
                max_norm=1.0,
                max_skipped=2,
                ema_decays=tuple(decays[n] for n in which),
                ema_warmup=ema_warmup,
            )
            buffers = [b.clone() for b in first]
            buffers[4] = buffers[4][list(which)].contiguous()
            _, _, _, skipped = counters_of(0.1, 1)
            for step in range(1, 5):
                lr, count, loss, _ = counters_of(0.1, step, NAN if step == 2 else 1.0)
                adamw(*buffers, lr, count, loss, skipped, options)
            found.append((which, buffers))
        _, together = found[0]
        for which, buffers in found[1:]:
            assert torch.equal(buffers[4], together[4][list(which)])
            others = zip(buffers[:4] + buffers[5:], together[:4] + together[5:], strict=True)
            assert all(torch.equal(a, b) for a, b in others)
        if size > 1:
            assert len({bytes(average.view(torch.uint8).tolist()) for average in together[4]}) == 4


def test_earlier_updates_count_for_the_moments_alone(kind):
    """As if the steps had continued, except for the averages, which begin at step 1."""
    options = AdamWHyperparameters(
        max_norm=1.0, max_skipped=3, weight_decay=0.1, ema_decays=(0.9,), ema_warmup=True
    )
    cases = [changing(kind) for _ in range(3)]
    for step in range(1, 4):
        adamw(*cases[0], *counters_of(0.1, step), options, count_of(6))
        adamw(*cases[1], *counters_of(0.1, step + 6), options)
        adamw(*cases[2], *counters_of(0.1, step), options)
    earlier, later, without = cases
    for n in (0, 2, 3, 5):
        assert torch.equal(earlier[n], later[n])
    assert not torch.equal(earlier[0], without[0])
    expected = changing(kind)  # the averages of the same weights at steps 1, 2, 3
    weights = changing(kind)
    for step in range(1, 4):
        adamw(*weights, *counters_of(0.1, step + 6), options)
        expected[0].copy_(weights[0]), expected[2].zero_(), expected[3].zero_()
        expected[1].zero_()
        adamw(*expected, *counters_of(0.0, step), options)
    assert torch.equal(earlier[4], expected[4])


def test_no_earlier_updates_are_none(kind):
    options = AdamWHyperparameters(max_norm=1.0, max_skipped=1, ema_decays=(0.9,))
    with_zero, with_none = changing(kind), changing(kind)
    adamw(*with_zero, *counters_of(0.1, 3), options, count_of(0))
    adamw(*with_none, *counters_of(0.1, 3), options)
    assert all(torch.equal(a, b) for a, b in zip(bits(with_zero), bits(with_none), strict=True))


@pytest.mark.parametrize(("ema_decay", "ema_warmup"), AVERAGES[1:])
def test_the_share_of_the_first_weights_in_the_averages(kind, ema_decay, ema_warmup, launched):
    """Averages of weights that are 1 after the first update and 0 after each later one."""
    cfg = TrainConfig(ema_decay=ema_decay, ema_warmup=ema_warmup)
    buffers = [torch.zeros(16, dtype=kind, device=DEVICE) for _ in range(5)]
    options = AdamWHyperparameters(
        max_norm=0.0, max_skipped=1, ema_decays=(ema_decay,), ema_warmup=ema_warmup
    )
    buffers[4] = torch.full_like(buffers[4], 7.0)[None]  # the old average does not count
    for step in range(1, 400):
        buffers[0].fill_(1.0 if step == 1 else 0.0)
        adamw(*buffers, None, *counters_of(0.0, step), options)
        found = averages.initial_share(cfg, step)
        assert found == pytest.approx(float(buffers[4][0, 0]), rel=1e-3, abs=1e-30)
        if launched and step == 50:  # the interpreter takes 15 ms for each
            break


def test_after_the_limit_nothing_is_updated_again(kind):
    buffers, skipped = changing(kind), torch.tensor([0, 0], device=DEVICE)
    expected = bits(buffers)
    options = AdamWHyperparameters(max_norm=0.0, max_skipped=3, ema_decays=(0.9,))
    for step, loss in enumerate([NAN, NAN, NAN, 1.0, 1.0], 1):
        lr, count, value, _ = counters_of(0.1, step, loss)
        adamw(*buffers, lr, count, value, skipped, options)
    assert skipped.tolist() == [5, 5]
    assert all(torch.equal(a, b) for a, b in zip(bits(buffers), expected, strict=True))


@pytest.mark.parametrize("max_skipped", [1, 3])
@pytest.mark.parametrize("loss", [1.0, NAN])
def test_every_program_decides_the_same_after_the_first_has_counted(loss, max_skipped):
    """A program that reads the counters late decides like one that reads them early."""
    for before in range(max_skipped + 2):
        decided = []
        _, _, value, skipped = counters_of(0.1, 1, loss, (7, before))
        for _ in range(2):
            seen = skipped.clone()
            made = bool(file.count_skipped(torch.ones((), device=DEVICE), value, seen, max_skipped))
            decided.append((made, int(skipped[0]) if made else None))
            skipped = seen
        assert decided[0] == decided[1]


def test_the_same_bits_again_with_several_blocks_per_program(monkeypatch):
    monkeypatch.setattr(file, "PROGRAMS", 4)
    size, betas = 10 * file.BLOCK + 3, (0.9, 0.999)
    check(torch.bfloat16, size, 0.1, 0.1, (0.9, 0.99), True, 0.1, betas, 1.0, 1, None, 0)
    runs = []
    for _ in range(2):
        buffers = start(10 * file.BLOCK + 3, 1, None, torch.Generator().manual_seed(0))
        norm = adamw(
            *buffers,
            *counters_of(0.1, 1),
            AdamWHyperparameters(max_norm=0.1, max_skipped=1, ema_decays=(0.9,)),
        )
        runs.append((norm, buffers[0], *buffers[2:5]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("size", [1, 2, 17])
def test_short_buffers_are_the_beginning_of_long_ones(size):
    whole = start(100, 1, torch.bfloat16, torch.Generator().manual_seed(0))
    part = [buffer[..., :size].clone() for buffer in whole]
    options = AdamWHyperparameters(max_norm=0.0, max_skipped=1, weight_decay=0.1, ema_decays=(0.9,))
    for buffers in (whole, part):
        norm = adamw(*buffers, *counters_of(0.1, 3), options)
    assert all(torch.equal(a, b[..., :size]) for a, b in zip(part, whole, strict=True))
    assert torch.allclose(norm, part[1].norm(), rtol=1e-6)


def test_gradients_that_overflow_when_squared():
    buffers = start(100, 0, None, torch.Generator().manual_seed(0))
    buffers[1].fill_(1e25)
    norm = adamw(*buffers, *counters_of(0.1, 1), AdamWHyperparameters(max_norm=1.0, max_skipped=1))
    if file.runtime.uses_triton(DEVICE):  # torch's own norm overflows in float32
        assert float(norm) == pytest.approx(1e26, rel=1e-6)


def arguments():
    buffers = start(33, 1, torch.bfloat16, torch.Generator().manual_seed(0))
    names = ("params", "grads", "exp_avg", "exp_avg_sq", "ema", "copy", "lr", "step")
    names += ("loss", "skipped")
    return dict(zip(names, (*buffers, *counters_of(0.1, 1)), strict=True))


def options_of(*decays):
    return AdamWHyperparameters(max_norm=1.0, max_skipped=1, ema_decays=decays)


def test_registered():
    numbers = (1.0, 0.9, 0.999, 1e-8, 0.1, [0.9], 1, True)
    opcheck(adamw_op, (*arguments().values(), *numbers))
    opcheck(adamw_op, (*(arguments() | {"ema": None, "copy": None}).values(), *numbers))
    three = arguments() | {"ema": torch.zeros(3, 33, device=DEVICE)}
    numbers = (1.0, 0.9, 0.999, 1e-8, 0.1, [0.9, 0.5, 0.99], 1, True, count_of(5))
    opcheck(adamw_op, (*three.values(), *numbers))


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("params", lambda t: t.half(), "params must be float32 or float64, not float16"),
        ("params", lambda t: t[None], r"params must have shape \(33,\), not \(1, 33\)"),
        ("params", lambda t: t[:0], r"params must have shape \(1,\), not \(0,\)"),
        ("params", lambda t: [1.0], "params must be a tensor, not list"),
        ("grads", lambda t: t.double(), "grads must be float32, not float64"),
        ("exp_avg", lambda t: t[:3], r"exp_avg must have shape \(33,\), not \(3,\)"),
        ("exp_avg_sq", lambda t: t.to("meta"), "exp_avg_sq must be on .*, not on meta"),
        ("ema", lambda t: torch.empty(1, 66, device=DEVICE)[:, ::2], "ema must be contiguous"),
        ("ema", lambda t: t[0], r"ema must have shape \(1, 33\), not \(33,\)"),
        ("ema", lambda t: t.repeat(2, 1), r"ema must have shape \(1, 33\), not \(2, 33\)"),
        ("copy", lambda t: t.float(), "copy must be bfloat16 or float16, not float32"),
        ("lr", lambda t: 0.1, "lr must be a tensor, not float"),
        ("lr", lambda t: t[0], r"lr must have shape \(1,\), not \(\)"),
        ("step", lambda t: t.float(), "step must be int64, not float32"),
        ("loss", lambda t: t.half(), "loss must be float32 or float64, not float16"),
        ("loss", lambda t: t.expand(2), r"loss must have shape \(1,\), not \(2,\)"),
        ("skipped", lambda t: t[:1], r"skipped must have shape \(2,\), not \(1,\)"),
        ("skipped", lambda t: t.repeat(2)[::2], "skipped must be contiguous"),
        ("earlier", lambda t: t.int(), "earlier must be int64, not int32"),
        ("earlier", lambda t: t[0], r"earlier must have shape \(1,\), not \(\)"),
    ],
)
def test_bad_arguments(name, bad, message):
    args = arguments() | {"earlier": count_of(0)}
    args[name] = bad(args[name])
    with pytest.raises((TypeError, ValueError), match=message):
        adamw(**args, hyperparameters=options_of(0.9))


def test_averages_need_their_decays():
    with pytest.raises(ValueError, match="ema needs a decay for each average"):
        adamw(**arguments(), hyperparameters=options_of())
    with pytest.raises(ValueError, match="ema_decays must hold at most 4 decays, not 5"):
        options_of(0.1, 0.2, 0.3, 0.4, 0.5)
    for decay in (-0.1, 1.0, NAN, INF):
        with pytest.raises(ValueError, match=r"ema_decays must be in \[0, 1\), not"):
            options_of(0.9, decay)


def test_one_update_at_least_may_be_skipped():
    with pytest.raises(ValueError, match="max_skipped must be at least 1, not 0"):
        AdamWHyperparameters(max_norm=1.0, max_skipped=0)


# ------------------------------------------------------------------------------------------
# Launches, machine code and bytes: see launch_cases.py


PARAMS = 60_004_099 + 61  # of the paper's CIFAR-10 network, padded to a multiple of 64


DECAYS = (0.999, 0.9, 0.3, 0.99)


def launch(
    device, ema=1, copy="bf16", max_norm=1.0, size=4096, live=True, warmup=True, earlier=None
):
    """Return all buffers after an update. Without `live` they are empty, and touch no memory."""

    def buffer(seed, dtype=torch.float32, shape=size):
        if not live:
            return torch.empty(shape, dtype=dtype, device=device)
        return values(shape, torch.float32, device, seed).square().to(dtype)

    buffers = [buffer(seed) for seed in range(4)]
    buffers.append(buffer(4, shape=(ema, size)) if ema else None)
    buffers.append(buffer(5, TYPES[copy]) if copy else None)
    lr, loss = torch.tensor([1e-3], device=device), torch.tensor(0.5, device=device)
    count = torch.tensor([3], device=device)
    skipped = torch.zeros(2, dtype=torch.int64, device=device)
    options = AdamWHyperparameters(
        max_norm=max_norm,
        max_skipped=10,
        weight_decay=0.1,
        ema_decays=DECAYS[:ema],
        ema_warmup=warmup,
    )
    before = None if earlier is None else torch.tensor([earlier], device=device)
    norm = adamw(*buffers, lr, count, loss, skipped, options, before)
    return norm, *(b for b in buffers if b is not None), skipped


def launch_cases():
    kinds = itertools.product((0, 1), (None, "bf16", "fp16"), (0.0, 1.0))
    options = [{"ema": ema, "copy": copy, "max_norm": most} for ema, copy, most in kinds]
    options += [{"size": 1}, {"size": 4099}, {"warmup": False}]
    options += [{"ema": averages} for averages in (2, 3, 4)]
    options += [{"ema": 4, "size": 1}, {"ema": 4, "size": 4099}, {"ema": 4, "warmup": False}]
    options += [{"earlier": 5}, {"earlier": 5, "ema": 3, "copy": None}]
    return [("adamw", launch, option) for option in options]


def machine_code():
    """On the buffers of 60 million parameters."""
    paper_s = {"size": PARAMS, "live": False}
    for arch in ARCHS:
        yield Code("adamw", arch, 4 * file.BLOCK, 0, launch, paper_s, launch=0)
    kinds = [
        (90, ema, copy, most, True)
        for ema in (0, 1)
        for copy in (None, "bf16", "fp16")
        for most in (0.0, 1.0)
    ]
    kinds += [(arch, 1, "bf16", 1.0, warmup) for arch in (80, 100) for warmup in (False, True)]
    kinds += [(90, 1, "bf16", 1.0, False)]
    kinds += [(90, averages, "bf16", 1.0, True) for averages in (2, 3)]
    kinds += [(arch, 4, "bf16", 1.0, True) for arch in ARCHS]
    for arch, ema, copy, most, warmup in kinds:
        flat = 4 + ema
        loads = 4 * flat * file.BLOCK + 8 * file.PROGRAMS  # and the partial sums
        stores = (4 * (flat - 1) + (2 if copy else 0)) * file.BLOCK
        options = {"ema": ema, "copy": copy, "max_norm": most, "warmup": warmup, **paper_s}
        yield Code("adamw", arch, loads, stores, launch, options)


def traffic():
    """Gradients are read twice, the rest once; each program reads partial sums and counters."""
    yield moved("adamw", 1, None)
    yield moved("adamw with four averages", 4, 3)


def moved(name, averages, earlier):
    size, programs = 5000, 5
    generator = torch.Generator().manual_seed(0)
    *buffers, copy = start(size, averages, torch.float16, generator)
    counters, before = counters_of(0.1, 2), count_of(earlier)
    options = AdamWHyperparameters(
        max_norm=1.0, max_skipped=1, weight_decay=0.1, ema_decays=DECAYS[:averages]
    )

    def run():
        norm = adamw(*buffers, copy, *counters, options, before)
        _, grads, *_ = buffers
        found = [(b, *((2, 0) if b is grads else (1, 1))) for b in buffers]
        lr, step, loss, skipped = counters
        found += [(copy, 0, 1), (norm, 0, 1), (skipped, programs, 1)]
        numbers = [lr, step, loss] + ([] if before is None else [before])
        return found + [(number, programs, 0) for number in numbers]

    def eager():
        adamw_reference(*buffers, copy, *counters, options, before)

    return Traffic(name, run, eager, size, scratch=8 * programs * (1 + programs))
