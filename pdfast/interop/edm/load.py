"""Import of NVlabs/edm's network pickles: DDPM++, NCSN++ and ADM, with any preconditioning.

A network becomes one of pdfast's own, with [model.edm] in its config, so that kernels, precision
and CUDA graphs apply to it as to any other. The schedule has EDM's noise levels, within the range
that the network was made for. No code in a file is run, and none of NVlabs/edm's is needed; see
`pickled.py`.
"""

from pathlib import Path

from pdfast.config.names import Parameterization
from pdfast.console.progress import Screen
from pdfast.diffusion.samplers import MAX_STEPS
from pdfast.distributed.settings import kept
from pdfast.errors import UsageError
from pdfast.interop.edm import pickled
from pdfast.interop.edm.network import Described, described
from pdfast.interop.edm.weights import filled
from pdfast.interop.recipe import write_config
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.storage import files


@kept()
def import_edm(
    source: Path,
    out: Path,
    parameterization: Parameterization = "v",
    steps: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Model:
    """Import a network-snapshot of NVlabs/edm as a model directory.

    A config to distil the model with is written beside it, as `out`.toml.

    Args:
        source: The network-snapshot-*.pkl.
        out: The model directory to write.
        parameterization: "v" or "x", for a network with EDM's preconditioning. Networks with any
            other preconditioning predict eps.
        steps: Sampling steps that the model was distilled to; 0 or None for a teacher.
        force: Replace `out` and `out`.toml if pdfast wrote them and nothing was changed since.
        quiet: Print nothing.

    Returns:
        The model, on the CPU, in float32 and evaluation mode.

    Raises:
        UsageError: An argument is wrong, or the file holds a network that pdfast does not have.
        PdfastError: The file is damaged, or its pickle asks for anything but tensors and plain
            data.
    """
    screen = Screen(quiet)
    config = out.parent / f"{out.name}.toml"
    for path in (out, config):
        files.check_new(path, force)
    model, found = _loaded(source, parameterization, steps)
    facts = {
        "from": "edm",
        "file": source.name,
        "sha256": files.sha256(source),
        "network": found.record.class_name,
        "preconditioning": found.own.class_name,
    }
    checkpoint.save_model(model, out, imported=facts)
    cfg, count = model.cfg, sum(p.numel() for p in model.parameters())
    kind = f"a student of {model.steps} steps" if model.steps else "a teacher"
    least, most, _ = cfg.sigmas
    classes = f"{cfg.num_classes} classes, " if cfg.num_classes else ""
    screen.say(
        f"{source.name}: {kind}, {found.record.class_name} with {found.own.class_name}; predicts "
        f"{cfg.parameterization}, sigma {least:.4g} .. {most:g}, {classes}{count:,} "
        f"parameters: {out}"
    )
    screen.say(
        "NVlabs/edm's samplers do not clip; pdfast's clips x-hat to [-1, 1], the range of images, "
        "unless sample(clip=False) is called from Python"
    )
    write_config(config, model, out, screen)
    return model


def load_edm(
    path: Path, parameterization: Parameterization = "v", steps: int | None = None
) -> Model:
    """Read a network-snapshot as a Model on the CPU, in float32 and evaluation mode.

    Args and errors are those of `import_edm`.
    """
    return _loaded(path, parameterization, steps)[0]


def _loaded(
    path: Path, parameterization: Parameterization, steps: int | None
) -> tuple[Model, Described]:
    if steps is not None and not 0 <= steps <= MAX_STEPS:
        raise UsageError(f"--steps must be in 0 .. {MAX_STEPS}, 0 for a teacher")
    if parameterization not in ("v", "x"):
        raise UsageError(
            f"--model.parameterization {parameterization}: a network of NVlabs/edm takes v or x"
        )
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {kind}: name a network-snapshot-*.pkl of NVlabs/edm")
    found = described(path, pickled.read(path), parameterization)
    model = filled(path, found)
    model.steps = steps or 0
    return model, found
