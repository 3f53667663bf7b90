"""The JSON file that `pdfast sample` writes beside pictures: model, steps, seed, labels."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data.dataset import load_dataset
from pdfast.models.model import Model

pytestmark = pytest.mark.usefixtures("handlers")
TINY = {"image_size": 8, "channels": 1, "ch": 4, "emb_ch": 8, "ch_mult": (1,), "groups": 2}
TINY |= {"attn_resolutions": (), "num_res_blocks": 1, "num_classes": 3}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Model(NetConfig(**TINY), 2).eval()
    torch.nn.init.normal_(model.net.conv_out.weight)
    torch.nn.init.normal_(model.net.emb_class.weight)
    model.class_names = ("ant", "bee", "cat")
    pdfast.save(model, tmp_path / "model")
    return tmp_path / "model"


def sampled(saved, out, *args):
    return main(["sample", str(saved), "--out", str(out), "--num", "5", "--seed", "7", *args])


@pytest.mark.parametrize("out", ["folder", "grid.png", "images.npz"])
def test_what_is_written(out, saved, tmp_path):
    """The file is enough to make the same images again."""
    assert sampled(saved, tmp_path / out) == 0
    place = tmp_path / ("folder/samples.json" if out == "folder" else f"{out}.json")
    about = json.loads(place.read_text())
    model = pdfast.load(saved)
    manifest = json.loads((saved / "manifest.json").read_text())
    assert about.pop("versions")["torch"] == torch.__version__
    assert len(about.pop("comment").removeprefix("written by pdfast, SHA-256 ")) == 64
    labels = about["labels"]
    assert about == {
        "model": "model",
        "model_manifest_sha256": manifest["manifest_sha256"],
        "steps": 2,
        "sampler": "ddim",
        "variance": None,
        "guidance": None,
        "precision": "fp32",
        "seed": 7,
        "images": 5,
        "labels": labels,
        "classes": ["ant", "bee", "cat"],
    }
    assert labels == model.drawn_labels(5, 7).tolist()
    images = model.sample(5, 2, 7, torch.tensor(labels), output="np")
    if out == "folder":
        files = sorted((tmp_path / out).glob("*.png"))
        assert np.array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), images[..., 0])
    elif out == "images.npz":
        assert np.load(tmp_path / out).files == ["arr_0"]
        assert np.array_equal(np.load(tmp_path / out)["arr_0"], images)


def test_a_label_that_was_asked_for(saved, tmp_path):
    assert sampled(saved, tmp_path / "a.png", "--label", "bee", "--steps", "1") == 0
    about = json.loads((tmp_path / "a.png.json").read_text())
    assert (about["labels"], about["steps"]) == ([1] * 5, 1)


def test_the_file_beside_is_replaced_only_where_pdfast_wrote_it(saved, tmp_path, capsys):
    out, beside = tmp_path / "a.png", tmp_path / "a.png.json"
    beside.write_text('{"mine": 1}')
    assert sampled(saved, out) == 2
    assert "a.png.json already exists: choose another --out" in capsys.readouterr().err
    assert sampled(saved, out, "--force") == 2
    assert "a.png.json is not known to be pdfast's" in capsys.readouterr().err
    assert (beside.read_text(), out.exists()) == ('{"mine": 1}', False)
    beside.unlink()
    assert sampled(saved, out) == 0
    first = beside.read_bytes()
    assert sampled(saved, out, "--force", "--label", "2") == 0
    written = beside.read_bytes()
    assert written != first
    beside.write_bytes(written.replace(b'"seed": 7', b'"seed": 8'))
    assert sampled(saved, out, "--force") == 2
    assert "a.png.json is not known to be pdfast's" in capsys.readouterr().err


def test_the_digest_is_of_the_file_with_zeros_in_its_place(saved, tmp_path):
    assert sampled(saved, tmp_path / "a.png") == 0
    text = (tmp_path / "a.png.json").read_text()
    digest = json.loads(text)["comment"][-64:]
    assert hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest() == digest


def test_a_picture_that_cannot_be_written_leaves_no_words_about_it(saved, tmp_path, monkeypatch):
    assert sampled(saved, tmp_path / "a.png") == 0

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pdfast.evaluation.sampling.save_png", full)
    assert sampled(saved, tmp_path / "a.png", "--force") == 1
    assert not (tmp_path / "a.png.json").exists()
    assert (tmp_path / "a.png").is_file()
    assert sampled(saved, tmp_path / "b") == 1
    assert not (tmp_path / "b").exists()


def test_a_folder_of_samples_is_a_data_set(saved, tmp_path):
    """The JSON file in the folder is not taken for a picture."""
    assert sampled(saved, tmp_path / "folder") == 0
    data = DataConfig(source=str(tmp_path / "folder"))
    found = load_dataset(data, NetConfig(**(TINY | {"num_classes": 0})))
    assert len(found) == 5
