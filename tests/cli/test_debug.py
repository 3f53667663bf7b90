"""--debug shows the traceback and the cause of every one-line error; without it, neither shows."""

import re

import pytest

from pdfast.cli.main import main
from pdfast.console.messages import debugging, sentence, trace
from pdfast.errors import PdfastError
from pdfast.storage import files

pytestmark = pytest.mark.usefixtures("handlers")

# An error of every command: arguments, message, and a cause that only --debug shows.
MISTAKES = {
    "train": ("train --config bad.toml", "bad.toml is not valid TOML", "TOMLDecodeError"),
    "distill": ("distill --seed x", "--seed", "SystemExit"),
    "sample": ("sample model", "model.safetensors cannot be read", "SafetensorError"),
    "eval": ("eval model --config digits", "cannot be read", "SafetensorError"),
    "import": ("import absent --from google --config digits --out out", "absent", "in leaves"),
    "export": ("export model --to diffusers --out out", "cannot be read", "SafetensorError"),
    "data": ("data bad.zip --size 8 --out out.npz", "bad.zip", "BadZipFile"),
    "doctor": ("doctor --device tpu", "no device 'tpu'", "in choose_device"),
}


@pytest.fixture
def wrong(straight, tmp_path, monkeypatch):
    """A folder with the damaged files that the errors need."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("[model\n")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    tensors = {"model.safetensors": {}}
    files.write(tmp_path / "model", tensors, {"config.json": {"steps": 0}})
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}" + bytes(1))
    (tmp_path / "model" / "manifest.json").unlink()
    files.seal(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("command", MISTAKES)
def test_every_command(wrong, capsys, command):
    words, message, cause = MISTAKES[command]
    args = words.split()
    code = main(args)
    plain = capsys.readouterr()
    assert code in (1, 2)
    assert message in plain.err
    assert plain.err.count("\n") == 1
    assert "Traceback" not in plain.err
    assert "--debug" not in plain.err  # only unforeseen errors suggest it
    for place in (0, 1, len(args)):
        assert main([*args[:place], "--debug", *args[place:]]) == code
        shown = capsys.readouterr()
        assert shown.out == plain.out
        assert shown.err.endswith(f"\n{plain.err}")
        assert shown.err.startswith("Traceback (most recent call last):\n")
        assert cause in shown.err
        assert re.search(r'File ".*/pdfast/\w+.*\.py", line \d+, in \w+', shown.err)
        assert not debugging()  # the flag holds for one command


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_the_environment_asks_for_it_too(capsys, monkeypatch, value, shown):
    monkeypatch.setenv("PDFAST_DEBUG", value)
    assert main(["doctor", "--device", "tpu"]) == 2
    assert ("in choose_device" in capsys.readouterr().err) == shown


def test_what_was_not_foreseen_is_one_line_with_a_hint(capsys, monkeypatch):
    def broken(*args):
        try:
            {}["inner"]
        except KeyError:
            raise RuntimeError("outer\x1b[31m\nsecond line") from None

    monkeypatch.setattr("pdfast.cli.doctor.choose_device", broken)
    assert main(["doctor"]) == 1
    line = "pdfast: unexpected RuntimeError: outer\\x1b[31m"
    assert capsys.readouterr().err == f"{line} (--debug shows where)\n"
    assert main(["doctor", "--debug"]) == 1
    shown = capsys.readouterr().err
    assert shown.endswith(f"\n{line}\n")
    assert "KeyError: 'inner'" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (FileNotFoundError(2, "No such file", "a/b"), "a/b: No such file (--debug shows where)", 1),
        (OSError(28, "No space left"), "output: No space left (--debug shows where)", 1),
        (MemoryError(), "out of memory: raise accumulate", 1),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory: raise accumulate", 1),
        (ValueError(), "unexpected ValueError: no message (--debug shows where)", 1),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt", 1),
        (PdfastError("free\nspace"), "free\\nspace", 1),
    ],
)
def test_sentences(error, said, code):
    text, found = sentence(error)
    assert text.startswith(said)
    assert found == code


def test_a_cause_in_another_process_is_shown_there():
    """An error that from_first passes on has the first process's error as its cause."""
    try:
        try:
            raise FileNotFoundError(2, "No such file or directory", "deep/inside")
        except OSError:
            raise PdfastError("the first's words") from None
    except PdfastError as first:
        passed_on = PdfastError("the first's words")
        passed_on.__cause__ = first
    assert "deep/inside" in trace(passed_on)
