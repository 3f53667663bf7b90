"""CIFAR's archives are read, and harmful files are refused."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from foreign import cifar, cifar_batches, packed, python_batch, records, tar
from source_cases import CIFAR, load, refused

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import readers
from pdfast.data.sources import count


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar(tmp_path, kind):
    """The archives have the names, the order and the formats of the published ones."""
    batches, images, labels = cifar_batches(kind, (3, 1, 4, 1, 5))
    name = "cifar-10-binary.tar.gz" if kind == "bin" else "cifar-10-python.tar.gz"
    path = tmp_path / name
    path.write_bytes(packed(tar(cifar(kind, batches))))
    data = load(path, CIFAR)
    assert np.array_equal(data.images.numpy(), images)
    assert data.images.is_contiguous()
    assert data.labels.tolist() == labels.tolist()
    assert load(path, NetConfig()).labels is None
    assert count(DataConfig(source=str(path))) == 14
    members = [m for m in cifar(kind, batches) if "data_batch_3" not in m[0]]
    path.write_bytes(packed(tar(members)))
    refused(path, f"has no {'cifar-10-batches-'}{kind}/data_batch_3", CIFAR)
    refused(path, "has images of 32x32x3, but the config asks for 8x8x1")


def test_a_full_python_batch_is_what_pickle_reads_too(tmp_path):
    """At 10,000 records the memo's numbers get longer; a batch with one record more is refused."""
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
    """Protocol 3 uses the same names, except that NumPy 2 has renamed a module."""
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
    """Return the opcodes of an array with the given facts, true or not."""
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
    "other order": (
        lambda: as_data(array_pickle(ONE, content=PIXELS, flag=b"\x88")),
        "`data` is not a plain array",
    ),
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
        patched.setattr(readers.cifar, "MAX_TOTAL", 10_000)
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


# ------------------------------------------------------------------------------------------
# CIFAR-100, and other forms of these archives

CIFAR_100 = NetConfig(num_classes=100)
FINE, COARSE = [f"fine {k}" for k in range(100)], [f"coarse {k}" for k in range(20)]


def strings(texts):
    """Return the opcodes of a list of short strings, as cPickle writes one."""
    return b"](" + b"".join(b"U" + bytes([len(t)]) + t.encode() for t in texts) + b"e"


def of_100(kind, num=7, seed=0):
    """Return (members in the published order, images, fine labels) of a CIFAR-100 archive."""
    pixels, _ = records(num, seed)
    rng = np.random.default_rng(seed)
    fine, coarse = rng.integers(0, 100, num, np.uint8), rng.integers(0, 20, num, np.uint8)
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if kind == "binary":
        train = np.concatenate([coarse[:, None], fine[:, None], pixels], axis=1).tobytes()
        lines = ["\n".join(names) + "\n" for names in (FINE, COARSE)]
        members = [
            ("cifar-100-binary", None),
            ("cifar-100-binary/fine_label_names.txt", lines[0].encode()),
            ("cifar-100-binary/coarse_label_names.txt", lines[1].encode()),
            ("cifar-100-binary/test.bin", b"not for training"),
            ("cifar-100-binary/train.bin", train),
        ]
        return members, images, fine
    batch = python_batch(pixels, fine).replace(b"U\x06labels", b"U\x0bfine_labels")
    extra = b"U\x0dcoarse_labels](" + b"".join(b"K%c" % k for k in coarse) + b"eu."
    meta = b"\x80\x02}q\x01(U\x10fine_label_names" + strings(FINE)
    meta += b"U\x12coarse_label_names" + strings(COARSE) + b"u."
    members = [
        ("cifar-100-python", None),
        ("cifar-100-python/file.txt~", b""),
        ("cifar-100-python/train", batch[:-2] + extra),
        ("cifar-100-python/test", b"not for training"),
        ("cifar-100-python/meta", meta),
    ]
    return members, images, fine


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar_100(tmp_path, kind):
    """The classes are the fine ones, with their names."""
    members, images, fine = of_100(kind)
    path = tmp_path / f"cifar-100-{kind}.tar.gz"
    path.write_bytes(packed(tar(members)))
    data = load(path, CIFAR_100)
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == fine.tolist()
    assert data.names == tuple(FINE)
    assert load(path, NetConfig()).labels is None
    assert count(DataConfig(source=str(path))) == 7
    path.write_bytes(packed(tar(of_100(kind, 1)[0])))
    refused(path, "has 1 image; at least 2 are needed", CIFAR_100)
    path.write_bytes(packed(tar([m for m in members if "train" not in m[0]])))
    refused(path, f"has no cifar-100-{kind}/train", CIFAR_100)


@pytest.mark.slow
def test_a_full_python_batch_of_cifar_100(tmp_path):
    """The batch has 50,000 records."""
    members, images, fine = of_100("python", 50_000)
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(packed(tar(members)))
    data = load(path, CIFAR_100)
    assert np.array_equal(data.images.numpy(), images)
    assert np.array_equal(data.labels.numpy(), fine)


def test_classes_of_cifar_10_have_names(tmp_path):
    names = [f"class {k}" for k in range(10)]
    meta = {
        "bin": "\n".join(names).encode() + b"\n\n",
        "py": b"\x80\x02}q\x01(U\x13num_cases_per_batchM\x10'U\x0blabel_names"
        + strings(names)
        + b"U\x07num_visM\x00\x0cu.",
    }
    assert pickle.loads(meta["py"])["num_cases_per_batch"] == 10_000
    path = tmp_path / "a.tar.gz"
    for kind, content in meta.items():
        batches, _, labels = cifar_batches(kind, (1, 1, 1, 1, 1))
        members = cifar(kind, batches)
        which = next(k for k, (name, _) in enumerate(members) if "batches.meta" in name)
        for text, expected in {content: tuple(names), content[:-9]: (), b"\x80\x02}.": ()}.items():
            members[which] = (members[which][0], text)
            path.write_bytes(packed(tar(members)))
            data = load(path, CIFAR)
            assert data.names == expected
            assert data.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["my.tar.gz", "my.tgz", "MY.TAR.GZ", "my.tar"])
def test_cifar_by_any_name(tmp_path, name):
    """The members decide, not the file's name nor the folder that was packed."""
    batches, images, _ = cifar_batches("bin", (1, 1, 1, 1, 1))
    for front in ("", "./"):
        members = [(front + member, content) for member, content in cifar("bin", batches)]
        path = tmp_path / name
        path.write_bytes(tar(members) if name == "my.tar" else packed(tar(members)))
        assert np.array_equal(load(path, CIFAR).images.numpy(), images)


def test_pickled_again_for_python_2(tmp_path):
    """By protocol 2, Python 3 writes bytes as calls of a codec."""
    pixels, labels = records(3, 0)
    table = {b"data": pixels, b"fine_labels": labels.tolist()}
    train = pickle.dumps(table, 2)
    assert b"_codecs\nencode" in train
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(packed(tar([("cifar-100-python/train", train)])))
    data = load(path, CIFAR_100)
    assert np.array_equal(data.images.permute(0, 3, 1, 2).reshape(3, -1).numpy(), pixels)
    assert data.labels.tolist() == labels.tolist()
    assert data.names == ()


CODECS = {
    "another encoding": (b"X\1\0\0\0aX\6\0\0\0utf-16\x86R.", "bytes in another encoding than"),
    "no text": (b"K\1X\6\0\0\0latin1\x86R.", "bytes in another encoding than latin1"),
    "one argument": (b"X\1\0\0\0a\x85R.", "bytes in another encoding than latin1"),
    "too many bytes": (
        b"q\0X\x40\0\0\0" + b"a" * 64 + b"q\1X\6\0\0\0latin1q\2\x86R"
        + b"h\0h\1h\2\x86R" * 3 + b".",
        "its pickle has more bytes than the file",
    ),
    "a state": (b"}b.", "it holds no dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", CODECS)
def test_what_the_codec_must_not_do(tmp_path, case):
    code, message = CODECS[case]
    path = tmp_path / "cifar-100-python.tar.gz"
    content = b"\x80\x02c_codecs\nencode\n" + code
    path.write_bytes(packed(tar([("cifar-100-python/train", content)])))
    refused(path, message, CIFAR_100)


def test_archives_that_are_two_or_none(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(packed(tar([("readme", b"x")])))
    refused(
        path, "it holds none of cifar-10-batches-bin, cifar-10-batches-py, cifar-100-bin", CIFAR
    )
    path.write_bytes(packed(tar([("cifar-10-batches-py", None), ("cifar-100-python", None)])))
    refused(path, "it holds both cifar-10-batches-py and cifar-100-python", CIFAR)
    path.write_bytes(packed(tar([("cifar-10-batches-bin/data_batch_1.bin", None)])))
    refused(path, "data_batch_1.bin is a folder", CIFAR)
