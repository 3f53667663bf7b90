"""Mutated files for everything that reads foreign ones: `python fuzzing.py EXAMPLES SEED`.

Most mutations are of what is inside a container (headers, names, shapes, offsets, types, JSON,
opcodes), whose checksums and lengths are then made right again, so that they reach the code behind
the checksums; the others are blind ones of the bytes. Whatever comes of a file must be a valid
result or a PdfastError of one line, within `SECONDS` of work.
"""

import contextlib
import faulthandler
import io
import itertools
import json
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import tomli_w
import torch
from emoji_font import GLYPHS, emoji_font
from foreign import (
    BIN,
    PY,
    binary_batch,
    cifar,
    idx,
    image_zip,
    packed,
    picture,
    python_batch,
    records,
    shard,
    tar,
)
from hypothesis import strategies as st
from PIL import Image

from pdfast.checkpoint import load_model, save_model
from pdfast.config import CONFIG_DIR, DataConfig, NetConfig, config_names, load_config
from pdfast.data import load_dataset
from pdfast.errors import PdfastError
from pdfast.files import seal
from pdfast.model import Model
from pdfast.tables import to_table

SECONDS = 5.0
EDGES = [0, 1, 2, 3, 7, 255, 256, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
EDGES += [2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
TEXTS = ["", "x", "..", "../x", "/x", "a/b", "\0", "a\nb", "\x1b[2J", "é", "x" * 300, "9" * 5000]
TEXTS += ["images.npy", "images", "labels.npy", "nan", "\N{ARABIC-INDIC DIGIT FOUR}", "exit()"]


class TooSlow(BaseException):
    """An example worked for longer than SECONDS. No `except Exception` hides it."""


def too_slow(signum, frame):
    """On SIGPROF."""
    raise TooSlow


# ------------------------------------------------------------------------------------------
# Mutations


def number(rng, old=1):
    """A whole number that a file may declare in place of `old`."""
    near = [old - 1, old + 1, 2 * old, old // 2, -old, -1]
    return rng.choice([rng.choice(near), rng.choice(EDGES), rng.randrange(2**16)])


def value(rng, old, depth=0):
    """A value for JSON or TOML in place of `old`."""
    kinds = ["number", "float", "text", "bool", "list", "table", "same kind", "same kind"]
    kind = rng.choice(kinds if depth < 3 else kinds[:4])
    if kind == "same kind":
        if isinstance(old, bool):
            return not old
        if isinstance(old, int):
            return number(rng, old)
        if isinstance(old, list) and old:
            return changed(rng, old)
        kind = "float" if isinstance(old, float) else "text"
    return {
        "number": lambda: number(rng),
        "float": lambda: rng.choice([0.0, -0.5, 1e300, -1e-300, float("nan"), float("inf"), 0.5]),
        "text": lambda: rng.choice(TEXTS),
        "bool": lambda: rng.random() < 0.5,
        "list": lambda: [value(rng, 1, depth + 1) for _ in range(rng.choice([0, 1, 3, 100]))],
        "table": lambda: {rng.choice(TEXTS): value(rng, 1, depth + 1) for _ in range(2)},
    }[kind]()


def changed(rng, tree):
    """A table or list with one thing in it changed, somewhere."""
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = rng.choice(keys) if keys else None
    how = rng.choice(["deeper"] * 6 + ["value", "value", "remove", "add"])
    if how == "add" or key is None:
        if isinstance(tree, dict):
            tree[rng.choice(TEXTS)] = value(rng, 1)
        else:
            tree.append(value(rng, 1))
    elif how == "deeper" and isinstance(tree[key], dict | list) and tree[key]:
        tree[key] = changed(rng, tree[key])
    elif how == "remove":
        del tree[key]
    else:
        tree[key] = value(rng, tree[key])
    return tree


def blind(rng, content):
    """Bytes altered anywhere, cut, doubled or put in."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, length = rng.randrange(len(content) + 1), rng.choice([1, 2, 4, 40, 1000])
        how = rng.choice(["set", "set", "cut", "remove", "double", "insert", "swap"])
        if how == "set":
            for k in range(at, min(at + min(length, 4), len(content))):
                content[k] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif how == "cut":
            del content[at:]
        elif how == "remove":
            del content[at : at + length]
        elif how == "double":
            content[at:at] = content[at : at + length]
        elif how == "insert":
            content[at:at] = rng.choice([bytes(length), b"\xff" * length, b"(" * length, b"PK\1\2"])
        else:
            content[at : at + length] = reversed(content[at : at + length])
    return bytes(content)


def field(rng, content, at, form):
    """A binary number at `at` replaced by one that fits the field."""
    content = bytearray(content)
    size = struct.calcsize(form)
    if 0 <= at <= len(content) - size:
        old = int.from_bytes(content[at : at + size], "little" if form[0] == "<" else "big")
        new = number(rng, old) % 256**size
        content[at : at + size] = new.to_bytes(size, "little" if form[0] == "<" else "big")
    return bytes(content)


# ------------------------------------------------------------------------------------------
# Sealed: one function a kind, giving the content of a file


def npy(rng, descr, shape, data):
    """An .npy member, perhaps with one thing wrong."""
    order = "False"
    wrong = rng.choice(
        ["none"] * 4 + ["descr", "shape", "order", "text", "version", "length", "data"]
    )
    if wrong == "descr":
        other = ["'<u2'", "'>i8'", "'|O'", "'|V5'", "'|S0'", "'<U999999999'", "'<f8'", "'M8[ns]'"]
        other += ["[('a', '<i4')]", "exit()", "'|u1', 'x': 1", "3", "'<u8'", "('<i4', (2, 2))"]
        descr = rng.choice(other)
    elif wrong == "shape":
        shape = list(shape)
        where = rng.choice([0, 0, 0, len(shape) - 1])
        shape[where] = rng.choice([number(rng, shape[where]), 1.5, True, "x", None])
        shape = tuple(shape) if rng.random() < 0.5 else tuple(shape[:where])
    elif wrong == "order":
        order = rng.choice(["True", "1", "None", "'x'"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if wrong == "text":
        text = rng.choice(["(" * 3000, "-" * 3000, "{}", "1L", "{1: 2, **x}", text + ")", text[9:]])
    header = text.encode() + b"\n"
    if wrong == "data" or rng.random() < 0.3:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # as long as declared
            data = bytes(max(0, min(int(np.prod([int(n) for n in shape])), 10_000)))
    length = number(rng, len(header)) if wrong == "length" else len(header)
    version = rng.choice([2, 3, 9]) if wrong == "version" else 1
    size = 2 if version == 1 else 4
    start = b"\x93NUMPY" + bytes([version, 0]) + (length % 256**size).to_bytes(size, "little")
    return start + header + data


def sealed_npz(rng):
    """Headers, shapes, types, names, members, then perhaps the list of members."""
    images = npy(rng, "'|u1'", (6, 8, 8, 1), bytes(range(64)) * 6)
    labels = npy(rng, "'<i8'", (6,), np.array([0, 1, 2, 0, 1, 2]).tobytes())
    members = [("images.npy", images), ("labels.npy", labels), ("other.npy", b"x")]
    rng.shuffle(members)
    if rng.random() < 0.2:
        members[rng.randrange(3)] = (rng.choice(TEXTS), rng.choice([images, labels, b""]))
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # names twice
        for name, content in members:
            method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return listed(rng, out.getvalue())


def listed(rng, content):
    """A zip, perhaps with the fields of its list of members altered."""
    if rng.random() < 0.5:
        starts = [k for k in range(len(content)) if content[k : k + 4] == b"PK\1\2"]
        end = content.rfind(b"PK\5\6")
        for _ in range(rng.choice([1, 2])):
            fields = [(8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H")]
            at, form = rng.choice([*fields, (30, "<H"), (34, "<H"), (42, "<I"), (42, "<I")])
            base = rng.choice(starts)
            if rng.random() < 0.3:
                base, (at, form) = end, rng.choice([(8, "<H"), (10, "<H"), (12, "<I"), (16, "<I")])
            elif rng.random() < 0.3:  # of the member itself
                base, (at, form) = 0, rng.choice([(6, "<H"), (8, "<H"), (18, "<I"), (26, "<H")])
            content = field(rng, content, base + at, form)
    return content


def sealed_idx(rng):
    """Type, dimensions, length."""
    content = idx(np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8))
    for _ in range(rng.choice([0, 1, 1, 2])):
        content = field(rng, content, rng.choice([0, 4, 4, 4, 4, 8, 12]), ">I")
    declared = np.prod([float(n) for n in struct.unpack(">3I", content[4:16])])
    if rng.random() < 0.5 and declared < 10_000:
        content = content[:16] + bytes(int(declared))
    return content + bytes(rng.choice([0, 0, 0, 1, 999]))


def wrapped(rng, content):
    """In gzip, sometimes in an odd one."""
    good = packed(content)
    how = rng.choice(["good"] * 8 + ["name", "extra", "twice", "empty before", "length", "after"])
    if how == "name":
        name = b"x" * rng.choice([1, 99, 99_999]) + rng.choice([b"", b"\0"])
        return good[:3] + b"\x08" + good[4:10] + name + good[10:]
    if how == "extra":
        extra = struct.pack("<H", rng.choice([0, 5, 99])) + b"extra"
        return good[:3] + b"\x04" + good[4:10] + extra + good[10:]
    if how == "twice":
        return packed(content[:-40]) + packed(content[-40:])
    if how == "empty before":
        return packed(b"") * rng.choice([1, 100]) + good
    if how == "length":
        return field(rng, good, len(good) - rng.choice([4, 8]), "<I")
    return good + (b"\0" * 9 if how == "after" else b"")


def archive(rng, members):
    """A tar, perhaps with other members, or headers altered and their checksums made right."""
    members = list(members)
    how = rng.choice(["none", "member", "move", "drop", "header", "header", "header"])
    if how == "member":
        info = tarfile.TarInfo(
            rng.choice([*TEXTS, f"{PY}/data_batch_1", f"{BIN}/data_batch_2.bin"])
        )
        info.type = rng.choice([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"g", b"L", b"S"])
        info.linkname = rng.choice(TEXTS[:8])
        members.insert(rng.randrange(len(members)), (info.name, info))
    elif how == "move":
        rng.shuffle(members)
    elif how == "drop":
        del members[rng.randrange(len(members))]
    content = bytearray(tar(members))
    if how == "header":
        starts = [k for k in range(0, len(content), 512) if content[k + 257 : k + 262] == b"ustar"]
        for _ in range(rng.choice([1, 2])):
            at = rng.choice(starts)
            if rng.random() < 0.6:  # the size
                size = number(rng, 6146)
                octal, binary = b"%011o\0" % abs(size), (size % 2**96).to_bytes(12, "big")
                content[at + 124 : at + 136] = octal if len(octal) == 12 else b"\x80" + binary[1:]
            else:
                first = rng.choice([0, 100, 124, 136, 156, 157, 257, 345, 500])
                content[at + first] = rng.choice([0, 32, 47, 48, 49, 50, 55, 76, 120, 128, 255])
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


BIN_BATCHES = [binary_batch(*records(2, k)) for k in range(5)]
PY_BATCHES = [python_batch(*records(2, k)) for k in range(5)]


def sealed_cifar_bin(rng):
    """Members of the archive, and lengths of batches."""
    batches = list(BIN_BATCHES)
    if rng.random() < 0.4:
        k = rng.randrange(5)
        batches[k] = rng.choice([b"", batches[k][:-1], batches[k] * 2, b"\xff" * 3073, b"x"])
    return wrapped(rng, archive(rng, cifar("bin", batches)))


def opcodes(content):
    """A pickle cut into its opcodes."""
    starts = [position for _, _, position in pickletools.genops(content)] + [len(content)]
    return [content[a:b] for a, b in itertools.pairwise(starts)]


PY_OPCODES = opcodes(PY_BATCHES[0])
ALL_OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
ARGUMENTS = [b"", b"\0", b"\xff", b"\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\xff" * 8]
ARGUMENTS += [
    b"os\nsystem\n",
    b"numpy\nload\n",
    b"numpy\ndtype\n",
    b"numpy\nndarray\n",
    b"9" * 5000,
]


# What asks for memory, for slots of the memo, or for a name.
BOMBS = [code + struct.pack("<I", 2**30) for code in (b"r", b"B", b"T", b"X", b"\x8b", b"G")]
BOMBS += [code + struct.pack("<Q", 2**40) for code in (b"\x8e", b"\x8d", b"\x96", b"\x95")]
BOMBS += [b"cos\nsystem\n(U\1xtR", b"cbuiltins\neval\n", b"cnumpy\nzeros\n(J\xff\xff\xff\x7ftR"]


def sealed_cifar_py(rng):
    """Opcodes of a batch, then the archive."""
    ops = list(PY_OPCODES)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at, other = rng.randrange(len(ops)), rng.randrange(len(ops))
        how = rng.choice(["remove", "double", "move", "new", "new", "argument", "many"])
        if how == "remove":
            del ops[at]
        elif how == "double":
            ops.insert(other, ops[at])
        elif how == "move":
            ops[at], ops[other] = ops[other], ops[at]
        elif how == "many":
            ops[at:at] = [rng.choice([b"h\1h\1\x86q\1", b"(", b"]", b"N", b"\x85", b")R"])] * 300
        elif how == "new":
            new = rng.choice(ALL_OPCODES) + rng.choice(ARGUMENTS)
            ops.insert(at, rng.choice([new, rng.choice(BOMBS)]))
        elif len(ops[at]) > 1:
            op = bytearray(ops[at])
            op[rng.randrange(1, min(len(op), 9))] = rng.choice([0, 1, 2, 127, 128, 255])
            ops[at] = bytes(op)
    batches = [b"".join(ops), *PY_BATCHES[1:]]
    rng.shuffle(batches)
    members = cifar("py", batches)
    return wrapped(rng, archive(rng, members) if rng.random() < 0.3 else tar(members))


CONFIGS = [to_table(load_config(name)) for name in config_names()]


def sealed_toml(rng):
    """Values of a config."""
    table = rng.choice(CONFIGS)
    for _ in range(rng.choice([1, 1, 2, 4])):
        table = changed(rng, table)
    try:
        return tomli_w.dumps(table).encode()
    except (ValueError, TypeError, UnicodeError):  # numbers that cannot be written
        return b"seed = 0x" + b"f" * 5000


def sealed_png(rng):
    """Numbers in a picture's chunks."""
    out = io.BytesIO()
    picture = Image.new(rng.choice(["L", "RGB", "P", "RGBA", "1", "I;16"]), (9, 7))
    picture.save(out, "png", transparency=0 if picture.mode == "P" else None, dpi=(72, 72))
    content = out.getvalue()
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    for _ in range(rng.choice([1, 2])):
        chunk = rng.choice(chunks)
        how = rng.choice(["field", "field", "byte", "kind", "packed", "double"])
        if how == "field":
            chunk[1] = field(rng, chunk[1], rng.choice([0, 4]), ">I")
        elif how == "byte" and chunk[1]:
            chunk[1] = blind(rng, chunk[1])
        elif how == "kind":
            chunk[0] = rng.choice([b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL"])
        elif how == "packed":
            bomb = zlib.compress(bytes(rng.choice([10, 10**6, 10**7])))
            chunks.insert(1, [rng.choice([b"zTXt", b"iTXt", b"iCCP"]), b"k\0\0" + bomb])
        else:
            chunks.insert(rng.randrange(len(chunks)), list(chunk))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


SAMPLES = [(f"{k}.png", picture(np.full((8, 9), 9 * k, np.uint8))) for k in range(6)]
LABELS = [[name, k % 3] for k, (name, _) in enumerate(SAMPLES)]


def members_of(rng, members):
    """Members, perhaps one of them damaged, renamed, dropped, or there twice."""
    members = list(members)
    how, at = rng.choice(["none", "picture", "blind", "name", "drop", "twice"]), rng.randrange(6)
    name, content = members[at]
    if how == "picture":
        members[at] = name, sealed_png(rng)
    elif how == "blind":
        members[at] = name, blind(rng, content)
    elif how == "name":
        members[at] = rng.choice([*TEXTS, "dataset.json", "a.cls", "5.jpg"]), content
    elif how == "drop":
        del members[at]
    elif how == "twice":
        members.append((name, content))
    return members


def sealed_zip(rng):
    """Members, labels, then perhaps the list of members."""
    labels = changed(rng, LABELS) if rng.random() < 0.5 else LABELS
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names twice
        return listed(rng, image_zip(members_of(rng, SAMPLES), labels, method))


def sealed_shard(rng):
    """Members, labels, headers with their checksums."""
    labels = [(f"{k}.cls", b"%d" % (k % 3)) for k in range(6)]
    if rng.random() < 0.3:
        text = rng.choice([*TEXTS, str(number(rng))]).encode()
        labels[rng.randrange(6)] = (rng.choice(["1.cls", "1.CLS", "9.cls"]), text)
    members = [*members_of(rng, SAMPLES), *labels]
    try:
        return archive(rng, members) if rng.random() < 0.6 else shard(members)
    except ValueError:  # a name that tar cannot have
        return shard(SAMPLES)


FONT = emoji_font({109: {name: SAMPLES[k][1] for k, name in enumerate(GLYPHS[1:])}})


def sealed_font(rng):
    """Numbers in the tables that are read."""
    content = FONT
    for _ in range(rng.choice([0, 1, 1, 2])):
        tag = rng.choice([b"CBLC", b"CBLC", b"CBDT", b"GSUB", b"cmap"])
        start, length = struct.unpack_from(">II", content, content.find(tag, 12) + 8)
        at = start + 2 * rng.randrange(min(length, 120) // 2)
        content = field(rng, content, at, rng.choice([">H", ">H", ">I"]))
    return content


# ------------------------------------------------------------------------------------------
# What is loaded

GREY = NetConfig(image_size=8, channels=1, num_classes=3)
SMALL = NetConfig(
    image_size=8, channels=1, ch=8, emb_ch=8, ch_mult=(1,), num_res_blocks=1, groups=4
)  # fmt: skip


class Kinds:
    """One method a kind of file: mutate it, write it, and return what loads it."""

    def __init__(self, folder):
        self.folder = folder
        np.savez(folder / "good.npz", images=np.zeros((6, 8, 8, 1), np.uint8), labels=[0] * 6)
        self.npz_content = (folder / "good.npz").read_bytes()
        self.idx_content = idx(np.zeros((6, 8, 8), np.uint8))
        for suffix, pack in (("", bytes), (".gz", packed)):
            labels = pack(idx(np.array([0, 1, 2, 0, 1, 2], np.uint8)))
            (folder / f"a-labels-idx1-ubyte{suffix}").write_bytes(labels)
        torch.manual_seed(0)
        save_model(Model(SMALL), folder / "good")
        self.pictures = {}
        for kind in ("png", "jpeg", "webp", "bmp", "gif", "tiff"):
            out = io.BytesIO()
            Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(out, kind)
            self.pictures[kind] = out.getvalue()
        (folder / "pictures").mkdir()
        (folder / "pictures" / "good.png").write_bytes(self.pictures["png"])

    def _set(self, name, content, model):
        path = self.folder / name
        path.write_bytes(content)
        return lambda: check_set(load_dataset(DataConfig(source=str(path)), model), model)

    def npz(self, rng, sealed):
        """An .npz."""
        content = sealed_npz(rng) if sealed else blind(rng, self.npz_content)
        return self._set("a.npz", content, GREY)

    def idx(self, rng, sealed):
        """A raw IDX file."""
        content = sealed_idx(rng) if sealed else blind(rng, self.idx_content)
        return self._set("a-images-idx3-ubyte", content, GREY)

    def idx_gz(self, rng, sealed):
        """A gzipped IDX file."""
        content = wrapped(rng, sealed_idx(rng)) if sealed else blind(rng, packed(self.idx_content))
        return self._set("a-images-idx3-ubyte.gz", content, GREY)

    def cifar_bin(self, rng, sealed):
        """CIFAR-10's binary archive; blind mutations are of the tar, of the .gz or of both."""
        content = sealed_cifar_bin(rng) if sealed else BLIND_BIN(rng)
        return self._set("bin.tar.gz", content, NetConfig(num_classes=10))

    def cifar_py(self, rng, sealed):
        """CIFAR-10's python archive."""
        content = sealed_cifar_py(rng) if sealed else BLIND_PY(rng)
        return self._set("py.tar.gz", content, NetConfig(num_classes=10))

    def zip(self, rng, sealed):
        """A zip of images."""
        content = sealed_zip(rng) if sealed else blind(rng, image_zip(SAMPLES, LABELS))
        return self._set("a.zip", content, GREY)

    def shard(self, rng, sealed):
        """A tar of images."""
        content = sealed_shard(rng) if sealed else blind(rng, shard(SAMPLES))
        return self._set("a.tar", content, rng.choice([GREY, SMALL]))

    def font(self, rng, sealed):
        """An emoji font."""
        path = self.folder / "a.ttf"
        path.write_bytes(sealed_font(rng) if sealed else blind(rng, FONT))
        return lambda: check_set(load_dataset(DataConfig(source=f"emoji:{path}"), SMALL), SMALL)

    def toml(self, rng, sealed):
        """A config."""
        path = self.folder / "a.toml"
        text = (CONFIG_DIR / "digits.toml").read_bytes()
        path.write_bytes(sealed_toml(rng) if sealed else blind(rng, text))
        return lambda: load_config(path)

    def model(self, rng, sealed):
        """A model directory."""
        path = self.folder / "model"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder / "good", path)
        file = path / rng.choice(["config.json", "model.safetensors"])
        content = file.read_bytes()
        if not sealed:
            file = rng.choice([file, path / "manifest.json"])
            file.write_bytes(blind(rng, file.read_bytes()))
            if rng.random() < 0.5 and file.name != "manifest.json":
                seal(path)
        elif file.suffix == ".json":
            table = json.loads(content)
            for _ in range(rng.choice([1, 1, 2])):
                table = changed(rng, table)
            if rng.random() < 0.1:
                file.write_text(rng.choice(["[" * 9000, '{"a":' * 9000, "1" * 5000, "NaN", "[]"]))
            else:
                file.write_text(json.dumps(table))
            seal(path)
        else:
            length = int.from_bytes(content[:8], "little")
            header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
            for _ in range(rng.choice([1, 1, 2])):
                header = self._header(rng, header)
            text = json.dumps(header).encode()
            length = number(rng, len(text)) % 2**64 if rng.random() < 0.1 else len(text)
            file.write_bytes(length.to_bytes(8, "little") + text + data)
            seal(path)
        return lambda: check_model(load_model(path))

    def _header(self, rng, header):
        """A safetensors header with one tensor's name, type, shape or place changed."""
        header = json.loads(json.dumps(header))
        name = rng.choice(list(header) or [""])
        how = rng.choice(["name", "dtype", "shape", "shape", "offsets", "offsets", "any"])
        entry = header.get(name)
        if how == "any" or not isinstance(entry, dict):
            return changed(rng, header)
        if how == "name":
            header[rng.choice([*TEXTS, *header])] = header.pop(name)
        elif how == "dtype":
            kinds = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X"]
            entry["dtype"] = rng.choice(kinds)
        elif how == "shape" and isinstance(entry.get("shape"), list):
            entry["shape"] = changed(rng, entry["shape"])
        elif how == "offsets" and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"] = changed(rng, entry["data_offsets"])
        return header

    def picture(self, rng, sealed):
        """A folder of pictures, one of them mutated."""
        kind = rng.choice(list(self.pictures))
        content = sealed_png(rng) if sealed else blind(rng, self.pictures[kind])
        folder = self.folder / "pictures"
        (folder / "bad.png").write_bytes(content)
        model = NetConfig(image_size=8, channels=1)
        return lambda: check_set(load_dataset(DataConfig(source=str(folder)), model), model)


def blind_archive(kind, batches):
    """A function that mutates a tar and wraps it again, or the wrapped one."""
    plain = tar(cifar(kind, batches))

    def mutate(rng):
        content = blind(rng, plain) if rng.random() < 0.5 else plain
        wrap = packed(content)
        return wrap if content is not plain else blind(rng, wrap)

    return mutate


BLIND_BIN, BLIND_PY = blind_archive("bin", BIN_BATCHES), blind_archive("py", PY_BATCHES)


def check_set(data, model):
    """A set that was read is what the model asks for."""
    assert data.images.dtype == torch.uint8
    assert data.images.shape[1:] == (model.image_size, model.image_size, model.channels)
    assert len(data) >= 2
    assert data.images.is_contiguous()
    if model.num_classes:
        assert data.labels.dtype == torch.int64
        assert data.labels.shape == (len(data),)
        assert 0 <= data.labels.min() <= data.labels.max() < model.num_classes


def check_model(model):
    """A model that was read has all its weights."""
    assert all(weight.device.type == "cpu" for weight in model.state_dict().values())


# ------------------------------------------------------------------------------------------
# Running

# Share of the examples, and of them how many are sealed.
SHARES = {
    "npz": (0.16, 0.75),
    "idx": (0.07, 0.6),
    "idx_gz": (0.1, 0.6),
    "cifar_bin": (0.1, 0.7),
    "cifar_py": (0.13, 0.7),
    "toml": (0.13, 0.7),
    "model": (0.1, 0.7),
    "picture": (0.05, 0.6),
    "zip": (0.06, 0.7),
    "shard": (0.06, 0.7),
    "font": (0.04, 0.7),
}
PICTURES = ("picture", "zip", "shard", "font")  # the last kinds: what they decode may be large


def one(kind, kinds, rng, sealed, counts):
    """One example."""
    load = getattr(kinds, kind)(rng, sealed)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        load()
        counts[kind, "accepted"] += 1
        counts[kind, "sealed and accepted"] += sealed
    except PdfastError as error:
        text = str(error)
        assert text.isprintable(), text
        assert str(kinds.folder) in text, text
        assert len(text) < 1100, text
        assert "memory" not in text, text  # none of these files is large
        counts[kind, "refused"] += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert time.process_time() - start < SECONDS
    counts[kind, "sealed"] += sealed


def examples_of(kind, kinds, counts, examples, seed):
    """A function that tries so many files of a kind."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.integers(0, 2**63))
    def run(draw):
        rng = random.Random(draw)
        try:
            one(kind, kinds, rng, rng.random() < SHARES[kind][1], counts)
        except BaseException:
            print(f"{kind}: random.Random({draw})", file=sys.stderr)
            raise

    return run


def fuzz(examples, seed):
    """Try `examples` files; what became of them, by (kind, word)."""
    counts = Counter()
    before = signal.signal(signal.SIGPROF, too_slow)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("error")  # a reader does not warn of what it refuses
            kinds = Kinds(Path(folder))
            for kind, (share, _) in SHARES.items():
                start = time.perf_counter()
                examples_of(kind, kinds, counts, round(examples * share), seed)()
                counts[kind, "seconds"] = round(time.perf_counter() - start)
                counts[kind, "MB"] = peak()
    finally:
        signal.signal(signal.SIGPROF, before)
    return counts


def peak():
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def limited(megabytes):
    """Let this process take no more than so much above what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    torch.set_num_threads(1)
    Image.init()
    limited(1500)
    faulthandler.dump_traceback_later(280, exit=True)  # of C code that hears no signal
    fuzz(100, 0)  # what is imported and kept by then is not what a file took
    base = peak()
    found = fuzz(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"MB before": base, "counts": [[*key, n] for key, n in found.items()]}))
