"""Import of checkpoints of the authors' released code: a training state in flax's msgpack.

The state has `step`, `optimizer`, `ema_params` and `num_sample_steps`. The imported weights are
`ema_params`, which the published code too uses for teachers and for sampling. The file does not
hold the network's configuration, so a config's [model] must give it.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config.edm import EDMNetConfig
from pdfast.config.schema import Config, NetConfig
from pdfast.config.serialization import check
from pdfast.console.progress import Screen
from pdfast.diffusion.samplers import MAX_STEPS
from pdfast.distributed.settings import kept
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.google import published
from pdfast.interop.google.flax import FlaxFile
from pdfast.interop.google.published import Shape
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.storage import files

PARAMS = "ema_params"
LEAST_LIMIT = 2**28  # bytes; the limit on one array is at least this, whatever the config


class Imported(NamedTuple):
    """An imported model, with what its file says about it."""

    model: Model
    what: str
    """Whether it is a teacher or a student, and the reason."""
    step: int | None
    """Number of training updates; None if the file does not say."""
    num_sample_steps: int | None
    """The file's `num_sample_steps`; None if it has none."""
    reshaped: list[str]
    """Parameters that were reshaped, each with its shape in the file and here."""


@kept()
def import_google(
    source: Path,
    out: Path,
    config: Config,
    steps: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Model:
    """Import a training state of the authors' code as a model directory.

    Args:
        source: The checkpoint.
        out: The model directory to write.
        config: A config of the network, `config.model`. Its `distill.start_steps` distinguishes a
            teacher from a student where `steps` is None; see `load_google`.
        steps: Sampling steps that the model was distilled to; 0 for a teacher.
        force: Replace `out` if pdfast wrote it and nothing was changed since.
        quiet: Print nothing.

    Returns:
        The model, on the CPU, in float32 and evaluation mode.

    Raises:
        UsageError: An argument is wrong, the file is of another network, or `out` exists.
        PdfastError: The file is damaged.
    """
    screen = Screen(quiet)
    files.check_new(out, force)
    found = load_google(source, config, steps)
    facts = {
        "from": "google",
        "file": source.name,
        "sha256": files.sha256(source),
        "step": found.step,
        "num_sample_steps": found.num_sample_steps,
    }
    checkpoint.save_model(found.model, out, imported=facts)
    count = sum(p.numel() for p in found.model.parameters())
    screen.say(
        f"{source.name}: {found.what}; predicts {found.model.parameterization}, {count:,} "
        f"parameters, {'unknown' if found.step is None else f'{found.step:,}'} updates: {out}"
    )
    if found.reshaped:
        screen.say(
            f"{len(found.reshaped)} parameters had another shape with as many elements, and were "
            f"reshaped, as the published loader does: {', '.join(found.reshaped[:3])}"
            f"{', ...' if len(found.reshaped) > 3 else ''}"
        )
    return found.model


def load_google(path: Path, config: Config, steps: int | None = None) -> Imported:
    """Read a training state as a Model on the CPU, in float32 and evaluation mode.

    Args:
        path: The checkpoint.
        config: A config of the network, as in `import_google`.
        steps: Sampling steps that the model was distilled to; 0 for a teacher. By default the
            file's `num_sample_steps`, or 0 if it has none or as many as the config's
            `distill.start_steps`.

    Returns:
        The model, and what the file says about it.

    Raises:
        UsageError: The file does not exist, or is of another network.
        PdfastError: The file is damaged.
    """
    if str(path).startswith("gs:/"):
        raise UsageError(f"{path} is not on this machine: copy it here first, with gsutil cp")
    check(
        config.model.edm == EDMNetConfig(),
        "model.edm is of networks of NVlabs/edm, which --from google does not read: omit it",
    )
    with torch.device("meta"):
        model = Model(config.model)
    state = {key: torch.empty_like(t, device="cpu") for key, t in model.net.state_dict().items()}
    views = published.views(config.model, state)
    numbers, shapes = _read(path, views)
    reshaped = _reconcile(path, config.model, views, shapes)
    for name, view in views.items():
        if not view.isfinite().all():
            raise PdfastError(
                f"{path} holds numbers that are not finite, or not in float32: parameter {name}; "
                "the model cannot be used: import another checkpoint"
            )
    model.steps, what = _steps(path, numbers["num_sample_steps"], config, steps)
    if model.steps:  # students are distilled without dropout
        model.cfg = dataclasses.replace(model.cfg, dropout=0.0)
    model.net.load_state_dict(state, assign=True)
    return Imported(model.eval(), what, numbers["step"], numbers["num_sample_steps"], reshaped)


def _read(path: Path, views: dict[str, Tensor]) -> tuple[dict[str, int | None], dict[str, Shape]]:
    """Fill each view from the file's parameter of its name, if that has as many elements.

    Returns the integers of the state, and the shapes of all its parameters.
    """
    numbers: dict[str, int | None] = {"step": None, "num_sample_steps": None}
    shapes: dict[str, Shape] = {}
    most = max(LEAST_LIMIT, 8 * max(view.numel() for view in views.values()))
    file = FlaxFile(path, {PARAMS, *numbers}, most)
    for name, leaf in file.leaves():
        if name in numbers:
            if leaf is not None and type(leaf) is not int:
                raise PdfastError(f"{path}: {name} is not a whole number")
            numbers[name] = leaf
            continue
        name = name.removeprefix(f"{PARAMS}/")
        if name in shapes:
            raise PdfastError(
                f"{path} holds the parameter {name} twice: put a whole copy in its place"
            )
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise PdfastError(f"{path}: {name} is {kind}, where an array of floats is expected")
        shapes[name] = tuple(leaf.shape)
        if name in views and views[name].numel() == leaf.numel():
            views[name].copy_(leaf.reshape(views[name].shape))
    if len(set(file.keys)) < len(file.keys):
        twice, _ = Counter(file.keys).most_common(1)[0]
        raise PdfastError(f"{path} has its key {twice[:100]} twice: put a whole copy in its place")
    if PARAMS not in file.keys:
        raise PdfastError(
            f"{path} has no {PARAMS}, so it is no training state of the authors' code "
            f"(its keys: {', '.join(file.keys[:10])})"
        )
    return numbers, shapes


def _reconcile(
    path: Path, cfg: NetConfig, views: dict[str, Tensor], shapes: dict[str, Shape]
) -> list[str]:
    """Return the reshaped parameters, or raise a UsageError that names the differing fields."""
    expected = {name: tuple(view.shape) for name, view in views.items()}
    differing = published.differing(cfg, shapes)
    same_heads = not {"num_heads", "head_dim"} & differing.keys()
    wrong, reshaped = "", []
    for name, shape in expected.items():
        found = shapes.get(name)
        if found is None:
            wrong = wrong or f"it has no parameter {name}"
        elif found != shape:
            fits = views[name].numel() == torch.Size(found).numel()
            if not fits or (not same_heads and name.endswith(("/q/kernel", "/proj_out/kernel"))):
                wrong = wrong or f"its parameter {name} has shape {found}, not {shape}"
            reshaped.append(f"{name} from {found} to {shape}")
    surplus = [name for name in shapes if name not in expected]
    if surplus:
        wrong = wrong or f"it has a parameter {surplus[0]}, which the config's network lacks"
    if not wrong:
        return reshaped
    flags = " ".join(_flag(key, value) for key, value in differing.items())
    fix = (
        f"by the file's shapes, and if model.image_size is {cfg.image_size}, pass {flags}"
        if flags
        else "no field of [model] explains that, so it is another kind of network"
    )
    raise UsageError(f"{path} is not of the config's network: {wrong}; {fix}")


def _flag(key: str, value: object) -> str:
    """Return a field of [model] as a flag of the command line."""
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--model.{key.replace('_', '-')}", *map(str, values)])


def _steps(path: Path, found: int | None, config: Config, asked: int | None) -> tuple[int, str]:
    """Return the steps that the model was distilled to, 0 for a teacher, and the reason in words.

    The published code writes 0 for a network trained in continuous time, the number of steps that
    distillation starts from when such a network becomes the first teacher, and in the rounds each
    student's own number.
    """
    start = config.distill.start_steps
    if asked is not None:
        if not 0 <= asked <= MAX_STEPS:
            raise UsageError(f"--steps must be in 0 .. {MAX_STEPS}, 0 for a teacher")
        return asked, (f"a student of {asked} steps" if asked else "a teacher") + ", by --steps"
    if found is None or found <= 0:
        says = "has no num_sample_steps" if found is None else f"has num_sample_steps {found}"
        return 0, f"a teacher, since it {says}"
    if found == start:
        return 0, f"a teacher, since its num_sample_steps {found} is distill.start_steps"
    if found > start:
        raise UsageError(
            f"{path} has num_sample_steps {found}, more than distill.start_steps {start}: pass "
            f"--steps 0 if it is a teacher, --steps {found} if it was distilled to that"
        )
    return found, f"a student of {found} steps, its num_sample_steps"
