"""Small data sets in the layouts in which sets are published."""

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
    """Return a uint8 array as an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def packed(content):
    """Compress by gzip, without a date."""
    return gzip.compress(content, 1, mtime=0)


def records(num, seed):
    """Return random uint8 (pixels (num, 3072), labels (num,)), with labels below 10."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 3072), np.uint8), rng.integers(0, 10, num, np.uint8)


def binary_batch(pixels, labels):
    """Return records of one label byte and 3072 bytes of pixels."""
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


def _string(content):
    return b"U" + bytes([len(content)]) + content


def _int(number):
    return b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)


def _list(items, memo):
    """Write a list in parts of a thousand items, as cPickle does."""
    parts = [items[k : k + 1000] for k in range(0, len(items), 1000)]
    return b"]" + memo() + b"".join(b"(" + b"".join(part) + b"e" for part in parts)


def python_batch(pixels, labels, number=1, array=None):
    """Return a pickle as Python 2's cPickle wrote it by protocol 2; `array` replaces the data's."""
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
    """Return (name, content or TarInfo) pairs as a tar archive in the old GNU format."""
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
    """Return the members of a published archive, "bin" or "py", with these batches 1 to 5."""
    folder, order, suffix = (BIN, BIN_ORDER, ".bin") if kind == "bin" else (PY, PY_ORDER, "")
    members = [(folder, None)]
    for which in order:
        if isinstance(which, int):
            members.append((f"{folder}/data_batch_{which}{suffix}", batches[which - 1]))
        else:
            members.append((f"{folder}/{which}", b"not for training"))
    return members


def cifar_batches(kind, sizes, seed=0):
    """Return random pictures as (batches as files, images (N, 32, 32, 3), labels (N,))."""
    drawn = [records(size, seed + k) for k, size in enumerate(sizes)]
    if kind == "bin":
        batches = [binary_batch(*pair) for pair in drawn]
    else:
        batches = [python_batch(*pair, number=k) for k, pair in enumerate(drawn, 1)]
    pixels = np.concatenate([pair[0] for pair in drawn])
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return batches, images, np.concatenate([pair[1] for pair in drawn])


def picture(array, kind="png"):
    """Return a uint8 array as a picture's file."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def image_zip(members, labels=..., method=zipfile.ZIP_STORED):
    """Return (name, content) pairs as a zip in EDM's layout, with these labels in dataset.json."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
        if labels is not ...:
            archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": labels}))
    return out.getvalue()


def shard(members):
    """Return (name, content) pairs as a shard; WebDataset's writer stores fractional times."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1700000000.25
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
