"""The files of a diffusers pipeline, found in a folder or on the hub, and read without diffusers.

A pipeline is a folder with `model_index.json`. A network alone, a `UNet2DModel` or the averaged
weights of an `EMAModel`, needs a scheduler from elsewhere. Only JSON and safetensors are read, with
bounds on their sizes, and nothing in them is trusted.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers import weights
from pdfast.interop.diffusers.export import OWN
from pdfast.interop.diffusers.weights import Weights
from pdfast.storage import files

INDEX, UNET, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
NETWORK = "UNet2DModel"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Table(NamedTuple):
    """A JSON object and its file, for messages."""

    file: Path
    values: dict[str, Any]


class Pipeline(NamedTuple):
    """The parts of a pipeline."""

    name: str
    """Class of the pipeline; for a network alone, the network's class."""
    unet: Table
    scheduler: Table
    weights: Weights
    own: Table | None
    """Content of pdfast.json, which pdfast's export writes; None if it is absent."""


def find(source: str, variant: str | None = None) -> Path:
    """Return the folder of a pipeline or network, after a download if `source` is an id on the hub.

    Args:
        source: A folder, or an id NAME/NAME on the hub.
        variant: diffusers' word for the variant of the weights; None for no variant.

    Raises:
        UsageError: `source` is neither a folder nor an id.
        PdfastError: The download failed, or huggingface_hub is missing.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(source):
        what = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{source} {what}: name a pipeline's folder, or its id on the hub")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise PdfastError(
            f"there is no folder {source}, and to download it from the hub huggingface_hub is "
            f"needed ({files.reason(error)}): install pdfast with the extra 'diffusers'"
        ) from None
    inside = [UNET, *weights.on_hub(variant)]
    wanted = [INDEX, OWN, SCHEDULER, f"scheduler/{SCHEDULER}"]
    wanted += [*inside, *(f"unet/{name}" for name in inside)]
    try:
        return Path(hub.snapshot_download(source, allow_patterns=wanted))
    except Exception as error:  # errors of several libraries pass through the hub's client
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PdfastError(
            f"there is no folder {source}, and it could not be downloaded from the hub "
            f"({why[:200]}): download the pipeline's folder on a machine with internet access, "
            "and name that folder"
        ) from None


def read(folder: Path, variant: str | None = None, scheduler: Path | None = None) -> Pipeline:
    """Read a pipeline's folder, whose parts are in sub-folders or all in the root.

    Args:
        folder: The folder of a pipeline, or of a network alone.
        variant: diffusers' word for the variant of the weights; None for no variant.
        scheduler: For a network alone, a scheduler_config.json or the folder that holds it.

    Raises:
        UsageError: The folder is not a U-Net with a DDPM or DDIM scheduler.
        PdfastError: A file is damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        return _alone(folder, variant, scheduler)
    if scheduler is not None:
        raise UsageError(f"{folder} is a pipeline, with a scheduler in it: omit --scheduler")
    table = Table(index, files.read_json(index))
    name = one_of(table, "_class_name", PIPELINES)
    for part, known in (("unet", (NETWORK,)), ("scheduler", SCHEDULERS)):
        entry = table.values.get(part)
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in known:
            raise UsageError(f"{index}: {part} is {shown(entry)}, not diffusers' {either(known)}")
    unet = _part(folder, "unet", UNET, (NETWORK,))
    own = folder / OWN
    return Pipeline(
        name,
        unet,
        _part(folder, "scheduler", SCHEDULER, SCHEDULERS),
        weights.find(unet.file.parent, variant),
        Table(own, files.read_json(own)) if own.is_file() else None,
    )


def _part(folder: Path, part: str, name: str, known: tuple[str, ...]) -> Table:
    """Read the configuration of one part, whose class must be known."""
    place = folder / part if (folder / part).is_dir() else folder
    file = place / name
    if not file.is_file():
        raise UsageError(
            f"{folder} is not a complete pipeline: it has no {file.relative_to(folder)}"
        )
    table = Table(file, files.read_json(file))
    one_of(table, "_class_name", known)
    return table


def _alone(folder: Path, variant: str | None, scheduler: Path | None) -> Pipeline:
    """Read a folder that `UNet2DModel` or `EMAModel` wrote, with a scheduler from elsewhere."""
    if not (folder / UNET).is_file():
        inside = sorted(file.parent.name for file in folder.glob(f"*/{UNET}"))
        hint = f" (networks in it: {', '.join(inside)}: name one, and --scheduler)"
        raise UsageError(
            f"{folder} is no diffusers pipeline: it has no {INDEX}{hint if inside else ''}"
        )
    unet = _part(folder, "", UNET, (NETWORK,))
    if scheduler is None:
        near = (folder, folder / "../scheduler", folder / "../../scheduler")  # of a checkpoint
        found = next((place.resolve() for place in near if (place / SCHEDULER).is_file()), None)
        raise UsageError(
            f"{unet.file} is of a network without a scheduler: pass --scheduler, the "
            f"{SCHEDULER} that it was trained with or its folder{f', as {found}' if found else ''}"
        )
    places = (scheduler, scheduler / SCHEDULER, scheduler / "scheduler" / SCHEDULER)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(
            f"--scheduler {scheduler}: there is no {SCHEDULER}; in diffusers "
            "DDPMScheduler(...).save_pretrained(FOLDER) writes one"
        )
    table = Table(file, files.read_json(file))
    one_of(table, "_class_name", SCHEDULERS)
    return Pipeline(NETWORK, unet, table, weights.find(folder, variant), None)


# ------------------------------------------------------------------------------------------
# Messages


def one_of(table: Table, key: str, known: tuple[Any, ...], default: Any = None) -> Any:
    """Return the value of a key, or raise a UsageError that names it unless it is in `known`."""
    value = table.values.get(key, default)
    if not any(value == k and isinstance(value, bool) == isinstance(k, bool) for k in known):
        raise refusal(table, key, value, f"where pdfast has {either(known)}")
    return value


def refusal(table: Table, key: str, value: Any, why: str) -> UsageError:
    """Return the error for a field that pdfast cannot represent."""
    return UsageError(f"{table.file}: {key} is {shown(value)}, {why}")


def either(known: tuple[Any, ...]) -> str:
    """Return the values joined as "a, b or c"."""
    words = [k if isinstance(k, str) else shown(k) for k in known]
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def shown(value: Any) -> str:
    """Return a value as JSON, shortened to about 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"
