"""Readers of data sets: each published layout is read, and harmful files are refused."""

import gzip
import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from foreign import cifar, cifar_batches, idx, packed, tar
from PIL import Image, PngImagePlugin
from source_cases import CLASSES, load, pictures, refused

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data.readers import kinds, reading
from pdfast.data.readers import pictures as decoders
from pdfast.data.sources import count
from pdfast.distributed import memory, signals
from pdfast.errors import Stopped, UsageError


def test_errors_of_the_file_system_are_not_called_damage():
    path, fix = Path("a.gz"), "make it again"
    said = reading.unreadable(path, "IDX file", PermissionError(13, "Permission denied"), fix)
    assert str(said) == "a.gz cannot be read: Permission denied"
    said = reading.unreadable(path, "IDX file", gzip.BadGzipFile("Not a gzipped file"), fix)
    assert str(said) == "a.gz is not a readable IDX file (Not a gzipped file): make it again"


# ------------------------------------------------------------------------------------------
# npz


def npz(path, members):
    """Return an .npz of raw members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array, **replaced):
    """Return an array as .npy, with text of its header replaced."""
    out = io.BytesIO()
    np.save(out, array)
    content = out.getvalue()
    for old, new in replaced.values():
        assert old in content
        content = content.replace(old, new)
    return content


def test_npz_of_other_orders(tmp_path):
    images = pictures()[..., None]
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(images), labels=np.arange(6, dtype=">u2"))
    data = load(tmp_path / "a.npz", CLASSES)
    assert data.images.is_contiguous()
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    np.savez(tmp_path / "a.npz", images=images, labels=np.full(6, 2**63, np.uint64))
    refused(tmp_path / "a.npz", "labels from 9223372036854775808 to 92233720", CLASSES)


def test_npz_in_capitals(tmp_path):
    with (tmp_path / "SET.NPZ").open("wb") as file:
        np.savez(file, images=pictures()[..., None])
    assert np.array_equal(load(tmp_path / "SET.NPZ").images[..., 0].numpy(), pictures())
    assert count(DataConfig(source=str(tmp_path / "SET.NPZ"))) == 6


def test_a_compressed_npz_of_more_than_a_chunk(tmp_path):
    images = np.zeros((5000, 8, 8, 1), np.uint8)
    images[-1] = 7
    np.savez_compressed(tmp_path / "a.npz", images=images)
    assert np.array_equal(load(tmp_path / "a.npz").images.numpy(), images)


BAD_NPY = {
    "more than the member holds": (
        npy(pictures()[..., None], a=(b"(6, 8", b"(9, 8")),
        "as long as",
    ),
    "less than the member holds": (
        npy(pictures()[..., None], a=(b"(6, 8", b"(5, 8")),
        "as long as",
    ),
    "a negative shape": (npy(pictures()[..., None], a=(b"(6,", b"(-6")), "header"),
    "a boolean shape": (npy(pictures(1)[..., None], a=(b"(1, 8", b"(True, 8")), "header"),
    "a shape beyond all bounds": (
        npy(pictures()[..., None], a=(b"(6,", b"(6" + b"0" * 40 + b",")),
        "header",
    ),
    "code for a header": (
        npy(pictures()[..., None], a=(b"'|u1'", b"exit()")),
        "the header of `images` cannot be read",
    ),
    "a deep header": (
        b"\x93NUMPY\1\0\xff\x0f" + b"-" * 4095,
        "the header of `images` cannot be read",
    ),
    "a long header": (b"\x93NUMPY\2\0\0\0\0\x40" + bytes(9000), "has 1,073,741,824 bytes"),
    "version 3": (b"\x93NUMPY\3\0\0\0\0\0", "version (3, 0) of NumPy's format"),
    "objects": (npy(np.array([{}] * 3)), "`images` is pickled"),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_bad_headers_of_npy(tmp_path, case):
    content, message = BAD_NPY[case]
    refused(npz(tmp_path / "a.npz", [("images.npy", content)]), message)


def edited(path, offset, form, value):
    """Change one number in an archive's list of members, at `offset` in each entry."""
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    while at >= 0:
        struct.pack_into(form, content, at + offset, value)
        at = content.find(b"PK\1\2", at + 4)
    path.write_bytes(content)
    return path


def test_bad_archives_of_npz(tmp_path):
    good = npy(pictures()[..., None])
    path = tmp_path / "a.npz"
    members = [("images.npy", good), ("labels.npy", npy(np.arange(6)))]
    refused(edited(npz(path, members), 42, "<I", 0), "its members overlap")
    refused(edited(npz(path, members), 8, "<H", 1), "`images` is encrypted")
    refused(edited(npz(path, members), 10, "<H", 99), "neither stored nor deflated")
    refused(edited(npz(path, members), 24, "<I", 2**31), "cannot have the size that is listed")
    refused(edited(npz(path, members), 16, "<I", 1), "is not a readable .npz file (Bad CRC-32")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("images.npy", good)
    refused(path, "neither stored nor deflated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        npz(path, [("images.npy", good), ("images.npy", good)])
    refused(path, "it holds `images` twice")
    npz(path, [(f"{'x' * 1000}{k}", b"") for k in range(1200)])
    refused(path, "its list of members is longer than 1 MB")
    npz(path, [("\x1b[2Ja\nb", b"")])
    refused(path, r"(it holds \x1b[2Ja\nb)")


def test_labels_are_looked_at_where_they_count(tmp_path):
    members = [("images.npy", npy(pictures()[..., None])), ("labels.npy", b"no array")]
    path = npz(tmp_path / "a.npz", members)
    assert load(path).labels is None
    refused(path, "is not a readable .npz file", CLASSES)


def test_what_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((10_000, 8, 8, 1), np.uint8))
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 6000}.get)
    refused(
        tmp_path / "a.npz",
        "takes 0.0 GB, which do not fit into the 0.0 GB of memory that this process can have: use",
    )
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 7000}.get)
    assert len(load(tmp_path / "a.npz")) == 10_000


def test_what_this_process_may_not_have_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", images=pictures()[..., None])

    def empty(*args):
        raise MemoryError

    monkeypatch.setattr(reading.np, "empty", empty)
    refused(tmp_path / "a.npz", "takes 0.0 GB, more than this process can have: free memory")


# ------------------------------------------------------------------------------------------
# IDX


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    """The four files of (Fashion-)MNIST, under their published names."""
    pack = packed if suffix else bytes
    images, labels = pictures(50, 28), np.arange(50, dtype=np.uint8) % 10
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(idx(images)))
    model = NetConfig(image_size=28, channels=1, ch_mult=(1, 1))
    data = load(path, model)
    assert np.array_equal(data.images[..., 0].numpy(), images)
    assert data.labels is None
    assert count(DataConfig(source=str(path))) == 50
    classes = NetConfig(image_size=28, channels=1, ch_mult=(1, 1), num_classes=10)
    refused(path, f"has no labels beside it: put train-labels-idx1-ubyte{suffix} there", classes)
    beside = tmp_path / f"train-labels-idx1-ubyte{suffix}"
    beside.write_bytes(pack(idx(labels)))
    assert load(path, classes).labels.tolist() == labels.tolist()
    beside.write_bytes(pack(idx(labels[1:])))
    with pytest.raises(UsageError, match="has 49 labels for 50 images of"):
        load(path, classes)
    refused(path, "images of 28x28x1, but the config asks for 8x8x1")


NAMED = {
    "dots": ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
    "a dot and a dash": ("train-images.idx3-ubyte", "train-labels-idx1-ubyte"),
    "of another packing": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
    "in capitals": ("train-images-idx3-ubyte.GZ", "train-labels-idx1-ubyte.GZ"),
    "of another set": ("Emnist-Train-images-idx3-ubyte", "emnist-train-labels-idx1-ubyte"),
}


@pytest.mark.parametrize("case", NAMED)
def test_names_of_idx_files(tmp_path, case):
    """Each file by its name; the training set also by its folder."""
    labels = np.arange(6, dtype=np.uint8)
    for name, array in zip(NAMED[case], (pictures(), labels), strict=True):
        pack = packed if name.lower().endswith(".gz") else bytes
        (tmp_path / name).write_bytes(pack(idx(array)))
    (tmp_path / "a-images-idx3-ubyte").mkdir()
    for source in [tmp_path / NAMED[case][0], tmp_path][: 2 if case != "of another set" else 1]:
        data = load(source, CLASSES)
        assert np.array_equal(data.images[..., 0].numpy(), pictures())
        assert data.labels.tolist() == labels.tolist()
        assert count(DataConfig(source=str(source))) == 6


BAD_IDX = {
    "one byte short": (lambda c: c[:-1], "which is not what follows", "bytes too early"),
    "one byte more": (lambda c: c + b"x", "which is not what follows", "bytes are left over"),
    "no header": (lambda c: c[:9], "requires a buffer of 16 bytes", "requires a buffer of 16"),
    "labels": (lambda c: b"\0\0\x08\x01" + c[4:], "begins with 0x00000801", "with 0x00000801"),
    "too many": (lambda c: c[:4] + b"\xff" * 4 + c[8:], "what follows", "what follows"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx(tmp_path, case):
    change, raw, gzipped = BAD_IDX[case]
    path = tmp_path / "a-images-idx3-ubyte"
    path.write_bytes(change(idx(pictures())))
    refused(path, raw)
    path = tmp_path / "a-images-idx3-ubyte.gz"
    path.write_bytes(packed(change(idx(pictures()))))
    refused(path, gzipped)


def test_bad_gzip(tmp_path):
    path = tmp_path / "a-images-idx3-ubyte.gz"
    good = packed(idx(pictures()))
    assert good[:4] == b"\x1f\x8b\x08\x00"
    for content, message in {
        good[:-9]: "too early",
        good[:-2]: "too early",
        good + good: "bytes are left over",
        good + b"\0": "bytes are left over",
        good[:-5] + b"xxxxx": "incorrect data check",
        idx(pictures()): "incorrect header check",
        good[:3] + b"\x08" + good[4:10] + b"a name without an end" * 500_000: "too early",
    }.items():
        path.write_bytes(content)
        refused(path, message)


# ------------------------------------------------------------------------------------------
# Folders of images


def two(folder_, name, content):
    Image.new("L", (8, 8)).save(folder_ / "a.png")
    (folder_ / name).write_bytes(content)
    return folder_


def test_only_the_formats_of_the_suffixes_are_decoded(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"  # which Pillow would give to ghostscript
    with pytest.raises(UsageError, match=r"b\.png is not a readable image"):
        load(two(tmp_path, "b.png", eps))
    for suffix in kinds.SUFFIXES:
        decoded = set(kinds.formats(suffix))
        assert Image.registered_extensions()[suffix] in {*decoded, "MPO"}  # in which is a JPEG
        assert not decoded & {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "FITS"}


@pytest.mark.parametrize("size", [(8192, 8193), (10_000, 10_000), (20_000, 10_000)])
def test_image_bombs(tmp_path, recwarn, size):
    """A picture above the limit, one that Pillow warns of, and one that Pillow refuses."""
    out = io.BytesIO()
    Image.new("1", size).save(out, "png")
    assert len(out.getvalue()) < 100_000
    with pytest.raises(UsageError, match=r"b\.png has .*more than 67,108,864"):
        load(two(tmp_path, "b.png", out.getvalue()))
    assert not recwarn.list


def test_bombs_of_text(tmp_path):
    out = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("k", "x" * 2**24, zip=True)
    Image.new("L", (8, 8)).save(out, "png", pnginfo=text)
    assert len(out.getvalue()) < 100_000
    with pytest.raises(UsageError, match=r"b\.png is not a readable image"):
        load(two(tmp_path, "b.png", out.getvalue()))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_of_several_frames(tmp_path, suffix):
    frames = [Image.new("L", (8, 8), value) for value in (100, 200)]
    for name in ("a", "b"):
        frames[0].save(tmp_path / f"{name}.{suffix}", save_all=True, append_images=frames[1:])
    assert (load(tmp_path).images.int() - 100).abs().max() <= 1


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    two(tmp_path, "b.png", (b"x"))

    def fail(*args, **kwargs):
        raise KeyError(7)

    monkeypatch.setattr(decoders.Image, "open", fail)
    with pytest.raises(UsageError, match=r"a\.png, b\.png \(each is not a readable image\)"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------
# All of them


def sets(tmp_path):
    np.savez(tmp_path / "a.npz", images=pictures(5, 32)[..., None].repeat(3, 3))
    (tmp_path / "a-images-idx3-ubyte").write_bytes(idx(pictures(5, 32)))
    (tmp_path / "b-images-idx3-ubyte.gz").write_bytes(packed(idx(pictures(5, 32))))
    batches, _, _ = cifar_batches("bin", (1, 1, 1, 1, 1))
    (tmp_path / "c.tar.gz").write_bytes(packed(tar(cifar("bin", batches))))
    (tmp_path / "images").mkdir()
    for k in range(5):
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{k}.png")
    return sorted(tmp_path.iterdir())


def test_every_reader_hears_a_signal_and_counts(tmp_path, monkeypatch):
    found = sets(tmp_path)
    assert len(found) == 5
    for path in found:
        model = NetConfig(channels=1 if "idx" in path.name else 3)
        assert len(load(path, model)) == 5
        assert count(DataConfig(source=str(path))) == 5
    monkeypatch.setattr(signals, "_requested", signals.signal.SIGINT)
    for path in found:
        model = NetConfig(channels=1 if "idx" in path.name else 3)
        with pytest.raises(Stopped, match="nothing was started"):
            load(path, model)
