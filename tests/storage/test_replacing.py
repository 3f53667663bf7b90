"""Existing files are replaced only if pdfast wrote them, and nobody has changed them since."""

import json
import shutil

import diffusers_files as df
import flax_files as ff
import numpy as np
import pytest
import torch
from diffusers.utils import logging
from PIL import Image

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import NetConfig, dump_config
from pdfast.errors import UsageError
from pdfast.models.model import Model
from pdfast.storage import files

pytestmark = pytest.mark.usefixtures("handlers")
CFG = NetConfig(
    image_size=8, channels=1, ch=8, emb_ch=16, ch_mult=(1,), num_res_blocks=1,
    attn_resolutions=(), groups=4,
)  # fmt: skip
FIX = ", and is not replaced: choose another place, or move it away"


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)


@pytest.fixture
def model():
    return Model(CFG, steps=2)


def tree(path):
    """Return everything below a path: content of files, targets of symlinks."""
    return {
        str(p.relative_to(path)): str(p.readlink()) if p.is_symlink() else
        p.read_bytes() if p.is_file() else None
        for p in path.rglob("*")
    }  # fmt: skip


# ------------------------------------------------------------------------------------------
# Models


def a_file_beside(path):
    (path / "notes.txt").write_text("mine")


def a_folder_beside(path):
    (path / "old" / "results").mkdir(parents=True)
    (path / "old" / "results" / "table.csv").write_text("mine")


def an_empty_folder_beside(path):
    (path / "empty").mkdir()


def a_changed_file(path):
    file = path / "config.json"
    file.write_text(file.read_text().replace('"parameterization": "v"', '"parameterization": "x"'))


def a_missing_file(path):
    (path / "model.safetensors").unlink()


def a_link_inside(path):
    (path / "model.safetensors").rename(path.parent / "weights")
    (path / "model.safetensors").symlink_to(path.parent / "weights")


def a_linked_folder_inside(path):
    (path.parent / "elsewhere").mkdir()
    (path.parent / "elsewhere" / "data").write_text("mine")
    (path / "data").symlink_to(path.parent / "elsewhere")


def a_link(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def a_dangling_link(path):
    shutil.rmtree(path)
    path.symlink_to(path.parent / "absent")


def somebody_elses_folder(path):
    shutil.rmtree(path)
    path.mkdir()
    (path / "photos").mkdir()
    (path / "photos" / "a.jpg").write_bytes(b"mine")


def somebody_elses_manifest(path):
    shutil.rmtree(path)
    path.mkdir()
    (path / "index.html").write_text("mine")
    (path / "manifest.json").write_text(json.dumps({"files": {"index.html": {}}}))


def a_file(path):
    shutil.rmtree(path)
    path.write_text("mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (a_file_beside, "model holds notes.txt, which its manifest.json does not list"),
        (a_folder_beside, "model holds old/results/table.csv, which its manifest.json does not"),
        (an_empty_folder_beside, "model holds empty, which its manifest.json does not list"),
        (a_changed_file, "model is not as pdfast wrote it: .*config.json is damaged: its SHA-256"),
        (a_missing_file, "model is not as pdfast wrote it: .*model.safetensors is missing"),
        (a_link_inside, "model holds a symlink, model.safetensors"),
        (a_linked_folder_inside, "model holds a symlink, data"),
        (a_link, "model is a symlink"),
        (a_dangling_link, "model is a symlink"),
        (somebody_elses_folder, "model holds photos/a.jpg, which is not known to be pdfast's"),
        (somebody_elses_manifest, "model is not as pdfast wrote it: .*manifest.json is damaged"),
        (a_file, "model is not known to be pdfast's"),
    ],
)
def test_save_deletes_nothing_of_others(model, tmp_path, change, message):
    pdfast.save(model, tmp_path / "model")
    change(tmp_path / "model")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=f"{message}.*{FIX}$") as error:
        pdfast.save(model, tmp_path / "model")
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == before


def test_save_takes_what_is_absent_empty_or_its_own(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for place in ("new/folder", tmp_path / "empty"):
        pdfast.save(model, place, note="first")
        pdfast.save(model, place, note="second", ema=[1, 2.5])
        manifest = files.read_manifest(tmp_path / place)
        assert (manifest["note"], manifest["ema"]) == ("second", [1, 2.5])
        assert pdfast.load(place).steps == 2
    monkeypatch.chdir(tmp_path / "empty")
    pdfast.save(model, ".")
    assert pdfast.load(tmp_path / "empty").steps == 2
    (tmp_path / "really").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "really")
    pdfast.save(model, tmp_path / "link" / "model")  # only the last name must be no link
    assert pdfast.load(tmp_path / "really" / "model").steps == 2
    with pytest.raises(UsageError, match="path is empty: name a folder"):
        pdfast.save(model, "")


def test_a_file_that_appears_while_the_model_is_written(model, tmp_path, monkeypatch):
    pdfast.save(model, tmp_path / "model")
    real = files.seal

    def seal(*args, **facts):
        a_file_beside(tmp_path / "model")
        real(*args, **facts)

    monkeypatch.setattr(files, "seal", seal)
    with pytest.raises(UsageError, match=r"holds notes\.txt"):
        pdfast.save(model, tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"files": {}}, "the manifest has its own files: give that fact another name"),
        ({"versions": 1}, "the manifest has its own versions"),
        ({"manifest_sha256": "0"}, "the manifest has its own manifest_sha256"),
        ({"steps": 8}, "the manifest has its own steps"),
        ({"round": 3, "note": ""}, "the manifest has its own round"),
        ({"loss": float("nan")}, "the manifest is JSON, which cannot hold these facts"),
        ({"weights": torch.ones(2)}, "the manifest is JSON, which cannot hold these facts"),
        ({"note": "x" * 2**20}, "is longer than 1048576, the most that is read"),
    ],
)
def test_facts_that_the_manifest_cannot_hold(model, tmp_path, facts, message):
    with pytest.raises(UsageError, match=message):
        pdfast.save(model, tmp_path / "model", **facts)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------
# Commands


@pytest.fixture
def saved(model, tmp_path):
    pdfast.save(model, tmp_path / "source")
    return tmp_path / "source"


def run(capsys, *args):
    """Return exit status and stderr of a command line."""
    code = main([str(a) for a in args])
    return code, capsys.readouterr().err


def refused(capsys, folder, message, *args):
    before = tree(folder)
    code, errors = run(capsys, *args)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
    assert tree(folder) == before


def test_sample(capsys, saved, tmp_path):
    for name, change in (("folder", 2), ("a.png", None), ("a.npz", None)):
        out = tmp_path / "to" / name
        sample = ["sample", saved, "--out", out, "--num"]
        assert run(capsys, *sample, 3) == (0, "")
        refused(capsys, tmp_path, f"{name} already exists: choose another", *sample, 2)
        assert run(capsys, *sample, 2, "--force") == (0, "")
        if change:
            assert sorted(p.name for p in out.iterdir()) == [
                "000000.png",
                "000001.png",
                "samples.json",
            ]
            a_file_beside(out)
            wrong = "folder holds notes.txt, which is not known to be pdfast's"
            refused(capsys, tmp_path, wrong, *sample, 2, "--force")
            continue
        mine = np.zeros((4, 4), np.uint8)
        Image.fromarray(mine).save(out) if name == "a.png" else np.savez(out, arr_0=mine)
        refused(capsys, tmp_path, f"{name} is not known to be pdfast's", *sample, 2, "--force")
        out.rename(tmp_path / "mine")
        out.symlink_to(tmp_path / "mine")
        refused(capsys, tmp_path, f"{name} is a symlink", *sample, 2, "--force")
        refused(capsys, tmp_path, f"{name} is a symlink", *sample, 2)
        (tmp_path / "mine").unlink()


def test_data(capsys, tmp_path):
    out, sheet = tmp_path / "a.npz", tmp_path / "a.png"
    data = ["data", "digits", "--size", 8, "--out", out]
    assert run(capsys, *data) == (0, "")
    refused(capsys, tmp_path, "a.npz already exists", *data)
    assert run(capsys, *data, "--force") == (0, "")
    assert np.load(out)["images"].shape == (1797, 8, 8, 1)
    written = out.read_bytes()
    Image.open(sheet).crop((0, 0, 9, 9)).save(sheet)  # which leaves the mark out
    refused(capsys, tmp_path, "a.png is not known to be pdfast's", *data, "--force")
    out.unlink()
    refused(capsys, tmp_path, "a.png is not known to be pdfast's", *data, "--force")
    sheet.unlink()
    assert run(capsys, *data, "--force") == (0, "")
    assert out.read_bytes() == written


def test_export(capsys, saved, tmp_path):
    logging.disable_progress_bar()
    out = tmp_path / "out"
    export = ["export", saved, "--to", "diffusers", "--out", out]
    assert run(capsys, *export) == (0, "")
    first = tree(out)
    refused(capsys, tmp_path, "out already exists: choose another --out, remove it", *export)
    assert run(capsys, *export, "--force") == (0, "")
    assert tree(out) == first
    card = out / "README.md"
    card.write_text(card.read_text() + "My own words.\n")
    refused(capsys, tmp_path, "README.md is damaged", *export, "--force")
    shutil.copytree(out, tmp_path / "other")
    (tmp_path / "other" / "README.md").write_bytes(first["README.md"])
    (tmp_path / "other" / "unet" / "mine.bin").write_text("mine")
    export[-1] = tmp_path / "other"
    refused(capsys, tmp_path, "other holds unet/mine.bin, which its", *export, "--force")
    with pytest.raises(UsageError, match=r"other holds unet/mine\.bin"):
        pdfast.export(saved, tmp_path / "other", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    export[-1] = tmp_path / "link"
    refused(capsys, tmp_path, "link is a symlink", *export, "--force")


def test_import_of_a_pipeline(capsys, tmp_path):
    logging.disable_progress_bar()
    source, out, config = df.save(tmp_path / "p"), tmp_path / "out", tmp_path / "out.toml"
    take = ["import", source, "--from", "diffusers", "--out", out]
    assert run(capsys, *take) == (0, "")
    refused(capsys, tmp_path, "out already exists", *take)
    assert run(capsys, *take, "--force") == (0, "")
    config.write_text(config.read_text().replace("YOUR_IMAGES", "birds/"))
    refused(capsys, tmp_path, "out.toml is not known to be pdfast's", *take, "--force")
    config.unlink()
    assert run(capsys, *take, "--force") == (0, "")
    a_file_beside(out)
    refused(capsys, tmp_path, "out holds notes.txt", *take, "--force")


def test_import_of_a_training_state(capsys, write_state, tmp_path):
    path = write_state()
    (tmp_path / "c.toml").write_text(dump_config(ff.CONFIG))
    take = ["import", path, "--from", "google", "--config", tmp_path / "c.toml", "--out"]
    assert run(capsys, *take, tmp_path / "out") == (0, "")
    refused(capsys, tmp_path, "out already exists", *take, tmp_path / "out")
    assert run(capsys, *take, tmp_path / "out", "--force") == (0, "")
    a_file_beside(tmp_path / "out")
    refused(capsys, tmp_path, "out holds notes.txt", *take, tmp_path / "out", "--force")


def test_eval(capsys, straight, tmp_path):
    evaluate = ["eval", straight / "round-02-steps-0002", "--steps", 1, "--num", 8, "--out"]
    out = tmp_path / "e"
    assert run(capsys, *evaluate, out) == (0, "")
    (out / "notes.txt").write_text("mine")  # which no evaluation replaces
    assert run(capsys, *evaluate, out) == (0, "")
    assert (out / "notes.txt").read_text() == "mine"
    for name, content in (("eval.json", b'{"accuracy": 1}'), ("eval.png", b"\x89PNG mine")):
        mine = tmp_path / name[5:]
        mine.mkdir()
        (mine / name).write_bytes(content)
        refused(capsys, tmp_path, f"{name} is not known to be pdfast's", *evaluate, mine)
    state = tmp_path / "s" / "eval-state"
    state.mkdir(parents=True)
    (state / "mine.txt").write_text("mine")
    refused(capsys, tmp_path, "eval-state holds mine.txt", *evaluate, tmp_path / "s")


def test_a_config_of_somebody_else_is_no_run(tiny_toml, tiny, capsys, tmp_path):
    """The file name is a common one; the config of a run that has just begun is recognized."""
    out = tmp_path / "project"
    out.mkdir()
    train = ["train", "--config", tiny_toml, "--train.updates", 1, "--out", out]
    message = "config.toml was not written by a run, and is not replaced: choose another --out"
    for text in ("[tool]\nx = 1\n", "# digits\n[model]\nch = 16\n", "not TOML"):
        (out / "config.toml").write_text(text)
        refused(capsys, tmp_path, message, *train)
    (out / "config.toml").write_text(dump_config(tiny))
    assert run(capsys, *train)[0] == 0
