"""`pdfast data` and `pdfast doctor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from pdfast.commands.shared import Common, Force, Machine, check_alone
from pdfast.config import DataConfig
from pdfast.tables import check


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

    def run(self) -> None:
        """Run the command."""
        check_alone("data")
        check(1 <= self.size <= 2**16, "--size must be in 1 .. 65536")
        from pdfast.dataset_file import make
        from pdfast.progress import Screen

        make(
            DataConfig(source=self.source).source,
            self.out,
            size=self.size,
            channels=self.channels,
            labels=self.labels,
            duplicates=self.duplicates,
            force=self.force,
            screen=Screen(),
        )


@dataclass(frozen=True, kw_only=True)
class Doctor(Machine):
    """Say what runs where: device, number types, each op's implementation and why."""

    def run(self) -> None:
        """Run the command."""
        from pdfast.doctor import doctor
        from pdfast.progress import Screen

        doctor(self.device, self.threads, Screen())
