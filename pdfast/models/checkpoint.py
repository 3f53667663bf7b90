"""Model directories: config.json, model.safetensors, and the manifest that vouches for both."""

import json
import os
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdfast.config import formats
from pdfast.config.class_names import checked, difference, merged
from pdfast.config.formats import OtherVersion, Written
from pdfast.config.schema import NetConfig
from pdfast.config.serialization import check
from pdfast.diffusion.betas import schedule_of
from pdfast.diffusion.samplers import MAX_STEPS
from pdfast.errors import PdfastError, UsageError
from pdfast.kernels import group_norm_silu
from pdfast.models import pretrained
from pdfast.models.custom import MAX_CLASSES, OWN, Network, OutOfRange, kind_of
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.storage.files import MANIFEST
from pdfast.storage.model_dir import CONFIG, INDEX, WEIGHTS, check_listed, of_diffusers

KEYS = ("model", "steps", "classes")  # fields of config.json
HALF = "float16"  # config.json's dtype; absent if the weights are not stored as float16


# Keys of a manifest that pdfast itself writes and reads.
RESERVED = {"exported", "files", "format", "group_norm_silu", "imported", "manifest_sha256"}
RESERVED |= {"round", "seed", "source", "steps", "versions"}


class Described(NamedTuple):
    """The network, steps and class names that a config.json describes."""

    cfg: NetConfig
    steps: int
    """Sampling steps that the model was distilled to."""
    class_names: tuple[str, ...]
    half: bool = False
    """Whether the weights are stored as float16, to be loaded as float32."""

    def model(self) -> Model:
        """Return a model of this description, without its weights."""
        made = Model(self.cfg, self.steps)
        made.class_names = self.class_names
        return made


def save(model: Model, path: str | Path, *, half: bool = False, **facts: Any) -> None:
    """Write a model directory, which `pdfast.load` reads.

    Example:
        ```python
        model = pdfast.load("digits", steps=4)
        pdfast.save(model, "student-4-steps", half=True, note="float16")
        ```

    Args:
        model: The model.
        path: A new or empty folder, or an unchanged model directory, which is replaced. Nothing
            that pdfast did not write is ever deleted.
        half: Store the weights as float16, in half the space. They are loaded as float32.
        **facts: Further fields of the manifest, with values that JSON can hold.

    Raises:
        UsageError: `path` is anything else, a fact has a name that the manifest itself uses or a
            value that JSON cannot hold, or float16 cannot hold the weights.
        PdfastError: The directory cannot be written.
    """
    if taken := sorted(RESERVED & facts.keys()):
        raise UsageError(f"the manifest has its own {taken[0]}: give that fact another name")
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the manifest is JSON, which cannot hold these facts ({files.reason(error)}): pass "
            "numbers, texts, lists and dicts"
        ) from None
    save_model(model, path, half=half, **facts)


def save_model(model: Model, path: str | Path, *, half: bool = False, **facts: Any) -> None:
    """Write a model directory as `save` does, without checking the facts."""
    if not str(path):
        raise UsageError("path is empty: name a folder")
    path = Path(os.path.abspath(path))
    files.check_replaceable(path)  # before anything is written
    if model.calls > 1:
        raise UsageError(
            "a guided teacher has no weights of its own: save the model that it was made of, and "
            "call pdfast.guided after loading"
        )
    checked(model.class_names, model.num_classes)
    weights, table = model.weights(), model.describe()
    if half:
        weights, table = _halved(model, weights), {**table, "dtype": HALF}
    facts["steps"] = model.steps
    facts["group_norm_silu"] = group_norm_silu.implementation(model.device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from None
    files.write(path, {WEIGHTS: weights}, {CONFIG: table}, **facts)


def _halved(model: Model, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as float16; raise UsageError if that does not keep them finite."""
    if isinstance(model, Network):
        raise UsageError(
            "half is for models of pdfast's own network: save a custom network without it"
        )
    halved = {name: tensor.half() for name, tensor in weights.items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            raise UsageError(
                f"float16 holds numbers up to 65504, and tensor {name} has larger ones: save the "
                "model without half"
            )
    return halved


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    network: nn.Module | None = None,
    *,
    steps: int = 0,
) -> Model:
    """Load a model directory, verified against its manifest, in evaluation mode.

    Example:
        ```python
        student = pdfast.load("runs/digits/round-11-steps-0004")
        images = student.sample(16)  # (16, 1, 8, 8) in [-1, 1], in 4 steps
        model = pdfast.load("digits", steps=4)  # a student that comes with pdfast
        ```

    Args:
        path: A model directory, or the name of a model that comes with pdfast, "digits".
        device: Where the model is loaded.
        network: For a custom network, the module, or a `Network` of it. It stays unchanged; a copy
            gets the weights.
        steps: With a name, the sampling steps of the student to load; without such a student the
            teacher is loaded.

    Returns:
        The model on `device`, in evaluation mode. Its weights are float32, also where they are
        stored as float16, or float64 where they are stored so.

    Raises:
        UsageError: `path` is not a model directory, or is of another network; `steps` is given with
            a path; or `network` is missing, or not needed.
        PdfastError: The directory is damaged, holds numbers that are not finite, or was written by
            a version of pdfast that this one cannot read.
    """
    pretrained.check_steps(path, steps)
    path = pretrained.find(path, steps)
    _check_is_model(path)
    tensors, tables, manifest = files.read(path)
    check_listed(path, manifest)
    table, weights, by = tables[CONFIG], tensors[WEIGHTS], files.written(path, manifest)
    if network is not None or table.get("network") == OWN:
        return _load_own(path, table, weights, by, network).to(device)
    described = parse_config(path / CONFIG, table, by)
    stored = (torch.float16,) if described.half else (torch.float32, torch.float64)
    with torch.device("meta"):
        model = described.model()
    expected = model.net.state_dict()
    for name in sorted(weights.keys() | expected.keys()):
        both = name in weights and name in expected
        if not both or weights[name].shape != expected[name].shape:
            raise PdfastError(
                f"{path / WEIGHTS} does not fit {CONFIG}: tensor {name}; put a whole "
                f"copy of {path} in its place"
            )
        dtype = weights[name].dtype
        if dtype not in stored or dtype != weights[min(weights)].dtype:
            asked = HALF if described.half else "float32 or float64"
            raise PdfastError(
                f"{path / WEIGHTS} must hold {asked}, not {dtype}: tensor {name}; put a whole "
                f"copy of {path} in its place"
            )
    if described.half:
        weights = {name: tensor.float() for name, tensor in weights.items()}
    _check_finite(path, weights)
    model.net.load_state_dict(weights, assign=True)
    model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device).eval()


def _check_is_model(path: Path) -> None:
    """Raise UsageError, with the next step, for a path that is no model directory."""
    if not path.is_dir():
        raise UsageError(f"there is no model directory {path}")
    if kind := of_diffusers(path):
        whole = path.parent if kind == "network" and (path.parent / INDEX).is_file() else path
        beside = "" if (whole / INDEX).is_file() else " --scheduler SCHEDULER_FOLDER"
        raise UsageError(
            f"{path} is a diffusers {kind}, not a model directory: import it first, with pdfast "
            f"import {whole} --from diffusers{beside} --out NEW"
        )
    if not (path / CONFIG).is_file() and not (path / MANIFEST).is_file():
        _refuse_run(path)
        folders = sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
        inside = ", ".join(folder.name for folder in folders if not of_diffusers(folder))
        hint = f" (models inside it: {inside})" if inside else ""
        raise UsageError(f"{path} is not a model directory: it has no {CONFIG}{hint}")


def _refuse_run(path: Path) -> None:
    """Raise UsageError if the folder is a run, whose models are the folders in it."""
    if not (path / "config.toml").is_file():
        return
    found = [p.parent.name for p in path.glob(f"*/{CONFIG}")]
    students = sorted(name for name in found if name.startswith("round-"))
    names = [name for name in found if name == "teacher"] + students
    check(
        bool(names),
        f"{path} is a run without a finished model yet: continue it with the command that began it",
    )
    raise UsageError(
        f"{path} is a run, not a model: name one of its models, such as {path / names[-1]} "
        f"(finished: {', '.join(names)})"
    )


def _load_own(
    path: Path,
    table: dict[str, Any],
    weights: dict[str, Tensor],
    by: Written,
    given: nn.Module | None,
) -> Network:
    """Return a copy of the `given` network with these weights."""
    if table.get("network") != OWN:
        raise UsageError(f"{path} is a model of pdfast's own network: omit the network")
    if given is None:
        raise UsageError(
            f"{path} is a model of a custom network, which only your code can create: in "
            f'Python, pdfast.load("{path}", network=module) loads its weights into a copy'
        )
    module = given.net if isinstance(given, Network) else given
    kind_of(module)
    try:
        table = formats.complete(path / CONFIG, table, Network.KEYS, by, "config.json/")
        steps = _steps(table)
        asked = Network.from_table(module, table)
    except OutOfRange as error:
        raise UsageError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise PdfastError(f"{path / CONFIG} is not a model's configuration: {error}") from None
    if isinstance(given, Network):
        check_same(path, asked, given)
    model = asked.copy()
    model.steps = steps
    if isinstance(given, Network):  # a model saved without class names takes over its names
        model.class_names = merged(model.class_names, given.class_names, model.num_classes)
    expected = model.weights()
    for name in sorted(weights.keys() | expected.keys()):
        both = [_kind(tensors.get(name)) for tensors in (weights, expected)]
        if both[0] != both[1]:
            raise UsageError(
                f"{path} is of another network: its {name} is {both[0]}, the module's {both[1]}"
            )
    learned = dict(model.net.named_parameters())  # a buffer may be a mask of -inf
    _check_finite(path, {k: v for k, v in weights.items() if k in learned})
    model.net.load_state_dict(weights)
    return model


def check_same(path: Path, kept: Network, given: Network) -> None:
    """Raise UsageError unless both networks are described alike, except for their steps."""
    theirs = given.describe()
    said = difference(str(path), kept.class_names, given.class_names, "the network given")
    check(not said, said)
    for key, value in kept.describe().items():
        if key not in ("steps", "classes") and value != theirs[key]:
            raise UsageError(
                f"{path} has {key} {_short(value)}, but the network given has {_short(theirs[key])}"
            )


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _steps(table: dict[str, Any]) -> int:
    steps = table["steps"]
    if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
        raise UsageError("steps must be a whole number, 0 for a teacher")
    return steps


def _check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise PdfastError(
                f"{path / WEIGHTS} holds numbers that are not finite: tensor {name}; it cannot be "
                "sampled or trained"
            )


def parse_config(file: Path, table: Any, by: Written) -> Described:
    """Parse the contents of a config.json.

    Args:
        file: The file, for messages.
        table: Its JSON.
        by: The version of pdfast that wrote it.

    Raises:
        OtherVersion: It has fields that this version does not know.
        PdfastError: It is not a model's configuration.
    """
    try:
        stored = {key: value for key, value in table.items() if key != "dtype"}
        half = "dtype" in table
        check(not half or table["dtype"] == HALF, f"dtype must be {HALF}, or absent for float32")
        table = formats.complete(file, stored, KEYS, by, "config.json/")
        cfg = formats.read(NetConfig, table["model"], file, by, "model.")
        schedule_of(cfg)
        names = checked(table["classes"], cfg.num_classes)
        return Described(cfg, _steps(table), names, half)
    except (AttributeError, TypeError, ValueError) as error:
        raise PdfastError(f"{file} is not a model's configuration: {error}") from None


def network_of(path: Path) -> NetConfig | None:
    """Return the network of a model directory, without verifying it.

    Args:
        path: The model directory.

    Returns:
        The network, or None if it cannot be read.

    Raises:
        OtherVersion: Another version of pdfast wrote it, with fields that this one does not know.
    """
    try:
        by = files.written(path, files.read_manifest(path))
        return parse_config(path / CONFIG, files.read_json(path / CONFIG), by).cfg
    except OtherVersion:
        raise
    except PdfastError:
        return None


def class_names_of(path: Path) -> list[str]:
    """Return the class names of a model directory, without verifying it; [] if it has none."""
    try:
        names = files.read_json(path / CONFIG).get("classes", [])
        return list(checked(names, MAX_CLASSES))
    except PdfastError:
        return []


def is_own(path: Path) -> bool:
    """Whether a model directory is of a custom network, without verifying it."""
    try:
        table = json.loads((path / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and table.get("network") == OWN
