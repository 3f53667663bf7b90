"""Folders of pictures: which pictures are read, and what is reported about other files."""

import os
import socket

import pytest
from folder_cases import PNG, classes, find, put, refused

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import tree
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError

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
    assert find(root).left_out == "folders that contain themselves: 1 (cat/again)"


def test_a_loop_through_a_link_elsewhere(tmp_path):
    root = put(tmp_path / "set", "dog/a.png")
    put(tmp_path, "store/cat/a.png", "store/other.png")
    os.symlink(tmp_path / "store" / "cat", root / "cat")
    os.symlink(tmp_path / "store", tmp_path / "store" / "cat" / "up")
    assert classes(root)[0] == {"cat/a.png": 0, "dog/a.png": 1}
    assert find(root).left_out == "folders that contain themselves: 1 (cat/up)"


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
    # The broken link may have been a class: skipping it would shift the numbers of later classes.
    os.symlink("/gone/cow", tmp_path / "cow")
    for skip_bad in (True, False):
        text = refused(tmp_path, "has links that lead nowhere", "cow", skip_bad=skip_bad)
        assert "skip" not in text
    assert find(tmp_path, labels=False, skip_bad=True).num == 2


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    """Root can read every folder, so the test raises the error itself."""
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
    assert sources.count(DataConfig(source=str(tmp_path))) is None


def test_names_that_are_no_text(tmp_path):
    """Such files are read, and shown on one printable line."""
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
        sources.find(str(tmp_path), Wanted(8))
