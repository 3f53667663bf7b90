"""The files of a diffusers pipeline: found in a folder or on the hub, read without diffusers.

Only JSON and safetensors are read, both bounded; nothing in them is trusted.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers.export import OWN
from pdfast.storage import files

INDEX, UNET, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Table(NamedTuple):
    """A JSON object and where it is from, for messages."""

    file: Path
    values: dict[str, Any]


class Pipeline(NamedTuple):
    """What a pipeline is made of."""

    name: str
    """Its class."""
    unet: Table
    scheduler: Table
    weights: Path
    own: Table | None
    """The configuration that our export leaves beside it."""


def find(source: str) -> Path:
    """The folder of a pipeline: `source` itself or, by its id NAME/NAME, a copy from the hub."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(source):
        what = "is a file" if folder.exists() else "is not there"
        raise UsageError(f"{source} {what}: name a pipeline's folder, or its id on the hub")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise PdfastError(
            f"there is no folder {source}, and to download it from the hub huggingface_hub is "
            f"needed ({files.reason(error)}): install pdfast with the extra 'diffusers'"
        ) from None
    inside = [UNET, WEIGHTS, f"{WEIGHTS}.index.json"]
    wanted = [INDEX, OWN, SCHEDULER, f"scheduler/{SCHEDULER}"]
    wanted += [*inside, *(f"unet/{name}" for name in inside)]
    try:
        return Path(hub.snapshot_download(source, allow_patterns=wanted))
    except Exception as error:  # of whatever type: it has many, of several libraries
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PdfastError(
            f"there is no folder {source}, and it could not be downloaded from the hub "
            f"({why[:200]}): where there is a network, download the pipeline's folder, and name "
            "that"
        ) from None


def read(folder: Path) -> Pipeline:
    """Read a folder as diffusers lays it out: parts in sub-folders, or all in the root.

    Raises UsageError for what is no pipeline of a U-Net and a DDPM or DDIM scheduler, PdfastError
    for a damaged file.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UsageError(f"{folder} is no diffusers pipeline: it has no {INDEX}")
    table = Table(index, files.read_json(index))
    name = one_of(table, "_class_name", PIPELINES)
    for part, known in (("unet", ("UNet2DModel",)), ("scheduler", SCHEDULERS)):
        entry = table.values.get(part)
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in known:
            raise UsageError(f"{index}: {part} is {shown(entry)}, not diffusers' {either(known)}")
    unet = _part(folder, "unet", UNET, ("UNet2DModel",))
    scheduler = _part(folder, "scheduler", SCHEDULER, SCHEDULERS)
    own = folder / OWN
    return Pipeline(
        name,
        unet,
        scheduler,
        _weights(unet.file.parent),
        Table(own, files.read_json(own)) if own.is_file() else None,
    )


def _part(folder: Path, part: str, name: str, known: tuple[str, ...]) -> Table:
    """The configuration of one part."""
    place = folder / part if (folder / part).is_dir() else folder
    file = place / name
    if not file.is_file():
        raise UsageError(f"{folder} is no whole pipeline: it has no {file.relative_to(folder)}")
    table = Table(file, files.read_json(file))
    one_of(table, "_class_name", known)
    return table


def _weights(folder: Path) -> Path:
    """The one safetensors file of the network."""
    file = folder / WEIGHTS
    if file.is_file():
        return file
    others = sorted(p.name for p in folder.glob("diffusion_pytorch_model*"))
    again = "load the pipeline in diffusers and write it by save_pretrained(NEW_FOLDER"
    if f"{WEIGHTS}.index.json" in others:
        raise UsageError(
            f"{folder / others[0]}: the weights are in several files, where one is read: {again}, "
            "max_shard_size='1000GB')"
        )
    if any(name.endswith(".bin") for name in others):
        raise UsageError(
            f"{folder / others[0]} is pickled, and loading it could run code in it, so it is not "
            f"read: if you trust it, {again}), which makes {WEIGHTS}"
        )
    found = f" (but {', '.join(others[:3])}: give one that name)" if others else ""
    raise UsageError(
        f"{folder} has no {WEIGHTS}{found}; if a pipeline has pickled weights alone, and you trust "
        f"them, {again}), and import that folder"
    )


# ------------------------------------------------------------------------------------------
# Messages


def one_of(table: Table, key: str, known: tuple[Any, ...], default: Any = None) -> Any:
    """The value of a key, one of `known`; UsageError names the file, the key and the value."""
    value = table.values.get(key, default)
    if not any(value == k and isinstance(value, bool) == isinstance(k, bool) for k in known):
        raise refusal(table, key, value, f"where pdfast has {either(known)}")
    return value


def refusal(table: Table, key: str, value: Any, why: str) -> UsageError:
    """The error for a field that cannot be taken over."""
    return UsageError(f"{table.file}: {key} is {shown(value)}, {why}")


def either(known: tuple[Any, ...]) -> str:
    """`a, b or c`."""
    words = [k if isinstance(k, str) else shown(k) for k in known]
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def shown(value: Any) -> str:
    """A value as JSON has it, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"
