"""The files of a diffusers pipeline, found in a folder or on the hub, and read without diffusers.

A pipeline is a folder with `model_index.json`. A network alone, a `UNet2DModel` or the averaged
weights of an `EMAModel`, needs a scheduler from elsewhere. Only JSON and safetensors are read, with
bounds on their sizes, and nothing in them is trusted.
"""

import importlib
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers import weights
from pdfast.interop.diffusers.export import OWN
from pdfast.interop.diffusers.weights import Weights
from pdfast.storage import files
from pdfast.storage.model_dir import INDEX, is_model, of_diffusers

UNET, SCHEDULER = "config.json", "scheduler_config.json"
NETWORK = "UNet2DModel"
CONDITIONAL: tuple[Any, ...] = ("UNet2DConditionModel", "UNet3DConditionModel")  # on text
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
OTHER_PARTS = {  # of pipelines that pdfast cannot distil, and what their networks work on
    "vae": "latents, not pixels",
    "vqvae": "latents, not pixels",
    "text_encoder": "text, too",
}
PIXELS_ALONE = "and pdfast distils networks of pixels and classes alone (docs/limits.md)"
OF_TEXT = f"a text-conditional network, {PIXELS_ALONE}"
MAX_LISTED = 10  # names in a message
MAX_REASON = 200  # characters of the hub client's message
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
        what = f"is a file, in {folder.parent}" if folder.exists() else "does not exist"
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
    wanted += [f"{part}/{UNET}" for part in OTHER_PARTS]  # so that they are seen
    try:
        return Path(hub.snapshot_download(source, allow_patterns=wanted))
    except Exception as error:  # errors of several libraries pass through the hub's client
        why = _first_sentence(str(error)) or type(error).__name__
        raise PdfastError(
            f"there is no folder {source}, and it could not be downloaded from the hub "
            f"({why}): download the pipeline's folder on a machine with internet access, "
            "and name that folder"
        ) from None


def _first_sentence(text: str) -> str:
    """Return the first sentence of an error's text, cut between two words if it is long."""
    sentence = re.split(r"(?<=[^.])\.(?:\s|$)", " ".join(text.strip().splitlines()[:1]))[0]
    return textwrap.shorten(sentence, MAX_REASON, placeholder=" ...")


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
    _check_pixels(folder, table)
    name = one_of(table, "_class_name", PIPELINES)
    for part, known in (("unet", (NETWORK,)), ("scheduler", SCHEDULERS)):
        entry = table.values.get(part)
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in known:
            why = f"{index}: {part} is {shown(entry)}, not diffusers' {either(known)}"
            text = isinstance(entry, list) and entry[1:] in [[name] for name in CONDITIONAL]
            raise UsageError(f"{why}: {OF_TEXT}" if text else why)
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
    if (kind := table.values.get("_class_name")) in CONDITIONAL:
        raise refusal(table, "_class_name", kind, OF_TEXT)
    one_of(table, "_class_name", known)
    return table


def _check_pixels(folder: Path, index: Table | None) -> None:
    """Raise UsageError for a network beside an autoencoder or a text encoder.

    Args:
        folder: The folder that holds the parts of the pipeline.
        index: The pipeline's index; None for a network alone.
    """
    for part, works_on in OTHER_PARTS.items():
        listed = index is not None and index.values.get(part) not in (None, [None, None])
        if listed or (folder / part / UNET).is_file():
            raise UsageError(
                f"{folder} is a pipeline with a {part}: its network works on {works_on}, "
                f"{PIXELS_ALONE}"
            )


def _alone(folder: Path, variant: str | None, scheduler: Path | None) -> Pipeline:
    """Read a folder that `UNet2DModel` or `EMAModel` wrote, with a scheduler from elsewhere."""
    if is_model(folder):
        raise UsageError(
            f"{folder} is already a pdfast model: pass it to pdfast distill, as --teacher {folder}"
        )
    if not (folder / UNET).is_file():
        raise UsageError(f"{folder} is no diffusers pipeline: it has no {INDEX}{_inside(folder)}")
    unet = _part(folder, "", UNET, (NETWORK,))
    above = Path(os.path.abspath(folder)).parent
    if (above / INDEX).is_file():
        _check_pixels(above, None)
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


def _inside(folder: Path) -> str:
    """Return what of diffusers lies in a folder or above it, for the end of a message, or ""."""
    above = Path(os.path.abspath(folder)).parent
    if (above / INDEX).is_file():
        return f"; the pipeline is {folder.parent if folder.name else above}"
    found: dict[str, list[str]] = {"pipeline": [], "network": []}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        kind = of_diffusers(place)
        name = files.read_json(place / UNET)["_class_name"] if kind == "network" else NETWORK
        if kind and name == NETWORK:
            found[kind].append(place.name)
    titles = {"pipeline": "pipelines in it", "network": "networks in it, which need --scheduler"}
    said = [f"{titles[kind]}: {_listed(names)}" for kind, names in found.items() if names]
    return f" ({'; '.join(said)}: name one)" if said else ""


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:MAX_LISTED], *(["..."] if names[MAX_LISTED:] else [])])


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
