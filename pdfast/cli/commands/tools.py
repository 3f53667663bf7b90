"""`pdfast data` and `pdfast doctor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from pdfast.cli.commands.shared import Common, Force, Machine, check_alone
from pdfast.config.schema import DataConfig, LabelFolders, Resize
from pdfast.config.serialization import check


@dataclass(frozen=True, kw_only=True)
class Data(Common):
    """Write images from anywhere as one .npz: cropped, resized, checked, each once."""

    source: Positional[str]
    """A folder of images, a .zip, .tar or .tgz shards, an .npz, IDX files, CIFAR's .tar.gz,
    emoji:FONT, hf:NAME[:SPLIT[:COLUMN]], or digits; see data.source. Images may have any size."""
    out: Path
    """A new .npz; a contact sheet, .png, is written beside it."""
    force: Force = False
    """Replace what is at --out, where pdfast wrote it and nothing was changed or added since."""
    size: int
    """Height and width in pixels."""
    channels: Literal[0, 1, 3] = 0
    """1 for grey, 3 for colour; 0: 3 if any image has colour."""
    labels: FlagCreatePairsOff[bool] = False
    """Write the classes too."""
    duplicates: Literal["keep", "drop"] = "drop"
    """What becomes of images whose pixels repeat those of an earlier one."""
    folders: Annotated[LabelFolders, arg(name="data.labels")] = "auto"
    """Which sub-folders of a folder are its classes: top, those directly below it; parent, those
    that hold the images; auto, where both are the same; see data.labels."""
    method: Annotated[Resize, arg(name="resize", aliases=["--data.resize"])] = "bicubic"
    """bicubic, antialiased, or area, the mean of what each pixel covers; see data.resize."""
    skip_bad: Annotated[
        FlagCreatePairsOff[bool], arg(name="skip-bad", aliases=["--data.skip-bad"])
    ] = False
    """Leave out images that cannot be read, and list them; otherwise they are refused by name."""

    def run(self) -> None:
        """Run the command."""
        check_alone("data")
        check(1 <= self.size <= 2**16, "--size must be in 1 .. 65536")
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
class Doctor(Machine):
    """Say what runs where: device, number types, each op's implementation and why."""

    def run(self) -> None:
        """Run the command."""
        from pdfast.cli.doctor import doctor
        from pdfast.console.progress import Screen

        doctor(self.device, self.threads, Screen())
