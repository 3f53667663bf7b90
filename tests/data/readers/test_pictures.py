"""Sources of pictures that are decoded one by one: zips, tar shards, emoji fonts, folders."""

import io
import json
import shutil
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from emoji_font import GLYPHS, emoji_font
from fontTools.ttLib import TTFont
from fontTools.ttLib.tables.DefaultTable import DefaultTable
from foreign import idx, image_zip, packed, picture, shard, tar

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import image_zip as zips
from pdfast.data.readers import shards
from pdfast.data.readers.reading import Wanted
from pdfast.data.sources import count
from pdfast.distributed import signals
from pdfast.errors import Stopped, UsageError

GREY = NetConfig(image_size=8, channels=1)
CLASSES = NetConfig(image_size=8, channels=1, num_classes=10)
COLOUR = NetConfig(image_size=8, channels=3)


def load(source, model=CLASSES):
    return load_dataset(DataConfig(source=str(source)), model)


def refused(source, message, model=CLASSES, name=None):
    with pytest.raises(UsageError) as error:
        load(source, model)
    text = str(error.value)
    assert message in text
    assert str(name or source) in text
    assert "\n" not in text


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
PNGS = [picture(image) for image in IMAGES]
NAMES = [f"0000{k // 2}/img0000000{k}.png" for k in range(4)]
MEMBERS = list(zip(NAMES, PNGS, strict=True))
PAIRS = [[name, 3 * k] for k, name in enumerate(NAMES)]


# ------------------------------------------------------------------------------------------
# Zips


def write_zip(tmp_path, members=None, labels=..., method=zipfile.ZIP_STORED):
    path = tmp_path / "a.zip"
    path.write_bytes(image_zip(MEMBERS if members is None else members, labels, method))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path, method):
    """EDM's layout with members in any order; other members and hidden ones are ignored."""
    others = [("00000/", b""), ("notes.txt", b"x"), ("__MACOSX/._a.png", b"x"), (".b.png", b"x")]
    path = write_zip(tmp_path, [*reversed(MEMBERS), *others], PAIRS, method)
    data = load(path)
    assert np.array_equal(data.images[..., 0].numpy(), IMAGES)
    assert data.labels.tolist() == [0, 3, 6, 9]
    assert load(path, GREY).labels is None
    assert count(DataConfig(source=str(path))) == 4


def test_a_zip_of_photographs(tmp_path):
    """Pictures of other kinds and sizes are cropped and resized, as from a folder."""
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (200, 100, 50)  # all of the central square
    path = write_zip(
        tmp_path, [("a.JPG", picture(wide, "jpeg")), ("b.webp", picture(wide, "webp"))]
    )
    assert load(path, COLOUR).images.shape == (2, 8, 8, 3)
    apart = load(path, COLOUR).images[:, 2:6, 2:6].int().numpy() - (200, 100, 50)
    assert np.abs(apart).max() <= 6


def test_a_zip_without_labels(tmp_path):
    path = write_zip(tmp_path, labels=None)
    assert load(path, GREY).labels is None
    refused(path, "has no labels, but model.num_classes is 10")
    path = write_zip(tmp_path)
    assert load(path, GREY).labels is None
    refused(path, "has no dataset.json, which a zip's labels are read from; sub-folders are")
    refused(write_zip(tmp_path, [("a.png", PNGS[0]), ("b.png", PNGS[1])]), "has no labels, but")


def in_a_folder(listed, where="set/"):
    """Return a zip as `zip -r set.zip set` makes it, with these labels."""
    members = [(f"set/{name}", content) for name, content in MEMBERS]
    text = json.dumps({"labels": listed}).encode()
    return [*members, (f"{where}dataset.json", text), ("__MACOSX/set/._dataset.json", b"x")]


@pytest.mark.parametrize("where", ["set/", ""])
@pytest.mark.parametrize("front", ["set/", ""])
def test_a_zip_with_one_top_folder(tmp_path, where, front):
    """Names in its table are relative to the table's folder, or to the zip."""
    if (where, front) == ("", ""):
        message = f"a label for {NAMES[0]}, which is not a picture in the zip"
        refused(write_zip(tmp_path, in_a_folder(PAIRS, where)), message)
        return
    listed = [[f"{front}{name}", k] for name, k in PAIRS]
    data = load(write_zip(tmp_path, in_a_folder(listed, where)))
    assert np.array_equal(data.images[..., 0].numpy(), IMAGES)
    assert data.labels.tolist() == [0, 3, 6, 9]


def test_two_lists_of_labels_in_a_zip(tmp_path):
    path = write_zip(tmp_path, in_a_folder(PAIRS), PAIRS)
    refused(path, "has two lists of labels, set/dataset.json and dataset.json: keep one")


def test_a_zip_in_capitals_and_what_it_does_not_give(tmp_path):
    path = tmp_path / "A.ZIP"
    others = [("__MACOSX/._a.png", b"x"), (".b.png", b"x"), ("c.heic", b"x")]
    path.write_bytes(image_zip([*MEMBERS, *others], PAIRS))
    assert load(path).labels.tolist() == [0, 3, 6, 9]
    assert zips.find(path, Wanted(8)).left_out == (
        "hidden files: 2 (__MACOSX/._a.png, .b.png); images of a kind that is not read: 1 (c.heic)"
    )
    path.write_bytes(image_zip(others))
    refused(path, "holds no images (.png, ", GREY)
    refused(path, "left out: hidden files: 2 (", GREY)


BAD_LABELS = {
    "for some only": (PAIRS[:2], f"has no label for {NAMES[2]}, the first of 2 such pictures"),
    "for another": ([*PAIRS, ["x.png", 1]], "a label for x.png, which is not a picture in the zip"),
    "a fraction": ([[NAMES[0], 1.5], *PAIRS[1:]], "the label '1.5', which is not a whole number"),
    "a word": ([[NAMES[0], "cat"], *PAIRS[1:]], "the label 'cat', which is not a whole number"),
    "a boolean": ([[NAMES[0], True], *PAIRS[1:]], "the label 'True', which is not a whole number"),
    "a vector": ([[NAMES[0], [0, 1]], *PAIRS[1:]], "the label '[0, 1]', which is not a whole"),
    "below 0": ([[NAMES[0], -1], *PAIRS[1:]], "the label -1: number classes from 0"),
    "beyond all": ([[NAMES[0], 10**30], *PAIRS[1:]], "number classes from 0"),
    "too many": ([[NAMES[0], 10], *PAIRS[1:]], "labels from 3 to 10, outside 0 .. 9"),
    "no pairs": ([[NAMES[0]]], "must have `labels`, a list of [name, class] pairs"),
    "a table": ({NAMES[0]: 1}, "must have `labels`, a list of [name, class] pairs"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_of_a_zip(tmp_path, case):
    labels, message = BAD_LABELS[case]
    path = write_zip(tmp_path, labels=labels)
    refused(path, message)
    assert len(load(path, GREY)) == 4  # labels are read only if they are wanted


def test_bad_zips(tmp_path, monkeypatch):
    path = write_zip(tmp_path, [*MEMBERS, ("b.png", b"no picture")])
    refused(path, f"{path}: b.png is not a readable image", GREY)
    refused(write_zip(tmp_path, MEMBERS[:1]), "has 1 image; at least 2", GREY)
    refused(write_zip(tmp_path, [("a.txt", b"x")]), "holds no images (.png, ", GREY)
    for text, message in {
        b"{": "is not a readable zip of images",
        b"[" * 9000: "too deeply",
    }.items():
        refused(write_zip(tmp_path, [*MEMBERS, ("dataset.json", text)]), message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(write_zip(tmp_path, [*MEMBERS, MEMBERS[0]]), "two members of one name", GREY)
    good = image_zip(MEMBERS, PAIRS)
    for content, message in {
        good[:-30]: "is not a readable zip of images",
        good.replace(PNGS[1], PNGS[1][:-9] + b"x" + PNGS[1][-8:]): "Bad CRC-32",
        image_zip(MEMBERS, method=zipfile.ZIP_BZIP2): "neither stored nor deflated",
    }.items():
        path.write_bytes(content)
        refused(path, message, GREY)
    path.write_bytes(good)
    monkeypatch.setattr(zips, "MAX_BYTES", len(PNGS[0]) - 1)
    refused(path, f"{NAMES[0]} has {len(PNGS[0])} bytes", GREY)


# ------------------------------------------------------------------------------------------
# Shards


def samples(first=0, labelled=True):
    """Return members as WebDataset writes them: sample by sample."""
    for k, png in enumerate(PNGS, first):
        yield f"{k:06d}.png", png
        yield f"{k:06d}.json", b"{}"
        if labelled:
            yield f"{k:06d}.cls", b"%d" % (k % 10)


def test_shards(tmp_path):
    """A pattern, a folder and a single shard; in the old format and with fractional times."""
    train = tmp_path / "train"
    train.mkdir()
    (train / "008.tar").write_bytes(shard(samples()))
    (train / "009.tar").write_bytes(tar(samples(4)))
    (train / "010.tar").write_bytes(shard([("x" * 120 + "/a.jpg", picture(IMAGES[0], "jpeg"))]))
    for source in (train / "{008..009}.tar", train / "008.tar"):
        data = load(source)
        num = len(data)
        assert num == (8 if "{" in str(source) else 4)
        assert np.array_equal(data.images[..., 0].numpy(), np.concatenate([IMAGES, IMAGES])[:num])
        assert data.labels.tolist() == list(range(num))
        assert load(source, GREY).labels is None
        assert count(DataConfig(source=str(source))) == num
    assert len(load(train, GREY)) == 9
    refused(train, "a.jpg has no label (.cls), as others have: label all or none", name="010.tar")
    refused(train / "{008..011}.tar", "011.tar, of ", name="{008..011}.tar, does not exist")
    refused(train / "{3..2}.tar", "names no shards: write the smaller number first")
    refused(train / "{000000..100000}.tar", "names more than 100,000 shards: name fewer")
    (train / "birds").mkdir()
    (train / "birds" / "a.png").write_bytes(PNGS[0])
    refused(train, "holds both images and tar shards, such as 008.tar: keep them apart", GREY)


def test_shards_without_labels(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(shard(samples(labelled=False)))
    assert load(path, GREY).labels is None
    refused(path, "has no labels, but model.num_classes is 10")
    path.write_bytes(shard([("a.txt", b"x")]))
    refused(path, "holds no images (.png, ", GREY)


BAD_SAMPLES = {
    "a fraction": (
        ("a.cls", b"1.5"),
        "a.png has in its .cls the label '1.5', which is not a whole number",
    ),
    "nothing": (("a.cls", b""), "a.png has in its .cls the label '', which is not a whole number"),
    "a long one": (("a.cls", b"1" * 99), "which is not a whole number"),
    "below 0": (("a.cls", b"-1\n"), "a.png has in its .cls the label -1: number classes from 0"),
    "no text": (("a.cls", b"\xff"), "which is not a whole number"),
    "no picture": (("b.cls", b"1"), "b.cls has no picture beside it"),
    "two pictures": (("a.jpg", PNGS[0]), "a.jpg is the second picture of its sample"),
    "no such picture": (("b.png", b"x"), "b.png is not a readable image"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples_of_a_shard(tmp_path, case):
    member, message = BAD_SAMPLES[case]
    path = tmp_path / "a.tar"
    more = [("a.cls", b"1"), ("b.cls", b"1")] if member[0] == "b.png" else []
    path.write_bytes(shard([*samples(), ("a.png", PNGS[0]), member, *more]))
    refused(path, message)


def note(text, kind=tarfile.XHDTYPE):
    """Return a tar whose second member is preceded by a header with this text."""
    info = tarfile.TarInfo("note")
    info.type, info.size = kind, len(text)
    head = info.tobuf(tarfile.USTAR_FORMAT) + text + bytes(-len(text) % 512)
    return tar([("a.png", PNGS[0])])[: 512 + 512] + head + tar([("b.png", PNGS[1])])


def record(text):
    """Return one line of a pax header, with its length in front."""
    length = len(text) + 4
    return b"%d %s\n" % (length, text)


BAD_SHARDS = {
    "cut in a picture": (lambda c: c[:1600], "unexpected end of data"),
    "cut between pictures": (lambda c: c[:2048], "its end is missing: it was cut short"),
    "a damaged header": (
        lambda c: c[:2148] + b"x" + c[2149:],
        "header at byte 2,048 is damaged",
    ),
    "nothing": (lambda c: b"", "is not a readable tar shard (empty file)"),
    "no tar": (lambda c: b"no archive" * 1000, "is not a readable tar shard"),
    "a link": (lambda c: tar([("a.png", _link())]), "left out: links: 1 (a.tar: a.png)"),
    "above": (lambda c: tar([("../a.png", b"x")]), "../a.png is outside its folder"),
    "a long note": (lambda c: note(bytes(2**20 + 1)), "its member note has 1,048,577 bytes"),
    "a global note": (
        lambda c: note(record(b"size=99"), tarfile.XGLTYPE),
        "its header note gives all members one name or size",
    ),
    "a size below 0": (lambda c: note(record(b"size=-512")), "its member b.png has -512 bytes"),
    "a size beyond": (lambda c: note(record(b"size=99999")), "unexpected end of data"),
    "holes": (
        lambda c: note(record(b"GNU.sparse.map=0,9")),
        "is stored as a sparse file: make the archive without --sparse",
    ),
}


def _link():
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_bad_shards(tmp_path, case):
    change, message = BAD_SHARDS[case]
    path = tmp_path / "a.tar"
    path.write_bytes(note(record(b"mtime=1.5")))
    assert len(load(path, GREY)) == 2  # so only the bad notes are refused
    path.write_bytes(change(shard(samples(labelled=False))))
    refused(path, message, GREY)


def test_a_shard_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(shard(samples()))
    found = shards.find([path], Wanted(8))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(
        UsageError, match=r"a\.tar is not a readable tar shard \(000000\.png is cut"
    ):
        list(found.files(0))


# ------------------------------------------------------------------------------------------
# Emoji


def glyph_pngs(num=6, size=8):
    """Return transparent PNGs, each in its own colour, for all glyphs after the first."""
    pngs = {}
    for k, name in enumerate(GLYPHS[1 : 1 + num]):
        glyph = np.zeros((size, size, 4), np.uint8)
        glyph[:, : size // 2] = (40 * k, 10, 255, 255)
        pngs[name] = picture(glyph)
    return pngs


def test_a_source_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.absolute("digits") == "digits"
    assert sources.absolute("a/b.npz") == f"{tmp_path}/a/b.npz"
    assert sources.absolute("emoji:a.ttf") == f"emoji:{tmp_path}/a.ttf"


@pytest.mark.parametrize(("index", "image"), [(1, 17), (3, 17), (1, 18)])
def test_emoji(tmp_path, index, image):
    """The largest strike, as fontTools reads it, on white, without skin-tone variants."""
    path = tmp_path / "a.ttf"
    pngs = glyph_pngs()
    del pngs["flag"]  # a glyph may have no picture
    path.write_bytes(emoji_font({109: pngs, 20: glyph_pngs(size=4)}, index, image))
    theirs = TTFont(path)["CBDT"].strikeData[0]
    assert [glyph.imageData for glyph in theirs.values()] == list(pngs.values())
    data = load(f"emoji:{path}", COLOUR)
    kept = [k for k, name in enumerate(GLYPHS[1:]) if name not in ("flag", "toned_hand")]
    assert data.images[:, 0, 0].tolist() == [[40 * k, 10, 255] for k in kept]
    assert data.images[:, :, 4:].eq(255).all()
    assert count(DataConfig(source=f"emoji:{path}")) == 4
    refused(f"emoji:{path}", "has no labels, but", NetConfig(image_size=8, num_classes=3))


def changed_font(tag, offset, form, value):
    """Return the font with one number of a table changed."""
    content = bytearray(emoji_font({109: glyph_pngs()}))
    at = struct.unpack_from(">I", content, content.find(tag, 12) + 8)[0]
    struct.pack_into(form, content, at + offset, value)
    return bytes(content)


# The layout of CBLC: 8 bytes of header, 48 per strike, 8 per entry of the array, the subtable.
BAD_FONTS = {
    "no font": (lambda: b"no font at all", "is not a readable emoji font"),
    "cut short": (lambda: emoji_font({109: glyph_pngs()})[:-99], "is cut short"),
    "no strikes": (lambda: changed_font(b"CBLC", 4, ">I", 0), "it has no pictures"),
    "strikes beyond": (lambda: changed_font(b"CBLC", 4, ">I", 2**31), "unpack_from requires"),
    "subtables beyond": (lambda: changed_font(b"CBLC", 16, ">I", 2**31), "not in order"),
    "the last before the first": (lambda: changed_font(b"CBLC", 58, ">H", 0), "not in order"),
    "index format": (lambda: changed_font(b"CBLC", 64, ">H", 2), "in index format 2 and image"),
    "image format": (lambda: changed_font(b"CBLC", 66, ">H", 19), "and image format 19"),
    "pictures beyond": (lambda: changed_font(b"CBLC", 72, ">I", 2**31), "unpack_from requires"),
    "a long picture": (lambda: changed_font(b"CBDT", 9, ">I", 2**31), "overlap, or are cut short"),
    "no PNG": (lambda: changed_font(b"CBDT", 13, ">I", 0), "glyph 1 is not a readable image"),
    "map": (lambda: changed_font(b"cmap", 2, ">H", 9999), "unpack_from requires a buffer"),
    "lookups": (lambda: changed_font(b"GSUB", 8, ">H", 9999), "unpack_from requires a buffer"),
    "one in all": (lambda: swallowing(), "its pictures overlap"),
    "a hundred million ligatures": (lambda: with_ligatures(10_000), "its ligatures overlap"),
}


def swallowing():
    """Return a font whose first picture reaches to the end of the table."""
    last = len(TTFont(io.BytesIO(emoji_font({109: glyph_pngs()}))).getTableData("CBDT"))
    return changed_font(b"CBDT", 9, ">I", last - 13)


def with_ligatures(num):
    """Return a font with many lookups at one offset, each with many subtables at one offset."""
    font = TTFont(io.BytesIO(emoji_font({109: glyph_pngs()})))
    lookup = [4, 0, num, *[2 * num + 6] * num]
    words = [1, 0, 0, 0, 10, num, *[2 * num + 2] * num, *lookup, *bytes(16)]
    font["GSUB"] = table = DefaultTable("GSUB")
    table.data = struct.pack(f">{len(words)}H", *words)
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


@pytest.mark.parametrize("case", BAD_FONTS)
def test_bad_fonts(tmp_path, case):
    make, message = BAD_FONTS[case]
    path = tmp_path / "a.ttf"
    path.write_bytes(make())
    refused(f"emoji:{path}", message, COLOUR, path)


def test_fonts_that_are_none(tmp_path):
    refused(f"emoji:{tmp_path / 'a.ttf'}", "cannot be read: No such file", COLOUR, tmp_path)
    refused(f"emoji:{tmp_path}", "cannot be read: Is a directory", COLOUR, tmp_path)


# ------------------------------------------------------------------------------------------
# Folders of IDX files, and all


def test_a_folder_as_fashion_mnist_is_packed(tmp_path):
    for name, array in {
        "t10k-images-idx3": IMAGES[:2],
        "t10k-labels-idx1": np.arange(2, dtype=np.uint8),
        "train-images-idx3": IMAGES,
        "train-labels-idx1": np.arange(4, dtype=np.uint8),
    }.items():
        (tmp_path / f"{name}-ubyte.gz").write_bytes(packed(idx(array)))
    data = load(tmp_path)
    assert np.array_equal(data.images[..., 0].numpy(), IMAGES)
    assert data.labels.tolist() == [0, 1, 2, 3]
    assert count(DataConfig(source=str(tmp_path))) == 4
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    refused(tmp_path, "no train-images-idx3-ubyte[.gz]: name the one to read, such as ")
    assert count(DataConfig(source=str(tmp_path))) is None


def test_every_reader_of_pictures_hears_a_signal(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(image_zip(MEMBERS, PAIRS))
    (tmp_path / "a.tar").write_bytes(shard(samples()))
    (tmp_path / "a.ttf").write_bytes(emoji_font({109: glyph_pngs()}))
    readers = [tmp_path / "a.zip", tmp_path / "a.tar", f"emoji:{tmp_path / 'a.ttf'}"]
    for source in readers:
        assert len(load(source, COLOUR)) >= 4
    monkeypatch.setattr(signals, "_requested", signals.signal.SIGINT)
    for source in readers:
        with pytest.raises(Stopped, match="nothing was started"):
            load(source, COLOUR)


def test_a_folder_named_digits(tmp_path, monkeypatch):
    """A folder that holds data is refused as ambiguous; runs and empty folders are not data."""
    monkeypatch.chdir(tmp_path)
    for sub in ("digits", "digits/cats"):
        folder = tmp_path / sub
        folder.mkdir(exist_ok=True)
        (folder / "notes.txt").write_bytes(b"x")
        assert len(load("digits", GREY)) == 1797
        for k, png in enumerate(PNGS):
            (folder / f"{k}.PNG").write_bytes(png)
        with pytest.raises(UsageError) as error:
            load("digits", GREY)
        assert str(error.value) == (
            f"digits is the name of scikit-learn's set, and of the folder {tmp_path}/digits: name "
            "the folder as ./digits; for scikit-learn's set, run pdfast in another folder, or "
            "rename this one"
        )
        assert count(DataConfig(source="digits")) is None
        assert sources.absolute("./digits") == f"{tmp_path}/digits"
        for source in ("./digits", f"{tmp_path}/digits", sources.absolute("./digits")):
            assert np.array_equal(load(source, GREY).images[..., 0].numpy(), IMAGES)
        (folder / "config.toml").write_text("")  # as a run has
        assert len(load("digits", GREY)) == 1797
        shutil.rmtree(tmp_path / "digits")
        (tmp_path / "digits").mkdir()
    (tmp_path / "digits").rmdir()
    (tmp_path / "digits").write_bytes(b"a file")
    assert len(load("digits", GREY)) == 1797
