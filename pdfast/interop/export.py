"""`pdfast export`: a model as a folder that other tools load.

`diffusers/export.py` writes what a `DDIMPipeline` is loaded from, `onnx.py` the network as one
graph. Each checks what it wrote against the model, and imports its library only when it is asked
for.
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
    """Write a model, or a model directory, to the folder `out` for another library; returns it.

    `to` is "diffusers" (a `DDIMPipeline` folder with a model card) or "onnx" (the network, and
    a JSON file that says what its output means). A guided student is written as it is at one
    weight, `guidance`. The model itself is not changed. `force`: replace a folder that holds
    exactly what an export wrote. Raises UsageError for what the format cannot express, naming the
    field, and PdfastError if `out` holds anything else, the library is missing, or what was
    written does not agree with the model.
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
    prepared: Prepared = writer.prepare(copy)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from None

    def fill(stage: Path) -> None:
        prepared.write(stage)
        files.seal(stage, exported=to)  # so that --force knows it

    files.check_new(path, force)  # the check of what is written may have taken long
    files.write_folder(path, fill)
    Screen(quiet).say(f"{out}: {prepared.line}")
    return path


def _refuse(model: Model) -> None:
    """Raise UsageError for what is not one network of x, t and a class."""
    if isinstance(model, Guided):
        raise UsageError(
            "the model is evaluated with the class and without, which one network cannot be: leave "
            "the weight out, and guide where it is sampled (the card of --to diffusers has the "
            "loop), or export a guided student (model.guidance)"
        )
    if isinstance(model, Network):
        raise UsageError(
            "the model is of a network of your own, which pdfast cannot export: its module's "
            "weights are a state_dict like any other"
        )
    if model.guidance:
        least, most = model.guidance
        raise UsageError(
            f"the model is a guided student: pass --guidance, one of its weights {least:g} .. "
            f"{most:g} (in Python export pdfast.guided(model, w))"
        )


def plain(model: Model) -> Model:
    """A copy in float32 on the CPU, in evaluation mode."""
    with torch.device("meta"):
        copy = Model(model.cfg, model.steps)
    copy.class_names = model.class_names
    state = {k: v.detach().cpu().float() for k, v in model.net.state_dict().items()}
    copy.net.load_state_dict(state, assign=True)
    copy.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copy.eval()
