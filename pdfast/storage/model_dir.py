"""Model directories as files: which there are, and whether they are as they were written.

What is in them is read and written by models/checkpoint.py.
"""

from pathlib import Path
from typing import Any

from pdfast.storage import files
from pdfast.storage.files import MANIFEST, Damaged

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def verify(path: Path) -> dict[str, Any]:
    """The manifest; raises Damaged, naming the file, unless all bytes are as written."""
    manifest = files.verify(path)
    check_listed(path, manifest)
    return manifest


def fingerprint(path: Path) -> str:
    """SHA-256 of a model's weights, as its manifest records it."""
    manifest = files.read_manifest(path)
    check_listed(path, manifest)
    return str(manifest["files"][WEIGHTS]["sha256"])


def check_listed(path: Path, manifest: dict[str, Any]) -> None:
    """Raise Damaged unless the manifest lists the files of a model."""
    for name in (CONFIG, WEIGHTS):
        if name not in manifest["files"]:
            raise Damaged(path / MANIFEST, f"does not list {name}")
