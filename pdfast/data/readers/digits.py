"""The 8x8 digits of scikit-learn, which ship inside that package."""

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
FILE = "datasets/data/digits.csv.gz"  # its place in scikit-learn 1.5 to 1.9
DATA = (".gz", ".parquet", "-ubyte")  # suffixes of data besides those that readers register
RUN = ("config.toml", "manifest.json")  # files that mark pdfast's own folders


def check_alone(here: Path) -> None:
    """Refuse the name "digits" if a folder of that name holds data, and so may be meant.

    A folder that belongs to a run, or whose data lie only in runs, is no cause for doubt.

    Raises:
        UsageError: The folder holds data.
    """
    known = (*SUFFIXES, *DATA, *registry.suffixes())
    with contextlib.suppress(OSError):  # there is no such folder, or it cannot be read
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
    """Read the 1,797 grey images of 8x8 and their classes, 0 to 9.

    Raises:
        UsageError: scikit-learn is not installed, or other images are wanted.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn, or set data.source to your own images"
        )
    file = Path(found.origin).parent / FILE
    if file.is_file():  # five times faster than importing scikit-learn
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
