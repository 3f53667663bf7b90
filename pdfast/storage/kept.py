"""Tensors kept in a file to save work: whole, of what is asked for, or not used.

A safetensors file whose metadata says what the tensors are of and has the SHA-256 of them. Losing
one costs time, nothing else.
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
    """Write tensors, and what they are of. Raises PdfastError if that fails."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {**facts, "sha256": digest(held)}
    # Not synced: after a loss of power the digest tells.
    files.write_file(
        path, lambda stage: safetensors.torch.save_file(held, stage, metadata=said), sync=False
    )


def load(path: Path, facts: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The tensors, on the CPU; None where there is no file. Raises Damaged for any other file."""
    if not os.path.exists(path):
        return None
    tensors = files.read_tensors(path)
    with safetensors.safe_open(path, "pt") as file:
        said = file.metadata() or {}
    if said.get("sha256") != digest(tensors):
        raise Damaged(path, "is damaged: its SHA-256 is not the one in it")
    if said != {**facts, "sha256": said["sha256"]}:
        raise Damaged(path, "is of something else")
    return tensors
