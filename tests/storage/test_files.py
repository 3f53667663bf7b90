"""Files and directories are whole or absent; every byte is checked, and nothing is trusted."""

import json
import os

import pytest
import torch

from pdfast.errors import PdfastError
from pdfast.storage import files
from pdfast.storage.files import Damaged


@pytest.fixture
def made(tmp_path):
    """Write a directory of one safetensors file and one table."""
    path = tmp_path / "made"
    files.write(path, {"a.safetensors": {"x": torch.arange(6.0)}}, {"t.json": {"n": 1}}, fact="f")
    return path


def test_round_trip(made):
    tensors, tables, manifest = files.read(made)
    assert torch.equal(tensors["a.safetensors"]["x"], torch.arange(6.0))
    assert tables == {"t.json": {"n": 1}}
    assert manifest["fact"] == "f"
    assert manifest["files"]["t.json"]["bytes"] == (made / "t.json").stat().st_size
    assert [p.name for p in made.parent.iterdir()] == ["made"]


def test_the_folder_above_is_not_made(made):
    with pytest.raises(PdfastError, match=r"could not write .*: no such file or directory"):
        files.write(made.parent / "absent" / "made", {}, {"t.json": {}})
    with pytest.raises(PdfastError, match=r"cannot write to .*: no such file or directory"):
        files.write_file(made.parent / "absent" / "x", lambda stage: stage.write_text("x"))
    assert [p.name for p in made.parent.iterdir()] == ["made"]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "picture.png"
    files.write_file(path, lambda stage: stage.write_text(f"old{stage.suffix}"))

    def fail(stage):
        stage.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(PdfastError, match=r"picture\.png: no space left on device; fix the cause"):
        files.write_file(path, fail)
    assert path.read_text() == "old.png"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_listed_are_ignored(made):
    (made / "note.json").write_text("{not json")
    assert set(files.read(made).tables) == {"t.json"}


def test_size_is_checked_before_the_content_is_read(made, monkeypatch):
    with (made / "a.safetensors").open("ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(files, "sha256", lambda file: pytest.fail(f"{file} was read"))
    with pytest.raises(Damaged, match=r"a\.safetensors is damaged: it has \d+ bytes, not the"):
        files.verify(made)


@pytest.mark.parametrize(
    "name",
    ["../t.json", "/etc/passwd", "..", ".", "", "sub/t.json", "t.json\0", "t\n.json", "\ud800"],
)
def test_a_name_that_leads_elsewhere_is_refused(made, name):
    manifest = json.loads((made / "manifest.json").read_text())
    listed = {name: manifest["files"]["t.json"]}
    files.seal(made, files=listed)
    with pytest.raises(
        Damaged, match=r"manifest\.json lists .* which is not a plain file name"
    ) as e:
        files.read(made)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "facts",
    [
        {"files": []},
        {"files": {"t.json": 1}},
        {"files": {"t.json": {"bytes": 1}}},
        {"files": {"manifest.json": {"bytes": 1, "sha256": ""}}},
        {"versions": None},
    ],
)
def test_a_manifest_of_another_shape_is_refused(made, facts):
    files.seal(made, **facts)
    with pytest.raises(Damaged, match=r"manifest\.json "):
        files.read(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "does not hold a JSON object"),
        ('{"x": NaN}', "NaN is not a finite number"),
        ('{"x": -Infinity}', "-Infinity is not a finite number"),
        ('{"x": 1e999}', "1e999 is not a finite number"),
        ('{"x": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"x": ' * 100_000, "nested too deeply"),
        ('{"x": "' + "y" * 2**20 + '"}', "is longer than 1048576 bytes"),
        ("\xff", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_tables_are_bounded_and_finite(made, text, message):
    (made / "t.json").write_bytes(text.encode("latin-1"))
    files.seal(made)
    with pytest.raises(Damaged, match=rf"t\.json .*{message}") as error:
        files.read(made)
    assert "\n" not in str(error.value)


def test_a_manifest_is_bounded(made):
    with (made / "manifest.json").open("ab") as file:
        file.write(b" " * 2**20)
    with pytest.raises(Damaged, match=r"manifest\.json is longer than 1048576 bytes"):
        files.read(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((2**63).to_bytes(8, "little"), "has a header of 9223372036854775808 bytes"),
        ((2**23 + 1).to_bytes(8, "little") + b"{}", "has a header of 8388609 bytes"),
        ((100).to_bytes(8, "little") + b"{}", "cannot be read"),
        (b"\0\0", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_headers_of_tensors_are_bounded(made, content, message):
    (made / "a.safetensors").write_bytes(content)
    files.seal(made)
    with pytest.raises(Damaged, match=rf"a\.safetensors {message}"):
        files.read(made)


@pytest.mark.parametrize(("dtype", "num"), [("F6_E2M3", 32), ("Q7", 8)])
def test_a_number_type_that_torch_may_not_have(made, dtype, num):
    header = json.dumps({"x": {"dtype": dtype, "shape": [num], "data_offsets": [0, 8]}}).encode()
    (made / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    files.seal(made)
    with pytest.raises(Damaged, match=r"a\.safetensors cannot be read"):
        files.read(made)


def test_what_is_put_aside_replaces_nothing(made):
    names = []
    for _ in range(3):
        made.mkdir(exist_ok=True)
        names.append(files.set_aside(made).name)
    assert names == ["made.damaged", "made.damaged-2", "made.damaged-3"]
    assert (made.parent / "made.damaged" / "t.json").is_file()
    assert not made.exists()


def test_files_have_the_modes_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "x", {"a.safetensors": {"a": torch.zeros(1)}}, {"b.json": {}})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "x").iterdir()} == {0o640}
