"""Readers register themselves: a reader added by one module is known wherever sources are named."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import readers, sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import registry
from pdfast.data.readers.registry import LAST, Reader, register
from pdfast.errors import UsageError

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
# A reader of files of 8x8 grey images, 64 bytes each.
MODULE = """
from pathlib import Path

import numpy as np

from pdfast.data.readers.reading import Arrays
from pdfast.data.readers.registry import Reader, register


def read(source, wanted):
    return Arrays(np.fromfile(source, np.uint8).reshape(-1, 8, 8, 1))


register(
    Reader(
        kind="a .grey8",
        labels="a .labels8 file",
        suffixes=(".grey8",),
        sniff=lambda path: path.stat().st_size % 64 == 0,
        priority=15,
        open=read,
        files=lambda source: [Path(source)],
        count=lambda source: Path(source).stat().st_size // 64,
    )
)
"""


@pytest.fixture
def registered(monkeypatch):
    """Return the list of readers, to which a test may add."""
    found = list(registry.READERS)
    monkeypatch.setattr(registry, "READERS", found)
    return found


@pytest.fixture
def module(registered, tmp_path, monkeypatch):
    """Add a module to the package."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "grey8.py").write_text(MODULE)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "package")])
    registry.discover()
    yield
    del readers.grey8, sys.modules[f"{readers.__name__}.grey8"]


def raw(path: Path, num: int = 3) -> Path:
    """Write a file of such images."""
    path.write_bytes(bytes(range(64)) * num)
    return path


@pytest.mark.usefixtures("module")
def test_a_new_module_is_all_that_a_new_source_needs(tmp_path, monkeypatch):
    path = raw(tmp_path / "A.GREY8")
    data, grey = DataConfig(source=str(path)), NetConfig(image_size=8, channels=1)
    images = load_dataset(data, grey).images
    assert np.array_equal(images.flatten(), list(range(64)) * 3)
    assert sources.count(data) == 3
    assert not sources.resizes(str(path))
    assert sources.absolute(str(path)) == str(path)
    with pytest.raises(UsageError, match=r"add labels \(class .*`labels`.*, a \.labels8 file, "):
        load_dataset(data, NetConfig(image_size=8, channels=1, num_classes=2))
    path.write_bytes(b"another format of the same suffix")
    with pytest.raises(UsageError, match=r"nor an \.npz, a \.grey8, an \.\.\.images-idx3"):
        load_dataset(data, grey)
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    raw(tmp_path / "digits" / "a.grey8")
    with pytest.raises(UsageError, match="digits is the name of scikit-learn's set"):
        load_dataset(DataConfig(source="digits"), grey)


@pytest.mark.usefixtures("registered")
def test_the_lower_priority_reads_what_two_may_recognize(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"mine")
    reader = Reader(
        kind="mine",
        suffixes=(".npz",),
        sniff=lambda path: path.read_bytes() == b"mine",
        priority=9,
        open=lambda source, wanted: pytest.fail("not opened"),
    )
    register(reader)
    assert registry.reader_of(str(path)) is reader
    path.write_bytes(b"another's")
    other = registry.reader_of(str(path))
    assert other is not None
    assert other.kind == "an .npz"


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"keyword": "hf:"}, "hf:"),
        ({"keyword": "hf:mirror:"}, "hf:"),
        ({"kind": "a .gray", "priority": 10}, "an .npz"),
        ({"kind": "a folder of films", "priority": LAST}, "a folder of images"),
    ],
)
def test_no_two_readers_are_asked_at_once(registered, options, other):
    before = len(registered)
    with pytest.raises(ValueError, match=f"'{other}' need different keywords or priorities"):
        register(Reader(open=lambda source, wanted: pytest.fail("not opened"), **options))
    assert len(registered) == before


def test_every_reader_has_a_row_in_the_docs():
    _, _, behind = PAGE.read_text().partition("| source | labels")
    table, _, _ = behind.lower().partition("\n\n")
    for reader in registry.READERS:
        names = [reader.keyword] if reader.keyword else [*reader.suffixes, reader.kind]
        assert any(name in table for name in names), names
