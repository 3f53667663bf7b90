"""CIFAR's archives are read, and what a file must not do it cannot."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from foreign import cifar, cifar_batches, packed, python_batch, records, tar
from source_cases import CIFAR, load, refused

from pdfast import sources
from pdfast.config import NetConfig
from pdfast.sources import count


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
        "longer than CIFAR's",
    ),
    "tuples as keys": (lambda: b"}" + NESTED + b"Ns.", "longer than CIFAR's"),
    "many opcodes": (lambda: b"N" * 200_001 + b".", "longer than CIFAR's"),
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
    "a long link": (entry("x" * 200, tarfile.SYMTYPE), "neither a file nor a folder"),
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
    path.write_bytes(packed(good + bytes(2**20) + b"x" * 512))
    refused(path, "is damaged: ", CIFAR)
    path.write_bytes(packed(good[:2000]))
    refused(path, "is not a readable CIFAR archive", CIFAR)
    path.write_bytes(packed(good)[:-8])
    refused(path, "it ends too early", CIFAR)
    path.write_bytes(good)  # as a browser may unpack it
    assert len(load(path, CIFAR)) == 5
    path.write_bytes(packed(b"no archive" * 1000))
    refused(path, "is not a readable CIFAR archive", CIFAR)
