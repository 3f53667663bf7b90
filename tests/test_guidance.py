"""Label dropout, classifier-free guidance, and students of guided teachers."""

import copy
import dataclasses
import json

import pytest
import torch
from engine_cases import changed, random_model
from run_cases import assert_same_run, metrics, stop_after
from torch.nn.functional import silu

import pdfast
from pdfast import checkpoint, cli, engine, method
from pdfast.config import Config, dump_config
from pdfast.data import Dataset
from pdfast.distillation import first_student
from pdfast.errors import UsageError
from pdfast.eval_state import fingerprint
from pdfast.fitting import Fit
from pdfast.guidance import guided
from pdfast.method import combine
from pdfast.model import Model
from pdfast.progress import Screen
from pdfast.rollout import Pipelined, Rollout
from pdfast.run import Run
from pdfast.signals import Stopped
from pdfast.tables import from_table, to_table
from pdfast.unet import NO_CLASS, guidance_embedding

STEPS, CLASSES, RANGE = 8, 10, (0.0, 4.0)
HEADS = ["x", "eps", "v", "both"]


@pytest.fixture
def classes(tiny):
    """A run by class whose teacher learns without the class too."""
    return changed(tiny, model={"num_classes": CLASSES, "label_dropout": 0.25})


@pytest.fixture
def guides(classes):
    """The same with guided students."""
    return changed(classes, model={"guidance": RANGE}, eval={"guidance": 1.0})


def teacher_of(config, head="v", dtype=torch.float64, seed=0):
    cfg = dataclasses.replace(config.model.unguided(), head=head)
    return random_model(cfg, seed, dtype).eval()


def inputs(num=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    z = torch.randn(num, 1, 8, 8, generator=g, dtype=dtype)
    phi = 0.1 + 1.4 * torch.rand(num, generator=g, dtype=torch.float64)
    return z, phi, torch.arange(num) % CLASSES


def batch(config, model, num=64, **options):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (50, 8, 8, 1), dtype=torch.uint8, generator=g)
    data = Dataset(images, torch.arange(50) % CLASSES)
    loop = dataclasses.replace(config.distill, batch=num)
    return engine.open_batch(config, loop, data, model, 1, **options)[0]


# ------------------------------------------------------------------------------------------
# The network


def test_no_class_is_the_zero_embedding_and_classes_are_as_ever(classes):
    z, phi, label = inputs()
    model = teacher_of(classes)
    always = random_model(dataclasses.replace(model.cfg, label_dropout=0.0), 0, torch.float64)
    assert torch.equal(model.at(z, phi, label), always.at(z, phi, label))
    none = model.at(z, phi, torch.full_like(label, NO_CLASS))
    assert not torch.allclose(none, model.at(z, phi, label))
    with torch.no_grad():
        always.net.emb_class.weight.zero_()
    assert torch.equal(none, always.at(z, phi, label))
    with pytest.raises((IndexError, RuntimeError)):  # which an index of -1 must not be taken for
        always.at(z, phi, torch.full_like(label, NO_CLASS))


def test_no_class_has_no_gradient_of_the_classes(classes):
    z, phi, label = inputs()
    model = teacher_of(classes)
    label[::2] = NO_CLASS
    model.at(z, phi, label).square().sum().backward()
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
    assert torch.equal(student.at(z, phi, label, w), teacher.at(z, phi, label))
    with torch.no_grad():
        student.net.emb_guidance.weight.normal_()
    found = student.at(z, phi, label, w)
    assert not torch.allclose(found, student.at(z, phi, label, w.flip(0)))
    # By hand: the weight's vector is added to what the first layer makes of the noise level.
    net = student.net
    logsnr = -2 * torch.log(torch.tan(phi))
    first = net.emb0(net.embedding(logsnr)) + net.emb_guidance(guidance_embedding(w, 8, *RANGE))
    emb = net.emb1(silu(first)) + net.emb_class.weight.t()[label] + net.emb_class.bias
    films = [b.film(silu(emb)) for stage in net._stages() for b in stage.blocks()]
    torch.testing.assert_close(found, student.at(z, phi, films=films))
    with pytest.raises(ValueError, match="takes guidance weights"):
        student.at(z, phi, label)


def test_a_runs_first_student_has_its_teachers_weights(guides, tmp_path):
    """All of them, whatever dropout the teacher was trained with."""
    cfg = dataclasses.replace(guides.model.unguided(), dropout=0.1)
    teacher = random_model(cfg, 0, torch.float32)
    student = first_student(Run(tmp_path, guides, Screen(quiet=True)), teacher)
    weights = student.net.state_dict()
    assert not weights.pop("emb_guidance.weight").any()
    expected = teacher.net.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert (student.cfg.dropout, student.label_dropout, student.guidance) == (0.0, 0.0, RANGE)


# ------------------------------------------------------------------------------------------
# Draws


def test_labels_are_dropped_by_counter_and_in_training_alone(classes):
    model = teacher_of(classes)
    whole, held = batch(classes, model, 4096), batch(classes, model, 64, held=True)
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
    assert (held.noised(grid, 0, "v")[1].label >= 0).all()
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


@pytest.mark.parametrize("head", HEADS)
def test_guidance_is_the_formula_in_x(classes, head):
    z, phi, label = inputs()
    model = teacher_of(classes, head)
    told = model.predict_x_at(z, phi, label)
    untold = model.predict_x_at(z, phi, torch.full_like(label, NO_CLASS))
    found = guided(model, 1.5).predict_x_at(z, phi, label)
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
    """What a guided model is of."""
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
        expected = student.at(z, phi, label, torch.full((len(z),), w, dtype=torch.float64))
        torch.testing.assert_close(one.at(z, phi, label), expected, rtol=1e-12, atol=1e-12)
        assert (one.guidance, one.calls) == ((), 1)
    checkpoint.save_model(one.float(), tmp_path / "one")
    saved = checkpoint.load_model(tmp_path / "one")
    assert torch.equal(saved.at(z.float(), phi, label), one.at(z.float(), phi, label))
    assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())


def test_a_guided_teacher_is_no_model_to_be_saved(classes, tmp_path):
    with pytest.raises(UsageError, match="save the model that was guided"):
        pdfast.save(guided(teacher_of(classes), 1.0), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("head", HEADS)
def test_kept_samples_are_of_one_weight(classes, guides, head):
    """Models of two weights, however near, have two fingerprints, so that none is taken for it."""
    teacher = teacher_of(classes, head, torch.float32)
    student = random_model(dataclasses.replace(guides.model, head=head), 0, torch.float32)
    weights = (0.0, 0.01, 1.0, 1.01)
    for model in (teacher, student):
        assert len({fingerprint(guided(model, w)) for w in weights}) == len(weights)


def test_what_cannot_be_guided(tiny, classes, guides):
    always = changed(classes, model={"label_dropout": 0.0})
    for config, weight, message in (
        (tiny, 1.0, "this model is unconditional, and cannot be guided"),
        (always, 1.0, "always was told the class: train a class-conditional teacher with"),
        (classes, -1.0, r"guidance must be in 0 \.\. 100, not -1.0"),
        (classes, float("nan"), "guidance must be in"),
        (guides, 5.0, r"guidance 5 is outside 0 \.\. 4, which this student learned"),
    ):
        with pytest.raises(UsageError, match=message):
            guided(random_model(config.model, 0, torch.float32), weight)
    with pytest.raises(UsageError, match="is a guided student: pass --guidance"):
        random_model(guides.model, 0, torch.float32).sample(1, 1)
    network = pdfast.Network(torch.nn.Linear(3, 3), (3,), num_classes=2)
    with pytest.raises(UsageError, match="always was told the class"):
        guided(network, 1.0)


# ------------------------------------------------------------------------------------------
# Objectives


@pytest.mark.parametrize("head", ["x", "v", "both"])
def test_the_first_fit_is_to_the_guided_teacher(guides, head):
    """y = y(class) + w (y(class) - y(no class)), w of each image's own."""
    teacher = teacher_of(guides, head)
    student = random_model(dataclasses.replace(guides.model, head=head), 1, torch.float64)
    student.remove_dropout()
    drawn = batch(guides, student)
    problem = Fit(teacher, STEPS, "v_mse")(student, drawn)
    draw, (label, w) = drawn.noised(teacher.schedule.grid(STEPS, teacher.device), STEPS)
    assert w.unique().numel() == len(w)
    with torch.no_grad():
        told = teacher.predict_x_at(draw.z_t, draw.phi_t, label)
        untold = teacher.predict_x_at(draw.z_t, draw.phi_t, torch.full_like(label, NO_CLASS))
        x = combine((1 + w, told), (-w, untold))
        x_hat = predict_x(student, draw, label, w)
        # v - v-hat = (x-hat - x) / sigma; see reference.py
        v_error = (x_hat - x).square().flatten(1).mean(1) / draw.phi_t.sin().square()
    torch.testing.assert_close(problem.loss.per_image, v_error, rtol=1e-8, atol=1e-12)


def predict_x(student, draw, label, w):
    """x-hat of a guided student, each image at its own weight."""
    out = student.at(draw.z_in, draw.phi_t, label, w)
    return method.predict_x(draw.z_t, out, draw.phi_t, student.head)


def test_a_halving_asks_teacher_and_student_at_the_same_weight(guides):
    """A student whose outputs do not depend on w where the teacher's do has a loss by w."""
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


# ------------------------------------------------------------------------------------------
# Whole runs


def test_a_run_with_guided_students(guides, tmp_path, capsys, monkeypatch):
    """Teacher, fit, rounds; resumed to the bit in each; sampled, exported, gone on with."""
    guides = changed(guides, distill={"fit_updates": 7})
    plain, out = tmp_path / "plain", tmp_path / "run"
    student = pdfast.distill(guides, out=plain, quiet=True)
    assert (student.guidance, student.label_dropout, student.steps) == (RANGE, 0.0, 2)
    teacher = pdfast.load(plain / "teacher")
    assert (teacher.guidance, teacher.label_dropout) == ((), 0.25)
    ends = [m for m in metrics(plain) if "held_loss_end" in m]
    assert [m.get("steps", 0) for m in ends] == [0, 8, 4, 2]
    for stop in (5, 10, 7):  # in the training, the fit and the second halving
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Stopped):
                pdfast.distill(guides, out=out, quiet=True)
    pdfast.distill(guides, out=out, quiet=True)
    assert_same_run(plain, out)

    last = plain / "round-03-steps-0002"
    assert "emb_guidance.weight" in student.net.state_dict()
    for args, code, said in (
        (["--label", "3", "--guidance", "1.5"], 0, "4 images in 2 steps"),
        ([], 2, "is a guided student: pass --guidance"),
        (["--guidance", "9"], 2, "guidance 9 is outside 0 .. 4"),
        (["--guidance", "1", "--label", "10"], 2, "--label must be in 0 .. 9"),
    ):
        folder = tmp_path / f"samples{code}"
        found = cli.main(["sample", str(last), "--num", "4", "--out", str(folder), *args])
        assert (found, said in "".join(capsys.readouterr())) == (code, True), args
    with pytest.raises(UsageError, match=r"guided student: pass --guidance, one of its weights 0"):
        pdfast.export(last, tmp_path / "export", quiet=True)
    with pytest.raises(UsageError, match="evaluated with the class and without"):
        pdfast.export(guided(teacher, 1.0), tmp_path / "export", quiet=True)

    # Halved further as a teacher from elsewhere, which is itself a guided student.
    more = changed(guides, distill={"start_steps": 2, "rounds": 1, "fit_updates": 0})
    further = pdfast.distill(more, teacher=last, out=tmp_path / "more", quiet=True)
    assert (further.steps, further.guidance) == (1, RANGE)


def test_a_teacher_from_elsewhere_is_guided(guides, classes, tiny, tmp_path):
    teachers = {}
    for name, config in {
        "good": classes,
        "told": changed(classes, model={"label_dropout": 0.0}),
        "eps": changed(classes, model={"head": "eps"}),
    }.items():
        teachers[name] = tmp_path / name
        checkpoint.save_model(random_model(config.model, 0, torch.float32), teachers[name])
    asked = changed(
        guides, model={"label_dropout": 0.0}, distill={"teacher": str(teachers["good"])}
    )
    out = tmp_path / "run"
    student = pdfast.distill(asked, out=out, quiet=True)
    assert student.guidance == RANGE
    kept = pdfast.load_config(out / "config.toml")
    assert kept.distill.fit_updates == 4 * asked.distill.updates
    ends = [m for m in metrics(out) if "held_loss_end" in m]
    assert ends[0]["held_loss_end"] < ends[0]["held_loss_start"]
    for name, message in {
        "told": "cannot be guided, since it always was told the class: train one with model.label_",
        "eps": "cannot be guided, since it predicts eps: train one of x, v or both, or leave model",
    }.items():
        with pytest.raises(UsageError, match=message):
            pdfast.distill(guides, teacher=teachers[name], out=tmp_path / "no", quiet=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_run_that_changes_the_weight_it_is_judged_at(guides, tmp_path):
    """Quick distances and pictures are found again, models are not made again."""
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    other = changed(guides, eval={"guidance": 3.0})
    pdfast.distill(guides, out=run, quiet=True)
    pdfast.distill(other, out=run, quiet=True)
    pdfast.distill(other, out=fresh, quiet=True)

    def distances(path):
        found = [m for m in metrics(path) if m.get("guidance") == 3.0]
        return [(m["round"], m["distance"]) for m in found]

    assert distances(run) == distances(fresh)
    assert len(distances(run)) == guides.distill.rounds + 2
    for picture in fresh.glob("samples/*.png"):
        assert picture.read_bytes() == (run / "samples" / picture.name).read_bytes()


def test_a_guided_student_as_teacher_keeps_its_weights(guides, tmp_path):
    """Fitted to by a student of another network, asked at the same weights; never unguided."""
    teacher = tmp_path / "teacher"
    model = random_model(guides.model, 0, torch.float32)
    model.remove_dropout()
    checkpoint.save_model(model, teacher)
    half = changed(guides, model={"ch": 4}, distill={"fit_updates": 20})
    student = pdfast.distill(half, teacher=teacher, out=tmp_path / "run", quiet=True)
    assert (student.cfg.ch, student.guidance) == (4, RANGE)
    ends = [m for m in metrics(tmp_path / "run") if "held_loss_end" in m]
    assert ends[0]["held_loss_end"] < ends[0]["held_loss_start"]
    for model in ({"guidance": ()}, {"guidance": (0.0, 2.0)}):
        asked = changed(changed(guides, eval={"guidance": 0.0}), model=model)
        with pytest.raises(UsageError, match=r"has model\.guidance \[0.0, 4.0\].*trained with$"):
            pdfast.distill(asked, teacher=teacher, out=tmp_path / "no", quiet=True)


def test_a_guided_teacher_alone_is_reported_as_such(classes, tmp_path):
    """`train` with eval.guidance judges guided samples; `distill` wants guided students then."""
    guided_only = changed(classes, eval={"guidance": 2.0})
    pdfast.train(guided_only, out=tmp_path / "run", quiet=True)
    found = json.loads((tmp_path / "run" / "report.json").read_text())["teacher"]
    pdfast.train(classes, out=tmp_path / "plain", quiet=True)
    plain = json.loads((tmp_path / "plain" / "report.json").read_text())["teacher"]
    assert found.keys() == plain.keys()
    assert found != plain
    unlearned = changed(guided_only, model={"label_dropout": 0.0})
    with pytest.raises(UsageError, match="guidance needs a teacher that learns to do without"):
        pdfast.train(unlearned, out=tmp_path / "no", quiet=True)
    with pytest.raises(
        UsageError, match=r"eval\.guidance is set, but the students take no guidance"
    ):
        pdfast.distill(guided_only, out=tmp_path / "no", quiet=True)


@pytest.mark.parametrize(
    ("model", "evaluation", "message"),
    [
        ({"label_dropout": 0.1}, {}, "model.label_dropout is for class-conditional models"),
        ({"guidance": [0, 1]}, {}, "model.guidance is for class-conditional models"),
        ({"num_classes": 3, "label_dropout": 1.0}, {}, r"model.label_dropout must be in \[0, 1\)"),
        ({"num_classes": 3, "guidance": [2, 1]}, {}, "model.guidance must be the least and the"),
        ({"num_classes": 3, "guidance": [1.0]}, {}, "model.guidance must be the least and the"),
        (
            {"num_classes": 3, "label_dropout": 0.1, "guidance": [0, 1]},
            {"guidance": 2.0},
            "eval.guidance 2 is outside model.guidance",
        ),
    ],
)
def test_refused_configs(tiny, model, evaluation, message):
    table = to_table(tiny)
    table["model"] |= model
    table["eval"] |= evaluation
    with pytest.raises(UsageError, match=message):
        from_table(Config, table)


def test_a_dry_run_counts_the_fit_of_guided_students(guides, tmp_path, capsys):
    path = tmp_path / "guides.toml"
    path.write_text(dump_config(guides))
    assert cli.main(["distill", "--config", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "memory, the first fit" in said
    assert f"round 1 {STEPS:>6} {4 * guides.distill.updates:>9}" in " ".join(said.split("\n")), said
