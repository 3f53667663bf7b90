"""The choice of a round's student among its averages."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from engine_cases import changed, digits, random_model
from pair import Pair
from torch import nn

import pdfast
from pdfast.config.schema import Config, DistillConfig
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream
from pdfast.distillation import choice, rounds
from pdfast.distillation.choice import Choice, choice_evaluations, choose, ends
from pdfast.distributed import collectives
from pdfast.errors import PdfastError, UsageError
from pdfast.models import checkpoint
from pdfast.models.custom import Network
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import cast_to_precision

SHAPE, SEED, ROUND = (1, 12), 3, 2
DECAYS = (0.5, 0.9, 0.99)


class Scale(nn.Module):
    """Predicts x-hat = scale z; a teacher's steps from u = 1 compose to the same form."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.full(SHAPE, by, dtype=torch.float64))

    def forward(self, z, logsnr, label):
        return self.by * z


def scaled(by, steps=0):
    network = Network(Scale(by), shape=SHAPE, parameterization="x")
    network.steps = steps
    return network


def samples(num=40):
    return Dataset(torch.randn(num, 1, 12, 1, generator=torch.Generator().manual_seed(0)), None)


def config_of(start, rounds, **options):
    options = {"ema_decays": DECAYS, "second": "student"} | options
    return Config(seed=SEED, distill=DistillConfig(start_steps=start, rounds=rounds, **options))


def composition(by, steps):
    """Return the scale of `steps` DDIM steps of the scaling network from u = 1, in float64."""
    schedule, product = scaled(by).schedule, torch.ones((), dtype=torch.float64)
    for k in range(steps, 1, -1):
        phi, phi_next = (
            schedule.phi(torch.tensor(j / steps, dtype=torch.float64)) for j in (k, k - 1)
        )
        product *= (phi_next.sin() + (phi - phi_next).sin() * by) / phi.sin()
    return float(product * by)


def chosen_of(student, teacher, config, averages, data=None):
    """Choose among the student's weights and averages set by hand."""
    optimizer = Optimizer(student, config.distill)
    for row, value in zip(optimizer.ema, averages, strict=True):
        row.fill_(value)
    found = choose(optimizer, student, teacher, data or samples(), config, ROUND)
    optimizer.release()
    return found


@pytest.mark.parametrize("steps_of_the_teacher", [2, 6])
@pytest.mark.parametrize("place", [0, 2, "raw"])
def test_the_exact_student_is_chosen_wherever_it_is(place, steps_of_the_teacher):
    exact = composition(0.4, steps_of_the_teacher)
    config = config_of(steps_of_the_teacher, f"{steps_of_the_teacher},1")
    averages = [exact + 0.01, exact - 0.3, exact + 1.0]
    raw = exact - 0.02
    if place == "raw":
        raw = exact
    else:
        averages[place] = exact
    student = scaled(raw, steps=1)
    found = chosen_of(student, scaled(0.4), config, averages)
    assert found.chosen == (0.0 if place == "raw" else DECAYS[place])
    assert found.distances[found.chosen] < 1e-28
    others = {0.0: raw, **dict(zip(DECAYS, averages, strict=True))}
    noise = Draws(SEED, Stream.FIXED_NOISE, ROUND).normal(0, 0, 128, (1, 1, 12)).double()
    for decay, by in others.items():  # linear, so that the distances are known
        expected = float(((by - exact) * noise).square().mean())
        assert found.distances[decay] == pytest.approx(expected, rel=1e-9, abs=1e-28)
    assert torch.equal(student.net.by, torch.full(SHAPE, exact, dtype=torch.float64))
    assert found.evaluations == 128 * 1 * (steps_of_the_teacher + 4)


def test_of_equals_the_raw_weights_are_chosen():
    student = scaled(0.2, steps=1)
    assert chosen_of(student, scaled(0.4), config_of(2, 1), [0.2, 0.2, 0.2]).chosen == 0.0
    distances = {0.0: float("nan"), 0.5: 2.0, 0.9: 1.0, 0.99: float("inf")}
    found = Choice(distances, 7)
    assert found.chosen == 0.9
    assert found.as_metrics() == {
        "chosen": 0.9,
        "distance_0.5": 2.0,
        "distance_0.9": 1.0,
        "choice_evaluations": 7,
    }
    assert found.text() == (
        "EMA 0.9 chosen by distance from the teacher (raw nan, EMA 0.5 2, EMA 0.9 1, EMA 0.99 inf)"
    )


def test_candidates_that_are_all_broken_are_refused():
    nan = float("nan")
    with pytest.raises(PdfastError, match="the raw weights and of all averages are not finite"):
        chosen_of(scaled(nan, steps=1), scaled(0.4), config_of(2, 1), [nan] * 3)


# ------------------------------------------------------------------------------------------
# Where it is compared


def started(student, config, data):
    """Return the starts of all 128 images."""
    parts = list(choice._starts(student, data, config, ROUND))
    z, step = (torch.cat([part[n] for part in parts]) for n in (0, 1))
    return parts, z, step


@pytest.mark.parametrize("parameterization", ["x", "v", "x_eps"])
@pytest.mark.parametrize(("steps", "merged"), [(1, 4), (4, 2), (8, 1)])
def test_up_to_eight_steps_end_as_the_sampler_does(tiny, parameterization, steps, merged):
    cfg = dataclasses.replace(tiny.model, parameterization=parameterization)
    model = random_model(cfg, 0, torch.float64)
    model.steps = steps
    config = config_of(16, 4)
    parts, z, step = started(model, config, digits())
    noise = Draws(SEED, Stream.FIXED_NOISE, ROUND).normal(0, 0, 128, (1, 8, 8)).double()
    assert torch.equal(z, noise)
    assert (step == steps).all()
    found = torch.cat([ends(model, part, steps, merged) for part in parts])
    expected = model.sample(128, steps=steps * merged, noise=noise, clip=False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("merged", [1, 2, 4])
def test_more_steps_begin_at_times_spread_over_the_grid(merged):
    """The last eight steps of the first image are the sampler's; other images stop earlier."""
    steps, by = 64, 0.4
    student = scaled(by, steps)
    config, data = config_of(256, "256,64"), samples()
    parts, z, step = started(student, config, data)
    assert step.tolist() == sorted(step.tolist())
    assert (int(step[0]), int(step[-1])) == (8, 64)
    assert max(torch.bincount(step)[8:]) - min(torch.bincount(step)[8:]) <= 2
    found = torch.cat([ends(student, part, steps, merged) for part in parts])
    phi = student.schedule.phi(step / steps)
    noise = Draws(SEED, Stream.FIXED_NOISE, ROUND).normal(0, 0, 128, (1, 1, 12))
    x = (z - phi.sin()[:, None, None, None] * noise) / phi.cos()[:, None, None, None]
    images = data.images.permute(0, 3, 1, 2).double()
    apart = (x[:60, None] - images[None]).abs().amax((2, 3, 4)).amin(1)
    assert (apart < 1e-5).all()  # each start is a noisy image of the data
    factor = torch.ones(128, dtype=torch.float64)
    place = step * merged
    for _ in range(8 * merged):
        here = student.schedule.phi(place / (steps * merged))
        there = student.schedule.phi((place - 1) / (steps * merged))
        on = (there.sin() + (here - there).sin() * by) / here.sin()
        factor *= torch.where(place == 1, torch.full_like(on, by), on)
        place = place - 1
    assert torch.equal(place == 0, step == 8)
    torch.testing.assert_close(found, factor[:, None, None, None] * z, rtol=1e-9, atol=1e-12)


def test_a_candidate_is_judged_in_the_precision_that_it_is_sampled_in(tiny):
    """With bf16, in the rounded copy."""
    cfg = dataclasses.replace(tiny.model, parameterization="v")
    student, teacher = (random_model(cfg, seed, torch.float32) for seed in (0, 1))
    plain, config = copy.deepcopy(student), config_of(8, 1, ema_decays=(0.9,))
    student.steps = plain.steps = 4
    optimizer = Optimizer(student, config.distill, torch.bfloat16)
    optimizer.ema[0].mul_(0.9)
    whole, expected = Optimizer(plain, config.distill), {}
    for decay, weights in optimizer.candidates().items():
        whole.use(weights)
        low = cast_to_precision(plain, "bf16")
        parts, *_ = started(plain, config, digits())
        apart = [(ends(low, p, 4) - ends(teacher, p, 4, 2)).double().square() for p in parts]
        expected[decay] = float(torch.cat(apart).mean())
    found = choose(optimizer, student, teacher, digits(), config, ROUND)
    assert found.distances == expected
    assert len(set(expected.values())) == 2
    assert torch.equal(optimizer.copy, optimizer.weights.bfloat16())


def test_a_first_fit_is_compared_with_the_guided_teacher(guides):
    """Each image has its own class and weight; two evaluations per step."""
    cfg = dataclasses.replace(guides.model, guidance=())
    teacher, student = random_model(cfg, 0, torch.float64), Model(guides.model).double()
    student.steps = 8
    images = digits()
    data = Dataset(images.images, torch.arange(50) % 10)
    config = changed(guides, distill={"ema_decays": (0.9,), "fit_updates": 3})
    parts, *_ = started(student, config, data)
    told = torch.cat([part.conditioning.guidance for part in parts])
    assert 0 <= told.min() < 0.5
    assert 3.5 < told.max() <= 4
    found = torch.cat([ends(teacher, part, 8) for part in parts])
    for k in (0, 100):
        label, weight = (
            torch.cat([getattr(p.conditioning, name) for p in parts])[k : k + 1]
            for name in ("label", "guidance")
        )
        z = torch.cat([part.z for part in parts])[k : k + 1]
        alone = guided(teacher, float(weight))
        expected = alone.sample(1, steps=8, noise=z, label=label, clip=False)
        torch.testing.assert_close(found[k : k + 1], expected, rtol=1e-9, atol=1e-9)
    optimizer = Optimizer(student, config.distill)
    assert choose(optimizer, student, teacher, data, config, 1).evaluations == 128 * 8 * (2 + 2)


def test_what_a_choice_takes():
    assert choice_evaluations(64, 2, 3) == 128 * 8 * 6
    assert choice_evaluations(1, 64, 1) == 128 * 66
    assert choice_evaluations(4, 1, 2, calls=2) == 128 * 4 * 5
    assert choice_evaluations(4, 2, 0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decays": (0.5, 0.5)}, "must be at most 4 different decays in"),
        ({"ema_decays": (0.1, 0.2, 0.3, 0.4, 0.5)}, "must be at most 4 different decays in"),
        ({"ema_decays": (1.0,)}, "must be at most 4 different decays in"),
        ({"ema_decays": (0.0, 0.9)}, "must be at most 4 different decays in"),
        ({"ema_decay": 0.9, "ema_decays": (0.9,)}, "ema_decay and distill.ema_decays are both set"),
        (
            {"round_ema_decay": ((1, 0.9),), "ema_decays": (0.9,)},
            "ema_decay and distill.ema_decays are both set",
        ),
    ],
)
def test_refused_averages(options, message):
    with pytest.raises(UsageError, match=message):
        config_of(2, 1, **options)


# ------------------------------------------------------------------------------------------
# Several processes, and whole runs


def test_two_processes_choose_as_the_first_alone_does(tmp_path):
    """Even if the other one has other distances and would choose another candidate."""
    exact = composition(0.4, 2)
    averages = [exact + 0.5, exact, exact - 0.5]

    def work(rank):
        with collectives.session("cpu", 1):
            student = scaled(exact + 0.1, steps=1)
            mine = averages if rank == 0 else [averages[k] + 2 * (k == 1) for k in range(3)]
            found = chosen_of(student, scaled(0.4), config_of(2, 1), mine)
            told = [found.chosen, list(found.distances.values()), float(student.net.by[0, 0])]
            Path(f"chose-{rank}").write_text(json.dumps(told))

    with Pair(tmp_path, work) as pair:
        assert pair.codes() == [0, 0], pair.said()
    first, second = (json.loads((tmp_path / f"chose-{rank}").read_text()) for rank in range(2))
    student = scaled(exact + 0.1, steps=1)
    alone = chosen_of(student, scaled(0.4), config_of(2, 1), averages)
    assert first == [alone.chosen, list(alone.distances.values()), exact]
    assert second == [alone.chosen, list(alone.distances.values()), exact + 2]
    assert alone.chosen == 0.9


def last_lines(run):
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [m for m in lines if "chosen" in m]


def test_two_processes_run_rounds_that_keep_moments(tiny, tmp_path):
    """Each begins round 2 with round 1's choice; samples and choices are those of one process."""
    kept = {"ema_decays": (0.3, 0.99), "keep_moments": True, "ema_warmup": False}
    kept |= {"second": "student", "loss": "huber", "huber_c": 0.1}
    config = changed(tiny, distill=kept, eval={"steps": (2,), "baseline_steps": 2, "num": 2})

    def work(rank):
        student = pdfast.distill(config, out="two", device="cpu", quiet=True)
        torch.save(student.state_dict(), f"student-{rank}.pt")

    with Pair(tmp_path, work) as pair:
        assert pair.codes() == [0, 0], pair.said()
    first, second = (torch.load(tmp_path / f"student-{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))
    one = pdfast.distill(config, out=tmp_path / "one", device="cpu", quiet=True).state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4)
    moments = "state/moments-round-02/moments.safetensors"
    found = [safetensors.torch.load_file(tmp_path / run / moments) for run in ("one", "two")]
    assert [tensors["earlier"].tolist() for tensors in found] == [[6 + 12]] * 2
    for one, two in zip(*(last_lines(tmp_path / run) for run in ("one", "two")), strict=True):
        names = [name for name in one if name.startswith("distance_")]
        assert len(names) == 3
        for name in names:
            assert two[name] == pytest.approx(one[name], rel=1e-2)


def test_a_run_says_what_each_round_chose(tiny, tmp_path, monkeypatch):
    """In metrics, report and manifest; the choice is the round's model and the next teacher."""
    config = changed(tiny, distill={"ema_decays": (0.5, 0.9)}, eval={"steps": (2,)})
    wanted, seen, real = iter([0.9, 0.0]), [], choice.choose

    def other(optimizer, student, teacher, *rest):
        """Return the real choice first, then another one, so that both kinds occur."""
        found = real(optimizer, student, teacher, *rest)
        distances = dict.fromkeys(found.distances, 2.0) | {next(wanted): 1.0}
        return seen_of(optimizer, teacher, Choice(distances, found.evaluations))

    def seen_of(optimizer, teacher, found):
        optimizer.use(optimizer.candidates()[found.chosen])
        seen.append((optimizer.weights.clone(), teacher.net.conv_in.weight.clone()))
        return found

    monkeypatch.setattr(rounds, "choose", other)
    student = pdfast.distill(config, out=tmp_path / "run", quiet=True)
    (first, _), (second, teacher_of_second) = seen
    assert torch.equal(Optimizer(student, config.distill).weights, second)
    model = checkpoint.load_model(tmp_path / "run" / "round-01-steps-0004")
    assert torch.equal(Optimizer(model, config.distill).weights, first)
    assert torch.equal(model.net.conv_in.weight, teacher_of_second)
    chosen = last_lines(tmp_path / "run")
    assert [(m["round"], m["chosen"]) for m in chosen] == [(1, 0.9), (2, 0.0)]
    assert [m["choice_evaluations"] for m in chosen] == [128 * 4 * 5, 128 * 2 * 5]
    assert {"distance_raw": 2.0, "distance_0.5": 2.0, "distance_0.9": 1.0}.items() <= chosen[
        0
    ].items()
    report = (tmp_path / "run" / "report.md").read_text()
    rows = [line.split("|")[-2].strip() for line in report.splitlines() if line.startswith("| ")]
    assert rows[-3:] == ["", "EMA 0.9", "raw"]
    assert "student, 4 steps: EMA 0.9, warmed up; student, 2 steps: raw" in report


def test_a_teacher_of_very_many_steps_takes_fewer():
    """They divide its own, and are at most 256 in all; the evaluations are counted to match."""
    assert [choice.teachers_steps(8, n) for n in (1, 2, 32, 64, 96)] == [1, 2, 32, 32, 32]
    assert choice.teachers_steps(1, 8192) == 256
    assert choice.teachers_steps(3, 7 * 31) == 31
    assert choice.choice_evaluations(1, 8192, 3) == 128 * (256 + 1 + 3)
