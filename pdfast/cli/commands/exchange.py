"""`pdfast import` and `pdfast export`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from pdfast.cli.commands.shared import DEFAULT_CONFIG, Common, Force, check_alone
from pdfast.config.names import ExportTarget
from pdfast.config.schema import NetConfig, load_config
from pdfast.config.serialization import check


@dataclass(frozen=True, kw_only=True)
class Import(Common):
    """Import a model of another library as a model directory."""

    source: Positional[Path]
    """google: a checkpoint of the authors' released code, a flax training state. diffusers: the
    folder of a DDPMPipeline or DDIMPipeline, or of a UNet2DModel alone (with --scheduler), or its
    id on the hub. edm: a network pickle of NVlabs/edm; no code in it is run."""
    from_: Annotated[Literal["google", "diffusers", "edm"], arg(name="from")]
    """Origin of the model."""
    out: Path
    """Model directory to write. Except for google, OUT.toml is written too, a config to distil the
    model with."""
    force: Force = False
    """Replace --out, if pdfast wrote it and nothing was changed or added since."""
    config: str = ""
    """google: config whose [model] describes the network, since the file does not; the fields of
    [model] are flags."""
    steps: int | None = None
    """Sampling steps that the model was distilled to, 0 for a teacher. Default for google: the
    file's num_sample_steps, or 0 where that is absent, 0 or the config's distill.start_steps. For
    diffusers: 0, or the steps of a model that pdfast exported. For edm: 0."""
    variant: str | None = None
    """diffusers: the word in the names of the weights' files, such as fp16."""
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
        of_diffusers = (self.variant, self.scheduler, self.null_class)
        check(
            self.from_ == "diffusers" or of_diffusers == (None, None, None),
            "--variant, --scheduler and --null-class are for --from diffusers",
        )
        config = load_config(self.config or DEFAULT_CONFIG)
        if self.from_ == "edm":
            asked = self.model.parameterization
            check(
                not self.config
                and self.model == dataclasses.replace(config.model, parameterization=asked),
                "--config and its fields, except --model.parameterization, are for --from google: "
                "a network pickle describes its network",
            )
            from pdfast.interop.edm.load import import_edm

            import_edm(self.source, self.out, asked, self.steps, force=self.force)
            return
        if self.from_ == "diffusers":
            check(
                not self.config and self.model == config.model,
                "--config and its fields are for --from google: a pipeline describes its network",
            )
            from pdfast.interop.diffusers.load import import_diffusers

            import_diffusers(
                str(self.source),
                self.out,
                self.steps,
                variant=self.variant,
                scheduler=self.scheduler,
                null_class=self.null_class,
                force=self.force,
            )
            return
        check(
            bool(self.config),
            "--config is missing: the file does not describe its network, so name a config of it, "
            "such as cifar10",
        )
        from pdfast.interop.google.load import import_google

        config = dataclasses.replace(config, model=self.model)
        import_google(self.source, self.out, config, self.steps, force=self.force)


@dataclass(frozen=True, kw_only=True)
class Export(Common):
    """Write a model as a folder that diffusers or an ONNX runtime loads."""

    model: Positional[Path]
    """Model directory, such as runs/digits/round-11-steps-0004."""
    to: ExportTarget
    """diffusers: a DDIMPipeline, with a model card that has the call. onnx: the network as one
    graph, and a JSON file that describes its inputs and output."""
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
