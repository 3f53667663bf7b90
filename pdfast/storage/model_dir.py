"""Model directories as files: whether they are whole, and what identifies them.

models/checkpoint.py reads and writes their contents.
"""

from pathlib import Path
from typing import Any, Literal

from pdfast.errors import PdfastError
from pdfast.storage import files
from pdfast.storage.files import MANIFEST, Damaged

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model_index.json"  # of a diffusers pipeline


def verify(path: Path) -> dict[str, Any]:
    """Check all files of a model directory, and return its manifest.

    Raises:
        Damaged: A file is missing, cut short or altered; the message names it.
        OtherVersion: The directory has a newer format.
    """
    manifest = files.verify(path)
    check_listed(path, manifest)
    return manifest


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a model's weights, as its manifest records it.

    Raises:
        Damaged: The manifest is damaged, or lists no weights.
        OtherVersion: The directory has a newer format.
    """
    manifest = files.read_manifest(path)
    check_listed(path, manifest)
    return str(manifest["files"][WEIGHTS]["sha256"])


def of_diffusers(path: Path) -> Literal["pipeline", "network", ""]:
    """Return what of diffusers a folder holds; "" for a model directory or any other folder."""
    if (path / INDEX).is_file():
        return "pipeline"
    return "network" if "_class_name" in _table(path / CONFIG) else ""


def is_model(path: Path) -> bool:
    """Return whether a folder is a model directory, without verifying it."""
    return (path / MANIFEST).is_file() and "steps" in _table(path / CONFIG)


def _table(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if it cannot be read."""
    try:
        return files.read_json(file)
    except PdfastError:
        return {}


def check_listed(path: Path, manifest: dict[str, Any]) -> None:
    """Check that the manifest lists the files of a model.

    Raises:
        Damaged: A file is not listed.
    """
    for name in (CONFIG, WEIGHTS):
        if name not in manifest["files"]:
            raise Damaged(path / MANIFEST, f"does not list {name}")
