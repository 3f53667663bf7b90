"""Label dropout, classifier-free guidance, and students of guided teachers."""

import copy
import dataclasses

import pytest
import torch
from engine_cases import changed, random_model
from guidance_cases import DISTILLED, PARAMETERIZATIONS, RANGE, STEPS, batch, inputs, teacher_of
from torch.nn.functional import silu

import pdfast
from pdfast.console.progress import Screen
from pdfast.diffusion import angles as angle_ops
from pdfast.diffusion.angles import combine
from pdfast.diffusion.conditioning import NO_CLASS, Conditioning
from pdfast.diffusion.schedules import logsnr_of
from pdfast.distillation.objectives import Fit, Rollout
from pdfast.distillation.pipelined_teacher import Pipelined
from pdfast.distillation.rounds import first_student
from pdfast.errors import UsageError
from pdfast.evaluation.resume import fingerprints
from pdfast.models import checkpoint
from pdfast.models.embeddings import guidance_embedding
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.training.model_run import ModelRun

# ------------------------------------------------------------------------------------------
# The network


def test_no_class_is_the_zero_embedding_and_classes_are_as_ever(classes):
    z, phi, label = inputs()
    model = teacher_of(classes)
    always = random_model(dataclasses.replace(model.cfg, label_dropout=0.0), 0, torch.float64)
    assert torch.equal(
        model.forward_at_angle(z, phi, Conditioning(label)),
        always.forward_at_angle(z, phi, Conditioning(label)),
    )
    none = model.forward_at_angle(z, phi, Conditioning(torch.full_like(label, NO_CLASS)))
    assert not torch.allclose(none, model.forward_at_angle(z, phi, Conditioning(label)))
    with torch.no_grad():
        always.net.emb_class.weight.zero_()
    assert torch.equal(none, always.forward_at_angle(z, phi, Conditioning(label)))
    with pytest.raises((IndexError, RuntimeError)):  # NO_CLASS must not act as index -1
        always.forward_at_angle(z, phi, Conditioning(torch.full_like(label, NO_CLASS)))


def test_no_class_has_no_gradient_of_the_classes(classes):
    z, phi, label = inputs()
    model = teacher_of(classes)
    label[::2] = NO_CLASS
    model.forward_at_angle(z, phi, Conditioning(label)).square().sum().backward()
    told = model.net.emb_class.weight.grad.abs().sum(0) > 0
    assert told.nonzero().flatten().tolist() == [1, 3, 5]


def test_the_embedding_of_weights():
    """Sines and cosines of 100 (w - least) / (most - least) at 10,000^(-k / (half - 1))."""
    w = torch.tensor([0.5, 1.7, 4.0], dtype=torch.float64)
    found = guidance_embedding(w, 8, 0.5, 4.0)
    for row, weight in zip(found, w, strict=True):
        position = 100 * (weight - 0.5) / 3.5
        angles = torch.stack([position * 10_000 ** (-k / 3) for k in range(4)])
        torch.testing.assert_close(row, torch.cat([angles.sin(), angles.cos()]))


def test_a_guided_student_begins_as_its_teacher_and_then_listens(guides):
    z, phi, label = inputs()
    teacher = teacher_of(guides)
    student = Model(guides.model).double()
    student.net.load_state_dict(student.net.state_dict() | teacher.net.state_dict())
    w = torch.linspace(0, 4, len(z), dtype=torch.float64)
    assert torch.equal(
        student.forward_at_angle(z, phi, Conditioning(label, w)),
        teacher.forward_at_angle(z, phi, Conditioning(label)),
    )
    with torch.no_grad():
        student.net.emb_guidance.weight.normal_()
    found = student.forward_at_angle(z, phi, Conditioning(label, w))
    assert not torch.allclose(
        found, student.forward_at_angle(z, phi, Conditioning(label, w.flip(0)))
    )
    # By hand: the weight's vector is added to the first layer's output for the noise level.
    net = student.net
    logsnr = -2 * torch.log(torch.tan(phi))
    first = net.emb0(net.embedding(logsnr)) + net.emb_guidance(guidance_embedding(w, 8, *RANGE))
    emb = net.emb1(silu(first)) + net.emb_class.weight.t()[label] + net.emb_class.bias
    each = [b.film(silu(emb)) for stage in net._stages() for b in stage.blocks()]
    films = torch.cat(each, dim=1)
    torch.testing.assert_close(found, student.forward_at_angle(z, phi, Conditioning(films=films)))
    with pytest.raises(ValueError, match="takes guidance weights"):
        student.forward_at_angle(z, phi, Conditioning(label))


def test_a_runs_first_student_has_its_teachers_weights(guides, tmp_path):
    """All labels, whatever label dropout the teacher was trained with."""
    cfg = dataclasses.replace(guides.model.unguided(), dropout=0.1)
    teacher = random_model(cfg, 0, torch.float32)
    student = first_student(ModelRun(tmp_path, guides, Screen(quiet=True)), teacher)
    weights = student.net.state_dict()
    assert not weights.pop("emb_guidance.weight").any()
    expected = teacher.net.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert (student.cfg.dropout, student.label_dropout, student.guidance) == (0.0, 0.0, RANGE)


# ------------------------------------------------------------------------------------------
# Ways to pass label and weight


def test_the_face_of_a_model_and_its_inside_are_told_the_same(classes, guides):
    """Label and weight by themselves, or as the object that carries them; also without the class,
    and where guidance takes two evaluations.
    """
    z, phi, label = inputs()
    teacher, student = teacher_of(classes), random_model(guides.model, 0, torch.float64)
    w = torch.linspace(0.0, 4.0, len(z), dtype=torch.float64)
    for model, told in (
        (teacher, (label,)),
        (teacher, (torch.full_like(label, NO_CLASS),)),
        (guided(teacher, 1.5), (label,)),
        (student, (label, w)),
    ):
        expected = model.forward_at_angle(z, phi, Conditioning(*told))
        assert torch.equal(model(z, logsnr_of(phi), *told), expected)
        assert torch.equal(model(z, logsnr_of(phi), conditioning=Conditioning(*told)), expected)


def test_old_names_work_and_warn_once(classes, guides):
    z, phi, label = inputs()
    teacher, student = teacher_of(classes), random_model(guides.model, 0, torch.float64)
    w = torch.ones(len(z), dtype=torch.float64)
    with pytest.warns(
        DeprecationWarning, match=r"Model\.at is now Model\.forward_at_angle"
    ) as said:
        found = student.at(z, phi, label, guidance=w)
    assert torch.equal(found, student.forward_at_angle(z, phi, Conditioning(label, w)))
    with pytest.warns(DeprecationWarning, match="Model.predict_x_at is now") as said_too:
        found = teacher.predict_x_at(z, phi, label=label)
    assert torch.equal(found, teacher.predict_x_at_angle(z, phi, Conditioning(label)))
    assert [w.filename for w in (*said, *said_too)] == [__file__] * 2


# ------------------------------------------------------------------------------------------
# Draws


def test_labels_are_dropped_by_counter_and_in_training_alone(classes):
    model = teacher_of(classes)
    whole, fixed = batch(classes, model, 4096), batch(classes, model, 64, fixed=True)
    grid = model.schedule.grid(0, model.device)
    draw, told = whole.noised(grid, 0, "v")
    dropped = told.label == NO_CLASS
    assert abs(float(dropped.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4096) ** 0.5
    assert torch.equal(told.label[~dropped], whole.labels[draw.chosen][~dropped])
    again, _ = batch(classes, model, 4096).noised(grid, 0, "v")
    assert torch.equal(draw.spare, again.spare)
    parts = [whole.part(n, 4).noised(grid, 0, "v")[1].label for n in range(4)]
    assert torch.equal(torch.cat(parts), told.label)
    later = whole.next().noised(grid, 0, "v")[1].label == NO_CLASS
    assert not torch.equal(later, dropped)
    assert (fixed.noised(grid, 0, "v")[1].label >= 0).all()
    student = copy.deepcopy(model)
    student.remove_dropout()
    assert (batch(classes, student, 512).noised(grid, 0, "v")[1].label >= 0).all()


def test_weights_are_uniform_over_the_range(guides):
    student = Model(guides.model)
    student.remove_dropout()
    w = batch(guides, student, 4096).noised(student.schedule.grid(STEPS, student.device), STEPS)[1]
    least, most = float(w.guidance.min()), float(w.guidance.max())
    assert 0 < least < 0.02
    assert 3.98 < most < 4
    quarters = torch.histc(w.guidance, 4, 0, 4)
    assert (quarters - 1024).abs().max() < 4 * (4096 * 0.25 * 0.75) ** 0.5
    assert (w.label >= 0).all()


# ------------------------------------------------------------------------------------------
# Guidance of teachers, and of students at one weight


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_guidance_is_the_formula_in_x(classes, parameterization):
    z, phi, label = inputs()
    model = teacher_of(classes, parameterization)
    told = model.predict_x_at_angle(z, phi, Conditioning(label))
    untold = model.predict_x_at_angle(z, phi, Conditioning(torch.full_like(label, NO_CLASS)))
    found = guided(model, 1.5).predict_x_at_angle(z, phi, Conditioning(label))
    torch.testing.assert_close(found, 2.5 * told - 1.5 * untold, rtol=1e-9, atol=1e-9)
    assert guided(model, 0.0) is model
    assert (guided(model, 1.5).calls, model.calls) == (2, 1)


def test_samples_of_a_guided_model_are_by_position_and_class(classes):
    model = guided(teacher_of(classes, dtype=torch.float32), 2.0)
    label = torch.full((5,), 3)
    images = model.sample(5, 2, seed=1, label=label)
    assert torch.equal(images[:2], model.sample(2, 2, seed=1, label=label[:2]))
    assert not torch.equal(images, guided(model_of(model), 0.0).sample(5, 2, seed=1, label=label))


def model_of(model):
    """Return a plain model with the config and weights of a guided one."""
    plain = Model(model.cfg)
    plain.net.load_state_dict(model.net.state_dict())
    return plain.eval()


def test_a_student_at_one_weight_is_an_ordinary_model(guides, tmp_path):
    student = random_model(guides.model, 0, torch.float64).eval()
    student.remove_dropout()
    before = copy.deepcopy(student.state_dict())
    z, phi, label = inputs()
    for w in (0.0, 1.3, 4.0):
        one = guided(student, w)
        expected = student.forward_at_angle(
            z, phi, Conditioning(label, torch.full((len(z),), w, dtype=torch.float64))
        )
        torch.testing.assert_close(
            one.forward_at_angle(z, phi, Conditioning(label)), expected, rtol=1e-12, atol=1e-12
        )
        assert (one.guidance, one.calls) == ((), 1)
    checkpoint.save_model(one.float(), tmp_path / "one")
    saved = checkpoint.load_model(tmp_path / "one")
    assert torch.equal(
        saved.forward_at_angle(z.float(), phi, Conditioning(label)),
        one.forward_at_angle(z.float(), phi, Conditioning(label)),
    )
    assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())


def test_a_guided_teacher_is_no_model_to_be_saved(classes, tmp_path):
    with pytest.raises(UsageError, match="save the model that it was made of"):
        pdfast.save(guided(teacher_of(classes), 1.0), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_kept_samples_are_of_one_weight(classes, guides, parameterization):
    """Models of two weights, however close, have different fingerprints."""
    teacher = teacher_of(classes, parameterization, torch.float32)
    student = random_model(
        dataclasses.replace(guides.model, parameterization=parameterization), 0, torch.float32
    )
    weights = (0.0, 0.01, 1.0, 1.01)
    for model in (teacher, student):
        assert len({fingerprints(guided(model, w))[0] for w in weights}) == len(weights)


def test_what_cannot_be_guided(tiny, classes, guides):
    always = changed(classes, model={"label_dropout": 0.0})
    for config, weight, message in (
        (tiny, 1.0, "this model is unconditional and cannot be guided"),
        (always, 1.0, "was always given the class: train a class-conditional teacher with"),
        (classes, -1.0, r"guidance must be in 0 \.\. 100, not -1.0"),
        (classes, float("nan"), "guidance must be in"),
        (guides, 5.0, r"guidance 5 is outside 0 \.\. 4, which this student learned"),
    ):
        with pytest.raises(UsageError, match=message):
            guided(random_model(config.model, 0, torch.float32), weight)
    with pytest.raises(UsageError, match=r"is a guided student: sample pdfast\.guided"):
        random_model(guides.model, 0, torch.float32).sample(1, 1)
    network = pdfast.Network(torch.nn.Linear(3, 3), (3,), num_classes=2)
    with pytest.raises(UsageError, match="was always given the class"):
        guided(network, 1.0)


# ------------------------------------------------------------------------------------------
# Objectives


@pytest.mark.parametrize("parameterization", DISTILLED)
def test_the_first_fit_is_to_the_guided_teacher(guides, parameterization):
    """y = y(class) + w (y(class) - y(no class)), with a weight w for each image."""
    teacher = teacher_of(guides, parameterization)
    student = random_model(
        dataclasses.replace(guides.model, parameterization=parameterization), 1, torch.float64
    )
    student.remove_dropout()
    drawn = batch(guides, student)
    problem = Fit(teacher, STEPS, "v_mse")(student, drawn)
    draw, conditioning = drawn.noised(teacher.schedule.grid(STEPS, teacher.device), STEPS)
    label, w = conditioning.label, conditioning.guidance
    assert w.unique().numel() == len(w)
    with torch.no_grad():
        told = teacher.predict_x_at_angle(draw.z_t, draw.phi_t, Conditioning(label))
        untold = teacher.predict_x_at_angle(
            draw.z_t, draw.phi_t, Conditioning(torch.full_like(label, NO_CLASS))
        )
        x = combine((1 + w, told), (-w, untold))
        x_hat = predict_x(student, draw, label, w)
        # v - v-hat = (x-hat - x) / sigma; see reference.py
        v_error = (x_hat - x).square().flatten(1).mean(1) / draw.phi_t.sin().square()
    torch.testing.assert_close(problem.loss.per_image, v_error, rtol=1e-8, atol=1e-12)


def predict_x(student, draw, label, w):
    """x-hat of a guided student, with a weight for each image."""
    out = student.forward_at_angle(draw.z_in, draw.phi_t, Conditioning(label, w))
    return angle_ops.predict_x(draw.z_t, out, draw.phi_t, student.parameterization)


def test_a_halving_asks_teacher_and_student_at_the_same_weight(guides):
    """A student that ignores w has a loss that depends on w, since its teacher does."""
    teacher = random_model(guides.model, 0, torch.float64)
    teacher.remove_dropout()
    drawn = batch(guides, teacher)
    problem = Rollout(teacher, STEPS, "v_mse")(teacher, drawn)
    one = dataclasses.replace(drawn, guidance=(2.0, 2.0))
    at_two = Rollout(teacher, STEPS, "v_mse")(teacher, one).loss.per_image
    fixed = guided(teacher, 2.0)
    plain = Rollout(fixed, STEPS, "v_mse")(fixed, dataclasses.replace(drawn, guidance=()))
    torch.testing.assert_close(at_two, plain.loss.per_image, rtol=1e-9, atol=1e-15)
    assert not torch.allclose(problem.loss.per_image, at_two)


def test_a_pipelined_guided_teacher_teaches_the_same(guides):
    teacher = random_model(guides.model, 0, torch.float64)
    teacher.remove_dropout()
    student = random_model(guides.model, 1, torch.float64)
    student.remove_dropout()
    drawn = batch(guides, student, num=8)
    plain, piped = Rollout(teacher, STEPS, "snr_trunc"), Pipelined(teacher, STEPS, "snr_trunc")
    piped.begin(drawn)
    for _ in range(3):
        expected, found = plain(student, drawn), piped(student, drawn)
        torch.testing.assert_close(found.loss.per_image, expected.loss.per_image, rtol=1e-9, atol=0)
        drawn = drawn.next()
