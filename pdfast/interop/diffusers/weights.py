"""The weights of a diffusers network: one safetensors file, or several with an index.

`save_pretrained(folder, variant="fp16")` puts a word into the file names. `max_shard_size` makes
several files, and an index that maps each tensor to its file. Pickled weights are never read.
"""

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pdfast.errors import PdfastError, UsageError
from pdfast.storage import files
from pdfast.storage.files import Damaged

STEM = "diffusion_pytorch_model"
WEIGHTS, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"
VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")
SHARD = re.compile(rf"{STEM}[A-Za-z0-9_.-]{{1,100}}\.safetensors")
IN_NAME = re.compile(rf"{STEM}\.([^.]+?)(-\d+-of-\d+)?\.safetensors")  # 1: a file's variant
MAX_SHARDS = 1000
AGAIN = "load the pipeline in diffusers and write it by save_pretrained(NEW_FOLDER"


class Weights(NamedTuple):
    """The files of one network's weights."""

    file: Path
    """The only file, or the index of several."""
    holders: dict[str, Path] | None = None
    """File of each tensor, where the weights are in several files."""

    def facts(self) -> dict[str, object]:
        """Return the files' names and SHA-256 digests, for the imported model's manifest."""
        found: dict[str, object] = {"file": self.file.name, "sha256": files.sha256(self.file)}
        if self.holders is not None:
            shards = sorted(set(self.holders.values()))
            found["shards"] = {shard.name: files.sha256(shard) for shard in shards}
        return found

    def read(self) -> dict[str, Tensor]:
        """Read all tensors, by name, on the CPU, in the files' dtypes.

        Raises:
            PdfastError: A file is damaged, or its tensors are not those that the index lists.
        """
        if self.holders is None:
            return files.read_tensors(self.file)
        found: dict[str, Tensor] = {}
        for shard in sorted(set(self.holders.values())):
            tensors = files.read_tensors(shard)
            listed = {name for name, holder in self.holders.items() if holder == shard}
            if odd := sorted(listed ^ tensors.keys()):
                holds = "lacks" if odd[0] in listed else "holds"
                raise PdfastError(
                    f"{shard} does not fit {self.file.name}: it {holds} tensor {odd[0]}; put a "
                    f"whole copy of {shard.parent} in its place"
                )
            found |= tensors
        return found


def names(variant: str | None) -> tuple[str, ...]:
    """Return the file names that weights may have: of a single file, then of an index.

    Args:
        variant: diffusers' variant, such as "fp16"; None for no variant.

    Raises:
        UsageError: `variant` cannot be part of a file name.
    """
    if variant is None:
        return WEIGHTS, INDEX
    if not VARIANT.fullmatch(variant):
        raise UsageError(f"--variant {variant[:40]!r} is no variant of weights, such as fp16")
    # Earlier versions of diffusers used the last form.
    return (
        f"{STEM}.{variant}.safetensors",
        f"{WEIGHTS}.index.{variant}.json",
        f"{WEIGHTS}.{variant}.index.json",
    )


def on_hub(variant: str | None) -> list[str]:
    """Return patterns of the weights' file names, to download from the hub."""
    word, shards = "" if variant is None else f".{variant}", "-?????-of-?????"
    patterns = [*names(variant), f"{STEM}{word}{shards}.safetensors"]
    return [*patterns, f"{STEM}{shards}{word}.safetensors"] if word else patterns


def find(folder: Path, variant: str | None = None) -> Weights:
    """Find the weights in a network's folder.

    Args:
        folder: The folder.
        variant: diffusers' variant, such as "fp16"; None for no variant.

    Raises:
        UsageError: The weights are missing, pickled, or there both as a file and with an index.
        PdfastError: The index is damaged.
    """
    found = [folder / name for name in names(variant) if (folder / name).is_file()]
    if len(found) > 1:
        raise UsageError(
            f"{folder} holds both {found[0].name} and {found[1].name}: remove the one that is not "
            "meant"
        )
    if not found:
        raise UsageError(_missing(folder, variant))
    if found[0].suffix == ".safetensors":
        return Weights(found[0])
    return Weights(found[0], _holders(found[0]))


def _holders(index: Path) -> dict[str, Path]:
    """Return the file of each tensor, from the index."""
    listed = files.read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise Damaged(index, "has no weight_map, the file of each tensor")
    shards = set(map(str, listed.values()))
    if len(shards) > MAX_SHARDS:
        raise Damaged(index, f"names {len(shards)} files, where {MAX_SHARDS} is the most")
    for name in sorted(shards):
        if not SHARD.fullmatch(name):
            raise Damaged(index, f"names {name[:80]!r}, which is no {STEM}-....safetensors")
        if not (index.parent / name).is_file():
            raise Damaged(index.parent / name, f"is missing, and {index.name} names it")
    return {tensor: index.parent / str(name) for tensor, name in listed.items()}


def _missing(folder: Path, variant: str | None) -> str:
    """Return one sentence on why a folder has no weights to read, and the fix."""
    others = sorted(p.name for p in folder.glob(f"{STEM}*"))
    wanted = names(variant)[0]
    variants = sorted({match[1] for match in map(IN_NAME.fullmatch, others) if match})
    if WEIGHTS in others or INDEX in others:
        return f"{folder} has no {wanted}, but weights without a variant: omit --variant"
    if variants:
        return f"{folder} has no {wanted}, but variants: pass --variant {' or '.join(variants)}"
    if pickled := [name for name in others if ".bin" in name]:
        return (
            f"{folder / pickled[0]} is pickled, and loading it could run code in it, so it is not "
            f"read: if you trust it, {AGAIN}), which makes {WEIGHTS}"
        )
    found = f" (but {', '.join(others[:3])})" if others else ""
    return (
        f"{folder} has no {wanted}{found}; if a pipeline has pickled weights alone, and you trust "
        f"them, {AGAIN}), and import that folder"
    )
