"""`pdfast data`, `pdfast stats` and `pdfast doctor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from pdfast.cli.commands.shared import Common, Force, Machine, check_alone, check_resize, check_size
from pdfast.config.schema import DataConfig, LabelFolders, Resize


@dataclass(frozen=True, kw_only=True)
class Data(Common):
    """Write the images of any source as one .npz, cropped, resized and checked."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A folder of images, a .zip, .tar or .tgz shards, an .npz, IDX files, CIFAR's .tar.gz,
    emoji:FONT, hf:NAME[:SPLIT[:COLUMN]], or digits; see data.source. Images may have any size."""
    out: Path
    """The .npz to write; a contact sheet, .png, is written beside it."""
    force: Force = False
    """Replace --out, if pdfast wrote it and nothing was changed or added since."""
    size: int
    """Height and width in pixels."""
    channels: Literal[0, 1, 3] = 0
    """1 for grey, 3 for colour; 0: 3 if any image has colour."""
    labels: FlagCreatePairsOff[bool] = False
    """Write the classes too."""
    duplicates: Literal["keep", "drop"] = "drop"
    """Keep or drop images whose pixels repeat an earlier image's."""
    folders: Annotated[LabelFolders, arg(name="data.labels")] = "auto"
    """Which sub-folders of a folder are its classes: top, the folders directly below it; parent,
    the folders that hold the images; auto, where both are the same; see data.labels."""
    method: Annotated[Resize, arg(name="resize", aliases=["--data.resize"])] = "bicubic"
    """bicubic (antialiased) or area (the mean over the area of each pixel); see data.resize."""
    skip_bad: Annotated[
        FlagCreatePairsOff[bool], arg(name="skip-bad", aliases=["--data.skip-bad"])
    ] = False
    """Skip images that cannot be read, and list them; by default they are an error."""

    def run(self) -> None:
        """Run the command."""
        check_alone("data")
        check_size(self.size)
        from pdfast.console.progress import Screen
        from pdfast.data.dataset_file import make

        make(
            DataConfig(source=self.source).source,
            self.out,
            size=self.size,
            channels=self.channels,
            labels=self.labels,
            duplicates=self.duplicates,
            folders=self.folders,
            method=self.method,
            skip_bad=self.skip_bad,
            force=self.force,
            screen=Screen(),
        )


@dataclass(frozen=True, kw_only=True)
class Stats(Machine):
    """Write a data set's statistics (mu, sigma) for FID and similar, as pytorch-fid and EDM do."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """The data set: any source that data.source can name."""
    out: Path
    """The .npz to write."""
    force: Force = False
    """Replace --out, if pdfast wrote it and nothing was changed or added since."""
    detector: str = "pixel"
    """pixel, inception[:PATH] or lite0, as eval.detector."""
    size: int = 0
    """Centre-crop and resize all images to this height and width. By default they are not resized,
    and must all have one square size."""
    resize: Resize | None = None
    """With --size: bicubic (antialiased, the default) or area, as data.resize."""
    skip_bad: FlagCreatePairsOff[bool] = False
    """Skip images that cannot be read, and list them."""

    def run(self) -> None:
        """Run the command."""
        check_alone("stats")
        check_resize(self.size, self.resize)
        from pdfast.evaluation.against import Reading
        from pdfast.evaluation.make_statistics import make_statistics

        make_statistics(
            DataConfig(source=self.source).source,
            self.out,
            Reading(self.size, self.resize or "bicubic", self.skip_bad),
            detector=self.detector,
            device=self.device,
            threads=self.threads,
            force=self.force,
        )


@dataclass(frozen=True, kw_only=True)
class Doctor(Machine):
    """Show the device, the number types, and each op's implementation with the reason."""

    def run(self) -> None:
        """Run the command."""
        from pdfast.cli.doctor import doctor
        from pdfast.console.progress import Screen

        doctor(self.device, self.threads, Screen())
