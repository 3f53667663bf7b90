"""Resuming and judging runs with other data is refused; with the same data elsewhere, accepted."""

import dataclasses
import json
import shutil
import tomllib

import numpy as np
import pytest
from conftest import TINY
from run_cases import assert_same_tensors, stop_after

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import Config
from pdfast.config.serialization import from_table
from pdfast.data import dataset, digest, sources
from pdfast.data.dataset import Dataset
from pdfast.errors import Stopped, UsageError
from pdfast.storage import digests

LABELLED = {
    "model": TINY["model"] | {"num_classes": 3, "attn_resolutions": [], "ch_mult": [1]},
    "train": TINY["train"] | {"updates": 4},
    "distill": TINY["distill"] | {"start_steps": 4, "rounds": 1, "updates": 3},
    "eval": {"steps": [2], "baseline_steps": 2, "num": 66},
}
NUM = 70


def images(seed):
    return np.random.RandomState(seed).randint(0, 256, (NUM, 8, 8, 1)).astype("uint8")


def write(path, seed=0, shift=0):
    np.savez(path, images=images(seed), labels=(np.arange(NUM) + shift) % 3)
    return path


def config_of(path):
    return from_table(Config, TINY | LABELLED | {"data": {"source": str(path)}})


def distill(path, run, **more):
    return pdfast.distill(config_of(path), out=run, quiet=True, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a stopped run and a finished one, whose set has since been moved."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "set.npz")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            distill(folder / "set.npz", folder / "stopped")
    shutil.copytree(folder / "stopped", folder / "ended")
    distill(folder / "set.npz", folder / "ended")
    return folder


@pytest.fixture(params=["stopped", "ended"])
def run(made, tmp_path, request):
    return shutil.copytree(made / request.param, tmp_path / "run")


@pytest.fixture
def ended(made, tmp_path):
    return shutil.copytree(made / "ended", tmp_path / "run")


def contents(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != "log.txt")
    return {str(p): p.read_bytes() for p in found}


@pytest.mark.parametrize("other", [{"seed": 1}, {"shift": 1}])
@pytest.mark.parametrize("place", ["the same", "another"])
def test_other_data_are_refused(made, run, tmp_path, other, place, monkeypatch):
    """Other images, or other labels of the same images, under the same name or another."""
    before = contents(run)
    if place == "the same":
        (tmp_path / "elsewhere").mkdir()
        path = made / "set.npz"
        shutil.copy(path, tmp_path / "kept.npz")
        try:
            write(path, **other)
            check_refused(
                path, run, f"the data of {path} have changed since {run} was begun (from "
            )
        finally:
            shutil.copy(tmp_path / "kept.npz", path)
    else:
        path = write(tmp_path / "other.npz", **other)
        check_refused(path, run, f"{run} was begun with other data (")
    assert contents(run) == before


def check_refused(path, run, begin):
    with pytest.raises(UsageError) as error:
        distill(path, run)
    said = str(error.value)
    assert said.startswith(f"{begin}70 images, SHA-256 ")
    assert str(path) in said
    assert said.count("70 images, SHA-256 ") == 2
    fix = "restore the former data, or name their new place with data"
    assert f"{fix}, or choose another out" in said


def test_the_same_data_may_lie_elsewhere(made, run, tmp_path):
    """The run resumes to the same bits, and records the new name."""
    path = shutil.copy(made / "set.npz", tmp_path / "moved.npz")
    distill(path, run)
    for name in ("teacher", "round-01-steps-0002"):
        assert_same_tensors(run / name, made / "ended" / name)
    assert tomllib.loads((run / "config.toml").read_text())["data"]["source"] == str(path)


def test_the_digest_is_that_of_images_and_labels(made):
    """In config.toml, in saved states, and in the report."""
    table = tomllib.loads((made / "ended" / "config.toml").read_text())["run"]["data"]
    read = dataset.load_dataset(config_of(made / "set.npz").data, config_of("x").model)
    assert table == {
        "num": NUM,
        "images": digests.digest({"images": read.images}),
        "labels": digests.digest({"labels": read.labels}),
    }
    (state,) = (made / "stopped" / "state").iterdir()
    assert json.loads((state / "state.json").read_text())["data"] == table
    report = json.loads((made / "ended" / "report.json").read_text())
    assert report["facts"]["reference_sha256"] == table["images"]


def test_a_state_among_others_is_checked_by_itself(made, tmp_path):
    """It was copied from a run of other data."""
    other, run = write(tmp_path / "other.npz", seed=1), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            distill(other, run)
    shutil.rmtree(run / "state")
    shutil.copytree(made / "stopped" / "state", run / "state")
    with pytest.raises(
        UsageError, match=r"000002 was saved with other data \(70 images, .*\) than"
    ):
        distill(other, run)


def test_where_nothing_was_made_any_data_will_do(made, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(made / "stopped" / "config.toml", run)
    other = write(tmp_path / "other.npz", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            distill(other, run)
    assert tomllib.loads((run / "config.toml").read_text())["data"]["source"] == str(other)


# ------------------------------------------------------------------------------------------
# Evaluations


def moved_to(run, path):
    """Have config.toml name another set, while its digest stays that of the first."""
    text = (run / "config.toml").read_text()
    source = tomllib.loads(text)["data"]["source"]
    (run / "config.toml").write_text(text.replace(source, str(path)))


@pytest.mark.parametrize("model", ["", "teacher"])
def test_an_evaluation_is_of_the_runs_data(ended, model, tmp_path, capsys):
    """Unless other data are named explicitly, from the command line and from Python."""
    moved_to(ended, write(tmp_path / "other.npz", seed=1))
    path, before = ended / model, contents(ended)
    with pytest.raises(UsageError) as error:
        pdfast.evaluate(path, quiet=True)
    said = str(error.value)
    assert said.startswith(f"{path} is of a run of other data (70 images, SHA-256 ")
    assert "or pass other_data=True to use these" in said
    assert contents(ended) == before
    assert main(["eval", str(path)]) == 2
    by_flag = said.replace("other_data=True", "--other-data")
    assert capsys.readouterr().err == f"pdfast: {by_flag}\n"
    assert main(["eval", str(path), "--other-data", "--threads", "1"]) == 0
    name = "report.json" if not model else "../eval-teacher/eval.json"
    report = json.loads((path / name).read_text())
    read = dataset.load_dataset(config_of(tmp_path / "other.npz").data, config_of("x").model)
    assert report["facts"]["reference_sha256"] == digests.digest({"images": read.images})
    if not model:
        (path / name).unlink()
        pdfast.evaluate(path, quiet=True, other_data=True)
        assert json.loads((path / name).read_text()) == report


def test_an_evaluation_by_another_config_says_which_data_it_means(ended, tmp_path):
    """For a run, whose report it writes; for a model the config decides."""
    write(tmp_path / "other.npz", seed=1)
    config = config_of(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="is of a run of other data"):
        pdfast.evaluate(ended, config=config, quiet=True)
    with pytest.raises(UsageError, match="is of a run of other data"):
        pdfast.evaluate(ended, data=tmp_path / "other.npz", quiet=True)
    for named in ({"config": config}, {"data": tmp_path / "other.npz"}):
        out = tmp_path / next(iter(named))
        pdfast.evaluate(ended / "teacher", **named, out=out, quiet=True)
        facts = json.loads((out / "eval.json").read_text())["facts"]
        read = dataset.load_dataset(config.data, config.model)
        assert facts["reference_sha256"] == digests.digest({"images": read.images})


def test_a_model_outside_a_run_is_judged_by_data_alone(made, ended, tmp_path, capsys):
    """With the settings of the flags, as with those of a config."""
    model = shutil.copytree(ended / "teacher", tmp_path / "elsewhere" / "model")
    args = ["eval", str(model), "--steps", "2", "--num", "66"]
    assert main(args) == 2
    assert capsys.readouterr().err == (
        f"pdfast: {model} is in no run directory, so its data are not known: pass --data.source, "
        "or --config (samples of other tools are compared by pdfast eval --against)\n"
    )
    assert main([*args, "--data.source", str(made / "set.npz"), "--out", str(tmp_path / "a")]) == 0
    config = config_of(made / "set.npz")
    pdfast.evaluate(model, config=config, steps=(2,), out=tmp_path / "b", quiet=True)
    a, b = (json.loads((tmp_path / name / "eval.json").read_text()) for name in "ab")
    assert a["model"] == b["model"]
    assert a["floor"] == b["floor"]


def test_a_run_without_a_teacher_has_nothing_to_judge(made, tmp_path, capsys):
    run = shutil.copytree(made / "stopped", tmp_path / "run")
    assert main(["eval", str(run)]) == 2
    said = "has no teacher yet: continue it with the command that began it"
    assert capsys.readouterr().err == f"pdfast: the run {run} {said}\n"
    assert main(["sample", str(run)]) == 2
    said = "is a run without a finished model yet: continue it with the command that began it"
    assert capsys.readouterr().err == f"pdfast: {run} {said}\n"


def test_an_evaluation_of_the_same_data_elsewhere(made, ended, tmp_path):
    moved_to(ended, shutil.copy(made / "set.npz", tmp_path / "moved.npz"))
    pdfast.evaluate(ended, quiet=True)
    reports = [json.loads((r / "report.json").read_text()) for r in (ended, made / "ended")]
    assert reports[0].pop("facts")["reference"] != reports[1].pop("facts")["reference"]
    assert reports[0] == reports[1]


def test_labels_that_are_away_are_no_other_images(made, ended, tmp_path):
    """A class-conditional model is judged without labels."""
    np.savez(tmp_path / "bare.npz", images=images(0))
    moved_to(ended, tmp_path / "bare.npz")
    pdfast.evaluate(ended / "teacher", out=tmp_path / "eval", quiet=True)
    assert "classes" not in json.loads((tmp_path / "eval" / "eval.json").read_text())


# ------------------------------------------------------------------------------------------
# What it costs


@pytest.fixture
def passes(monkeypatch):
    """Record the sizes of the sets whose images are hashed."""
    seen, real = [], digests.digest

    def counted(tensors, *rest):
        seen.extend(len(tensor) for name, tensor in tensors.items() if name == "images")
        return real(tensors, *rest)

    monkeypatch.setattr(digests, "digest", counted)
    return seen


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pdfast"


def test_one_pass_a_call(made, ended, passes, cache):
    """The check, the evaluation and the report share one pass; small sets are not cached."""
    pdfast.evaluate(ended, quiet=True)
    assert passes == [NUM]
    distill(made / "set.npz", ended)
    assert passes == [NUM, NUM]
    assert not cache.exists()


def read(path, classes=3):
    config = config_of(path)
    model = dataclasses.replace(config.model, num_classes=classes)
    return digest.known(dataset.load_dataset(config.data, model)).digest


def test_a_large_set_is_gone_through_once(tmp_path, passes, cache, monkeypatch):
    """Until one of its files is written to; with and without labels it counts as two sets."""
    monkeypatch.setattr(digest, "LARGE", 0)
    monkeypatch.setattr(sources, "SETTLED", -(10**12))  # as if the files had lain there for long
    path = write(tmp_path / "set.npz")
    first = read(path)
    assert read(path) == first
    assert passes == [NUM]
    assert read(path, classes=0) == dataclasses.replace(first, labels="")
    assert passes == [NUM, NUM]
    for kept_file in cache.iterdir():
        kept_file.write_bytes(kept_file.read_bytes()[:-3])
    assert read(path) == first
    assert len(passes) == 3
    write(path, seed=1)
    assert read(path).images not in ("", first.images)
    assert len(passes) == 4
    write(path, shift=1)
    assert read(path).images == first.images
    assert read(path).labels not in ("", first.labels)
    assert len(passes) == 5
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # no folder
    assert read(path).images == first.images
    assert len(passes) == 6


def test_files_that_are_new_have_no_stamp(tmp_path, monkeypatch):
    """A file system's clock may stand still between two writes."""
    path = write(tmp_path / "set.npz")
    assert sources.stamp(str(path)) == ""
    monkeypatch.setattr(sources, "SETTLED", -(10**12))
    assert sources.stamp(str(path)) != ""
    assert sources.stamp("digits") == sources.stamp(str(tmp_path / "absent")) == ""
    before = sources.stamp(str(path))
    (tmp_path / "copy.npz").write_bytes(path.read_bytes())
    (tmp_path / "copy.npz").rename(path)  # the same bytes; who knows
    assert sources.stamp(str(path)) != before


def test_labels_beside_the_images_are_in_the_stamp(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SETTLED", -(10**12))
    images_file, labels = (tmp_path / f"train-{name}" for name in
                           ("images-idx3-ubyte", "labels-idx1-ubyte"))  # fmt: skip
    images_file.write_bytes(b"\0")
    labels.write_bytes(b"\0")
    before = [sources.stamp(str(place)) for place in (images_file, tmp_path)]
    assert before[0] == before[1] != ""
    labels.write_bytes(b"\1\2")
    assert sources.stamp(str(images_file)) != before[0]


def test_the_other_processes_are_told(passes, monkeypatch):
    """They receive the first process's digest by `from_first`, and compute none themselves."""
    import torch

    found = Dataset(torch.from_numpy(images(0)), torch.arange(NUM)).digested()
    assert passes == [NUM]
    told = json.loads(json.dumps(dataclasses.asdict(found)))
    monkeypatch.setattr(digest.collectives, "from_first", lambda function: told)
    mine = digest.known(Dataset(torch.from_numpy(images(0)), torch.arange(NUM)))
    assert mine.digest == mine.to("cpu").digest == found
    assert passes == [NUM]
