"""Model directories: config.json, model.safetensors, and the manifest that vouches for both."""

from pathlib import Path
from typing import Any

import torch

from pdfast import files
from pdfast.config import NetConfig, from_table, to_table
from pdfast.errors import PdfastError, UsageError
from pdfast.files import MANIFEST, Damaged
from pdfast.kernels import group_norm_silu
from pdfast.model import Model
from pdfast.samplers import MAX_STEPS

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_model(model: Model, path: str | Path, **facts: Any) -> None:
    """Write a model directory; `facts` go into its manifest. Raises PdfastError if it cannot."""
    path = Path(path)
    config = {"model": to_table(model.cfg), "steps": model.steps}
    facts["steps"] = model.steps
    facts["group_norm_silu"] = group_norm_silu.implementation(model.device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from None
    files.write(path, {WEIGHTS: model.net.state_dict()}, {CONFIG: config}, **facts)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a model directory, verified against its manifest, in evaluation mode.

    Raises UsageError if `path` is no model directory, PdfastError if it is damaged, or holds
    numbers that are not finite.
    """
    path = Path(path)
    if not (path / CONFIG).is_file() and not (path / MANIFEST).is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}")) if path.is_dir() else []
        hint = f" (models inside it: {', '.join(inside)})" if inside else ""
        raise UsageError(
            f"{path} is not a model directory: it has no {CONFIG}{hint}"
            if path.is_dir()
            else f"there is no model directory {path}"
        )
    tensors, tables, manifest = files.read(path)
    _check_listed(path, manifest)
    table = tables[CONFIG]
    try:
        steps = table["steps"]
        if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
            raise UsageError("steps must be a whole number, 0 for a teacher")
        cfg = from_table(NetConfig, table["model"], "model.")
    except (KeyError, TypeError, UsageError) as error:
        raise PdfastError(f"{path / CONFIG} is not a model's configuration: {error}") from None
    with torch.device("meta"):
        model = Model(cfg, steps)
    weights, expected = tensors[WEIGHTS], model.net.state_dict()
    for name in sorted(weights.keys() | expected.keys()):
        both = name in weights and name in expected
        if not both or weights[name].shape != expected[name].shape:
            raise PdfastError(f"{path / WEIGHTS} does not fit {CONFIG}: tensor {name}")
        dtype = weights[name].dtype
        if dtype not in (torch.float32, torch.float64) or dtype != weights[min(weights)].dtype:
            raise PdfastError(f"{path / WEIGHTS} must hold float32, not {dtype}: tensor {name}")
        if not weights[name].isfinite().all():
            raise PdfastError(
                f"{path / WEIGHTS} holds numbers that are not finite: tensor {name}; nothing can "
                "be sampled from or learned of it"
            )
    model.net.load_state_dict(weights, assign=True)
    model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device).eval()


def verify_model(path: Path) -> dict[str, Any]:
    """The manifest; raises Damaged, naming the file, unless all bytes are as written."""
    manifest = files.verify(path)
    _check_listed(path, manifest)
    return manifest


def fingerprint(path: Path) -> str:
    """SHA-256 of a model's weights, as its manifest records it."""
    manifest = files.read_manifest(path)
    _check_listed(path, manifest)
    return str(manifest["files"][WEIGHTS]["sha256"])


def _check_listed(path: Path, manifest: dict[str, Any]) -> None:
    for name in (CONFIG, WEIGHTS):
        if name not in manifest["files"]:
            raise Damaged(path / MANIFEST, f"does not list {name}")
