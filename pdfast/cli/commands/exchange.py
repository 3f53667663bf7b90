"""`pdfast import` and `pdfast export`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, Suppress, arg

from pdfast.cli.commands.shared import DEFAULT_CONFIG, Common, Force, check_alone
from pdfast.config.names import ExportTarget, Origin
from pdfast.config.schema import NetConfig, load_config


@dataclass(frozen=True, kw_only=True)
class Import(Common):
    """Import a model of another library as a model directory."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Files of the model, by --from. diffusers: a pipeline's folder, its id on the hub (needs the
    extra diffusers), or the folder of a UNet2DModel (with --scheduler). edm: a network pickle,
    .pkl; no code in it is run. google: a flax checkpoint of the authors' released code (needs
    --config)."""
    from_: Annotated[Origin | None, arg(name="from")] = None
    """Origin of the model; by default diffusers for a folder of diffusers, and edm for a .pkl."""
    out: Path
    """Model directory to write. Except for google, OUT.toml is written too, a config to distil the
    model with."""
    force: Force = False
    """Replace --out, if pdfast wrote it and nothing was changed or added since."""
    config: str = ""
    """google: config whose [model] describes the network, since the file does not; the fields of
    [model] are flags, which `pdfast import --from google --help` lists. edm: the
    only such flag is --model.parameterization, v or x, for a network with EDM's preconditioning."""
    steps: int | None = None
    """Sampling steps that the model was distilled to, 0 for a teacher. Default for google: the
    file's num_sample_steps, or 0 if it has none or as many as the config's distill.start_steps.
    For diffusers: 0, or the steps of a model that pdfast exported. For edm: 0."""
    variant: str | None = None
    """diffusers: variant of the weights' files, such as fp16, as in from_pretrained."""
    scheduler: Path | None = None
    """diffusers: for a UNet2DModel alone, such as an EMAModel's unet_ema, the scheduler_config.json
    that it was trained with, or its folder."""
    null_class: int | None = None
    """diffusers: label that stands for no class in a class-conditional network, for guidance; often
    the last, num_class_embeds - 1."""
    model: NetConfig = NetConfig()  # noqa: RUF009
    """google: [model] of the config. edm: only its parameterization, v or x, for a network with
    EDM's preconditioning."""

    def run(self) -> None:
        """Run the command."""
        check_alone("import")
        base = load_config(self.config or DEFAULT_CONFIG)
        asked = self.model.parameterization
        of_google = self.from_ == "google"
        other = self.model != dataclasses.replace(base.model, parameterization=asked)
        described = bool(self.config) or (other and not of_google)
        moved = asked != base.model.parameterization and not described and not of_google
        from pdfast.interop.importing import import_model

        import_model(
            self.source,
            self.out,
            self.from_,
            steps=self.steps,
            variant=self.variant,
            scheduler=self.scheduler,
            null_class=self.null_class,
            config=dataclasses.replace(base, model=self.model) if described else None,
            parameterization=asked if moved else None,
            force=self.force,
        )


@dataclass(frozen=True, kw_only=True)
class ImportInShort(Import):
    """Import a model of another library as a model directory."""

    model: Suppress[NetConfig] = NetConfig()  # noqa: RUF009
    """Not in the help, since its 40 flags are for files of the authors' code."""


@dataclass(frozen=True, kw_only=True)
class Export(Common):
    """Write a model as a folder that diffusers or an ONNX runtime loads."""

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """Model directory, such as runs/digits/round-11-steps-0004."""
    to: ExportTarget
    """diffusers: a DDIMPipeline, with a model card that has the call. onnx: the network as one
    graph, a JSON file that describes it, and a README.md with the loop that samples."""
    out: Path
    """Folder to write."""
    force: Force = False
    """Replace --out, if pdfast wrote it and nothing was changed or added since."""
    guidance: float | None = None
    """Guidance weight at which a guided student is exported."""

    def run(self) -> None:
        """Run the command."""
        check_alone("export")
        from pdfast.interop.export import export

        export(self.model, self.out, self.to, guidance=self.guidance, force=self.force)
