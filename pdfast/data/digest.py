"""The digest of a set: computed once, by one process, and reused while its files are unchanged.

Digests of large sets are cached in $XDG_CACHE_HOME/pdfast, or ~/.cache/pdfast, under the stamp of
the set's files.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pdfast.config.serialization import from_table, to_table
from pdfast.data.dataset import Dataset
from pdfast.data.prepare import cache_folder
from pdfast.data.readers.reading import listen
from pdfast.distributed import collectives
from pdfast.errors import PdfastError, UsageError
from pdfast.storage import kept
from pdfast.storage.digests import Digest

FORMAT = "1"  # of the cached files; files of another format are computed again
LARGE = 2**28  # bytes of images from which caching the digest pays


def known(data: Dataset) -> Dataset:
    """Return the set with its digest, computed by the first process and sent to all others.

    Args:
        data: The set; returned as it is if its digest is known already.

    Raises:
        UsageError: The file that holds the images is damaged.
    """
    if data.told.known:
        return data
    told = collectives.from_first(lambda: to_table(_found(data)))
    return dataclasses.replace(data, told=from_table(Digest, told))


def _found(data: Dataset) -> Digest:
    if not data.stamp or data.images.nbytes < LARGE:
        return data.digested(listen)
    name = hashlib.sha256(data.stamp.encode()).hexdigest()[:32]
    shape, labels = tuple(data.images.shape), data.labels is not None
    facts = {
        "format": FORMAT,
        "stamp": data.stamp,
        "read as": f"{data.images.dtype} {shape}, {'with' if labels else 'without'} labels",
    }
    try:
        path = cache_folder() / f"data-{name}-{int(labels)}.safetensors"
    except UsageError:
        return data.digested(listen)
    if (before := _read(path, facts)) is not None:
        return before
    digest = data.digested(listen)
    text = bytearray(json.dumps(to_table(digest)).encode())
    _write(path, {"digest": torch.frombuffer(text, dtype=torch.uint8)}, facts)
    return digest


def _read(path: Path, facts: Mapping[str, str]) -> Digest | None:
    try:
        found = kept.load(path, facts)
        if found is None:
            return None
        return from_table(Digest, json.loads(bytes(found["digest"].tolist())))
    except (PdfastError, KeyError, ValueError):  # unusable: the digest is computed again
        return None


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.save(path, tensors, facts)
    except (OSError, PdfastError):  # the next start computes the digest again
        return
