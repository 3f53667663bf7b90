"""Tensors cached in a file to save work, and used only if they are whole and of the same inputs.

It is a safetensors file; its metadata records what the tensors were made from, and their SHA-256.
Losing one costs only time.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from pdfast.storage import files
from pdfast.storage.digests import digest
from pdfast.storage.files import Damaged


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors, and what they were made from.

    Args:
        path: The file.
        tensors: Tensors by name, on any device.
        facts: What the tensors were made from, as texts by name.

    Raises:
        PdfastError: The file cannot be written.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {**facts, "sha256": digest(held)}
    # Not synced: the digest reveals a file damaged by a loss of power.
    files.write_file(
        path, lambda stage: safetensors.torch.save_file(held, stage, metadata=said), sync=False
    )


def load(path: Path, facts: Mapping[str, str]) -> dict[str, Tensor] | None:
    """Read the tensors that `save` wrote with the same `facts`.

    Returns:
        Tensors by name, on the CPU; None if there is no file.

    Raises:
        Damaged: The file is damaged, or was saved with other facts.
    """
    if not os.path.exists(path):
        return None
    tensors = files.read_tensors(path)
    with safetensors.safe_open(path, "pt") as file:
        said = file.metadata() or {}
    if said.get("sha256") != digest(tensors):
        raise Damaged(path, "is damaged: its SHA-256 is not the one in it")
    if said != {**facts, "sha256": said["sha256"]}:
        raise Damaged(path, "was made from something else")
    return tensors
