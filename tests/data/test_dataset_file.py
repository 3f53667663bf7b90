"""`pdfast data`: pdfast reads what it writes; nothing is overwritten or left half-written."""

import os
import sys

import numpy as np
import pytest
from foreign import cifar, cifar_batches, idx, image_zip, packed, picture, tar
from PIL import Image

from pdfast.cli.main import main
from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import decoding, digits
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError

pytestmark = pytest.mark.usefixtures("handlers")


def data(capsys, *args):
    """Return (exit code, stdout, stderr) of the command."""
    code = main(["data", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def written(path):
    """Return the arrays of an .npz by name."""
    with np.load(path) as arrays:
        return dict(arrays)


def pictures_of(num=6, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, size, size), np.uint8)


def test_the_digits_are_read_without_scikit_learn_s_import(monkeypatch):
    """If another version stores the file elsewhere, its own loader reads the same digits."""
    wanted = Wanted(8, channels=1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)  # which cannot be imported then
        found = digits.read(wanted)
    monkeypatch.setattr(digits, "FILE", "elsewhere.csv.gz")
    by_library = digits.read(wanted)
    assert found.images.dtype == by_library.images.dtype == np.uint8
    assert np.array_equal(found.images, by_library.images)
    assert np.array_equal(found.labels, by_library.labels)
    assert found.labels.dtype == by_library.labels.dtype
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match="digits come with scikit-learn, which is not installed"):
        digits.read(wanted)


def test_the_digits(capsys, tmp_path):
    """Written unchanged: the same file every time, a summary on one line, a sheet by class."""
    from sklearn.datasets import load_digits

    out = tmp_path / "new" / "digits.npz"
    code, said, errors = data(capsys, "digits", "--size", 8, "--labels", "--out", out)
    assert (code, errors) == (0, "")
    arrays = written(out)
    theirs = load_digits()
    assert np.array_equal(arrays["labels"], theirs.target)
    assert np.abs(arrays["images"][..., 0] / 255 - theirs.images / 16).max() < 0.002
    mean, deviation = arrays["images"].mean(), arrays["images"].std()
    assert said.startswith(
        f"{out}: 1,797 images of 8x8x1, 10 classes (0: 178, 1: 182, 2: 177, 3: 183, 4: 181, "
        f"5: 182, 6: 181, 7: 179, 8: 174, 9: 180), mean {mean:.1f} and standard deviation "
        f"{deviation:.1f} of 255; exact duplicates dropped: 0; "
    )
    assert said.count("\n") == 1
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size == (16 * 50 + 2, 10 * (50 + 2 + 14))
        row = np.asarray(sheet.convert("L"))[16:64, 2:50].reshape(8, 6, 8, 6)
        assert np.array_equal(row[:, 0, :, 0], arrays["images"][0, ..., 0])  # the first 0
    again = tmp_path / "again.npz"
    assert data(capsys, "digits", "--size", 8, "--labels", "--out", again)[0] == 0
    assert again.read_bytes() == out.read_bytes()
    model = NetConfig(image_size=8, channels=1, num_classes=10)
    assert len(load_dataset(DataConfig(source=str(out)), model)) == 1797
    assert sorted(os.listdir(out.parent)) == ["digits.npz", "digits.png"]


def test_every_source_is_resized_alike(capsys, tmp_path):
    """A set of one size is resized by the same code as pictures."""
    images = pictures_of(5, 28)
    np.savez(tmp_path / "a.npz", images=images[..., None])
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(packed(idx(images)))
    members = [(f"{k}.png", picture(image)) for k, image in enumerate(images)]
    (tmp_path / "a.zip").write_bytes(image_zip(members))
    (tmp_path / "a.tar").write_bytes(tar(members))
    (tmp_path / "folder").mkdir()
    for name, content in members:
        (tmp_path / "folder" / name).write_bytes(content)
    found = []
    for source in ("a.npz", "a-images-idx3-ubyte.gz", "a.zip", "a.tar", "folder"):
        out = tmp_path / f"of-{source.replace('.', '-')}.npz"
        code, said, _ = data(capsys, tmp_path / source, "--size", 16, "--out", out)
        assert code == 0
        assert "5 images of 16x16x1, no labels, mean" in said
        found.append(written(out)["images"])
    small = [Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC) for image in images]
    for arrays in found:
        assert np.array_equal(arrays[..., 0], np.stack(small))


def test_cifar_and_channels(capsys, tmp_path):
    batches, images, labels = cifar_batches("bin", (3, 1, 1, 1, 1))
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(packed(tar(cifar("bin", batches))))
    for channels in (0, 1, 3):
        out = tmp_path / f"{channels}.npz"
        data(capsys, path, "--size", 32, "--channels", channels, "--labels", "--out", out)
        arrays = written(out)
        assert arrays["labels"].tolist() == labels.tolist()
        if channels == 1:
            grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
            assert np.array_equal(arrays["images"][..., 0], grey)
        else:
            assert np.array_equal(arrays["images"], images)


def test_pictures_that_differ_in_shape(capsys, tmp_path, monkeypatch):
    """Also from an .npz; grey images saved with three channels get one, unless any has colour."""
    images = np.repeat(pictures_of(6, 9)[:, :8, :, None], 3, 3)
    np.savez(tmp_path / "a.npz", images=images)
    monkeypatch.setattr(decoding, "BLOCK", 4)
    data(capsys, tmp_path / "a.npz", "--size", 8, "--out", tmp_path / "grey.npz")
    assert np.array_equal(written(tmp_path / "grey.npz")["images"], images[:, :, :8, :1])
    data(capsys, tmp_path / "a.npz", "--size", 8, "--channels", 3, "--out", tmp_path / "3.npz")
    assert written(tmp_path / "3.npz")["images"].shape == (6, 8, 8, 3)
    images[5, 0, 0] = (1, 2, 3)
    np.savez(tmp_path / "a.npz", images=images)
    data(capsys, tmp_path / "a.npz", "--size", 8, "--out", tmp_path / "colour.npz")
    assert np.array_equal(written(tmp_path / "colour.npz")["images"], images[:, :, :8])


def test_duplicates(capsys, tmp_path):
    images = pictures_of(6)[[0, 1, 0, 2, 1, 1, 3]]
    labels = np.array([5, 6, 5, 7, 6, 8, 9])
    np.savez(tmp_path / "a.npz", images=images[..., None], labels=labels)
    args = tmp_path / "a.npz", "--size", 8, "--labels", "--out"
    code, said, _ = data(capsys, *args, tmp_path / "dropped.npz")
    assert code == 0
    assert "exact duplicates dropped: 3; " in said
    assert (
        "warning: 1 images repeat one of another class, such as image 5 (class 8), which is image "
        "1 (class 6); the first of each is kept"
    ) in said
    assert "4 images of 8x8x1, 4 classes of 1, mean" in said
    arrays = written(tmp_path / "dropped.npz")
    assert np.array_equal(arrays["images"][..., 0], images[[0, 1, 3, 6]])
    assert arrays["labels"].tolist() == [5, 6, 7, 9]
    code, said, _ = data(capsys, *args, tmp_path / "kept.npz", "--duplicates", "keep")
    assert "exact duplicates kept: 3; " in said
    assert "; all are kept" in said
    assert np.array_equal(written(tmp_path / "kept.npz")["labels"], labels)
    np.savez(tmp_path / "b.npz", images=np.ones((4, 8, 8, 1), np.uint8))
    code, _, errors = data(capsys, tmp_path / "b.npz", "--size", 8, "--out", tmp_path / "one.npz")
    assert code == 2
    assert "has fewer than two different usable images: nothing was written" in errors


def test_what_is_wrong_is_one_sentence(capsys, tmp_path):
    def fails(message, *args):
        before = sorted(os.listdir(tmp_path))
        code, said, errors = data(capsys, *args)
        assert (code, said) == (2, "")
        assert message in errors
        assert errors.startswith("pdfast: ")
        assert errors.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == before

    images, out = pictures_of()[..., None], tmp_path / "out.npz"
    np.savez(tmp_path / "a.npz", images=images)
    np.savez(tmp_path / "below.npz", images=images, labels=np.arange(6) - 1)
    np.savez(tmp_path / "flat.npz", images=images[:, :0])
    np.savez(tmp_path / "four.npz", images=np.repeat(images, 4, 3))
    fails("--size must be in 1 .. 65536", "digits", "--size", 0, "--out", out)
    fails("data needs --size INT", "digits", "--out", out)
    fails("--channels cannot be '2' (choices: 0, 1, 3)", "digits", "--channels", 2)
    fails("must be an .npz", "digits", "--size", 8, "--out", tmp_path / "a.zip")
    fails("no data: name a folder of images, or a file of them", "", "--size", 8, "--out", out)
    fails("nowhere does not exist", tmp_path / "nowhere", "--size", 8, "--out", out)
    fails("has no labels: omit --labels", tmp_path / "a.npz", "--size", 8, "--labels", "--out", out)
    fails("labels from -1 to 4", tmp_path / "below.npz", "--size", 8, "--labels", "--out", out)
    fails("images of shape (0, 8, 1)", tmp_path / "flat.npz", "--size", 8, "--out", out)
    fails("with 1 channel or 3", tmp_path / "four.npz", "--size", 8, "--out", out)
    fails("a.npz already exists", "digits", "--size", 8, "--out", tmp_path / "a.npz")
    (tmp_path / "out.png").write_bytes(b"mine")
    fails("out.png already exists", "digits", "--size", 8, "--out", out)


def test_a_disk_that_fails(capsys, tmp_path, monkeypatch):
    """Neither file is left behind."""

    def full(*args):
        raise OSError(28, "No space left on device")

    np.savez(tmp_path / "a.npz", images=pictures_of()[..., None])
    monkeypatch.setattr(os, "posix_fallocate", full)
    code, _, errors = data(capsys, tmp_path / "a.npz", "--size", 8, "--out", tmp_path / "out.npz")
    assert code == 1
    assert "cannot write to" in errors
    assert "no space left on device" in errors
    assert os.listdir(tmp_path) == ["a.npz"]
    (tmp_path / "file").write_bytes(b"")
    code, _, errors = data(capsys, "digits", "--size", 8, "--out", tmp_path / "file" / "a.npz")
    assert code == 1
    assert "cannot write to" in errors
    assert errors.count("\n") == 1


def test_a_sheet_of_many_classes_and_of_large_images(capsys, tmp_path):
    images = pictures_of(60, 4)[..., None]
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 29)
    args = tmp_path / "a.npz", "--labels", "--duplicates", "keep"
    _, said, _ = data(capsys, *args, "--size", 4, "--out", tmp_path / "many.npz")
    assert "29 classes of 2 to 3, mean" in said
    with Image.open(tmp_path / "many.png") as sheet:
        assert sheet.height == 20 * (48 + 2 + 2 + 14)
    np.savez(tmp_path / "b.npz", images=images[:3])
    data(capsys, tmp_path / "b.npz", "--size", 1024, "--out", tmp_path / "large.npz")
    with Image.open(tmp_path / "large.png") as sheet:
        assert sheet.width == 2 * 1026 + 2
