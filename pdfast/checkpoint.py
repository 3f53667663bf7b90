"""Directories of tensors and JSON that are either whole or absent.

`write` stages a directory beside its final name, puts a manifest with the SHA-256 of every file
in it last, and renames it into place; `read` checks the manifest before it believes anything.
Model directories (`save_model`, `load_model`) and a run's saved state are both of this kind.
No pickle anywhere.
"""

import hashlib
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pdfast.config import NetConfig, from_table, to_table
from pdfast.errors import PdfastError, UsageError
from pdfast.kernels import group_norm_silu
from pdfast.model import Model
from pdfast.samplers import MAX_STEPS
from pdfast.version import __version__

MANIFEST, CONFIG, WEIGHTS = "manifest.json", "config.json", "model.safetensors"


def write(
    path: Path, tensors: dict[str, dict[str, Tensor]], tables: dict[str, Any], **facts: Any
) -> None:
    """Write `path/`: one safetensors file per entry of `tensors`, one JSON per entry of `tables`.

    `facts` go into the manifest. A directory that was there stays whole until the new one is, and
    is then replaced. Raises PdfastError, and leaves `path` as it was, when writing fails.
    """
    stage = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        stage.mkdir(parents=True)
        for name, group in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            safetensors.torch.save_file(contiguous, stage / name)
        for name, table in tables.items():
            (stage / name).write_text(json.dumps(table, indent=1) + "\n", "utf-8")
        manifest = {
            "sha256": {file.name: _sha256(file) for file in sorted(stage.iterdir())},
            "versions": _versions(),
            **facts,
        }
        (stage / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        for file in [*stage.iterdir(), stage]:
            _fsync(file)
        if path.exists():
            path.rename(old)
        stage.rename(path)
        _fsync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise PdfastError(f"could not write {path}: {reason(error)}; nothing was changed") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Clear what a killed process left half-written in `folder`, or half-replaced."""
    for left in folder.glob(".*.*.*"):
        name, pid, kind = left.name[1:].rsplit(".", 2)
        if kind not in ("tmp", "old") or not pid.isdecimal() or _alive(int(pid)):
            continue
        if kind == "old" and not (folder / name).exists():
            left.rename(folder / name)  # killed between the two renames: the old one still counts
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """(tensors, tables, manifest) of a directory that `write` made, every file checked.

    Raises PdfastError naming the file that is missing, cut short or altered.
    """
    manifest = _json(path / MANIFEST)
    sums = manifest.get("sha256")
    if not isinstance(sums, dict):
        raise PdfastError(f"{path / MANIFEST} lists no files; write the directory again")
    tensors: dict[str, dict[str, Tensor]] = {}
    tables: dict[str, Any] = {}
    for name, expected in sums.items():
        file = path / Path(name).name
        if not file.is_file():
            raise PdfastError(f"{file} is missing; copy the whole directory again")
        if _sha256(file) != expected:
            raise PdfastError(
                f"{file} is damaged (its SHA-256 is not the manifest's); copy it again or "
                "delete the directory to have it made again"
            )
        if file.suffix == ".json":
            tables[name] = _json(file)
        else:
            try:
                tensors[name] = safetensors.torch.load_file(file)
            except (OSError, safetensors.SafetensorError) as error:
                raise PdfastError(f"{file} cannot be read: {reason(error)}") from None
    return tensors, tables, manifest


def save_model(model: Model, path: str | Path, **facts: Any) -> None:
    """Write a model directory: config.json, model.safetensors, manifest.json."""
    config = {"model": to_table(model.cfg), "steps": model.steps}
    facts["steps"] = model.steps
    facts["group_norm_silu"] = group_norm_silu.implementation(model.device)
    write(Path(path), {WEIGHTS: model.net.state_dict()}, {CONFIG: config}, **facts)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a model directory, verified against its manifest, in evaluation mode.

    Raises UsageError if `path` is no model directory, PdfastError if it is damaged.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}")) if path.is_dir() else []
        hint = f" (models inside it: {', '.join(inside)})" if inside else ""
        raise UsageError(
            f"{path} is not a model directory: it has no {CONFIG}{hint}"
            if path.is_dir()
            else f"there is no model directory {path}"
        )
    tensors, tables, _ = read(path)
    if CONFIG not in tables or WEIGHTS not in tensors:
        raise PdfastError(f"{path / MANIFEST} does not list {CONFIG} and {WEIGHTS}")
    table = tables[CONFIG]
    try:
        steps = table["steps"]
        if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
            raise UsageError("steps must be a whole number, 0 for a teacher")
        cfg = from_table(NetConfig, table["model"], "model.")
    except (KeyError, TypeError, UsageError) as error:
        raise PdfastError(f"{path / CONFIG} is not a model's configuration: {error}") from None
    with torch.device("meta"):
        model = Model(cfg, steps)
    weights, expected = tensors[WEIGHTS], model.net.state_dict()
    for name in sorted(weights.keys() | expected.keys()):
        both = name in weights and name in expected
        if not both or weights[name].shape != expected[name].shape:
            raise PdfastError(f"{path / WEIGHTS} does not fit {CONFIG}: tensor {name}")
        if weights[name].dtype not in (torch.float32, torch.float64):
            raise PdfastError(f"{path / WEIGHTS} must hold float32, not {weights[name].dtype}")
    model.net.load_state_dict(weights, assign=True)
    model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device).eval()


def fingerprint(path: Path) -> str:
    """SHA-256 of a model's weights, as its manifest records it."""
    return str(_json(path / MANIFEST)["sha256"][WEIGHTS])


def cannot_write(path: Path, error: OSError) -> PdfastError:
    """The error for a result that could not be written."""
    return PdfastError(
        f"cannot write to {path}: {reason(error)}; put that right, or choose another place with "
        "--out (what was there before is whole)"
    )


def reason(error: Exception) -> str:
    """What went wrong, without the errno and the repeated file name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    text = str(error)
    return "no space left on device" if "No space left" in text else text


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PdfastError(f"{path} cannot be read: {reason(error)}") from None
    if not isinstance(table, dict):
        raise PdfastError(f"{path} does not hold a JSON object")
    return table


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _versions() -> dict[str, Any]:
    """What a bit-for-bit repetition depends on."""
    return {
        "pdfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
