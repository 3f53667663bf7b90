"""scikit-learn's 8x8 digits, which come inside that package."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np

from pdfast.data.readers import registry
from pdfast.data.readers.pictures import SUFFIXES
from pdfast.data.readers.reading import Arrays, Wanted, check_shape
from pdfast.data.readers.registry import Reader, register
from pdfast.errors import UsageError

NAME = "digits"
FILE = "datasets/data/digits.csv.gz"  # where scikit-learn 1.5 to 1.9 has it
DATA = (".gz", ".parquet", "-ubyte")  # beside the suffixes that readers register
RUN = ("config.toml", "manifest.json")  # of pdfast's own folders


def check_alone(here: Path) -> None:
    """Refuse where the folder of this name may be meant: it holds data, and not only in runs."""
    known = (*SUFFIXES, *DATA, *registry.suffixes())
    with contextlib.suppress(OSError):  # no folder, or none to be read
        for folder in (here, *(path for path in here.iterdir() if path.is_dir())):
            inside = [path.name.lower() for path in folder.iterdir()]
            if any(name in inside for name in RUN):
                if folder == here:
                    return
                continue
            if any(name.endswith(known) for name in inside):
                raise UsageError(
                    f"{here} is the name of scikit-learn's set, and of the folder "
                    f"{here.absolute()}: name the folder as ./{here}; for scikit-learn's set, run "
                    "pdfast in another folder, or rename this one"
                )


def read(wanted: Wanted) -> Arrays:
    """1,797 grey images of 8x8 and their classes, 0 to 9."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn, or set data.source to your own images"
        )
    file = Path(found.origin).parent / FILE
    if file.is_file():  # its import takes a second, and this a fifth
        table = np.loadtxt(file, delimiter=",")
        greys, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        greys, labels = digits.images, digits.target
    images = np.rint(greys * (255 / 16)).astype(np.uint8)[..., None]  # greys 0 .. 16
    check_shape("scikit-learn's digits", images.shape, wanted)
    return Arrays(images, labels)


def _open(source: str, wanted: Wanted) -> Arrays:
    check_alone(Path(source))
    return read(wanted)


register(Reader(keyword=NAME, open=_open, files=lambda _: [], absolute=lambda source: source))
