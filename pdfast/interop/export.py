"""`pdfast export`: a model as a folder that other tools load.

`diffusers/export.py` writes the folder of a `DDIMPipeline`, `onnx.py` the network as one ONNX
graph. Each compares its network with the model, and imports its library only when it is used.
"""

import importlib
import os
from pathlib import Path
from typing import get_args

import torch

from pdfast.config.names import ExportTarget
from pdfast.config.serialization import nearest
from pdfast.console.progress import Screen
from pdfast.distributed.settings import kept
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.common import Prepared
from pdfast.models.checkpoint import load_model
from pdfast.models.custom import Network
from pdfast.models.guidance import Guided, guided
from pdfast.models.model import Model
from pdfast.storage import files

WRITERS = {"diffusers": "pdfast.interop.diffusers.export", "onnx": "pdfast.interop.onnx"}
NEEDS = {"diffusers": ("diffusers",), "onnx": ("onnx", "onnxscript", "onnxruntime")}


@kept()
def export(
    model: Model | str | Path,
    out: str | Path,
    to: ExportTarget = "diffusers",
    *,
    guidance: float | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Path:
    """Write a model to a folder that another library loads.

    The exported network is run beside the model, and is written only if their outputs agree. The
    model itself is not changed.

    Example:
        ```python
        pdfast.export("runs/digits/round-11-steps-0004", "student-4-steps", to="diffusers")
        ```

    Args:
        model: A model or a model directory.
        out: The folder to write.
        to: "diffusers" for the folder of a `DDIMPipeline` with a model card; "onnx" for the network
            as one graph, a JSON file that describes its inputs, output and noise schedule, and a
            README.md with the loop that samples.
        guidance: Guidance weight at which a guided student is written; such a student needs it.
        force: Replace a folder that holds exactly what an earlier export wrote.
        quiet: Print nothing.

    Returns:
        The absolute path of the folder.

    Raises:
        UsageError: An argument is wrong, `out` holds anything else, or the format cannot express
            the model; the message names the field.
        PdfastError: The library is missing, `out` cannot be written, or the exported network's
            output differs from the model's.
    """
    known = get_args(ExportTarget)
    if to not in known:
        raise UsageError(f"no export to '{to}'{nearest(to, known)} ({' or '.join(known)})")
    if out == "":
        raise UsageError("out is empty: name a folder")
    path = Path(os.path.abspath(out))
    files.check_new(path, force)
    loaded = model if isinstance(model, Model) else load_model(model)
    if guidance is not None:
        loaded = guided(loaded, guidance)
    _refuse(loaded)
    copy = plain(loaded)
    for module in NEEDS[to]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PdfastError(
                f"export to {to} needs {module}, which cannot be imported "
                f"({files.reason(error)}): install pdfast with the extra '{to}'"
            ) from None
    writer = importlib.import_module(WRITERS[to])
    prepared: Prepared = writer.prepare(copy, path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from None

    def fill(stage: Path) -> None:
        prepared.write(stage)
        files.seal(stage, exported=to)  # so that --force recognises it

    files.check_new(path, force)  # once more: preparing may have taken long
    files.write_folder(path, fill)
    Screen(quiet).say(f"{out}: {prepared.line}")
    return path


def _refuse(model: Model) -> None:
    """Raise UsageError for a model that is not one network of z, logSNR and a class."""
    if isinstance(model, Guided):
        raise UsageError(
            "a guided teacher runs its network with the class and without, so it cannot be "
            "exported as one network: omit the weight, and apply guidance where it is sampled "
            "(the card of --to diffusers has the loop), or export a guided student "
            "(model.guidance)"
        )
    if isinstance(model, Network):
        raise UsageError(
            "the model is a custom network, which pdfast cannot export: save its module's "
            "state_dict instead"
        )
    if model.guidance:
        least, most = model.guidance
        raise UsageError(
            f"the model is a guided student: pass --guidance, one of its weights {least:g} .. "
            f"{most:g} (in Python export pdfast.guided(model, w))"
        )


def plain(model: Model) -> Model:
    """Return a copy of the model in float32 on the CPU, in evaluation mode."""
    with torch.device("meta"):
        copy = Model(model.cfg, model.steps)
    copy.class_names = model.class_names
    state = {k: v.detach().cpu().float() for k, v in model.net.state_dict().items()}
    copy.net.load_state_dict(state, assign=True)
    copy.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copy.eval()
