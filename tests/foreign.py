"""Data sets in the layouts in which they are published, made small."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"
# The order in which the published archives hold their members.
PY_ORDER = (4, "readme.html", "test_batch", 3, "batches.meta", 2, 5, 1)
BIN_ORDER = (1, "batches.meta.txt", 3, 4, "test_batch.bin", "readme.html", 5, 2)


def idx(array):
    """A uint8 array as an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def packed(content):
    """As a .gz file of no date."""
    return gzip.compress(content, 1, mtime=0)


def records(num, seed):
    """(pixels (num, 3072), labels (num,)) of random uint8, labels below 10."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 3072), np.uint8), rng.integers(0, 10, num, np.uint8)


def binary_batch(pixels, labels):
    """Records of one byte of label and 3072 of pixels."""
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


def _string(content):
    return b"U" + bytes([len(content)]) + content


def _int(number):
    return b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)


def _list(items, memo):
    """As cPickle does: a thousand items at a time."""
    parts = [items[k : k + 1000] for k in range(0, len(items), 1000)]
    return b"]" + memo() + b"".join(b"(" + b"".join(part) + b"e" for part in parts)


def python_batch(pixels, labels, number=1, array=None):
    """A pickle as Python 2's cPickle wrote it by protocol 2; `array` in place of the data's."""
    count = 0

    def memo():
        nonlocal count
        count += 1
        return b"q" + bytes([count]) if count < 256 else b"r" + struct.pack("<I", count)

    def named(text):
        return _string(text) + memo()

    out = [b"\x80\x02}", memo(), b"("]
    out += [named(b"batch_label"), named(b"training batch %d of 5" % number)]
    out += [named(b"labels"), _list([_int(int(k)) for k in labels], memo), named(b"data")]
    if array is None:
        content = pixels.tobytes()
        out += [b"cnumpy.core.multiarray\n_reconstruct\n", memo(), b"cnumpy\nndarray\n", memo()]
        out += [b"K\x00\x85", _string(b"b"), b"\x87R", memo(), b"(K\x01"]
        out += [_int(pixels.shape[0]), _int(pixels.shape[1]), b"\x86"]
        out += [b"cnumpy\ndtype\n", memo(), _string(b"u1"), b"K\x00K\x01\x87R", memo()]
        out += [b"(K\x03", _string(b"|"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"]
        out += [b"\x89T", struct.pack("<i", len(content)), content, b"tb"]
    else:
        out.append(array)
    files = [named(b"picture_s_%06d.png" % k) for k in range(len(labels))]
    out += [named(b"filenames"), _list(files, memo), b"u."]
    return b"".join(out)


def tar(members):
    """(name, content or TarInfo) pairs as a tar archive of the old GNU kind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(content, tarfile.TarInfo):
                entry = content
            else:
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def cifar(kind, batches):
    """The members of a published archive, "bin" or "py", with these batches 1 to 5."""
    folder, order, suffix = (BIN, BIN_ORDER, ".bin") if kind == "bin" else (PY, PY_ORDER, "")
    members = [(folder, None)]
    for which in order:
        if isinstance(which, int):
            members.append((f"{folder}/data_batch_{which}{suffix}", batches[which - 1]))
        else:
            members.append((f"{folder}/{which}", b"not for training"))
    return members


def cifar_batches(kind, sizes, seed=0):
    """(batches as files, images (N, 32, 32, 3), labels (N,)) of random pictures."""
    drawn = [records(size, seed + k) for k, size in enumerate(sizes)]
    if kind == "bin":
        batches = [binary_batch(*pair) for pair in drawn]
    else:
        batches = [python_batch(*pair, number=k) for k, pair in enumerate(drawn, 1)]
    pixels = np.concatenate([pair[0] for pair in drawn])
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return batches, images, np.concatenate([pair[1] for pair in drawn])


def picture(array, kind="png"):
    """A uint8 array as a picture's file."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def image_zip(members, labels=..., method=zipfile.ZIP_STORED):
    """(name, content) pairs as a zip in EDM's layout, with a dataset.json of these labels."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
        if labels is not ...:
            archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": labels}))
    return out.getvalue()


def shard(members):
    """(name, content) pairs as WebDataset's writer has them: their times have fractions."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1700000000.25
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
