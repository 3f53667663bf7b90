"""Folders of pictures: which classes they have, and which ambiguous folders are refused."""

import json
import os

import pytest
from folder_cases import classes, find, put, refused

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import folder, splits

# ------------------------------------------------------------------------------------------
# Classes


def test_classes_are_the_folders_one_level_below(tmp_path):
    put(tmp_path, "dog/b.png", "dog/a.png", "cat/a.png")
    labels, names = classes(tmp_path)
    assert list(labels.items()) == [("cat/a.png", 0), ("dog/a.png", 1), ("dog/b.png", 1)]
    assert names == ("cat", "dog")
    found = find(tmp_path)
    assert [str(path) for _, path in found.files(1)] == [f"{tmp_path}/dog/{k}.png" for k in "ab"]
    assert found.left_out == ""
    read = load_dataset(
        DataConfig(source=str(tmp_path)), NetConfig(image_size=8, channels=1, num_classes=2)
    )
    assert read.names == names
    assert read.labels.tolist() == [0, 1, 1]
    without = find(tmp_path, labels=False)
    assert without.labels is None
    assert without.names == ()
    assert (without.unused, found.unused) == (("cat", "dog"), ())
    plain = NetConfig(image_size=8, channels=1)
    assert load_dataset(DataConfig(source=str(tmp_path)), plain).unused == ("cat", "dog")
    assert sources.count(DataConfig(source=str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "2", "1", "0"], ["0", "1", "2", "10"]),
        (["010", "002", "9"], ["002", "9", "010"]),
        (["1", "01", "0"], ["0", "01", "1"]),
        (["10", "2", "b"], ["10", "2", "b"]),
        (["-1", "2", "10"], ["-1", "10", "2"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        (["²", "10", "9"], ["10", "9", "²"]),
    ],
)
def test_the_order_of_classes(tmp_path, names, ordered):
    """Names are sorted as numbers if all are whole numbers, else alphabetically."""
    for folders in ("auto", "top", "parent"):
        labels, found = classes(put(tmp_path, *(f"{name}/a.png" for name in names)), folders)
        assert found == tuple(ordered)
        assert labels == {f"{name}/a.png": k for k, name in enumerate(ordered)}
    labels, found = classes(tmp_path, "top-as-text")
    assert found == tuple(sorted(names))
    assert labels == {f"{name}/a.png": k for k, name in enumerate(sorted(names))}


def test_deeper_pictures_are_refused_with_both_readings(tmp_path):
    put(tmp_path, "bird/owl/a.png", "bird/hen/a.png", "cat/tom/a.png", "cat/tom/b.png")
    top = 'set data.labels = "top" (--data.labels top) for 2 classes (bird, cat)'
    parent = ' or data.labels = "parent" (--data.labels parent) for 3 classes (hen, owl, tom)'
    refused(
        tmp_path, f"more than one level of sub-folders below it (bird/hen/a.png): {top}{parent}"
    )
    assert classes(tmp_path, "top") == (
        {"bird/hen/a.png": 0, "bird/owl/a.png": 0, "cat/tom/a.png": 1, "cat/tom/b.png": 1},
        ("bird", "cat"),
    )
    assert classes(tmp_path, "parent") == (
        {"bird/hen/a.png": 0, "bird/owl/a.png": 1, "cat/tom/a.png": 2, "cat/tom/b.png": 2},
        ("hen", "owl", "tom"),
    )
    assert find(tmp_path, labels=False).num == 4
    put(tmp_path, "cat/a.png", "ape/a.png")
    refused(
        tmp_path,
        "holds pictures at more than one depth (ape/a.png, bird/hen/a.png)",
        "for 3 classes (ape, bird, cat)",
        "for 5 classes (ape, cat, hen, ... 5 in all)",
    )


def test_two_parents_of_one_name_are_two_classes(tmp_path):
    put(tmp_path, "a/x/1.png", "a-b/x/1.png", "b/y/1.png", "10/x/1.png")
    labels, names = classes(tmp_path, "parent")
    assert names == ("10/x", "a/x", "a-b/x", "b/y")  # part by part: "-" comes before "/"
    assert labels == {f"{name}/1.png": k for k, name in enumerate(names)}
    numbers = tmp_path / "10"
    put(numbers, "2/1/a.png", "2/10/a.png", "10/1/a.png")
    (numbers / "x" / "1.png").unlink()
    (numbers / "x").rmdir()
    assert classes(numbers, "parent")[1] == ("2/1", "2/10", "10/1")


def test_a_picture_in_no_class(tmp_path):
    put(tmp_path, "cat/a.png", "dog/a.png", "sheet.png")
    for folders in ("auto", "top", "parent", "top-as-text"):
        refused(tmp_path, "sheet.png is in no class sub-folder, but labels", folders=folders)
    put(tmp_path, "b.png", "a.png")
    refused(tmp_path, "a.png is in no class sub-folder, as are 2 others, but labels are asked for")
    flat = put(tmp_path / "flat", "a.png", "b.png")
    fix = "set model.num_classes to 0 (for pdfast data: omit --labels)"
    refused(flat, "flat has no class sub-folders, but labels are asked for: make a sub-folder", fix)


def test_empty_classes_keep_their_numbers(tmp_path):
    """Otherwise a class whose pictures come later, or cannot be read, would shift the others."""
    put(tmp_path, "cat/a.png", "dog/a.png", "fox/.a.png")
    put(tmp_path, "bird/a.heic", content=b"x")
    (tmp_path / "ape").mkdir()
    for folders in ("auto", "top", "parent"):
        labels, names = classes(tmp_path, folders)
        assert names == ("ape", "bird", "cat", "dog", "fox")
        assert labels == {"cat/a.png": 2, "dog/a.png": 3}
        said = find(tmp_path, folders).left_out
        assert "classes without a picture, which keep their numbers: 3 (ape, bird, fox)" in said
        assert "files of kinds that are not read: 1 (bird/a.heic)" in said
    assert "classes" not in find(tmp_path, labels=False).left_out
    assert classes(tmp_path, "top-as-text")[1] == ("cat", "dog")


# ------------------------------------------------------------------------------------------
# As pdfast 0.1.0 read them


def test_top_as_text_is_as_before(tmp_path):
    """The same pictures in the same order with the same labels; skipped files are reported."""
    put(tmp_path, "train/2/a.png", "train/10/b.JPG", "val/a.tiff", "val/.x/a.png", "10/a/b.c/d.gif")
    put(tmp_path, "9/a.jfif", "9/a.png", "a.b/c.png", "a/c.png", "a/.c.png", "a/d.txt", "B/x.webp")
    os.symlink(tmp_path / "a", tmp_path / "linked")
    os.symlink(tmp_path / "a" / "c.png", tmp_path / "a" / "d.png")
    os.symlink(tmp_path / "gone", tmp_path / "a" / "e.png")
    before = sorted(
        file
        for file in tmp_path.rglob("*")
        if file.suffix.lower()
        in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
        and not any(part.startswith(".") for part in file.relative_to(tmp_path).parts)
        and file.is_file()
    )
    tops = [file.relative_to(tmp_path).parts[0] for file in before]
    numbers = {name: k for k, name in enumerate(sorted(set(tops)))}
    found = find(tmp_path, "top-as-text")
    assert [path for _, path in found.files(0)] == before
    assert found.labels.tolist() == [numbers[name] for name in tops]
    assert found.names == tuple(numbers) == ("10", "9", "B", "a", "a.b", "train", "val")
    for part in (
        "links to folders: 1 (linked)",
        "broken links: 1 (a/e.png)",
        "files of kinds that are not read: 1 (9/a.jfif)",
        "hidden folders: 1 (val/.x)",
        "hidden files: 1 (a/.c.png)",
    ):
        assert part in found.left_out


# ------------------------------------------------------------------------------------------
# Splits

SPLITS = [
    (["train", "val"], "train"),
    (["Test", "TRAIN", "Validation"], "TRAIN"),
    (["training", "testing"], "training"),
    (["test"], "test"),
    (["dev", "eval"], "dev"),
    (["training_set", "test_set"], "training_set"),
    (["seg_pred", "seg_test", "seg_train"], "seg_train"),
    (["trainA", "trainB", "testA", "testB"], "trainA"),
    (["train2017", "val2017"], "train2017"),
    (["bedroom_val", "bedroom_train"], "bedroom_train"),
    (["train", "test", "extra"], "train"),
    (["train", "valid", "images"], "train"),
]
CLASSES = [
    ["cat", "test", "dog"],
    ["bullet_train", "freight_train"],
    ["train", "plane"],
    ["extra", "query"],
    ["strain", "contest"],
    ["0", "1"],
]


@pytest.mark.parametrize(("names", "first"), SPLITS)
def test_splits_are_refused(tmp_path, names, first):
    put(tmp_path, *(f"{name}/cat/a.png" for name in names), *(f"{n}/dog/a.png" for n in names))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("holds no picture")
    for labels in (True, False):
        refused(
            tmp_path,
            f"{tmp_path} holds the splits of a set ({', '.join(sorted(names)[:3])}",
            f'set data.source = "{tmp_path}/{first}", or data.labels = "top"',
            labels=labels,
        )
    assert find(tmp_path, "top").names == tuple(sorted([*names, "docs"]))
    assert find(tmp_path, "parent").num == 2 * len(names)
    assert find(tmp_path, "top-as-text").names == tuple(sorted(names))
    assert classes(tmp_path / first)[1] == ("cat", "dog")
    assert sources.count(DataConfig(source=str(tmp_path / first))) == 2


@pytest.mark.parametrize("names", CLASSES)
def test_classes_with_names_of_splits(tmp_path, names):
    put(tmp_path, *(f"{name}/a.png" for name in names))
    assert classes(tmp_path)[1] == tuple(sorted(names))
    assert not splits.looks_split(names)


def test_splits_further_down(tmp_path):
    put(tmp_path, "birds/train/owl/a.png", "birds/val/owl/a.png")
    refused(tmp_path, f'set data.source = "{tmp_path}/birds/train"', labels=False)
    put(tmp_path, "fish/a/b.png")
    assert find(tmp_path, labels=False).num == 3
    refused(tmp_path, 'data.labels = "top"')
    flat = put(tmp_path / "flat", "train/a.png", "val/a.png", "sheet.png")
    refused(flat, f'set data.source = "{flat}/train"', labels=False)


# ------------------------------------------------------------------------------------------
# EDM's table


def edm(root, names, labels):
    put(root, *names)
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


@pytest.mark.parametrize("below", ["00000/", ""])
def test_a_folder_of_edm(tmp_path, below):
    names = [f"{below}img{k:08d}.png" for k in range(4)] + ["00001/img00001000.png"]
    edm(tmp_path, names, [[name, 3 * k % 5] for k, name in enumerate(names)][::-1])
    labels, found = classes(tmp_path)
    assert labels == {name: 3 * k % 5 for k, name in enumerate(names)}
    assert found == ()
    assert find(tmp_path, labels=False).labels is None


def test_the_sub_folders_of_edm_on_request(tmp_path):
    edm(tmp_path, ["00000/a.png", "00001/b.png"], [["00000/a.png", 7], ["00001/b.png", 7]])
    assert classes(tmp_path)[0] == {"00000/a.png": 7, "00001/b.png": 7}
    assert classes(tmp_path, "top") == ({"00000/a.png": 0, "00001/b.png": 1}, ("00000", "00001"))
    edm(tmp_path, [], None)
    refused(tmp_path, "dataset.json says that the pictures have no labels", 'data.labels = "top"')
    assert find(tmp_path, labels=False).num == 2


BAD_TABLES = {
    "for some only": ([["0/a.png", 1]], "has no label for 0/b.png, the first of 1 such pictures"),
    "for another": ([["x.png", 1]], "a label for x.png, which is not a picture in the folder"),
    "a vector": ([["0/a.png", [0, 1]]], "the label '[0, 1]', which is not a whole number"),
    "no pairs": ("abc", "must have `labels`, a list of [name, class] pairs"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(tmp_path, case):
    labels, message = BAD_TABLES[case]
    refused(edm(tmp_path, ["0/a.png", "0/b.png"], labels), message)


def test_tables_that_are_none(tmp_path, monkeypatch):
    put(tmp_path, "0/a.png", "0/b.png")
    put(tmp_path, "dataset.json", content=b"{")
    refused(tmp_path, "dataset.json is not a readable table of labels")
    put(tmp_path, "dataset.json", content=b"[" * 90_000)
    refused(tmp_path, "dataset.json is nested too deeply")
    monkeypatch.setattr(folder.edm_labels, "MAX_BYTES", 100)
    refused(tmp_path, "dataset.json is larger than 0 MB")


def test_a_table_further_down(tmp_path):
    edm(tmp_path / "set", ["a.png", "b.png"], [["a.png", 1], ["b.png", 0]])
    refused(tmp_path, f'set data.source = "{tmp_path}/set"')
    assert find(tmp_path, labels=False).num == 2
    assert classes(tmp_path / "set")[0] == {"a.png": 1, "b.png": 0}


def test_a_label_of_a_picture_that_is_skipped(tmp_path):
    edm(tmp_path, ["a.png", "b.png"], [["a.png", 1], ["b.png", 0], ["c.png", 2]])
    os.symlink("gone", tmp_path / "c.png")
    refused(tmp_path, "c.png")
    assert classes(tmp_path, skip_bad=True)[0] == {"a.png": 1, "b.png": 0}
