"""Readers of data sets: each published layout is read, and what a file must not do it cannot."""

import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from foreign import cifar, cifar_batches, idx, packed, python_batch, records, tar
from PIL import Image, PngImagePlugin

from pdfast import signals, sources
from pdfast.config import DataConfig, NetConfig
from pdfast.data import load_dataset
from pdfast.errors import Stopped, UsageError
from pdfast.sources import count, reading
from pdfast.sources import pictures as decoders

GREY = NetConfig(image_size=8, channels=1)
CLASSES = NetConfig(image_size=8, channels=1, num_classes=10)
CIFAR = NetConfig(num_classes=10)


def load(path, model=GREY):
    return load_dataset(DataConfig(source=str(path)), model)


def refused(path, message, model=GREY):
    with pytest.raises(UsageError) as error:
        load(path, model)
    text = str(error.value)
    assert message in text
    assert text.startswith(str(path)[:-4])  # the file is named, or the one beside it
    assert "\n" not in text


def pictures(num=6, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, size, size), np.uint8)


# ------------------------------------------------------------------------------------------
# npz


def npz(path, members):
    """An .npz of raw members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array, **replaced):
    """An array as .npy, text of its header replaced."""
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
    monkeypatch.setattr(reading.os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 6000}.get)
    refused(
        tmp_path / "a.npz",
        "takes 0.0 GB, which do not fit into this machine's 0.0 GB of memory: use fewer",
    )
    monkeypatch.setattr(reading.os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 7000}.get)
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
    assert count(str(path)) == 50
    classes = NetConfig(image_size=28, channels=1, ch_mult=(1, 1), num_classes=10)
    refused(path, f"has its labels in train-labels-idx1-ubyte{suffix}, which is not", classes)
    beside = tmp_path / f"train-labels-idx1-ubyte{suffix}"
    beside.write_bytes(pack(idx(labels)))
    assert load(path, classes).labels.tolist() == labels.tolist()
    beside.write_bytes(pack(idx(labels[1:])))
    with pytest.raises(UsageError, match="has 49 labels for 50 images of"):
        load(path, classes)
    refused(path, "images of 28x28x1, but the config asks for 8x8x1")


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
# CIFAR-10


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar(tmp_path, kind):
    """Archives with the names, the order and the formats of the published ones."""
    batches, images, labels = cifar_batches(kind, (3, 1, 4, 1, 5))
    name = "cifar-10-binary.tar.gz" if kind == "bin" else "cifar-10-python.tar.gz"
    path = tmp_path / name
    path.write_bytes(packed(tar(cifar(kind, batches))))
    data = load(path, CIFAR)
    assert np.array_equal(data.images.numpy(), images)
    assert data.images.is_contiguous()
    assert data.labels.tolist() == labels.tolist()
    assert load(path, NetConfig()).labels is None
    assert count(str(path)) == 14
    members = [m for m in cifar(kind, batches) if "data_batch_3" not in m[0]]
    path.write_bytes(packed(tar(members)))
    refused(path, f"has no {'cifar-10-batches-'}{kind}/data_batch_3", CIFAR)
    refused(path, "has images of 32x32x3, but the config asks for 8x8x1")


def test_a_full_python_batch_is_what_pickle_reads_too(tmp_path):
    """10,000 records: the size at which the memo's numbers grow; no more than that either."""
    pixels, labels = records(10_000, 0)
    batch = python_batch(pixels, labels)
    table = pickle.loads(batch, encoding="bytes")
    assert list(table) == [b"batch_label", b"labels", b"data", b"filenames"]
    assert np.array_equal(table[b"data"], pixels)
    small = python_batch(*records(1, 1))
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(packed(tar(cifar("py", [batch, small, small, small, small]))))
    data = load(path, CIFAR)
    assert len(data) == 10_004
    assert np.array_equal(
        data.images[:10_000].permute(0, 3, 1, 2).reshape(-1, 3072).numpy(), pixels
    )
    assert data.labels[:10_000].tolist() == table[b"labels"]


def test_a_batch_pickled_again_by_python_3(tmp_path):
    """By protocol 3, which needs no other names; NumPy 2's module has another name."""
    pixels, labels = records(3, 0)
    table = {b"labels": labels.tolist(), b"data": pixels}
    batch = pickle.dumps(table, protocol=3)
    assert b"numpy._core.multiarray" in batch
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(packed(tar(cifar("py", [batch] * 5))))
    assert load(path, CIFAR).labels.tolist() == labels.tolist() * 5


class Evil:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def array_pickle(shape, code=b"U\x02u1", content=b"U\x01x", flag=b"\x89"):
    """The opcodes of an array of any claims."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + code
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + flag
        + content
        + b"tb"
    )


def as_data(array):
    return python_batch(*records(1, 0), array=array)


ONE = b"K\x01M\x00\x0c\x86"  # (1, 3072)
PIXELS = b"T\x00\x0c\x00\x00" + bytes(3072)
NESTED = b"K\x01q\0" + b"h\0h\0\x86q\0" * 40  # tuples of tuples, whose hash takes 2^40 steps
EVIL = {
    "os.system": (lambda: pickle.dumps(Evil(os.system, "touch ran"), 2), "names posix.system"),
    "eval": (lambda: pickle.dumps(Evil(eval, "open('ran', 'w')"), 2), "names __builtin__.eval"),
    "numpy.load": (lambda: b"cnumpy\nload\nU\x03ran\x85R.", "its pickle names numpy.load"),
    "ndarray.tofile": (lambda: b"cnumpy\nndarray.tofile\n.", "names numpy.ndarray.tofile"),
    "protocol 4": (lambda: pickle.dumps(Evil(os.system, "touch ran"), 4), "its pickle uses FRAME"),
    "instances": (lambda: b"(ios\nsystem\n.", "its pickle uses INST"),
    "extensions": (lambda: b"\x82\x01.", "its pickle uses EXT1"),
    "memo": (lambda: b"\x80\x02Nr\xff\xff\xff\x3f.", "holds the number 1073741823"),
    "memo, early": (lambda: b"\x80\x02Nr\xff\xff\x00\x00.", "memo slot 65,535 by opcode 3"),
    "nested calls": (
        lambda: b"cnumpy\nndarray\n" + b"cnumpy\nndarray\n)R\x85R" * 10 + b".",
        "longer than CIFAR-10's",
    ),
    "tuples as keys": (lambda: b"}" + NESTED + b"Ns.", "longer than CIFAR-10's"),
    "many opcodes": (lambda: b"N" * 200_001 + b".", "longer than CIFAR-10's"),
    "a long string": (lambda: b"B\xff\xff\xff\x7f...", "expected 2147483647 bytes"),
    "a long number": (lambda: b"\x8b\2\0\0\0xx.", "its pickle uses LONG4"),
    "a great number": (lambda: b"\x8a\x09" + b"\x7f" * 9 + b".", "holds the number 235"),
    "no end": (lambda: b"N", "exhausted before seeing STOP"),
    "two pickles": (lambda: b"N.N.", "ends too early"),
    "an empty stack": (lambda: b"\x86.", "unpickling stack underflow"),
    "a list": (lambda: b"].", "it holds no dict"),
    "an empty dict": (lambda: b"}.", "it holds no array `data`"),
    "state of a name": (lambda: b"cnumpy\nndarray\n}b.", "it holds no dict"),
    "data without state": (
        lambda: as_data(b"cnumpy.core.multiarray\n_reconstruct\n)R"),
        "no array `data`",
    ),
    "another array": (lambda: as_data(b"cnumpy\nndarray\n)R"), "it holds no array `data`"),
    "short state": (lambda: as_data(array_pickle(ONE)[:-2] + b"0tb"), "its pickle uses POP"),
    "objects": (lambda: as_data(array_pickle(ONE, b"U\x02O8", PIXELS)), "must be of type uint8"),
    "a list as content": (lambda: as_data(array_pickle(ONE, content=b"]")), "of type uint8"),
    "other order": (lambda: as_data(array_pickle(ONE, content=PIXELS, flag=b"\x88")), "no plain"),
    "too short": (lambda: as_data(array_pickle(ONE)), "must be of shape (n, 3072), not (1, 3072)"),
    "no images": (lambda: as_data(array_pickle(b"K\x00M\x00\x0c\x86", content=PIXELS)), "0 images"),
    "a boolean": (
        lambda: as_data(array_pickle(b"\x88M\x00\x0c\x86", content=PIXELS)),
        "two dimensions",
    ),
    "too few labels": (
        lambda: python_batch(records(2, 0)[0], np.zeros(1, np.uint8)),
        "must be a list of 2 whole numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EVIL)
def test_evil_pickles(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    make, message = EVIL[case]
    good = python_batch(*records(1, 0))
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(packed(tar(cifar("py", [make(), good, good, good, good]))))
    refused(path, message, CIFAR)
    refused(path, "cifar-10-batches-py/data_batch_1: ", CIFAR)
    assert os.listdir(tmp_path) == [path.name]


def entry(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return name, info


BAD_MEMBERS = {
    "a link": (entry("link", tarfile.SYMTYPE, linkname="/etc/passwd"), "neither a file nor a"),
    "a hard link": (entry("link", tarfile.LNKTYPE, linkname="x"), "neither a file nor a folder"),
    "a device": (entry("disk", tarfile.BLKTYPE), "neither a file nor a folder"),
    "a pipe": (entry("pipe", tarfile.FIFOTYPE), "neither a file nor a folder"),
    "an absolute name": (entry("/etc/x", tarfile.DIRTYPE), "/etc/x is outside its folder"),
    "a name above": (entry("a/../../x", tarfile.DIRTYPE), "a/../../x is outside its folder"),
    "a long name": (entry("x" * 200, tarfile.DIRTYPE), "neither a file nor a folder"),
    "a control character": (entry("a\x1bb\n", tarfile.FIFOTYPE), r"its member a\x1bb\n is neither"),
    "a batch twice": (("cifar-10-batches-bin/data_batch_1.bin", b"x"), "it holds batch 1 twice"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_members_of_a_tar(tmp_path, case):
    member, message = BAD_MEMBERS[case]
    batches, _, _ = cifar_batches("bin", (1, 1, 1, 1, 1))
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(packed(tar([*cifar("bin", batches), member])))
    refused(path, message, CIFAR)


def test_bad_archives_of_cifar(tmp_path, monkeypatch):
    batches, _, _ = cifar_batches("bin", (1, 1, 1, 1, 1))
    path = tmp_path / "cifar-10-binary.tar.gz"

    def with_first(content):
        path.write_bytes(packed(tar(cifar("bin", [content, *batches[1:]]))))

    for size in (0, 3072, 3073 * 10_001):
        with_first(bytes(size))
        refused(path, f"data_batch_1.bin has {size:,} bytes, not 1 to 10,000 records of", CIFAR)
    with_first(bytes(2**26 + 1))
    refused(path, "data_batch_1.bin has 67,108,865 bytes", CIFAR)
    many = [(f"x{k}", b"") for k in range(101)]
    path.write_bytes(packed(tar(many)))
    refused(path, "it has more than 100 members", CIFAR)
    good = tar(cifar("bin", batches))
    path.write_bytes(packed(good))
    assert len(load(path, CIFAR)) == 5
    with monkeypatch.context() as patched:
        patched.setattr(sources.cifar, "MAX_TOTAL", 10_000)
        refused(path, "it has more than 100 members or 10,000 bytes", CIFAR)
    path.write_bytes(packed(good + bytes(2**24)))
    refused(path, "bytes are left over at its end", CIFAR)
    path.write_bytes(packed(good[:2000]))
    refused(path, "is not a readable CIFAR-10 archive", CIFAR)
    path.write_bytes(packed(good)[:-8])
    refused(path, "it ends too early", CIFAR)
    path.write_bytes(good)
    refused(path, "incorrect header check", CIFAR)
    path.write_bytes(packed(b"no archive" * 1000))
    refused(path, "is not a readable CIFAR-10 archive", CIFAR)


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
    assert set(decoders.FORMATS) == {Image.registered_extensions()[s] for s in decoders.SUFFIXES}


@pytest.mark.parametrize("size", [(8192, 8193), (10_000, 10_000), (20_000, 10_000)])
def test_image_bombs(tmp_path, recwarn, size):
    """Above the limit; where Pillow warns; where Pillow refuses."""
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
    with pytest.raises(UsageError, match=r"a\.png is not a readable image"):
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
        assert count(str(path)) == 5
    monkeypatch.setattr(signals, "_requested", signals.signal.SIGINT)
    for path in found:
        model = NetConfig(channels=1 if "idx" in path.name else 3)
        with pytest.raises(Stopped, match="nothing was started"):
            load(path, model)
