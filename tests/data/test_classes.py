"""Classes are drawn by the data's shares, never without images, and are called by their names."""

import json
import re

import numpy as np
import pytest
import torch
from engine_cases import changed, random_model
from run_cases import stop_after
from torch import nn

import pdfast
from pdfast.cli.main import main
from pdfast.config.class_names import difference, merged, number_of
from pdfast.config.formats import FORMAT
from pdfast.config.schema import Config, NetConfig
from pdfast.config.serialization import from_table
from pdfast.data import sources
from pdfast.data.classes import Classes
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream, index_below
from pdfast.distillation.custom import dataset
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.evaluation.class_draw import ClassDraw, evenly
from pdfast.evaluation.detectors.opening import without_network
from pdfast.evaluation.detectors.plain import PIXEL
from pdfast.evaluation.evaluator import Evaluator
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.trackers import Axis

NET = {"image_size": 4, "channels": 1, "ch": 4, "emb_ch": 8, "ch_mult": [1]}
NET |= {"num_res_blocks": 1, "attn_resolutions": [], "groups": 2, "num_classes": 4}
RUN = {
    "name": "classes",
    "model": NET,
    "train": {"updates": 2, "batch": 2, "warmup": 0, "ema_decay": 0.0},
    "distill": {"start_steps": 4, "rounds": 1, "updates": 2, "batch": 2},
    "eval": {"steps": [2], "baseline_steps": 2, "num": 100},
}
COUNTS = (40, 0, 60, 0)  # of 4 classes, two of which have no images
NAMES = ("cat", "dog", "sea otter", "")


def images(num, size=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num, size, size, 1), dtype=torch.uint8, generator=generator)


def labels_of(counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@pytest.fixture
def config(tmp_path):
    """Return the config of a run of a few updates on a set with classes 0 and 2."""
    found = images(sum(COUNTS)).numpy()
    np.savez(tmp_path / "set.npz", images=found, labels=labels_of(COUNTS).numpy())
    return from_table(Config, RUN | {"data": {"source": str(tmp_path / "set.npz")}})


@pytest.fixture
def named(monkeypatch):
    """Give class names to the sets that are read, as readers of folders do."""
    real = sources.read

    def name(names):
        monkeypatch.setattr(sources, "read", lambda *args: real(*args)._replace(names=tuple(names)))

    return name


# ------------------------------------------------------------------------------------------
# How they are drawn


@pytest.mark.parametrize("counts", [(40, 0, 60, 0), (0, 1), (900, 100), (0, 0, 3, 0, 0, 5, 0)])
def test_classes_are_those_of_images_drawn_of_the_set(counts):
    """Exact for every random word, in parts of any size, and for any order of the set."""
    generator = torch.Generator().manual_seed(1)
    labels = labels_of(counts)
    mixed = labels[torch.randperm(len(labels), generator=generator)]
    draw = ClassDraw.of(Classes.of(Dataset(images(len(labels)), mixed), len(counts)), "data")
    drawn = draw.labels(7, 1000)
    numbers = index_below(Draws(7, Stream.SAMPLE).class_words(0, 1000), len(labels))
    assert torch.equal(drawn, labels[numbers])
    assert set(drawn.tolist()) <= {k for k, count in enumerate(counts) if count}
    parts = [draw.labels(7, num, first) for first, num in ((0, 64), (64, 640), (704, 296))]
    assert torch.equal(torch.cat(parts), drawn)
    assert not torch.equal(draw.labels(8, 1000), drawn) or len(set(drawn.tolist())) == 1


def test_the_ends_of_the_words_are_drawn_right(monkeypatch):
    """The first and the last random word of each class, where a sum of floats would be off."""
    counts = (0, 3, 0, 2**24 + 1, 1, 0)
    total, ends = sum(counts), [0, 3, 3, 2**24 + 4, 2**24 + 5, 2**24 + 5]
    draw = ClassDraw.of(Classes((), counts), "data")
    for label, count in enumerate(counts):
        if not count:
            continue
        first, last = ends[label] - count, ends[label] - 1  # of the images' numbers
        words = torch.tensor([-(-(first << 32) // total), ((last + 1 << 32) - 1) // total])
        assert index_below(words, total).tolist() == [first, last]
        monkeypatch.setattr(Draws, "class_words", lambda self, first, num, w=words: w)
        assert draw.labels(0, 2).tolist() == [label, label]


def test_evenly_is_among_the_classes_that_there_are():
    drawn = ClassDraw.of(Classes((), COUNTS), "even").labels(0, 4000)
    found = torch.bincount(drawn, minlength=4).tolist()
    assert found[1] == found[3] == 0
    assert abs(found[0] - 2000) < 4 * 1000**0.5  # 4 standard deviations
    model = random_model(from_table(NetConfig, NET), 0, torch.float32)
    whole = ClassDraw.of(Classes((), (5, 1, 2, 3)), "even")
    assert whole == evenly(4)
    assert torch.equal(whole.labels(3, 150), model.drawn_labels(150, 3))


def test_keys_tell_how_samples_were_drawn():
    """Even draws of all classes have an empty key, as before eval.classes existed."""
    found = [Classes((), counts) for counts in ((1, 1, 0), (1, 2, 0), (1, 1, 1), (2, 2, 2))]
    assert ClassDraw.of(found[2], "even").key == ClassDraw.of(found[3], "even").key == ""
    keys = [ClassDraw.of(classes, how).key for classes in found[:3] for how in ("data", "even")]
    assert len(set(keys)) == 5  # (1, 1, 0) and (1, 2, 0) are the same evenly


def test_samples_are_of_the_judges_classes_in_any_parts():
    model = random_model(from_table(NetConfig, NET), 0, torch.float32)
    data = Dataset(images(100), labels_of(COUNTS))
    evaluator = Evaluator(data, 150, 3, without_network(data), model=model)
    assert set(evaluator.labels.tolist()) == {0, 2}
    assert evaluator.key()["classes"] == evaluator.draw.key != ""
    both = Dataset(data.images, labels_of((40, 1, 58, 1)))
    evenly_drawn = Evaluator(both, 150, 3, without_network(both), model=model, shares="even")
    assert "classes" not in evenly_drawn.key()  # as before there was a choice
    whole = evaluator.sampled(model, 2, 150)
    expected = model.to_stored(model.sample(150, 2, 3, label=evaluator.labels))
    assert torch.equal(whole, expected)
    parts = [evaluator.sampled(model, 2, num, first) for first, num in ((0, 64), (64, 86))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, model.sample_images(150, 2, 3))


MEANS, SPREAD = torch.tensor([-0.5, 0.5])[:, None, None, None].expand(2, 1, 4, 4), 0.1


class Exact(nn.Module):
    """E[x | z, class] of two Gaussian classes."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, z, logsnr, label):
        alpha2, sigma2 = (torch.sigmoid(s * logsnr)[:, None, None, None] for s in (1, -1))
        mean, var = MEANS[label], SPREAD**2
        gain = alpha2.sqrt() * var / (alpha2 * var + sigma2)
        return mean + gain * (z - alpha2.sqrt() * mean) + 0 * self.zero


def test_a_perfect_sampler_of_uneven_classes_is_at_the_floor():
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(1000, generator=generator) < 0.1).long()
    x = MEANS[label] + SPREAD * torch.randn(1000, 1, 4, 4, generator=generator)
    network = pdfast.Network(Exact(), (1, 4, 4), parameterization="x", num_classes=2)
    data = dataset(Config(), network, (x, label))
    by_shares, evenly_drawn = (
        Evaluator(data, 1000, 0, without_network(data), model=network, shares=how)
        for how in ("data", "even")
    )
    floor, std = by_shares.floor()
    figure = by_shares.figure(by_shares.sampled(network, 256, 1000))
    assert figure.distance < floor + 4 * std
    assert set(figure.classes) == {0, 1}
    assert max(figure.classes.values()) < 0.02  # of the other class's images it would be 16
    # Of shares 1/2 in the place of 0.9: means 0.4 apart in each of 16 numbers, and more.
    figure = evenly_drawn.figure(evenly_drawn.sampled(network, 256, 1000))
    assert figure.distance > 16 * 0.35**2
    assert max(figure.classes.values()) < 0.02


# ------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def asked(monkeypatch):
    """Record the labels that models are sampled with."""
    found, real = [], Model.sample_images

    def sample_images(model, num, steps, seed=0, label=None, **more):
        found.append(None if label is None else label.clone())
        return real(model, num, steps, seed, label, **more)

    monkeypatch.setattr(Model, "sample_images", sample_images)
    return found


def test_classes_without_images_are_said_and_never_drawn(config, named, asked, tmp_path, capsys):
    """In the rounds' distances, in pictures and in the report; by shares and evenly."""
    named(NAMES)
    run = tmp_path / "run"
    for how, share in (("data", 0.6), ("even", 0.5)):
        asked.clear()
        pdfast.distill(changed(config, eval={"classes": how}), out=run, threads=1)
        said = capsys.readouterr().out
        assert said.count("the data have no images of classes 1 dog, 3: no sample of them is") == 1
        assert (
            "\nwarning: the model has 4 classes, but the data have no images of classes 1" in said
        )
        assert "judged or shown, and this run does not train them\n" in said
        assert said.count("classes (images of each): 0 cat (40), 2 'sea otter' (60)\n") == 1
        assert len(asked) == 6  # teacher and student, in a picture, after the rounds, in the report
        assert all(set(label.tolist()) <= {0, 2} for label in asked)
        assert all(torch.equal(label[:16], asked[0][:16]) for label in asked)
        report = json.loads((run / "report.json").read_text())
        facts = report["facts"]
        assert facts["classes"] == how
        assert facts["data_classes"] == [
            {"number": 0, "name": "cat", "count": 40, "share": 0.4},
            {"number": 1, "name": "dog", "count": 0, "share": 0.0},
            {"number": 2, "name": "sea otter", "count": 60, "share": 0.6},
        ]
        assert set(report["classes"]["teacher"]["2"]) == {"0", "2"}
        drawn = max(asked, key=len)
        assert abs((drawn == 2).float().mean() - share) < 0.15
        for name in ("report.md", "report.html"):
            text = (run / name).read_text().replace("&#x27;", "'")
            assert "0 cat: 40 %, 2 'sea otter': 60 %; no images of classes 1 dog, 3" in text
            words = {"data": "drawn by the class shares", "even": "drawn evenly among the classes"}
            assert words[how] in text
            cells = re.sub(r"</?td>|[|\s]", " ", text)
            assert re.search(r" 2 +sea otter +60 +0\.", cells)
    assert (run / "log.txt").read_text().count("the data have no images of classes 1 dog, 3") == 2


def test_other_shares_do_not_take_samples_that_were_kept(config, asked, tmp_path):
    """With the same shares the saved figures are reused."""
    pdfast.distill(config, out=tmp_path / "run", quiet=True)
    found = {}
    for how in ("even", "data", "even", None):
        asked.clear()
        pdfast.evaluate(tmp_path / "run", classes=how, quiet=True)
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        if how in found or how != "even":
            assert not asked  # those by shares are the run's own
        else:
            assert len(asked) == 2
        kept = found.setdefault(report["facts"]["classes"], report["classes"])
        assert kept == report["classes"]
    assert found["even"] != found["data"]
    asked.clear()
    pdfast.distill(config, out=tmp_path / "run", quiet=True)  # nor are rounds judged again
    assert not asked
    with pytest.raises(UsageError, match=r"eval\.classes"):
        pdfast.evaluate(tmp_path / "run", classes="odd", quiet=True)


def test_samples_of_other_shares_that_an_evaluation_left_are_not_judged(
    config, asked, tmp_path, monkeypatch
):
    """Samples drawn with the same shares are judged."""
    pdfast.save(random_model(config.model, 0, torch.float32), tmp_path / "model")

    def evaluate(how):
        asked.clear()
        out = tmp_path / "e"
        pdfast.evaluate(tmp_path / "model", config=config, classes=how, out=out, quiet=True)

    def fails(evaluator, images):
        raise PdfastError("stopped here")

    for how in ("even", "data"):
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "figure", fails)
            with pytest.raises(PdfastError, match="stopped here"):
                evaluate(how)
        assert sum(map(len, asked)) == 100
    for how, sampled in (("data", 0), ("even", 100)):  # a whole report forgets all samples
        evaluate(how)
        assert sum(map(len, asked)) == sampled
        table = json.loads((tmp_path / "e" / "eval.json").read_text())
        data = np.load(tmp_path / "set.npz")
        evaluator = Evaluator(
            Dataset(torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])),
            100,
            0,
            PIXEL,
            model=pdfast.load(tmp_path / "model"),
            shares=how,
        )
        model = pdfast.load(tmp_path / "model")
        images = model.sample_images(100, 2, label=evaluator.labels)
        assert table["model"]["2"] == pytest.approx(evaluator.distance(images), rel=1e-12)


def test_an_evaluation_says_which_classes_have_no_images(config, tmp_path, capsys):
    pdfast.save(random_model(config.model, 0, torch.float32), tmp_path / "model")
    pdfast.evaluate(tmp_path / "model", config=config, out=tmp_path / "e")
    said = capsys.readouterr().out
    assert said.count("the data have no images of classes 1, 3: no sample of them is judged") == 1
    assert "classes of samples: drawn by the class shares of the reference set" in said
    assert "classes of the set: 0: 40 %, 2: 60 %; no images of classes 1, 3" in said


def test_trackers_plot_no_way_of_drawing(config):
    line = {"round": 1, "steps": 2, "distance": 1.5, "class_shares": 1}
    assert Axis(config).point(line).values == {"rounds/distance": 1.5}


def test_a_set_without_labels_is_compared_with_all_classes(config, asked, tmp_path):
    model = random_model(config.model, 0, torch.float32)
    pdfast.save(model, tmp_path / "model")
    np.savez(tmp_path / "set.npz", images=images(100).numpy())
    pdfast.evaluate(tmp_path / "model", config=config, out=tmp_path / "e", quiet=True)
    assert torch.equal(asked[0], model.drawn_labels(100, 0))
    facts = json.loads((tmp_path / "e" / "eval.json").read_text())["facts"]
    assert (facts["classes"], facts["data_classes"]) == ("even", [])


def test_many_classes_stay_legible():
    names = tuple(f"n{k:08d}" for k in range(1000))
    classes = Classes(names, tuple(700 + k % 600 for k in range(1000)))
    lines = classes.lines()
    assert max(map(len, lines)) <= 200
    assert len(lines) < 1000 * 26 / 170
    listed = " ".join(line.strip() for line in lines)
    assert all(f"{k} {name} ({count:,})" in listed for k, (name, count) in enumerate(
        zip(names, classes.counts, strict=True)
    ))  # fmt: skip
    assert classes.summary == "1,000 classes of 700 to 1,299 images each"
    few = Classes(names, (5,) * 10 + (0,) * 990)
    assert few.missing == "classes 10 to 999"
    assert Classes((), (1, 0, 1, 0, 0, 0, 1)).missing == "classes 1, 3 to 5"
    assert Classes((), (1, 0)).missing == "class 1"
    assert Classes((), (1, 1)).missing == ""


# ------------------------------------------------------------------------------------------
# Names


def test_names_stay_with_the_models_of_a_run(config, named, tmp_path, monkeypatch, capsys):
    """Names survive a resumption, and are the same by every way to read them."""
    named(NAMES)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)  # within the round
        with pytest.raises(Stopped):
            pdfast.distill(config, out=run, quiet=True)
    student = pdfast.distill(config, out=run, quiet=True)
    kept = ("cat", "dog", "sea otter")
    assert student.class_names == kept
    for name in ("teacher", "round-01-steps-0002"):
        assert json.loads((run / name / "config.json").read_text())["classes"] == list(kept)
        assert pdfast.load(run / name).class_names == kept
    model = run / "round-01-steps-0002"
    capsys.readouterr()
    made = {}
    for label in ("sea otter", "2", "name:sea otter", "number:2"):
        out = tmp_path / f"{label}.npz"
        assert main(["sample", str(model), "--num", "3", "--label", label, "--out", str(out)]) == 0
        assert "3 images in 2 steps (seed 0, class 2 'sea otter')" in capsys.readouterr().out
        made[label] = np.load(out)["arr_0"].tobytes()
    assert len(set(made.values())) == 1
    expected = student.to_stored(student.sample(3, 2, label=torch.full((3,), 2)))
    assert made["2"] == expected.numpy().tobytes()
    out = str(tmp_path / "x.npz")
    assert main(["sample", str(model), "--label", "sea ottr", "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "--label sea ottr names no class of this model; did you mean 'sea otter'? (classes: "
        in said
    )
    copy = pdfast.load(model)
    pdfast.save(copy, tmp_path / "copy")
    assert pdfast.load(tmp_path / "copy").class_names == kept
    copy.class_names = ("a", "b", "c", "d", "e")
    with pytest.raises(UsageError, match="class_names holds 5 names, but the model has 4 classes"):
        pdfast.save(copy, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_a_teacher_whose_classes_are_others_is_refused(config, named, tmp_path, capsys):
    """It is refused before the run is created; if either side has no names, it is accepted.

    If only the data have names, a line asks whether the numbers mean the same.
    """
    model = random_model(config.model, 0, torch.float32)
    model.class_names = ("dog", "cat", "owl")
    pdfast.save(model, tmp_path / "teacher")
    named(NAMES)
    out = tmp_path / "run"
    with pytest.raises(UsageError) as error:
        pdfast.distill(config, teacher=tmp_path / "teacher", out=out, quiet=True)
    assert str(error.value).startswith(
        f"class 0 of the teacher {tmp_path / 'teacher'} is dog, but class 0 of the data is cat, "
        "and 2 others differ: number the data's classes as the teacher has them"
    )
    assert not out.exists()
    with pytest.raises(UsageError, match=r"class 0 of .*teacher is dog, but class 0 of the dat"):
        pdfast.evaluate(tmp_path / "teacher", config=config, quiet=True)
    for other in (True, False):
        named(NAMES if other else ())
        where = tmp_path / f"e{other}"
        pdfast.evaluate(
            tmp_path / "teacher", config=config, out=where, other_data=other, quiet=True
        )
    named(())
    student = pdfast.distill(config, teacher=tmp_path / "teacher", out=out, quiet=True)
    assert student.class_names == pdfast.load(out / "teacher").class_names == model.class_names
    model.class_names = ()
    pdfast.save(model, tmp_path / "teacher")
    named(NAMES)
    capsys.readouterr()
    student = pdfast.distill(config, teacher=tmp_path / "teacher", out=tmp_path / "b")
    assert student.class_names == NAMES[:3]
    assert (
        "the teacher's classes have no names; the data's are 0 cat, 1 dog, 2 'sea otter', 3: make "
        "sure that the numbers mean the same\n"
    ) in capsys.readouterr().out


def test_a_run_whose_classes_were_renamed_is_refused(config, named, tmp_path):
    named(NAMES)
    pdfast.distill(config, out=tmp_path / "run", quiet=True)
    named(("cat", "sea otter", "dog"))
    with pytest.raises(UsageError, match=r"run/teacher is dog, but class 1 of the data is 'se"):
        pdfast.distill(config, out=tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match="pass other_data=True"):
        pdfast.evaluate(tmp_path / "run", quiet=True)


def test_names_of_a_network_of_ones_own(tmp_path):
    network = pdfast.Network(
        Exact(), (1, 4, 4), parameterization="x", num_classes=2, class_names=["cat", "dog"]
    )
    data = (MEANS[torch.arange(40) % 2].clone(), torch.arange(40) % 2)
    settings = changed(from_table(Config, RUN | {"model": {}}), eval={"num": 40})
    student = pdfast.distill(settings, teacher=network, data=data, out=tmp_path / "r", quiet=True)
    assert student.class_names == ("cat", "dog")
    for given in (
        Exact(),
        network,
        pdfast.Network(Exact(), (1, 4, 4), parameterization="x", num_classes=2),
    ):
        loaded = pdfast.load(tmp_path / "r" / "teacher", network=given)
        assert loaded.class_names == ("cat", "dog")
    other = pdfast.Network(
        Exact(), (1, 4, 4), parameterization="x", num_classes=2, class_names=("dog", "cat")
    )
    with pytest.raises(UsageError, match="is cat, but class 0 of the network given is dog, and 1"):
        pdfast.load(tmp_path / "r" / "teacher", network=other)
    with pytest.raises(UsageError, match="class_names holds 2 names, but the model has 1 classes"):
        pdfast.Network(Exact(), (1, 4, 4), num_classes=1, class_names=("a", "b"))


@pytest.mark.parametrize("names", ["cat", [1, 2], {"0": "cat"}, ["a"] * 5, None])
def test_names_in_a_file_are_texts_one_to_a_class(names, tmp_path):
    model = random_model(from_table(NetConfig, NET), 0, torch.float32)
    pdfast.save(model, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    table = json.loads(file.read_text()) | {"classes": names}
    by = files.written(tmp_path / "m", {"format": FORMAT})
    with pytest.raises(PdfastError, match=r"is not a model's configuration: class_names "):
        checkpoint.parse_config(file, table, by)
    file.write_text(json.dumps(table))
    assert checkpoint.class_names_of(tmp_path / "m") in ([], ["a"] * 5)


def test_exports_tell_the_names(tmp_path):
    cfg = from_table(NetConfig, NET | {"image_size": 8, "ch": 8, "groups": 4})
    model = random_model(cfg, 0, torch.float32)
    model.class_names = ("cat", "<b> & | dog\n")
    pdfast.export(model, tmp_path / "d", quiet=True)
    card = " ".join((tmp_path / "d" / "README.md").read_text().split())
    assert "Its classes: 0 cat; 1 &lt;b&gt; &amp; | dog\\n." in card
    from pdfast.interop.diffusers.load import load_diffusers

    assert load_diffusers(str(tmp_path / "d")).model.class_names == model.class_names
    from pdfast.interop.onnx import describe

    assert describe(model, 0.0)["inputs"]["label"]["names"] == list(model.class_names)


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("3", (), 3),
        ("cat", ("dog", "cat"), 1),
        ("1", ("dog", "1"), 1),  # name and number of one class
        ("0007", ("007", "0007"), 1),
        ("10", ("9", "10"), 1),  # out of range as a number
        ("1", ("1", "2"), "is the number of a class, and the name of class 0: pass number:1 or na"),
        ("name:1", ("1", "2"), 0),
        ("number:1", ("1", "2"), 1),
        ("name:1", ("a", "b", "name:1"), 2),  # an exact name goes before
        ("name:2", ("a",), "names no class of this model"),
        ("number:9", ("a",), r"--label must be in 0 \.\. 4"),
        ("-1", ("a",), r"--label must be in 0 \.\. 4"),
        ("5", (), r"--label must be in 0 \.\. 4"),
        ("cat", (), r"is no number, and this model has no class names: pass a number in 0 \.\. 4"),
        ("cta", ("dog", "", "cat"), r"names no class of this model; did you mean 'cat'\?"),
        ("a", ("a", "b", "a"), "--label a names classes 0, 2: pass a number in"),
        ("", ("a", "", "b"), r"names no class of this model \(classes: 0 a, 1, 2 b, 3, 4\)"),
    ],
)
def test_what_a_label_means(text, names, found):
    if isinstance(found, int):
        assert number_of(text, names, 5) == found
    else:
        with pytest.raises(UsageError, match=found):
            number_of(text, names, 5)


def test_names_are_compared_where_both_have_some():
    assert difference("m", ("a", "", "c"), ("a", "b")) == ""
    assert difference("m", (), ("a",)) == ""
    assert difference("m", ("a", "b"), ("b", "b")) == (
        "class 0 of m is a, but class 0 of the data is b"
    )
    assert merged(("a", ""), ("x", "b", "c", "d"), 3) == ("a", "b", "c")
    assert merged(("a", "", ""), (), 3) == ("a",)
