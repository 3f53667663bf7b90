"""Model directories as files: whether they are whole, and what identifies them.

models/checkpoint.py reads and writes their contents.
"""

from pathlib import Path
from typing import Any

from pdfast.storage import files
from pdfast.storage.files import MANIFEST, Damaged

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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


def check_listed(path: Path, manifest: dict[str, Any]) -> None:
    """Check that the manifest lists the files of a model.

    Raises:
        Damaged: A file is not listed.
    """
    for name in (CONFIG, WEIGHTS):
        if name not in manifest["files"]:
            raise Damaged(path / MANIFEST, f"does not list {name}")
