"""Folders of pictures: which are read, what their classes are, and what is said of the rest."""

import json
import os
import socket

import numpy as np
import pytest
from foreign import picture

from pdfast import sources
from pdfast.config import DataConfig, NetConfig
from pdfast.data import load_dataset
from pdfast.errors import UsageError
from pdfast.sources import folder, splits, tree
from pdfast.sources.reading import Wanted

PNG = picture(np.zeros((8, 8), np.uint8))


def put(root, *names, content=PNG):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def find(root, folders="auto", labels=True, skip_bad=False):
    return folder.find(root, Wanted(8, labels=labels, folders=folders, skip_bad=skip_bad))


def classes(root, folders="auto", **options):
    """What every picture is labelled, by its path, and the names of the classes."""
    found = find(root, folders, **options)
    paths = [str(path.relative_to(root)) for _, path in found.files(0)]
    assert len(paths) == found.num == len(found.labels)
    assert found.labels.dtype == np.int64
    return dict(zip(paths, found.labels.tolist(), strict=True)), found.names


def refused(root, message, *also, folders="auto", labels=True, skip_bad=False):
    with pytest.raises(UsageError) as error:
        find(root, folders, labels, skip_bad)
    text = str(error.value)
    for part in (message, *also, str(root)):
        assert part in text
    assert "\n" not in text
    assert text.isprintable()
    return text


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
    assert sources.count(str(tmp_path)) == 3


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
    """As numbers if all are whole numbers, else by the alphabet."""
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


def test_empty_classes_keep_their_numbers(tmp_path):
    """Else a class whose pictures come later, or are of a kind not read, would move the others."""
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
    """The same pictures in the same order with the same labels; what it passes over is said."""
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
    assert sources.count(str(tmp_path / first)) == 2


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
    "for another": ([["x.png", 1]], "a label for x.png, which is no picture in the folder"),
    "a vector": ([["0/a.png", [0, 1]]], "the label '[0, 1]', which is no whole number"),
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


# ------------------------------------------------------------------------------------------
# Links


def test_links_are_followed(tmp_path):
    put(tmp_path, "store/owl/a.png", "store/owl/b.png", "birds/hen/a.png", "one.png")
    birds = tmp_path / "birds"
    os.symlink(tmp_path / "store" / "owl", birds / "bat")
    os.symlink("../../one.png", birds / "hen" / "one.png")
    labels, names = classes(birds)
    assert names == ("bat", "hen")
    assert labels == {"bat/a.png": 0, "bat/b.png": 0, "hen/a.png": 1, "hen/one.png": 1}
    assert find(birds).left_out == ""
    os.symlink(birds, tmp_path / "all")
    assert classes(tmp_path / "all")[0] == labels


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "{root}"])
def test_a_folder_in_itself_is_left_out(tmp_path, target):
    root = put(tmp_path / "set", "cat/a.png", "dog/a.png")
    os.symlink(target.format(root=root), root / "cat" / "again")
    assert classes(root)[0] == {"cat/a.png": 0, "dog/a.png": 1}
    assert find(root).left_out == "folders that lie in themselves: 1 (cat/again)"


def test_a_loop_through_a_link_elsewhere(tmp_path):
    root = put(tmp_path / "set", "dog/a.png")
    put(tmp_path, "store/cat/a.png", "store/other.png")
    os.symlink(tmp_path / "store" / "cat", root / "cat")
    os.symlink(tmp_path / "store", tmp_path / "store" / "cat" / "up")
    assert classes(root)[0] == {"cat/a.png": 0, "dog/a.png": 1}
    assert find(root).left_out == "folders that lie in themselves: 1 (cat/up)"


def test_one_folder_by_two_ways_is_refused(tmp_path):
    root = put(tmp_path / "set", "cat/a.png", "dog/a.png")
    os.symlink("dog", root / "hound")
    for labels in (True, False):
        refused(root, f"{root}/dog and {root}/hound are one folder", labels=labels)
    (root / "hound").unlink()
    put(tmp_path, "store/owl/a.png")
    for name in ("owl", "uhu"):
        os.symlink(tmp_path / "store" / "owl", root / name)
    refused(root, f"{root}/owl and {root}/uhu are one folder")


def test_broken_links(tmp_path):
    put(tmp_path, "cat/a.png", "dog/a.png")
    for k in range(12):
        os.symlink(f"/gone/{k}", tmp_path / "dog" / f"x{k:02d}.png")
    os.symlink("gone.txt", tmp_path / "notes.txt")
    text = refused(tmp_path, "has links that lead nowhere", "dog/x09.png, ... 12 in all")
    assert "--skip-bad" in text
    assert "dog/x10.png" not in text
    found = find(tmp_path, skip_bad=True)
    assert found.num == 2
    assert "broken links: 13 (notes.txt, dog/x00.png, dog/x01.png, ...)" in found.left_out
    os.symlink("loop.png", tmp_path / "cat" / "loop.png")
    assert find(tmp_path, skip_bad=True).num == 2
    # This may have been a class: no picture is lost with it, but the numbers of those after it.
    os.symlink("/gone/cow", tmp_path / "cow")
    text = refused(tmp_path, "has links that lead nowhere", "cow", skip_bad=True)
    assert "skip" not in text
    assert find(tmp_path, labels=False, skip_bad=True).num == 2


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    """Nobody is kept out who runs as root, so that the refusal is made here."""
    put(tmp_path, "bird/a.png", "cat/a.png", "dog/a.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("/bird"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(tree.os, "scandir", denied)
    for labels in (True, False):
        refused(
            tmp_path,
            f"{tmp_path}/bird cannot be read (Permission denied)",
            labels=labels,
            skip_bad=True,
        )
    found = find(tmp_path, "top-as-text")
    assert found.num == 2
    assert found.left_out == "folders that cannot be read: 1 (bird)"


# ------------------------------------------------------------------------------------------
# What is left out, and said


def test_what_is_no_picture_is_said(tmp_path):
    put(
        tmp_path,
        "cat/a.png",
        "cat/.b.png",
        "cat/.cache/c.png",
        "cat/._a.JPG",
        ".DS_Store",
        "LICENSE",
    )
    put(tmp_path, "cat/a.heic", "dog/a.CR2", "dog/a.svg", "dog/a.png", "dog/a.png.part", "a.zip")
    put(tmp_path, "cat/a.txt", "labels.csv", "lost+found/a.png", "__MACOSX/cat/a.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "dog" / "s.png"))
    os.symlink("pipe.png", tmp_path / "cat" / "q.png")
    for labels in (True, False):
        found = find(tmp_path, labels=labels)
        assert [name for name, _ in found.files(0)] == [
            f"{tmp_path}/cat/a.png",
            f"{tmp_path}/dog/a.png",
        ]
        assert sorted(found.left_out.split("; ")) == [
            "files of kinds that are not read: 5 (a.zip, cat/a.heic, dog/a.CR2, ...)",
            "files without a suffix: 1 (LICENSE)",
            "folders that file systems make: 2 (__MACOSX, lost+found)",
            "hidden files: 2 (cat/._a.JPG, cat/.b.png)",
            "hidden folders: 1 (cat/.cache)",
            "pipes, sockets and devices: 3 (cat/pipe.png, cat/q.png, dog/s.png)",
        ]


def test_a_folder_without_pictures_says_what_it_has(tmp_path):
    put(tmp_path, "cat/a.heic", "cat/b.heic")
    refused(
        tmp_path,
        "holds no images (.png, .jpg, ",
        "leaves out files of kinds that are not read: 2 (cat/a.heic, cat/b.heic)",
    )
    assert sources.count(str(tmp_path)) is None


def test_names_that_are_no_text(tmp_path):
    """Read all the same, and shown so that they can be printed on one line."""
    strange = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(strange)
    put(tmp_path, "a\nb/x.png", "a\nb/y\x1b[1m.svg")
    for name in (b"/\xff.png", b"/b.png"):
        with open(strange + name, "wb") as file:
            file.write(PNG)
    found = find(tmp_path)
    assert found.names == ("a\\nb", "caf\\xe9")
    assert found.labels.tolist() == [0, 1, 1]
    names = [name.removeprefix(f"{tmp_path}/") for name, _ in found.files(0)]
    assert names == ["a\\nb/x.png", "caf\\xe9/b.png", "caf\\xe9/\\xff.png"]
    assert found.left_out == "files of kinds that are not read: 1 (a\\nb/y\\x1b[1m.svg)"
    assert load_dataset(
        DataConfig(source=str(tmp_path)), NetConfig(image_size=8, channels=1, num_classes=2)
    ).images.shape == (3, 8, 8, 1)


def test_folders_deeper_than_calls_may_nest(tmp_path):
    deep = tmp_path
    for _ in range(12):
        deep = deep.joinpath(*["d"] * 100)
        os.makedirs(deep)
    put(deep, "a.png", "b.png")
    assert find(tmp_path, labels=False).num == 2
    assert classes(tmp_path, "top")[1] == ("d",)
    for path in deep.iterdir():
        path.unlink()
    while deep != tmp_path:  # which would be too deep for those who clear up
        deep.rmdir()
        deep = deep.parent


def test_shards_and_pictures_in_one_folder(tmp_path):
    put(tmp_path, "a.tar", content=b"")
    put(tmp_path, "cat/a.jfif")
    with pytest.raises(UsageError, match="holds both images and tar shards"):
        sources.load(str(tmp_path), Wanted(8), sources.Screen(quiet=True))
