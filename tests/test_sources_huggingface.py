"""Hugging Face's data sets: what the library itself writes, and what is wrong in a sentence."""

import sys

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from foreign import picture
from PIL import Image as Pillow

from pdfast import signals, sources
from pdfast.cli import main
from pdfast.config import DataConfig, NetConfig
from pdfast.data import load_dataset
from pdfast.errors import Stopped, UsageError
from pdfast.sources import huggingface
from pdfast.sources.reading import Wanted

GREY = NetConfig(image_size=8, channels=1)
CLASSES = NetConfig(image_size=8, channels=1, num_classes=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
KINDS = [0, 1, 2, 0, 1, 2]
TYPES = {"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "text": Value("string")}


@pytest.fixture(autouse=True)
def silent():
    """The library's own bars."""
    datasets.disable_progress_bars()


def a_set(first=0, last=6, types=TYPES, **columns):
    """Rows of the images, or of other columns."""
    stored = [Pillow.fromarray(image) for image in IMAGES[first:last]]
    rows = {"image": stored, "label": KINDS[first:last], "text": ["x"] * (last - first)} | columns
    return Dataset.from_dict({name: rows[name] for name in types}, features=Features(types))


def load(source, model=CLASSES):
    return load_dataset(DataConfig(source=f"hf:{source}"), model)


def refused(source, message, model=CLASSES):
    with pytest.raises(UsageError) as error:
        load(source, model)
    text = str(error.value)
    assert message in text
    assert str(source) in text
    assert "\n" not in text


def saved(folder):
    a_set().save_to_disk(folder)
    return folder


def saved_splits(folder):
    DatasetDict({"train": a_set(), "rest": a_set(0, 2)}).save_to_disk(folder)
    return folder


def parquet(folder):
    folder.mkdir()
    a_set().to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def parquets(folder):
    """As the hub lays them out, a shard with two row groups, a file beside them."""
    (folder / "data").mkdir(parents=True)
    a_set(0, 4).to_parquet(folder / "data" / "train-00000-of-00002.parquet", batch_size=3)
    a_set(4, 6).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    a_set(0, 2).to_parquet(folder / "data" / "rest-00000-of-00001.parquet")
    (folder / "README.md").write_text("# A set\n")
    return folder


@pytest.mark.parametrize("write", [saved, saved_splits, parquet, parquets])
def test_each_form(tmp_path, monkeypatch, write):
    source = write(tmp_path / "set")
    data = load(source)
    np.testing.assert_array_equal(data.images[..., 0], IMAGES)
    assert data.labels.tolist() == KINDS
    assert load(source, GREY).labels is None
    assert sources.count(f"hf:{source}") == len(IMAGES)
    monkeypatch.chdir(tmp_path)
    relative = source.relative_to(tmp_path)
    assert sources.absolute(f"hf:{relative}") == f"hf:{source}"
    if write in (saved_splits, parquets):
        rest = load(f"{relative}:rest")
        np.testing.assert_array_equal(rest.images[..., 0], IMAGES[:2])
        assert sources.absolute(f"hf:{relative}:rest") == f"hf:{source}:rest"
        refused(f"{source}:test", "has no split test: name one of ")


def test_data_command(tmp_path, capsys, handlers):
    """Pictures of several sizes, in colour; two are the same."""
    colours = [Pillow.fromarray(np.stack([a, a, 255 - a], -1)) for a in IMAGES]
    colours[3] = colours[1]
    colours[2] = colours[2].resize((16, 20), Pillow.Resampling.NEAREST)
    a_set(image=colours).to_parquet(tmp_path / "a.parquet")
    out = tmp_path / "set.npz"
    source = f"hf:{tmp_path / 'a.parquet'}"
    assert main(["data", source, "--size", "8", "--labels", "--out", str(out)]) == 0
    assert "5 images of 8x8x3, 3 classes" in capsys.readouterr().out
    with np.load(out) as made:
        assert made["labels"].tolist() == [0, 1, 2, 1, 2]
        np.testing.assert_array_equal(made["images"][1], np.asarray(colours[1]))


def test_of_a_parquet_file_one_block_is_read_at_a_time(tmp_path, monkeypatch):
    """The first pictures come before a later row group, which is damaged, is looked at."""
    monkeypatch.setattr(huggingface, "ROWS", 2)
    path = tmp_path / "a.parquet"
    a_set().to_parquet(path, batch_size=2)
    last = pyarrow.parquet.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    content[last.data_page_offset : last.data_page_offset + 40] = bytes(40)
    path.write_bytes(content)
    found = huggingface.find(f"hf:{path}", Wanted(8))
    assert found.num == 6
    files = found.files(0)
    names = [next(files)[0] for _ in range(4)]
    assert names[3] == f"hf:{path}: row 3"
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read \(.+\)$"):
        next(files)
    refused(path, "cannot be read (")


BAD = {
    "no pictures": (
        {"label": TYPES["label"], "text": TYPES["text"]},
        {},
        "has no column of pictures, type Image (columns: label, text): cast one to datasets.Image",
    ),
    "two of pictures": (
        {"image": Image(), "other": Image()},
        {"other": [Pillow.fromarray(image) for image in IMAGES]},
        "has 2 columns of pictures, image, other: keep one, by remove_columns of datasets",
    ),
    "two of labels": (
        {"image": Image(), "label": TYPES["label"], "fine": TYPES["label"]},
        {"fine": KINDS},
        "has 2 columns of labels, label, fine: keep one",
    ),
    "no labels": ({"image": Image()}, {}, "has no labels, but model.num_classes is 3: add labels"),
    "labels of no use": (TYPES, {"label": [-1] * 6}, "has no labels, but"),
    "a label missing": (
        TYPES,
        {"label": [0, 1, None, 0, 1, 2]},
        "row 2 has no label in column label, as others have: label all or none",
    ),
    "a label below": (TYPES, {"label": [0, 1, 2, -1, 1, 2]}, "row 3 has no label in column label"),
    "a picture missing": (
        TYPES,
        {"image": [picture(IMAGES[0])] * 4 + [None] * 2},
        "row 4 holds no picture: store the picture itself in it",
    ),
    "no picture": (
        TYPES,
        {"image": [{"bytes": b"no picture", "path": None}] * 6},
        "row 0 is not a readable image: repair or remove it",
    ),
    "one": ({"image": Image()}, {"image": [picture(IMAGES[0])]}, "has 1 images; at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_columns(tmp_path, case):
    types, columns, message = BAD[case]
    if case == "one":
        types = {"image": Image()}
    columns = {k: [{"bytes": v, "path": None} if type(v) is bytes else v for v in values]
               for k, values in columns.items()}  # fmt: skip
    a_set(types=types, **columns).to_parquet(tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", message, GREY if case == "one" else CLASSES)


def test_a_path_in_a_foreign_file_is_not_opened(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(picture(IMAGES[0]))
    rows = [{"bytes": None, "path": str(path)}] * 3
    table = pyarrow.Table.from_pylist([{"image": row} for row in rows])
    schema = Features({"image": Image()}).arrow_schema
    pyarrow.parquet.write_table(table.cast(schema), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "row 0 holds no picture", GREY)


def test_files_that_are_none(tmp_path):
    parquet(tmp_path / "set")
    path = tmp_path / "set" / "a.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "a.parquet cannot be read (")
    refused(tmp_path / "set", "set cannot be read (")
    saved(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:700])
    refused(tmp_path / "saved", "saved cannot be read (")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds neither what save_to_disk writes nor .parquet files")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing:train", "no such: name", "a" * 300])
def test_a_name_that_is_not_to_be_had(monkeypatch, name):
    """Without a network, which the library is told not to look for."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = "is no folder and no file here, and as a name on the hub it cannot be had ("
    refused(name, message)
    assert sources.count(f"hf:{name}") is None
    assert sources.absolute(f"hf:{name}") == f"hf:{name}"


def test_a_name_on_the_hub(monkeypatch, tmp_path):
    """What the library gives for one: splits in its cache, pictures by their path there."""
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "cached.png"
    path.parent.mkdir()
    path.write_bytes(picture(IMAGES[5]))
    rows = [{"bytes": None, "path": str(path)}] * 2

    def given(name):
        assert name == "some/set"
        return DatasetDict({"train": a_set(), "test": a_set(0, 2, image=rows)})

    monkeypatch.setattr(datasets, "load_dataset", given)
    np.testing.assert_array_equal(load("some/set").images[..., 0], IMAGES)
    np.testing.assert_array_equal(load("some/set:test").images[..., 0], IMAGES[[5, 5]])
    assert sources.count("hf:some/set") is None
    path.rename(tmp_path / "elsewhere.png")
    for row in rows:
        row["path"] = str(tmp_path / "elsewhere.png")
    refused("some/set:test", "row 0 holds no picture: store the picture itself in it")


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path, "needs the package datasets: pip install 'pdfast[datasets]'")


def test_a_signal_is_heard(monkeypatch, tmp_path):
    path = parquet(tmp_path / "set")
    monkeypatch.setattr(signals, "_requested", 15)
    with pytest.raises(Stopped):
        load(path)
