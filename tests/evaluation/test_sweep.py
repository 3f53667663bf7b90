"""Evaluations: by class, with saved features of the data, and resumed after a kill."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import TINY
from engine_cases import random_model
from gaussians import gaussian_of

import pdfast
from pdfast.config.schema import Config, NetConfig, dump_config
from pdfast.config.serialization import from_table
from pdfast.console.progress import Screen
from pdfast.data.dataset import Dataset
from pdfast.diffusion.rng import Draws, Stream, index_below
from pdfast.evaluation.detectors.base import Detector, Features
from pdfast.evaluation.detectors.plain import PIXEL
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.frechet import frechet_distance
from pdfast.evaluation.reference_set import Reference
from pdfast.evaluation.resume import EvalState, Part
from pdfast.storage import digests, kept
from pdfast.storage.files import Damaged

NET = {"image_size": 4, "channels": 1, "ch": 4, "emb_ch": 8, "ch_mult": [1]}
NET |= {"num_res_blocks": 1, "attn_resolutions": [], "groups": 2}
LABELLED = from_table(NetConfig, NET | {"num_classes": 4})


def images(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 4, 4, 1), dtype=torch.uint8, generator=generator)


class Sayings(Screen):
    """Collects messages and warnings."""

    def __init__(self):
        super().__init__(quiet=True)
        self.said, self.warned = [], []
        self.say, self.warn = self.said.append, self.warned.append


# ------------------------------------------------------------------------------------------
# By class


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Return a conditional model, and a set of 4 classes with 100, 100, 100 and 9 images."""
    folder = tmp_path_factory.mktemp("labelled")
    labels = torch.arange(309) // 100
    np.savez(folder / "set.npz", images=images(309).numpy(), labels=labels.numpy())
    pdfast.save(random_model(LABELLED, 0, torch.float32), folder / "model")
    (folder / "set.toml").write_text('[data]\nsource = "set.npz"\n[eval]\nsteps = [1, 2]\n')
    return folder


def test_the_labels_of_samples_are_known():
    model = random_model(LABELLED, 0, torch.float32)
    drawn = model.drawn_labels(150, 3)
    assert drawn.shape == (150,)
    assert drawn.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(model.sample(150, 2, 3), model.sample(150, 2, 3, label=drawn))
    assert torch.equal(model.drawn_labels(70, 3), drawn[:70])
    later = model.sample_images(86, 2, 3, first=64)
    assert torch.equal(later, model.sample_images(150, 2, 3)[64:])


def test_distances_by_class(labelled, monkeypatch, capsys):
    monkeypatch.chdir(labelled)
    pdfast.evaluate("model", config="set.toml", out="e")
    table = json.loads((labelled / "e" / "eval.json").read_text())
    found = table["classes"]
    assert found["left_out"] == 1
    assert set(found["floor"]) == {"0", "1", "2"}
    assert set(found["model"]) == {"1", "2"}
    output = capsys.readouterr().out
    assert "no distance for 1 class: FD-pixel of a class needs at least 17 images and 17" in output
    model = pdfast.load("model")
    numbers = index_below(Draws(0, Stream.SAMPLE).class_words(0, 309), 309)
    labels = (torch.arange(309) // 100)[numbers]  # of the images drawn from the set
    samples = model.sample_images(309, 2, label=labels)
    for label in range(3):
        part = Dataset(images(309)[100 * label : 100 * (label + 1)], None)
        evaluator = Evaluator(part, 0, 0, PIXEL)
        expected = evaluator.distance(samples[labels == label])
        assert found["model"]["2"][str(label)] == pytest.approx(expected, rel=1e-12)
        assert 0 < found["floor"][str(label)] < expected
    assert table["facts"]["weights"] == {"model": "as given (EMA or raw is not known)"}


def test_labels_that_are_not_there_are_no_obstacle(labelled, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", images=images(50).numpy())
    shutil.copy(labelled / "set.toml", "set.toml")
    pdfast.evaluate(labelled / "model", config="set.toml", steps=(1,), out="e")
    assert "no distances by class: " in capsys.readouterr().out
    assert "classes" not in json.loads((tmp_path / "e" / "eval.json").read_text())


# ------------------------------------------------------------------------------------------
# Saved features of the data


class Counted:
    """Return a detector that claims to have a network, and counts its images."""

    def __init__(self):
        self.seen = 0
        self.detector = Detector(
            name="means", metric="FD-means", extract=self, batch=7, weights="ab" * 32
        )

    def __call__(self, x):
        self.seen += len(x)
        numbers = x.double().flatten(1)
        return Features(numbers[:, :5].float().double(), numbers[:, :3])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pdfast"


def test_features_of_the_data_are_computed_once(cache, monkeypatch):
    data, figures = Dataset(images(50), torch.arange(50) % 2), []
    other = images(40, seed=1)
    model = random_model(dataclasses.replace(LABELLED, num_classes=2), 0, torch.float32)
    for expected in (50 + 40, 40):
        counted = Counted()
        evaluator = Evaluator(data, 40, 0, counted.detector, model=model)
        figures.append((evaluator.floor(), evaluator.figure(other), evaluator.classes.keys()))
        assert counted.seen == expected
    assert figures[0] == figures[1]
    assert figures[0][1].manifold.precision > 0
    assert set(figures[0][1].classes) == {0, 1}
    names = sorted(path.name.split("-", 2)[2] for path in cache.iterdir())
    assert names == ["floor-40-0.safetensors", "statistics.safetensors"]
    counted = Counted()
    evaluator = Evaluator(data, 30, 0, counted.detector)
    assert evaluator.floor() != figures[0][0]  # another number of samples, from the saved features
    assert counted.seen == 0
    changed = Evaluator(Dataset(images(50, seed=2), None), 30, 0, counted.detector)
    assert changed.floor() != evaluator.floor()
    assert counted.seen == 50
    # For a set larger than the saved features, the floor compares those with the whole set.
    monkeypatch.setattr("pdfast.evaluation.scores.MOST", 20)
    shutil.rmtree(cache)
    counted = Counted()
    evaluator = Evaluator(data, 40, 0, counted.detector)
    floor, found = evaluator.floor(), evaluator.reference
    assert counted.seen == 50
    assert found.points.shape == (20, 5)
    whole = counted.detector.extract(data.images).values.double()
    torch.testing.assert_close(found.gaussian.cov, whole.T.cov(), rtol=1e-9, atol=1e-12)
    draws = Draws(0, Stream.BOOTSTRAP)
    by_hand = [
        frechet_distance(found.gaussian, gaussian_of(found.points[chosen].double()))
        for chosen in (index_below(draws.words(k, 0, 40)[:, 0], 20) for k in range(10))
    ]
    assert floor[0] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-9)


def test_pixels_are_counted_and_not_kept():
    reference = Reference(Dataset(images(50), None), PIXEL, Screen(quiet=True))
    assert reference.floor(20, 0)[0] > 0
    assert reference.points.untyped_storage().nbytes() == 0


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def foreign(path):
    kept.save(path, {"mean": torch.zeros(5)}, {"format": "of something else"})


@pytest.mark.parametrize(
    ("harm", "how"),
    [
        (flipped, "is damaged: its SHA-256"),
        (foreign, "was made from something else"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_a_damaged_cache_is_made_again_with_a_word(cache, harm, how):
    data = Dataset(images(20), None)
    before = Evaluator(data, 20, 0, Counted().detector).floor()
    for path in cache.iterdir():
        harm(path)
    screen = Sayings()
    evaluator = Evaluator(data, 20, 0, Counted().detector, screen)
    assert evaluator.floor() == before
    assert len([said for said in screen.warned if how in said and "made again" in said]) == 2
    if not path.is_dir():
        screen = Sayings()
        assert Evaluator(data, 20, 0, Counted().detector, screen).floor() == before
        assert screen.warned == []


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    screen = Sayings()
    reference = Reference(Dataset(images(20), None), Counted().detector, screen)
    assert reference.floor(20, 0)[0] > 0
    assert "the features of the data cannot be cached: not a directory" in screen.warned


def test_kept_tensors_are_whole_and_of_what_was_asked(tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"x": torch.arange(6.0).reshape(2, 3)}
    assert kept.load(path, {}) is None
    kept.save(path, tensors, {"of": "a"})
    assert torch.equal(kept.load(path, {"of": "a"})["x"], tensors["x"])
    with pytest.raises(Damaged, match="something else"):
        kept.load(path, {"of": "b"})
    names = [{"x": torch.zeros(2)}, {"y": torch.zeros(2)}, {"x": torch.zeros(1, 2)}]
    names.append({"x": torch.zeros(2, dtype=torch.int32)})
    assert len({digests.digest(x) for x in names}) == 4


# ------------------------------------------------------------------------------------------
# Killed and resumed


def test_parts_of_samples(tmp_path):
    """Files are read up to the first missing or damaged one, in whole batches unless complete."""
    state = EvalState(tmp_path / "s", ["model"], 4, 0)
    assert list(state.parts(10)) == []
    x = images(300)
    state.keep(0, Part(x[:128], 1.0))
    state.keep(128, Part(x[128:228], 2.0))

    def read(num, of=state):
        return [len(part.samples) for part in of.parts(num)]

    assert read(228) == [128, 100]
    assert read(300) == [128, 64]
    assert read(200) == [128, 72]
    assert read(70) == [70]
    assert read(300, EvalState(tmp_path / "s", ["model"], 4, 1)) == []
    assert read(300, EvalState(tmp_path / "s", ["another"], 4, 0)) == []
    flipped(next(tmp_path.glob("s/*/samples-000000128.safetensors")))
    assert read(300) == [128]


EVALUATED = TINY | {
    "model": NET | {"num_classes": 4},
    "train": TINY["train"] | {"updates": 2, "batch": 2},
    "distill": TINY["distill"] | {"start_steps": 4, "rounds": 1, "updates": 2, "batch": 2},
    "eval": {"steps": [2], "baseline_steps": 2, "num": 600},
}
EVAL = ("eval", "run", "--threads", 1)


@pytest.fixture(scope="module")
def evaluated(server, tmp_path_factory):
    """A finished run, and the events of its evaluation alone."""
    folder = tmp_path_factory.mktemp("evaluated")
    np.savez(folder / "set.npz", images=images(600).numpy(), labels=np.arange(600) % 4)
    table = EVALUATED | {"data": {"source": str(folder / "set.npz")}}
    (folder / "a.toml").write_text(dump_config(from_table(Config, table)))
    ended = server.call(folder, "distill", "--config", "a.toml", "--out", "run", "--threads", 1)
    assert ended.code == 0, ended
    shutil.rmtree(folder / "run" / "eval-state")
    ended = server.call(folder, *EVAL)
    assert ended.code == 0, ended
    return folder, ended.events


def gone_on(server, evaluated, tmp_path, signum, kinds, number):
    """Interrupt an evaluation with a signal, run another, and return the latter's events."""
    folder, straight = evaluated
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run, ignore=shutil.ignore_patterns("report.json", "eval-state"))
    ended = server.call(tmp_path, *EVAL, signum=signum, kinds=kinds, number=number)
    if signum == signal.SIGKILL:
        assert ended.code == -signum, ended
    else:
        assert ended.code == 128 + signum, ended
        assert ended.errors.count("\n") == 2  # that it was heard, and what was saved
        assert "the same command resumes from there" in ended.errors
    ended = server.call(tmp_path, *EVAL)
    assert ended.code == 0, ended
    assert (run / "report.json").read_bytes() == (folder / "run" / "report.json").read_bytes()
    assert sorted(p.name for p in run.iterdir()) == sorted(
        p.name for p in (folder / "run").iterdir()
    )
    shutil.rmtree(run)
    assert ended.events["poll"] <= straight["poll"]
    return ended.events


def test_an_evaluation_by_class_is_in_the_report(evaluated):
    run = evaluated[0] / "run"
    report = json.loads((run / "report.json").read_text())
    assert set(report["classes"]["teacher"]["2"]) == set(report["classes"]["floor"]) == {
        str(k) for k in range(4)
    }  # fmt: skip
    assert set(report["classes"]["student"]) == {"2"}
    for name in ("report.md", "report.html"):
        text = (run / name).read_text()
        assert "Distance by class" in text
        assert f"{report['classes']['teacher']['2']['3']:.3f}" in text
        assert "teacher: EMA 0.9, warmed up; student: raw" in text
        assert report["facts"]["reference_sha256"][:16] in text


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_evaluation_goes_on(server, evaluated, tmp_path, signum):
    """Killed in the second part of the student: neither its first part, of 4 batches, nor the
    teacher is sampled again.
    """
    polls = evaluated[1]["poll"]
    events = gone_on(server, evaluated, tmp_path, signum, ["poll"], polls - 6)
    assert events["poll"] <= polls - 2 * 10 - 2 * 4  # the teacher's two steps of 10 batches


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_killed_while_it_writes(server, evaluated, tmp_path, share):
    writes = sum(evaluated[1][kind] for kind in ("write", "torn"))
    gone_on(
        server, evaluated, tmp_path, signal.SIGKILL, ["write", "torn"], round(share * writes)
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [["poll"], ["write", "torn"]])
def test_killed_anywhere(server, evaluated, tmp_path, kinds):
    most = sum(evaluated[1][kind] for kind in kinds)
    for number in range(1, most + 1, max(1, most // 7)):
        gone_on(server, evaluated, tmp_path, signal.SIGKILL, kinds, number)
