"""Tar shards as users have them: joined, gzipped, with dots in names, and labels of every kind."""

import gzip
import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
from foreign import cifar, cifar_batches, packed, picture, tar

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import shards, tars
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
PNGS = [picture(image) for image in IMAGES]
LABELLED = NetConfig(image_size=8, channels=1, num_classes=20)
PLAIN = NetConfig(image_size=8, channels=1)


def load(source, model=LABELLED):
    return load_dataset(DataConfig(source=str(source)), model)


def left_out(source):
    """Return the note about skipped members."""
    return sources.opened(str(source), Wanted(8)).left_out


def write(path, members, pack=bytes):
    path.write_bytes(pack(members if isinstance(members, bytes) else tar(members)))
    return path


def refused(source, *messages, model=LABELLED):
    with pytest.raises(UsageError) as error:
        load(source, model)
    for message in messages:
        assert message in str(error.value)


def expect(data, which, labels=None, names=()):
    """Check that exactly the pictures of these numbers are read, in this order."""
    np.testing.assert_array_equal(data.images[..., 0], IMAGES[list(which)])
    assert (None if data.labels is None else data.labels.tolist()) == labels
    assert data.names == names


def samples(first, last, label=b"%d", name="{:06d}"):
    for k in range(first, last):
        yield f"{name.format(k)}.png", PNGS[k]
        yield f"{name.format(k)}.cls", label % (k % 3)


# ------------------------------------------------------------------------------------------
# Archives in one file, and gzip


def unended(archive):
    """Return a tar without the blocks of zeros at its end."""
    content = archive.rstrip(b"\0")
    return content + bytes(-len(content) % 512)


JOINS = {
    "cat": lambda a, b: a + b,
    "zeros between": lambda a, b: a + bytes(512 * 77) + b,
    "one block of zeros": lambda a, b: unended(a) + bytes(512) + b,
    "no end between": lambda a, b: unended(a) + b,
    "zeros at the end": lambda a, b: a + b + bytes(99_999),
}


@pytest.mark.parametrize("how", JOINS)
@pytest.mark.parametrize("pack", [bytes, packed])
def test_several_archives_in_one_file(tmp_path, how, pack):
    """As `cat a.tar b.tar` makes them; tarfile reads the same with ignore_zeros."""
    joined = JOINS[how](tar(samples(0, 4)), tar(samples(4, 9)))
    with tarfile.open(fileobj=io.BytesIO(joined), ignore_zeros=True) as archive:
        assert len(archive.getnames()) == 18
    path = write(tmp_path / "a.tar", joined, pack)
    expect(load(path), range(9), [0, 1, 2, 0, 1, 2, 0, 1, 2])
    assert sources.count(DataConfig(source=str(path))) == 9


def test_each_of_several_archives_has_its_own_keys(tmp_path):
    one = [("0.png", PNGS[0]), ("0.cls", b"4")]
    two = [("0.cls", b"7"), ("0.png", PNGS[1])]
    expect(load(write(tmp_path / "a.tar", tar(one) + tar(two))), [0, 1], [4, 7])
    path = write(tmp_path / "a.tar", [*one, *two])
    refused(path, "0.cls is the second label of its sample")
    refused(path, "0.png is the second picture of its sample, after 0.png: keep one", model=PLAIN)


@pytest.mark.parametrize("pack", [bytes, packed])
def test_a_damaged_second_archive_is_refused(tmp_path, pack):
    one, two = tar(samples(0, 4)), tar(samples(4, 8))
    for change, message in {
        two[:3000]: "unexpected end of data",
        two[:1024]: "its end is missing: it was cut short",
        two[:99]: "is damaged: truncated header",
        b"x" + two[1:]: f"the header at byte {len(one):,} is damaged: bad checksum",
    }.items():
        refused(write(tmp_path / "a.tar", one + change, pack), message)


SUFFIXES = ("a.tgz", "a.tar.gz", "a.TAR.GZ", "a.tar")  # the last is named as if it were not packed


@pytest.mark.parametrize("name", SUFFIXES)
def test_gzipped_shards(tmp_path, name):
    path = write(tmp_path / name, samples(0, 6), packed)
    expect(load(path), range(6), [0, 1, 2, 0, 1, 2])
    assert sources.count(DataConfig(source=str(path))) == 6
    assert sources.resizes(str(path))
    assert sources.stamp(str(path)) == ""


def test_a_shard_that_was_unpacked_but_not_renamed(tmp_path):
    expect(load(write(tmp_path / "a.tgz", samples(0, 6))), range(6), [0, 1, 2, 0, 1, 2])


def test_gzip_of_several_streams(tmp_path):
    """As pigz, or cat of .gz files, makes them; empty streams and zeros at the end are allowed."""
    content = tar(samples(0, 6))
    parts = [content[:700], b"", content[700:5000], content[5000:]]
    path = write(tmp_path / "a.tgz", b"".join(map(packed, parts)) + bytes(40_000))
    expect(load(path), range(6), [0, 1, 2, 0, 1, 2])
    for change, message in {
        packed(content)[:-5]: "it ends too early",
        packed(content)[:-8] + bytes(8): "incorrect data check",
        packed(content) + b"more": "incorrect header check",
    }.items():
        refused(write(tmp_path / "a.tgz", change), f"{path} is not a readable tar shard", message)


def test_a_gzipped_shard_takes_little_memory(tmp_path):
    """It is read in parts: 64 MB of other members are skipped."""
    path = tmp_path / "a.tgz"
    with gzip.open(path, "wb", 1) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        entry = tarfile.TarInfo("large.bin")
        entry.size = 2**26
        archive.addfile(entry, io.BytesIO(bytes(entry.size)))
        for name, content in samples(0, 3):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    tracemalloc.start()
    data = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expect(data, range(3), [0, 1, 2])
    assert peak < 4 * 2**20


def test_pictures_from_any_number_on(tmp_path):
    paths = [
        write(tmp_path / "0.tar", tar(samples(0, 3)) + tar(samples(3, 5))),
        write(tmp_path / "1.tgz", [("README", b"none")], packed),
        write(tmp_path / "2.tgz", samples(5, 9), packed),
    ]
    found = shards.find(paths, Wanted(8))
    assert found.num == 9
    for start in range(11):
        contents = [file.read() for _, file in found.files(start)]
        assert contents == PNGS[start:9]
    assert found.left_out == "shards without images: 1 (1.tgz)"
    assert next(found.files(5))[0] == f"{paths[2]}: 000005.png"


def test_a_gzipped_shard_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path / "a.tgz", samples(0, 3), packed)
    found = shards.find([path], Wanted(8))
    write(path, tar(samples(0, 1))[:1000], packed)
    with pytest.raises(UsageError, match=r"is not a readable tar shard \(000001\.png is cut short"):
        list(found.files(1))


# ------------------------------------------------------------------------------------------
# Folders and patterns


def test_a_folder_of_shards_of_every_kind(tmp_path):
    write(tmp_path / "a.tar", samples(0, 2))
    write(tmp_path / "b.tgz", samples(2, 4), packed)
    write(tmp_path / "c.TAR.GZ", samples(4, 6), packed)
    (tmp_path / "d.tar.xz").write_bytes(b"x")
    (tmp_path / "._a.tar").write_bytes(b"of a Mac")
    write(tmp_path / "e.tar", [("README", b"none")])
    expect(load(tmp_path), range(6), [0, 1, 2, 0, 1, 2])
    assert left_out(tmp_path) == (
        "hidden files: 1 (._a.tar); archives of a kind that is not read as a shard: 1 (d.tar.xz); "
        "shards without images: 1 (e.tar)"
    )
    write(tmp_path / "a.tgz", samples(0, 2), packed)
    refused(tmp_path, "holds a.tar and a.tgz, which would be the same shard twice: keep one")


def test_patterns_of_gzipped_shards(tmp_path):
    for k in range(3):
        for ending in ("tgz", "tar.gz"):
            write(tmp_path / f"{k + 8:03d}.{ending}", samples(2 * k, 2 * k + 2), packed)
    for ending in ("tgz", "tar.gz"):
        expect(load(tmp_path / f"{{008..010}}.{ending}"), range(6), [0, 1, 2, 0, 1, 2])
    refused(tmp_path / "{008..011}.tgz", "011.tgz, of ", "{008..011}.tgz, does not exist")


def test_cifar_beside_shards_is_named(tmp_path):
    batches, _, _ = cifar_batches("py", (1, 1, 1, 1, 1))
    write(tmp_path / "c.tar.gz", cifar("py", batches), packed)
    refused(tmp_path, "c.tar.gz is an archive of CIFAR: name it itself as data.source")


# ------------------------------------------------------------------------------------------
# Names


def test_dots_before_the_suffix(tmp_path):
    """Each is a picture; its label has its name up to the last dot, or up to an earlier one."""
    members = {
        "photo0.png": "photo0.cls",
        "photo0_x0.5.png": "photo0_x0.5.cls",
        "1403636579.763555.PNG": "1403636579.763555.CLS",
        "1403636579.813555.png": "1403636579.cls",
        "a/Mr. Bean.png": "a/Mr. Bean.cls",
        "a/Mr. Ed.png": "a/Mr. Ed.cls",
        "./b.of_camera.png": "b.cls",
    }
    found = [(name, PNGS[k]) for k, name in enumerate(members)]
    found += [(name, b"%d" % k) for k, name in enumerate(members.values())]
    path = write(tmp_path / "a.tar", found)
    expect(load(path), range(7), list(range(7)))
    assert left_out(path) == ""


FIELDS = {
    "an image and its mask": ["7.png", "7.mask.png"],
    "of two suffixes": ["a/7.jpg", "a/7.seg.png"],
    "two views of each sample": ["0.left.png", "0.right.png", "1.left.png", "1.right.png"],
    "in capitals": ["7.png", "7.Mask.PNG"],
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_of_one_sample_are_refused(tmp_path, case):
    names = FIELDS[case]
    path = write(tmp_path / "a.tar", [(name, PNGS[k]) for k, name in enumerate(names)])
    refused(path, f"{names[0]} and {names[1]} may be two pictures of one sample", model=PLAIN)


def test_one_picture_of_each_sample_may_have_a_field(tmp_path):
    names = [f"{k}.camera.png" for k in range(4)]
    path = write(tmp_path / "a.tar", [(name, PNGS[k]) for k, name in enumerate(names)])
    expect(load(path, PLAIN), range(4))


def test_what_is_not_taken_is_named(tmp_path):
    def special(name, kind, link=""):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        return name, entry

    path = write(
        tmp_path / "a.tar",
        [
            *samples(0, 3),
            special("hard.png", tarfile.LNKTYPE, "000000.png"),
            special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            special("link", tarfile.SYMTYPE, "000000.png"),
            special("pipe.png", tarfile.FIFOTYPE),
            special("folder.png", tarfile.DIRTYPE),
            ("._000000.png", b"of a Mac"),
            (".cache/000000.png", PNGS[0]),
            ("a.heic", b"x"),
            ("notes.md", b"x"),
        ],
    )
    expect(load(path), range(3), [0, 1, 2])
    assert left_out(path) == (
        "links: 2 (a.tar: hard.png, a.tar: soft.jpg); "
        "members that are not files: 1 (a.tar: pipe.png); "
        "hidden files: 2 (a.tar: ._000000.png, a.tar: .cache/000000.png); "
        "images of a kind that is not read: 1 (a.tar: a.heic)"
    )


# ------------------------------------------------------------------------------------------
# Headers that describe others


def pax(members, **headers):
    """Return a pax tar; `headers` are repeated for each member, `of_all` is the global header."""
    out, of_all = io.BytesIO(), headers.pop("of_all", {})
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=of_all
    ) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = len(content), headers
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


HEADERS = {
    "attributes": lambda: pax(samples(0, 6), **{"SCHILY.xattr.user.note": "A" * 5000}),
    "large ones": lambda: pax(samples(0, 6), **{"LIBARCHIVE.xattr.com.apple": "A" * 1_000_000}),
    "a global one": lambda: pax(samples(0, 6), of_all={"comment": "0123456789abcdef" * 3}),
    "long names": lambda: pax(samples(0, 6, name="é" * 300 + "/{:d}")),
    "times": lambda: pax(samples(0, 6), mtime="1700000000.123456789"),
    "GNU's long names": lambda: tar(samples(0, 6, name="x" * 300 + "/{:d}")),
    "names in two parts": lambda: ustar(samples(0, 6, name="x" * 120 + "/{:d}")),
    "a volume's name": lambda: volume() + tar(samples(0, 6)),
}


def ustar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def volume():
    """Return the beginning of a tar made by `tar -V name.png`."""
    entry = tarfile.TarInfo("name.png")
    entry.type = b"V"
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("pack", [bytes, packed])
def test_headers(tmp_path, case, pack):
    path = write(tmp_path / "a.tar", HEADERS[case](), pack)
    expect(load(path), range(6), [0, 1, 2, 0, 1, 2])
    assert left_out(path) == ""


def test_long_links_and_the_member_behind_them(tmp_path):
    entry = tarfile.TarInfo("link.png")
    entry.type, entry.linkname = tarfile.SYMTYPE, "y" * 500
    path = write(tmp_path / "a.tar", [("link.png", entry), *samples(0, 3)])
    expect(load(path), range(3), [0, 1, 2])
    assert left_out(path) == "links: 1 (a.tar: link.png)"


def test_a_header_without_bounds_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    for content, message in {
        pax(samples(0, 2), **{"path": "x" * 5000}): "a member whose name has 5,000 bytes",
        pax(samples(0, 2), note="A" * 2**20): "has 1,048,",
        pax(samples(0, 2), **{"GNU.sparse.major": "1"}): "a sparse file",
        pax(samples(0, 2), path="/etc/x.png"): "/etc/x.png is outside its folder",
        pax(samples(0, 2), size="1.5"): "has a size that is not a number",
        pax(samples(0, 2), size="9" * 30): "has a size that is not a number",
    }.items():
        write(path, content)
        refused(path, message)


def test_damaged_records_of_a_header(tmp_path):
    for record in (b"x a=b\n", b"99 a=b\n", b"6 a=bb", b"6 abc\n", b"0 a=b\n", b"3 a=b\n"):
        entry = tarfile.TarInfo("note")
        entry.type, entry.size = tarfile.XHDTYPE, len(record)
        content = entry.tobuf(tarfile.USTAR_FORMAT) + record + bytes(512 - len(record))
        path = write(tmp_path / "a.tar", content + tar(samples(0, 2)))
        refused(path, "the header note is damaged")


def test_kinds_of_members_that_hold_no_file(tmp_path):
    for kind, message in {
        b"M": "continues in another volume",
        tarfile.GNUTYPE_SPARSE: "its member x.png is stored as a sparse file",
    }.items():
        entry = tarfile.TarInfo("x.png")
        entry.type = kind
        head = entry.tobuf(tarfile.GNU_FORMAT)
        refused(write(tmp_path / "a.tar", head + tar(samples(0, 2))), message)


def test_skipping_ahead(tmp_path):
    path = write(tmp_path / "a.gz", bytes(range(100)), packed)
    with path.open("rb") as file:
        stream = tars.opened(file)
        stream.skip_to(90)
        assert stream.at == 90
        assert stream.read(20) == bytes(range(90, 100))
        with pytest.raises(EOFError, match="unexpected end"):
            stream.skip_to(101)


# ------------------------------------------------------------------------------------------
# Labels


def labelled(kind, contents, more=()):
    """Return pictures from number 0 on, each with a member of a kind beside it."""
    for k, content in enumerate(contents):
        yield f"{k}.png", PNGS[k]
        if content is not None:
            yield f"{k}.{kind}", content if isinstance(content, bytes) else content.encode()
    yield from more


def table(**columns):
    """Return a .json for each row."""
    return [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values())]  # noqa: B905


WORDS = ["dog", "cat", "dog", "ant"]
LABELS = {
    "numbers": ("cls", ["3", " 0\n", "3", "12"], [3, 0, 3, 12], ()),
    "in capitals": ("CLS", ["3", "0", "3", "12"], [3, 0, 3, 12], ()),
    "names": ("cls", ["dog", "cat\n", "dog", "ant"], [2, 1, 2, 0], ("ant", "cat", "dog")),
    "names that are not ASCII": ("cls", ["é", "z", "é", "ä"], [2, 0, 2, 1], ("z", "ä", "é")),
    "of another suffix": ("class", ["3", "0", "3", "12"], [3, 0, 3, 12], ()),
    "json of another suffix": ("jsn", table(label=[3, 0, 3, 12]), [3, 0, 3, 12], ()),
    "text of another suffix": ("text", ["7", "9", "9", "7"], [7, 9, 9, 7], ()),
    "json": ("json", table(label=[3, 0, 3, 12], width=[1, 2, 3, 4]), [3, 0, 3, 12], ()),
    "json of pandas": ("json", table(label=[3.0, 0.0, 3.0, 1.0]), [3, 0, 3, 1], ()),
    "json of text": ("json", table(label=["3", "0", "3", "1"]), [3, 0, 3, 1], ()),
    "json of names": ("JSON", table(class_name=WORDS), [2, 1, 2, 0], ("ant", "cat", "dog")),
    "json of both": (
        "json",
        table(label=[1, 0, 1, 2], class_name=WORDS),
        [1, 0, 1, 2],
        ("cat", "dog", "ant"),
    ),
    "json of both, with a gap": ("json", table(label=[1, 0, 1, 3], cls=WORDS), [1, 0, 1, 3],
                           ("cat", "dog", "", "ant")),
    "json of the same twice": ("json", table(label=[1, 0, 1, 2], cls=[1, 0, 1, 2]),
                               [1, 0, 1, 2], ()),
    "json of truths": ("json", table(label=[True, False, True, True]), [1, 0, 1, 1],
                       ("False", "True")),
    "json where one lacks another key": (
        "json",
        [*table(label=[1, 0, 1]), '{"label": 2, "class": 9}'],
        [1, 0, 1, 2],
        (),
    ),
    "text": ("txt", ["cat", "dog\n", "cat", "dog"], [0, 1, 0, 1], ("cat", "dog")),
    "text of numbers": ("txt", ["7", "9", "9", "7"], [7, 9, 9, 7], ()),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_labels(tmp_path, case):
    kind, contents, labels, names = LABELS[case]
    path = write(tmp_path / "a.tar", labelled(kind, contents))
    expect(load(path), range(4), labels, names)
    expect(load(path, PLAIN), range(4))
    two = [write(tmp_path / f"{k}.tar", labelled(kind, contents)) for k in range(2)]
    both = shards.find(two, Wanted(8, labels=True))
    assert both.labels.tolist() == labels * 2
    assert both.names == names


def test_which_labels_count(tmp_path):
    """.cls counts before .json before .txt, in any order of members; .json may name the numbers."""
    more = [(f"{k}.txt", b"a caption of picture %d" % k) for k in range(4)]
    found = table(label=[9, 9, 9, 8], class_name=WORDS)
    more += [(f"{k}.json", text.encode()) for k, text in enumerate(found)]
    path = write(tmp_path / "a.tar", [*more, *labelled("cls", ["1", "0", "1", "2"])])
    expect(load(path), range(4), [1, 0, 1, 2], ("cat", "dog", "ant"))
    path = write(tmp_path / "a.tar", [*more, *labelled("cls", [None] * 4)])
    expect(load(path), range(4), [9, 9, 9, 8])


BAD_LABELS = {
    "some without": ("cls", ["1", None, "0"], "1.png has no label (.cls), as others have"),
    "names and numbers": ("cls", ["1", "cat", "0"], "1.png has in its .cls the label 'cat', which"),
    "fractions": ("cls", ["1.5", "2.5"], "0.png has in its .cls the label '1.5', which is not"),
    "a long name": ("cls", ["x" * 201, "x" * 202], "0.png has in its .cls the label"),
    "two lines": ("cls", ["a\nb", "c"], "0.png has in its .cls the label"),
    "below 0": ("json", table(label=[0, -1]), '1.png has in its .json ("label") the label -1'),
    "two numbers that differ": (
        "json",
        table(label=[0, 1, 2], target=[0, 5, 2]),
        '1.png has two labels in its .json, "label" 1 and "target" 5: keep one of them, or write',
    ),
    "two names": (
        "json",
        table(category=["a", "b"], class_name=["x", "y"]),
        "0.png has two labels in its .json, \"category\" 'a' and \"class_name\" 'x': keep one",
    ),
    "json of some": (
        "json",
        ['{"label": 1}', "{}", '{"label": 1}'],
        '1.png has no label ("label" in its .json), as others have: label all or none',
    ),
    "malformed json": ("json", ['{"label": 1}', "{"], '1.png has no label ("label" in its'),
    "a list": ("json", ['{"label": 1}', "[1]"], '1.png has no label ("label" in its .json)'),
    "no number": ("json", ['{"label": NaN}', '{"label": 1}'], '0.png has no label ("label" in'),
    "a deep one": ("json", ['{"label": 1}', "[" * 9999], '1.png has no label ("label" in'),
    "a large one": (
        "json",
        ['{"label": 1}', '{"label": 1, "x": "' + "x" * 2**20 + '"}'],
        '1.png has no label ("label" in',
    ),
    "captions": (
        "txt",
        ["a dog", "a cat", "a dog", "two dogs"],
        "the .txt of its samples are captions, not classes (3 texts of 4 samples differ): write "
        "the classes as .cls, or ask for no labels",
    ),
    "long captions": ("txt", ["x" * 300] * 4, "are captions, not classes"),
    "captions of two lines": ("txt", ["a\nb"] * 4, "are captions, not classes"),
    "text and numbers": ("txt", ["1", "1", "cat", "cat"], "2.png has in its .txt the label 'cat'"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(tmp_path, case):
    kind, contents, message = BAD_LABELS[case]
    path = write(tmp_path / "a.tar", labelled(kind, contents))
    refused(path, str(path), message)
    assert len(load(path, PLAIN).images) == len(contents)  # labels are read only if wanted


def test_two_labels_of_one_sample(tmp_path):
    path = tmp_path / "a.tar"
    expect(load(write(path, [*samples(0, 3), ("000001.cls", b"1\n")])), range(3), [0, 1, 2])
    for name in ("000001.cls", "./000001.CLS", "000001.class"):
        write(path, [*samples(0, 3), (name, b"2")])
        refused(
            path, f"a.tar: {name} is the second label of its sample, and differs from the first"
        )


def test_what_is_left_out_does_nothing_to_a_terminal(tmp_path):
    path = write(tmp_path / "a.tar", [*samples(0, 2), ("\x1b[2J\n.heic", b"x")])
    assert left_out(path) == ("images of a kind that is not read: 1 (a.tar: \\x1b[2J\\n.heic)")


def test_the_shard_without_labels_is_named(tmp_path):
    one = write(tmp_path / "0.tar", labelled("cls", ["1", "0"]))
    two = write(tmp_path / "1.tar", labelled("cls", [None, None]))
    with pytest.raises(UsageError, match=r"1\.tar: 0\.png has no label \(\.cls\), as others have"):
        shards.find([one, two], Wanted(8, labels=True))


def test_too_many_texts_are_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(shards.shard_labels, "MAX_TEXTS", 1)
    path = write(tmp_path / "a.tar", labelled("txt", ["cat", "dog", "cat", "dog"]))
    refused(path, "are captions, not classes")


def test_text_beside_some_only_is_no_label(tmp_path):
    path = write(tmp_path / "a.tar", labelled("txt", ["cat", None, "cat", "cat"]))
    refused(path, f"{path} has no labels, but model.num_classes is 20")
