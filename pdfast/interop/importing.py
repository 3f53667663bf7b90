"""`pdfast import`: a model of another library as a model directory.

`diffusers/load.py`, `edm/load.py` and `google/load.py` each read one library's files.
"""

from pathlib import Path
from typing import get_args

from pdfast.config.names import Origin, Parameterization
from pdfast.config.schema import Config, load_config
from pdfast.config.serialization import check, nearest
from pdfast.errors import UsageError
from pdfast.interop.diffusers.load import import_diffusers
from pdfast.interop.edm.load import import_edm
from pdfast.interop.google.load import import_google
from pdfast.models.model import Model
from pdfast.storage.model_dir import of_diffusers

SOURCES: dict[Origin, str] = {
    "diffusers": "a pipeline",
    "edm": "a network pickle",
    "google": "a checkpoint",
}


def import_model(
    source: str | Path,
    out: str | Path,
    origin: Origin | None = None,
    *,
    steps: int | None = None,
    variant: str | None = None,
    scheduler: str | Path | None = None,
    null_class: int | None = None,
    config: Config | str | Path | None = None,
    parameterization: Parameterization | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Model:
    """Import a model of another library as a model directory.

    Except for "google", a config to distil the model with is written beside it, as `out`.toml.

    Example:
        ```python
        teacher = pdfast.import_model("google/ddpm-cifar10-32", "ddpm", "diffusers")
        images = teacher.sample(16, steps=50)
        ```

    Args:
        source: For "diffusers", the folder of a `DDPMPipeline` or `DDIMPipeline`, its id on the
            hub, or the folder of a `UNet2DModel` alone. For "edm", a network pickle of NVlabs/edm;
            no code in it is run. For "google", a checkpoint of the authors' released code.
        out: The model directory to write.
        origin: "diffusers", "edm" or "google". By default "diffusers" for a folder of diffusers
            and "edm" for a .pkl file.
        steps: Sampling steps that the model was distilled to, 0 for a teacher. By default 0, or
            what the files say; see --steps of `pdfast import`.
        variant: For "diffusers", the variant of the weights' files, such as "fp16".
        scheduler: For a `UNet2DModel` alone, its scheduler_config.json or the folder that holds it.
        null_class: For "diffusers", the label that stands for no class, for guidance.
        config: For "google", a config whose [model] describes the network.
        parameterization: For "edm", "v" (the default) or "x", for a network with EDM's
            preconditioning.
        force: Replace `out` and `out`.toml if pdfast wrote them and nothing was changed since.
        quiet: Print nothing.

    Returns:
        The model, on the CPU, in float32 and evaluation mode.

    Raises:
        UsageError: An argument is wrong, or pdfast cannot represent the model; the message names
            the file and the field.
        PdfastError: A file is damaged, or the download failed.
    """
    origin = _origin(source, origin)
    check(
        origin == "diffusers" or (variant, scheduler, null_class) == (None, None, None),
        "--variant, --scheduler and --null-class are for --from diffusers: omit them",
    )
    check(
        origin == "google" or config is None,
        f"--config and its fields are for --from google: omit them, since {SOURCES[origin]} "
        "describes its network",
    )
    check(
        origin == "edm" or parameterization is None,
        "parameterization is for --from edm; for google set model.parameterization in the config",
    )
    if str(out) == "":
        raise UsageError("out is empty: name a folder")
    out = Path(out)
    if origin == "edm":
        return import_edm(
            Path(source), out, parameterization or "v", steps, force=force, quiet=quiet
        )
    if origin == "diffusers":
        return import_diffusers(
            str(source),
            out,
            steps,
            variant=variant,
            scheduler=None if scheduler is None else Path(scheduler),
            null_class=null_class,
            force=force,
            quiet=quiet,
        )
    if config is None:
        raise UsageError(
            "--config is missing: the file does not describe its network, so name a config of it, "
            "such as cifar10"
        )
    described = config if isinstance(config, Config) else load_config(config)
    return import_google(Path(source), out, described, steps, force=force, quiet=quiet)


def _origin(source: str | Path, origin: Origin | None) -> Origin:
    """Return where a model is from: as given, or by its files.

    Raises:
        UsageError: The origin is not known, or a folder of diffusers is called another library's.
    """
    known = get_args(Origin)
    if origin is not None and origin not in known:
        raise UsageError(f"no import from '{origin}'{nearest(origin, known)} ({', '.join(known)})")
    kind = of_diffusers(Path(source))
    if kind and origin not in (None, "diffusers"):
        raise UsageError(f"{source} is a diffusers {kind}: pass --from diffusers")
    if origin is not None:
        return origin
    if kind:
        return "diffusers"
    if Path(source).suffix == ".pkl":
        return "edm"
    raise UsageError(
        f"cannot tell which library wrote {source}: pass --from diffusers, edm or google"
    )
