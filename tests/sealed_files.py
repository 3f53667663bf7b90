"""Mutated files with correct checksums and lengths: one function per kind returns the content."""

import contextlib
import io
import itertools
import pickletools
import struct
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import tomli_w
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
from mutations import TEXTS, blind, changed, field, number
from PIL import Image

from pdfast.config.schema import config_names, load_config
from pdfast.config.serialization import to_table


def npy(rng, descr, shape, data):
    """Return an .npy member, perhaps with one fault."""
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
    """Mutate headers, shapes, types, names and members, then perhaps the list of members."""
    images = npy(rng, "'|u1'", (6, 8, 8, 1), bytes(range(64)) * 6)
    labels = npy(rng, "'<i8'", (6,), np.array([0, 1, 2, 0, 1, 2]).tobytes())
    members = [("images.npy", images), ("labels.npy", labels), ("other.npy", b"x")]
    rng.shuffle(members)
    if rng.random() < 0.2:
        members[rng.randrange(3)] = (rng.choice(TEXTS), rng.choice([images, labels, b""]))
    return archived(rng, members)


def archived(rng, members):
    """Return a zip of members, some deflated, perhaps with an altered list of them."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # names twice
        for name, content in members:
            method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return listed(rng, out.getvalue())


def listed(rng, content):
    """Return a zip, perhaps with altered fields in its list of members."""
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
    """Mutate type, dimensions and length."""
    content = idx(np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8))
    for _ in range(rng.choice([0, 1, 1, 2])):
        content = field(rng, content, rng.choice([0, 4, 4, 4, 4, 8, 12]), ">I")
    declared = np.prod([float(n) for n in struct.unpack(">3I", content[4:16])])
    if rng.random() < 0.5 and declared < 10_000:
        content = content[:16] + bytes(int(declared))
    return content + bytes(rng.choice([0, 0, 0, 1, 999]))


def wrapped(rng, content):
    """Compress by gzip, sometimes in an unusual form."""
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
    """Return a tar, perhaps with other members, or altered headers with correct checksums."""
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
    """Mutate members of the archive, and lengths of batches."""
    batches = list(BIN_BATCHES)
    if rng.random() < 0.4:
        k = rng.randrange(5)
        batches[k] = rng.choice([b"", batches[k][:-1], batches[k] * 2, b"\xff" * 3073, b"x"])
    return wrapped(rng, archive(rng, cifar("bin", batches)))


HUNDRED = b"".join(b"\7%c" % k + pixels.tobytes() for k, pixels in enumerate(records(3, 9)[0]))


def sealed_cifar_100(rng):
    """Mutate CIFAR-100's members, and the length of its one batch."""
    train = rng.choice([HUNDRED, HUNDRED, HUNDRED[:-1], HUNDRED[:3074], b"", HUNDRED * 2])
    names = b"\n".join(b"class %d" % k for k in range(rng.choice([100, 100, 99, 3])))
    names = rng.choice([names, names, b"", b"\xff" * 70_000, b"\0"])
    members = [("fine_label_names.txt", names), ("train.bin", train), ("test.bin", b"x")]
    rng.shuffle(members)
    return wrapped(rng, archive(rng, [(f"cifar-100-binary/{name}", c) for name, c in members]))


def opcodes(content):
    """Split a pickle into its opcodes."""
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


# Opcodes that allocate memory or memo slots, or name a global.
BOMBS = [code + struct.pack("<I", 2**30) for code in (b"r", b"B", b"T", b"X", b"\x8b", b"G")]
BOMBS += [code + struct.pack("<Q", 2**40) for code in (b"\x8e", b"\x8d", b"\x96", b"\x95")]
BOMBS += [b"cos\nsystem\n(U\1xtR", b"cbuiltins\neval\n", b"cnumpy\nzeros\n(J\xff\xff\xff\x7ftR"]


def mutated(rng, ops):
    """Remove, repeat, move or insert opcodes of a pickle, or change their arguments."""
    ops = list(ops)
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
    return b"".join(ops)


def sealed_cifar_py(rng):
    """Mutate opcodes of a batch, then the archive."""
    batches = [mutated(rng, PY_OPCODES), *PY_BATCHES[1:]]
    rng.shuffle(batches)
    members = cifar("py", batches)
    return wrapped(rng, archive(rng, members) if rng.random() < 0.3 else tar(members))


CONFIGS = [to_table(load_config(name)) for name in config_names()]


def sealed_toml(rng):
    """Mutate values of a config."""
    table = rng.choice(CONFIGS)
    for _ in range(rng.choice([1, 1, 2, 4])):
        table = changed(rng, table)
    try:
        return tomli_w.dumps(table).encode()
    except (ValueError, TypeError, UnicodeError):  # numbers that cannot be written
        return b"seed = 0x" + b"f" * 5000


def sealed_png(rng):
    """Mutate numbers in a picture's chunks."""
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
    """Return members, perhaps with one of them damaged, renamed, dropped or repeated."""
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
    """Mutate members and labels, then perhaps the list of members."""
    labels = changed(rng, LABELS) if rng.random() < 0.5 else LABELS
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names twice
        return listed(rng, image_zip(members_of(rng, SAMPLES), labels, method))


def sealed_shard(rng):
    """Mutate members, labels, and headers with their checksums."""
    labels = [(f"{k}.cls", b"%d" % (k % 3)) for k in range(6)]
    if rng.random() < 0.3:
        text = rng.choice([*TEXTS, str(number(rng))]).encode()
        labels[rng.randrange(6)] = (rng.choice(["1.cls", "1.CLS", "9.cls"]), text)
    for kind, texts in (("json", JSONS), ("txt", TEXTS)):
        if rng.random() < 0.3:
            labels = [(f"{k}.{kind}", rng.choice(texts).encode()) for k in range(6)]
    members = [*members_of(rng, SAMPLES), *labels]
    try:
        made = archive(rng, members) if rng.random() < 0.6 else shard(members)
    except (ValueError, UnicodeError):  # a name that tar cannot have
        made = shard(SAMPLES)
    made += rng.choice([b"", b"", b"", bytes(700), made, made[:2000]])
    return wrapped(rng, made) if rng.random() < 0.3 else made


JSONS = [
    *('{"label": 1}', '{"label": 1.0}', '{"label": "cat"}', '{"label": 1, "class_name": "cat"}'),
    *('{"label": NaN}', '{"label": 1e999}', '{"label": true}', '{"label": [1]}', '{"label": null}'),
    *('{"label": 1, "target": 2}', "{", "[" * 5000, '{"label": ' + "1" * 5000 + "}", "[]", ""),
]


FONT = emoji_font({109: {name: SAMPLES[k][1] for k, name in enumerate(GLYPHS[1:])}})


def sealed_font(rng):
    """Mutate numbers in the tables that are read."""
    content = FONT
    for _ in range(rng.choice([0, 1, 1, 2])):
        tag = rng.choice([b"CBLC", b"CBLC", b"CBDT", b"GSUB", b"cmap"])
        start, length = struct.unpack_from(">II", content, content.find(tag, 12) + 8)
        at = start + 2 * rng.randrange(min(length, 120) // 2)
        content = field(rng, content, at, rng.choice([">H", ">H", ">I"]))
    return content
