"""Hugging Face's data sets, written by the library itself, and one sentence for each fault."""

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

from pdfast.cli.main import main
from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import huggingface
from pdfast.data.readers.reading import Wanted
from pdfast.distributed import signals
from pdfast.errors import Stopped, UsageError

GREY = NetConfig(image_size=8, channels=1)
CLASSES = NetConfig(image_size=8, channels=1, num_classes=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
KINDS = [0, 1, 2, 0, 1, 2]
TYPES = {"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "text": Value("string")}


@pytest.fixture(autouse=True)
def silent():
    """Turn off the library's progress bars."""
    datasets.disable_progress_bars()


def a_set(first=0, last=6, types=TYPES, **columns):
    """Return a set of rows `first` to `last`; `columns` replaces or adds columns."""
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
    """Write .parquet files as the hub stores them: one with two row groups, beside another file."""
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
    assert sources.count(DataConfig(source=f"hf:{source}")) == len(IMAGES)
    monkeypatch.chdir(tmp_path)
    relative = source.relative_to(tmp_path)
    assert sources.absolute(f"hf:{relative}") == f"hf:{source}"
    if write in (saved_splits, parquets):
        rest = load(f"{relative}:rest")
        np.testing.assert_array_equal(rest.images[..., 0], IMAGES[:2])
        assert sources.absolute(f"hf:{relative}:rest") == f"hf:{source}:rest"
        refused(f"{source}:test", "has no split test: append one of ")


@pytest.mark.parametrize("write", [saved, saved_splits, parquet, parquets])
def test_files_here_are_read_without_a_network(tmp_path, monkeypatch, write):
    """The library would report the reading of .parquet files to the hub."""
    asked = []
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append(1))
    datasets.load.increase_load_count("parquet")
    assert asked == [1]
    load(write(tmp_path / "set"))
    assert asked == [1]
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS


def test_data_command(tmp_path, capsys, handlers):
    """The pictures have several sizes, and colour; two are equal."""
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
    """The first pictures are yielded before a damaged later row group is read."""
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
        "train has 2 columns of pictures, image, other: name one, as in hf:",
    ),
    "two of labels": (
        {"image": Image(), "label": TYPES["label"], "fine": TYPES["label"]},
        {"fine": KINDS},
        "a.parquet:train has 2 columns of labels, label, fine: name one, as in hf:",
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
        "row 4, row 5 (each holds no picture: store the picture itself in it)",
    ),
    "no picture": (
        TYPES,
        {"image": [{"bytes": b"no picture", "path": None}] * 6},
        "row 5 (each is not a readable image); repair or remove them, or",
    ),
    "one": ({"image": Image()}, {"image": [picture(IMAGES[0])]}, "has 1 image; at least 2"),
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
    refused(tmp_path / "a.parquet", "row 2 (each holds no picture", GREY)


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
    """The library is told to work offline, so no network is needed."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = "is not a local file or folder, and cannot be loaded from the hub ("
    refused(name, message)
    assert sources.count(DataConfig(source=f"hf:{name}")) is None
    assert sources.absolute(f"hf:{name}") == f"hf:{name}"


def test_a_name_on_the_hub(monkeypatch, tmp_path):
    """A stand-in for the library's result: splits in its cache, with pictures as paths there."""
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
    assert sources.count(DataConfig(source="hf:some/set")) is None
    path.rename(tmp_path / "elsewhere.png")
    for row in rows:
        row["path"] = str(tmp_path / "elsewhere.png")
    refused("some/set:test", "row 1 (each holds no picture: store the picture itself in it)")


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path, "needs the package datasets: pip install 'pdfast[datasets]'")


def test_a_signal_is_heard(monkeypatch, tmp_path):
    path = parquet(tmp_path / "set")
    monkeypatch.setattr(signals, "_requested", 15)
    with pytest.raises(Stopped):
        load(path)


# ------------------------------------------------------------------------------------------
# Formats, and files that number their classes differently

FORMATS = {
    "torch": {},
    "numpy": {},
    "pandas": {},
    "arrow": {},
    "torch, labels only": {"columns": ["label"]},
    "numpy, pictures only": {"columns": ["image"]},
    "pandas, text only": {"columns": ["text"]},
}


@pytest.mark.parametrize("case", FORMATS)
def test_a_set_that_was_saved_with_a_format(tmp_path, case):
    a_set().with_format(case.split(",")[0], **FORMATS[case]).save_to_disk(tmp_path / "set")
    assert datasets.load_from_disk(tmp_path / "set").format["type"] == case.split(",")[0]
    data = load(tmp_path / "set")
    np.testing.assert_array_equal(data.images[..., 0], IMAGES)
    assert data.labels.tolist() == KINDS
    assert data.names == ("a", "b", "c")


def test_labels_of_parquet_files_go_by_name(tmp_path):
    """Three files order their class names in three ways, which the library itself overlooks."""
    (tmp_path / "set").mkdir()
    for k, of_file in enumerate([["a", "b", "c"], ["c", "a", "b"], ["b", "d"]]):
        types = TYPES | {"label": ClassLabel(names=of_file)}
        names = ("a", "b") if k < 2 else ("b", "d")
        part = a_set(2 * k, 2 * k + 2, types, label=[of_file.index(name) for name in names])
        part.to_parquet(tmp_path / "set" / f"train-{k:05d}-of-00003.parquet")
    theirs = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path))
    assert theirs["label"][:4] == [0, 1, 1, 2]
    data = load(tmp_path / "set", NetConfig(image_size=8, channels=1, num_classes=4))
    np.testing.assert_array_equal(data.images[..., 0], IMAGES)
    assert data.labels.tolist() == [0, 1, 0, 1, 1, 3]
    assert data.names == ("a", "b", "c", "d")


def test_parquet_files_of_other_columns_are_refused(tmp_path):
    a_set(0, 2).to_parquet(tmp_path / "train-0.parquet")
    types = TYPES | {"label": Value("int64")}
    a_set(2, 4, types=types).to_parquet(tmp_path / "train-1.parquet")
    refused(tmp_path, "has the column label as ClassLabel in ")
    refused(tmp_path, "train-1.parquet: write all files with one type")


def test_a_class_beyond_the_names_is_refused(tmp_path):
    """The library does not write such files: the numbers belong to another schema."""
    for names in (["a", "b"], ["b", "a"]):
        plain = a_set(types=TYPES | {"label": Value("int64")})
        plain.to_parquet(tmp_path / "train-0.parquet")
        table = pyarrow.parquet.read_table(tmp_path / "train-0.parquet")
        of_two = Features(TYPES | {"label": ClassLabel(names=names)}).arrow_schema
        pyarrow.parquet.write_table(table.cast(of_two), tmp_path / "train-0.parquet")
        if names == ["b", "a"]:
            types = TYPES | {"label": ClassLabel(names=["a", "b"])}
            a_set(0, 2, types=types).to_parquet(tmp_path / "train-1.parquet")
        refused(tmp_path, "has the class 2 in column label, which names 2 classes")


def test_files_of_a_saved_set_that_number_their_classes_differently(tmp_path):
    saved(tmp_path / "set")
    other = TYPES | {"label": ClassLabel(names=["b", "a", "c"])}
    a_set(types=other).save_to_disk(tmp_path / "other")
    (mine,), (theirs,) = ((tmp_path / k).glob("*.arrow") for k in ("set", "other"))
    theirs.replace(mine)
    refused(tmp_path / "set", "numbers the classes of column label as a, b, c, but ")
    refused(tmp_path / "set", "as b, a, c: save it again from the sets that it was made from")


@pytest.mark.parametrize("write", [saved, saved_splits, parquet, parquets])
def test_pictures_from_any_row_on(tmp_path, monkeypatch, write):
    monkeypatch.setattr(huggingface, "ROWS", 2)
    source = f"hf:{write(tmp_path / 'set')}"
    found = huggingface.find(source, Wanted(8))
    for start in range(8):
        rows = list(found.files(start))
        assert [name for name, _ in rows] == [f"{source}: row {n}" for n in range(start, 6)]
        for n, (_, file) in enumerate(rows, start):
            np.testing.assert_array_equal(np.asarray(Pillow.open(file)), IMAGES[n])


# ------------------------------------------------------------------------------------------
# Columns that are named

COLUMNS = {
    "fine": ClassLabel(names=["x", "y", "z"]),
    "coarse": ClassLabel(names=["p", "q"]),
    "number": Value("int32"),
    "small": Value("uint8"),
    "truth": Value("bool"),
    "text": Value("string"),
    "long": Value("large_string"),
    "digit": Value("string"),
    "Name, with: marks": Value("string"),
    "unnamed": ClassLabel(num_classes=3),
    "fraction": Value("float32"),
    "below": Value("int64"),
    "some": Value("string"),
    "empty": Value("string"),
    "nothing": Value("string"),
}
ROWS = {
    "fine": [2, 1, 0, 0, 1, 2],
    "coarse": [1, 0, 1, 0, 1, 0],
    "number": [7, 0, 7, 0, 7, 0],
    "small": [1, 2, 0, 1, 2, 0],
    "truth": [True, False] * 3,
    "text": ["dog", "cat", "ant"] * 2,
    "long": ["dog", "cat", "ant"] * 2,
    "digit": ["10", "9", "2"] * 2,
    "Name, with: marks": ["b", "a", "b"] * 2,
    "unnamed": KINDS,
    "fraction": [0.5] * 6,
    "below": [0, 1, -2, 0, 1, 2],
    "some": ["a", None] * 3,
    "empty": ["a", "a", ""] * 2,
    "nothing": [None] * 6,
}
CHOSEN = {
    "fine": ([2, 1, 0, 0, 1, 2], ("x", "y", "z")),
    "coarse": ([1, 0, 1, 0, 1, 0], ("p", "q")),
    "image,coarse": ([1, 0, 1, 0, 1, 0], ("p", "q")),
    "coarse,image": ([1, 0, 1, 0, 1, 0], ("p", "q")),
    "number": ([7, 0, 7, 0, 7, 0], ()),
    "small": ([1, 2, 0, 1, 2, 0], ()),
    "truth": ([1, 0] * 3, ()),
    "text": ([2, 1, 0] * 2, ("ant", "cat", "dog")),
    "long": ([2, 1, 0] * 2, ("ant", "cat", "dog")),
    "digit": ([2, 1, 0] * 2, ("2", "9", "10")),
    "Name, with: marks": ([1, 0, 1] * 2, ("a", "b")),
    "unnamed": (KINDS, ()),
}
MANY = NetConfig(image_size=8, channels=1, num_classes=8)


@pytest.fixture(scope="module")
def many_columns(tmp_path_factory):
    folder = tmp_path_factory.mktemp("columns")
    columns = ROWS | {"other": [Pillow.fromarray(255 - image) for image in IMAGES]}
    made = a_set(types={"image": Image(), "other": Image(), **COLUMNS}, **columns)
    DatasetDict({"all": made, "train": made.select(range(2))}).save_to_disk(folder / "both")
    one = made.remove_columns("other")
    DatasetDict({"all": one, "train": one.select(range(2))}).save_to_disk(folder / "one")
    one.to_parquet(folder / "one.parquet")
    return folder


@pytest.mark.parametrize("column", CHOSEN)
def test_a_column_of_labels_is_named(many_columns, monkeypatch, column):
    labels, names = CHOSEN[column]
    monkeypatch.chdir(many_columns)
    for source in (f"one:all:{column}", f"one.parquet:train:{column}", f"one.parquet::{column}"):
        assert sources.absolute(f"hf:{source}") == f"hf:{many_columns}/{source}"
        for place in (source, many_columns / source):
            data = load(place, MANY)
            np.testing.assert_array_equal(data.images[..., 0], IMAGES)
            assert data.labels.tolist() == labels
            assert data.names == names
    assert load(f"one:all:{column}", GREY).labels is None


def test_a_column_of_pictures_is_named(many_columns):
    both = many_columns / "both"
    for column, images in {"image": IMAGES, "other": 255 - IMAGES}.items():
        np.testing.assert_array_equal(load(f"{both}:all:{column}", GREY).images[..., 0], images)
        data = load(f"{both}:all:fine,{column}", MANY)
        np.testing.assert_array_equal(data.images[..., 0], images)
        assert data.labels.tolist() == ROWS["fine"]
    refused(
        f"{both}:all",
        f"both:all has 2 columns of pictures, image, other: name one, as in hf:{both}:all:image",
        GREY,
    )
    refused(f"{both}:all:fine", f"name one, as in hf:{both}:all:fine,image", MANY)
    refused(
        f"{both}:all:image",
        f"3 columns of labels, fine, coarse, unnamed: name one, as in hf:{both}:all:image,fine",
        MANY,
    )


BAD_COLUMNS = {
    "": "has 3 columns of labels, fine, coarse, unnamed: name one, as in ",
    "fin": "has no column fin (columns: image, fine, coarse, ",
    "fine,coarse": "must name one column of pictures at most, and one of labels",
    "image,image": "must name one column of pictures at most, and one of labels",
    "fraction": "the column fraction of type float32: classes are of type ClassLabel, whole numb",
    "below": "row 2 has in column below the label -2: number classes from 0",
    "some": "row 1 has no label in column some, as others have: label all or none",
    "empty": "row 2 has no label in column empty, as others have: label all or none",
    "nothing": "has no labels, but model.num_classes is 8",
}  # fmt: skip


@pytest.mark.parametrize("column", BAD_COLUMNS)
def test_bad_columns_that_are_named(many_columns, column):
    refused(many_columns / f"one:all{column and ':'}{column}", BAD_COLUMNS[column], MANY)


def test_a_split_that_is_none(many_columns):
    refused(
        many_columns / "one:fine",
        "no split fine: append one of all, train, as in hf:NAME:SPLIT, and a column as in",
        MANY,
    )


def test_texts_that_are_no_classes(many_columns, monkeypatch):
    monkeypatch.setattr(huggingface.columns, "MAX_TEXTS", 2)
    refused(
        many_columns / "one:all:text",
        "more than 2 texts in column text, too many for classes: name another column",
        MANY,
    )


def test_columns_that_may_hold_the_labels_are_named(tmp_path):
    types = {"image": Image(), "label": Value("int64"), "text": Value("string")}
    a_set(types=types).to_parquet(tmp_path / "a.parquet")
    refused(
        tmp_path / "a.parquet",
        f"has no column of type ClassLabel: name the label column, as in hf:{tmp_path}/a.parquet:"
        "train:label (columns: label, text)",
    )
    assert load(f"{tmp_path}/a.parquet:train:label").labels.tolist() == KINDS


@pytest.mark.parametrize(("name", "parts"), {
    "a/b": ("a/b", "", ""),
    "a/b:train": ("a/b", "train", ""),
    "a/b:train:fine label": ("a/b", "train", "fine label"),
    "a/b::fine": ("a/b", "", "fine"),
    "a/b:train:x,y:z": ("a/b", "train", "x,y:z"),
}.items())  # fmt: skip
def test_names_on_the_hub_with_columns(name, parts):
    assert huggingface._parts(f"hf:{name}") == parts
    assert sources.absolute(f"hf:{name}") == f"hf:{name}"
    assert sources.count(DataConfig(source=f"hf:{name}")) is None
