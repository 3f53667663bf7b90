"""Files, and directories of tensors and JSON, that are either whole or absent.

- `write_file` writes one file, `write` a directory: under another name, synced, then renamed.
- A directory's manifest records size and SHA-256 of every file in it, and its own SHA-256; `verify`
  and `read` check everything before using it, so a single altered byte is found and named.
- Only what pdfast wrote, and nobody has changed since, is replaced: see `check_replaceable`.

Model directories (model_dir.py) and saved states (runs/training_state.py) are of this kind. There
is no pickle anywhere, and no file is trusted: names, sizes and headers are bounded.
"""

import hashlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pdfast.config import formats
from pdfast.config.formats import FORMAT, Written
from pdfast.errors import PdfastError, UsageError
from pdfast.storage.marks import has_mark
from pdfast.storage.staging import beside
from pdfast.version import __version__

MANIFEST = "manifest.json"
MAX_JSON = 2**20  # bytes
MAX_HEADER = 2**23  # bytes of a safetensors file's JSON
# How a manifest begins. Its own digest follows, computed with zeros in that place.
HEAD = b'{\n "manifest_sha256": "'
DIGITS = 64
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of a file in a manifest


class Damaged(PdfastError):  # noqa: N818  # names the state of a directory, not an error
    """A file is missing, cut short or altered; `what` says so without naming the fix."""

    def __init__(self, file: Path, how: str) -> None:
        self.what = f"{file} {how}"
        super().__init__(f"{self.what}; put a whole copy of {file.parent} in its place")


class Contents(NamedTuple):
    """The contents of a directory."""

    tensors: dict[str, dict[str, Tensor]]
    """Tensors by file and by name, on the CPU."""
    tables: dict[str, dict[str, Any]]
    """JSON objects by file."""
    manifest: dict[str, Any]


# ------------------------------------------------------------------------------------------
# Writing


def write_file(path: Path, save: Callable[[Path], object], sync: bool = True) -> None:
    """Have `save` write a file under another name, and rename it to `path` when it is whole.

    Args:
        path: The file, which is replaced.
        save: Writes the file, given a path with the same suffix.
        sync: Wait for the disk, so that the file outlasts a loss of power.

    Raises:
        PdfastError: Writing failed; `path` is unchanged.
        UsageError: `path` is a symlink.
    """
    _refuse_symlink(path)
    stage = beside(path, "tmp")
    try:
        save(stage)
        if sync:
            fsync(stage)
        stage.replace(path)
        if sync:
            fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        stage.unlink(missing_ok=True)


def write(
    path: Path, tensors: dict[str, dict[str, Tensor]], tables: dict[str, Any], **facts: Any
) -> None:
    """Write `path/`: one safetensors file per entry of `tensors`, one JSON per entry of `tables`.

    A directory at `path` stays whole until the new one is, and is then replaced. The folder that
    contains it must exist.

    Args:
        path: The directory.
        tensors: Tensors by file name and by name, on any device.
        tables: JSON objects by file name.
        **facts: Further entries of the manifest.

    Raises:
        PdfastError: Writing failed; `path` is unchanged.
        UsageError: `path` may not be replaced; see `check_replaceable`.
    """

    def fill(stage: Path) -> None:
        for name, group in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            safetensors.torch.save_file(contiguous, stage / name)
        for name, table in tables.items():
            text = json.dumps(table, indent=1, allow_nan=False)
            (stage / name).write_text(text + "\n", "utf-8")
        seal(stage, **facts)

    write_folder(path, fill)


def write_folder(path: Path, fill: Callable[[Path], object], sync: bool = True) -> None:
    """Have `fill` write files and folders into a new directory, and rename it to `path` when whole.

    `write` does this for a directory with a manifest.

    Args:
        path: The directory.
        fill: Writes the files, given the path of a new directory.
        sync: Wait for the disk, so that the directory outlasts a loss of power.

    Raises:
        PdfastError: Writing failed; `path` is unchanged.
        UsageError: `path` may not be replaced; see `check_replaceable`.
    """
    path = Path(os.path.abspath(path))  # "." has no name, which the stage's name is made from
    check_replaceable(path)
    if path.is_file():
        raise _foreign(f"{path} is a file")
    stage, old = beside(path, "tmp"), beside(path, "old")
    try:
        stage.mkdir()
        fill(stage)
        mode = stage.stat().st_mode & 0o666
        for file in stage.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # safetensors writes for the owner alone, whatever the umask
            if sync:
                fsync(file)
        if sync:
            fsync(stage)
        if os.path.lexists(path):
            check_replaceable(path)  # again: filling may have taken long
            path.rename(old)
        stage.rename(path)
        if sync:
            fsync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise PdfastError(f"could not write {path}: {reason(error)}; nothing was changed") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def seal(path: Path, **facts: Any) -> None:
    """Write the manifest of a directory, from the files that are now in it and below it.

    Args:
        path: The directory.
        **facts: Further entries of the manifest.

    Raises:
        UsageError: The manifest would be too long to be read.
    """
    listed = {
        file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(path.rglob("*"))
        if file.is_file() and file != path / MANIFEST
    }
    blank = {"manifest_sha256": "0" * DIGITS}
    kind = {"format": FORMAT, "files": listed, "versions": versions()}
    manifest = {**blank, **kind, **facts, **blank}
    text = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
    if len(text) > MAX_JSON:
        raise UsageError(
            f"a manifest of {len(text)} bytes is longer than {MAX_JSON}, the most that is read: "
            "store fewer files or facts in the directory"
        )
    digest = hashlib.sha256(text).hexdigest().encode()
    (path / MANIFEST).write_bytes(HEAD + digest + text[len(HEAD) + DIGITS :])


def remove(path: Path) -> None:
    """Remove a directory so that a process killed meanwhile leaves none that looks damaged."""
    stage = beside(path, "tmp")
    try:
        path.rename(stage)
    except OSError:
        return  # leave it in place
    shutil.rmtree(stage, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged directory to a free name that says so, and return the new path."""
    aside, count = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.damaged-{count}")
    path.rename(aside)
    fsync(path.parent)
    return aside


def make_folder(path: Path) -> None:
    """Make a folder in an existing one, synced to disk, unless it exists."""
    if not path.is_dir():
        path.mkdir()
        fsync(path.parent)


# ------------------------------------------------------------------------------------------
# Replacing


def check_new(path: Path, force: bool = False) -> None:
    """Check that `path` may be written as a new file or directory.

    Args:
        path: The destination.
        force: Also accept what `check_replaceable` accepts.

    Raises:
        UsageError: `path` exists and is not an empty folder, or may not be replaced.
    """
    if force:
        check_replaceable(path)
        return
    _refuse_symlink(path)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            f"{path} already exists: choose another --out, remove it, or pass --force, which "
            "replaces only what pdfast wrote"
        )


def check_replaceable(path: Path) -> None:
    """Check that replacing `path` loses nothing that pdfast did not write.

    `path` may be absent, an empty folder or file, a folder that holds exactly the files that its
    manifest lists, unchanged, and files with pdfast's mark, alone or in a folder. No symlink is
    followed.

    Raises:
        UsageError: `path` is, or holds, anything else.
    """
    _refuse_symlink(path)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        if not has_mark(path):
            raise _foreign(f"{path} is not known to be pdfast's")
        return
    try:
        found = sorted(_below(path))
    except OSError as error:
        raise _foreign(f"{path} cannot be read ({reason(error)})") from None
    for name in found:
        if (path / name).is_symlink():
            raise _foreign(f"{path} holds a symlink, {name}")
    if MANIFEST not in found:
        for name in found:
            if "/" in name or not has_mark(path / name):
                raise _foreign(f"{path} holds {name}, which is not known to be pdfast's")
        return
    try:
        listed = verify(path, nested=True)["files"]
    except Damaged as error:
        raise _foreign(f"{path} is not as pdfast wrote it: {error.what}") from None
    for name in found:
        if name != MANIFEST and name not in listed:
            raise _foreign(f"{path} holds {name}, which its {MANIFEST} does not list")


def _refuse_symlink(path: Path) -> None:
    if path.is_symlink():
        raise _foreign(f"{path} is a symlink")


def _foreign(what: str) -> UsageError:
    return UsageError(f"{what}, and is not replaced: choose another place, or move it away")


def _below(path: Path) -> Iterator[str]:
    """Yield names, relative to a folder, of the files, symlinks and empty folders below it."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(path, onerror=fail):
        place = Path(folder)
        links = [name for name in folders if (place / name).is_symlink()]
        if not folders and not names and place != path:
            yield place.relative_to(path).as_posix()
        yield from ((place / name).relative_to(path).as_posix() for name in (*names, *links))


# ------------------------------------------------------------------------------------------
# Reading


def read(path: Path) -> Contents:
    """Read a directory that `write` made; every file is checked first.

    Files that the manifest does not list are ignored.

    Raises:
        Damaged: A file is missing, cut short or altered; the message names it.
        OtherVersion: The directory has a newer format.
    """
    manifest = verify(path)
    contents = Contents({}, {}, manifest)
    for name in manifest["files"]:
        if name.endswith(".json"):
            contents.tables[name] = read_json(path / name)
        elif name.endswith(".safetensors"):
            contents.tensors[name] = read_tensors(path / name)
    return contents


def verify(path: Path, nested: bool = False) -> dict[str, Any]:
    """Check every file of a directory against its manifest, and return the manifest.

    Args:
        path: The directory.
        nested: The manifest may list files of folders inside.

    Raises:
        Damaged: A file is missing, cut short or altered; the message names it.
        OtherVersion: The directory has a newer format.
    """
    manifest = read_manifest(path, nested)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise Damaged(file, "is missing")
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise Damaged(
                    file, f"is damaged: it has {size} bytes, not the manifest's {entry['bytes']}"
                )
            if sha256(file) != entry["sha256"]:
                raise Damaged(file, "is damaged: its SHA-256 is not the manifest's")
        except OSError as error:
            raise Damaged(file, f"cannot be read: {reason(error)}") from None
    return manifest


def read_manifest(path: Path, nested: bool = False) -> dict[str, Any]:
    """Read a directory's manifest, checked against its own digest; it lists plain file names only.

    How it begins, and how it states format and version, is the same in every format.

    Args:
        path: The directory.
        nested: File names may be preceded by names of folders.

    Raises:
        Damaged: The manifest is missing or altered.
        OtherVersion: The directory has a newer format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise Damaged(file, "is missing")
    content = _bounded(file)
    digest, rest = content[len(HEAD) : len(HEAD) + DIGITS], content[len(HEAD) + DIGITS :]
    blank = HEAD + b"0" * DIGITS + rest
    if not content.startswith(HEAD) or hashlib.sha256(blank).hexdigest().encode() != digest:
        raise Damaged(file, "is damaged: its SHA-256 is not the one in it")
    manifest = _object(file, content)
    written(path, manifest)
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not isinstance(manifest.get("versions"), dict):
        raise Damaged(file, "lists no files or no versions")
    for name, entry in listed.items():
        parts = name.split("/") if nested else [name]
        if not all(map(NAME.fullmatch, parts)) or name == MANIFEST:
            raise Damaged(file, f"lists {name!r}, which is not a plain file name")
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise Damaged(file, f"has no size or no SHA-256 for {name}")
    return manifest


def written(path: Path, manifest: dict[str, Any]) -> Written:
    """Return which version wrote a directory with this manifest, and in which format.

    Raises:
        Damaged: The manifest does not say.
        OtherVersion: The directory has a newer format.
    """
    versions = manifest.get("versions")
    version = versions.get("pdfast") if isinstance(versions, dict) else None
    try:
        return formats.written(path, manifest.get("format"), version)
    except ValueError as error:
        raise Damaged(path / MANIFEST, str(error)) from None


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file of bounded size, with finite numbers only.

    Raises:
        Damaged: The file is missing, too long, or not such an object.
    """
    return _object(file, _bounded(file))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name, on the CPU.

    Raises:
        Damaged: The file is missing or damaged.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
    except OSError as error:
        raise Damaged(file, f"cannot be read: {reason(error)}") from None
    if length > MAX_HEADER:
        raise Damaged(file, f"has a header of {length} bytes, where {MAX_HEADER} is the most")
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # the parser may raise any type on a damaged file
        raise Damaged(file, f"cannot be read: {reason(error)}") from None


def _bounded(file: Path) -> bytes:
    """Return the content of a JSON file of at most MAX_JSON bytes."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_JSON + 1)
    except OSError as error:
        raise Damaged(file, f"cannot be read: {reason(error)}") from None
    if len(content) > MAX_JSON:
        raise Damaged(file, f"is longer than {MAX_JSON} bytes, the most for a JSON file")
    return content


def _object(file: Path, content: bytes) -> dict[str, Any]:
    """Parse a JSON object of finite numbers."""
    try:
        table = json.loads(content.decode(), parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise Damaged(file, "cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(file, f"cannot be read: {reason(error)}") from None
    if not isinstance(table, dict):
        raise Damaged(file, "does not hold a JSON object")
    return table


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


# ------------------------------------------------------------------------------------------
# Shared by writing and reading


def cannot_write(path: Path, error: OSError) -> PdfastError:
    """Return the error for a result that could not be written."""
    return PdfastError(
        f"cannot write to {path}: {reason(error)}; fix the cause, or choose another place with "
        "--out (what was there before is whole)"
    )


def reason(error: Exception) -> str:
    """Return the cause of an error on one line, without errno and file name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    text = " ".join(str(error).split())
    return "no space left on device" if "No space left" in text else text


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, outlast a loss of power."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def versions() -> dict[str, Any]:
    """Return versions and machine facts that bit-for-bit repetition depends on."""
    return {
        "pdfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
