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
from pdfast.storage.model_dir import CONFIG, WEIGHTS, check_listed

KEYS = ("model", "steps", "classes")  # of config.json
HALF = "float16"  # config.json's dtype, which it has only where weights are stored in it


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
        """Such a model, whose weights are yet to come."""
        made = Model(self.cfg, self.steps)
        made.class_names = self.class_names
        return made


def save(model: Model, path: str | Path, *, half: bool = False, **facts: Any) -> None:
    """Write a model directory, to be read by `pdfast.load`.

    `facts` go into its manifest: names and what JSON can hold. `path` is a new folder, an empty
    one, or a model directory as it was written, which is replaced; nothing that pdfast did not
    write is ever deleted. `half` stores the weights as float16, in half the space; they are loaded
    as float32. Raises UsageError for any other `path`, for a fact of a name that the manifest
    itself has, and for weights that float16 cannot hold; PdfastError if it cannot be written.
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
    """Write a model directory, with any `facts` in its manifest; otherwise as `save`."""
    if not str(path):
        raise UsageError("path is empty: name a folder")
    path = Path(os.path.abspath(path))
    files.check_replaceable(path)  # before anything is made
    if model.calls > 1:
        raise UsageError(
            "a guided teacher is no network of its own: save the model that was guided, and call "
            "pdfast.guided when it is loaded"
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
    """The weights as float16; refused where they are not all finite then."""
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

    `path` may also be the name of a model that comes with pdfast, "digits": its student of `steps`
    sampling steps, or the teacher where there is none of so many. `network` is for the model of a
    custom network: the module, or a `Network` of it; a copy is given the weights. Raises UsageError
    if `path` is no model directory, or of another network, PdfastError if it is damaged, or holds
    numbers that are not finite, or if a version of pdfast wrote it that this one cannot read.
    """
    pretrained.check_steps(path, steps)
    path = pretrained.find(path, steps)
    if not (path / CONFIG).is_file() and not (path / MANIFEST).is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}")) if path.is_dir() else []
        hint = f" (models inside it: {', '.join(inside)})" if inside else ""
        raise UsageError(
            f"{path} is not a model directory: it has no {CONFIG}{hint}"
            if path.is_dir()
            else f"there is no model directory {path}"
        )
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
            raise PdfastError(f"{path / WEIGHTS} does not fit {CONFIG}: tensor {name}")
        dtype = weights[name].dtype
        if dtype not in stored or dtype != weights[min(weights)].dtype:
            asked = HALF if described.half else "float32"
            raise PdfastError(f"{path / WEIGHTS} must hold {asked}, not {dtype}: tensor {name}")
    if described.half:
        weights = {name: tensor.float() for name, tensor in weights.items()}
    _check_finite(path, weights)
    model.net.load_state_dict(weights, assign=True)
    model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device).eval()


def _load_own(
    path: Path,
    table: dict[str, Any],
    weights: dict[str, Tensor],
    by: Written,
    given: nn.Module | None,
) -> Network:
    """A copy of the network that is `given`, with these weights."""
    if table.get("network") != OWN:
        raise UsageError(f"{path} is a model of pdfast's own network: leave the network away")
    if given is None:
        raise UsageError(
            f"{path} is a model of a network of your own, which only your code can make: in "
            f'Python, pdfast.load("{path}", network=module) gives a copy of it these weights'
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
    if isinstance(given, Network):  # whose names a model that was saved without takes over
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
    """Raise UsageError unless both have the same shape, schedule, classes and what else counts."""
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
                f"{path / WEIGHTS} holds numbers that are not finite: tensor {name}; nothing can "
                "be sampled from or learned of it"
            )


def parse_config(file: Path, table: Any, by: Written) -> Described:
    """Read the table of a config.json: network, steps and class names.

    `by`: who wrote it. Raises OtherVersion for what this version does not know, PdfastError, naming
    `file`, for any other JSON.
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
    """The network of a model directory that is not verified yet; None where that cannot be read."""
    try:
        by = files.written(path, files.read_manifest(path))
        return parse_config(path / CONFIG, files.read_json(path / CONFIG), by).cfg
    except OtherVersion:
        raise
    except PdfastError:
        return None


def class_names_of(path: Path) -> list[str]:
    """The class names of a model directory that is not verified yet; [] where it has none."""
    try:
        names = files.read_json(path / CONFIG).get("classes", [])
        return list(checked(names, MAX_CLASSES))
    except PdfastError:
        return []


def is_own(path: Path) -> bool:
    """Whether a model directory, not verified yet, is of a network of one's own."""
    try:
        table = json.loads((path / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and table.get("network") == OWN
