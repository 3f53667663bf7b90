"""Reference statistics: mean and covariance of a detector's features of a set, in an .npz.

The arrays are `mu` (D,) and `sigma` (D, D), the names of pytorch-fid, clean-fid and EDM, and of
ADM's reference batches, which also hold images. pdfast's own files add `about`, a JSON text with
the origin of the statistics, which other programs' files do not have. Pickles are never opened,
sizes are checked before memory is allocated, and arrays that cannot be a mean and a covariance are
refused.
"""

import contextlib
import dataclasses
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pdfast.config import detectors
from pdfast.config.serialization import from_table, to_table
from pdfast.data.readers import npz
from pdfast.data.readers.npz import Member
from pdfast.data.readers.zips import open_zip
from pdfast.errors import UsageError, printable
from pdfast.evaluation.frechet import Gaussian
from pdfast.evaluation.set_facts import SetFacts
from pdfast.storage import files
from pdfast.storage.marked import save_npz

FORMAT = 1  # version of `about`
MEAN, COVARIANCE, ABOUT = "mu", "sigma", "about"
MAX_FEATURES = 2**13  # a covariance of so many features takes 0.5 GB
MAX_ABOUT = 2**16  # characters
# Relative. Some programs sum in float32: this is far above that rounding, and far below an error.
ROUNDING = 1e-4
LARGEST = 1e30  # the sums of squares of such numbers stay finite
KIND = "file of statistics (.npz)"

T = TypeVar("T", bound="Made | SetFacts")


@dataclass(frozen=True, kw_only=True)
class Made:
    """The `about` of statistics that pdfast wrote: their origin."""

    format: int
    pdfast: str
    torch: str
    metric: str
    detector: str
    """Name of the detector, as `Detector.name`."""
    detector_resize: str
    detector_sha256: str
    features: int
    set: SetFacts


class Statistics(NamedTuple):
    """The contents of a statistics file."""

    gaussian: Gaussian
    """Mean and covariance, float64, on the CPU."""
    made: Made | None
    """The file's `about`; None if another program wrote it."""
    has_images: bool
    """Whether the file also has images of the set."""
    unused: tuple[str, ...]
    """Names of other arrays in the file."""
    sha256: str
    """SHA-256 of the file."""

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.gaussian.mean)


def is_one(path: Path) -> bool:
    """Whether a file holds statistics, by the names in it; false if it cannot be read."""
    try:
        if path.suffix.lower() != ".npz" or not path.is_file():
            return False
        with open_zip(path, KIND, npz.MAX_LIST) as archive:
            return not {f"{MEAN}.npy", f"{COVARIANCE}.npy"}.isdisjoint(archive.namelist())
    except (UsageError, OSError):  # a later read reports the error
        return False


def read(path: Path) -> Statistics:
    """Read a statistics file.

    Args:
        path: The .npz file.

    Raises:
        UsageError: The file cannot be read, or holds no valid statistics.
    """
    with open_zip(path, KIND, npz.MAX_LIST) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        for name in (MEAN, COVARIANCE):
            if name not in names:
                raise UsageError(f"{path} has no array `{name}`: make a whole copy of it")
        mean = npz.open_array(archive, MEAN)
        with mean.file:
            _check(path, MEAN, mean, len(mean.shape) == 1 and mean.shape[0] > 0, "(D,)")
            width = mean.shape[0]
            if width > MAX_FEATURES:
                raise UsageError(
                    f"{path}: `{MEAN}` has {width:,} features, more than the {MAX_FEATURES:,} that "
                    "can be read: use a detector of fewer features"
                )
            mu = _finite(path, MEAN, npz.read_array(mean, f"{path}: `{MEAN}`"))
        covariance = npz.open_array(archive, COVARIANCE)
        with covariance.file:
            fits = covariance.shape == (width, width)
            _check(path, COVARIANCE, covariance, fits, f"({width}, {width})")
            sigma = _finite(path, COVARIANCE, npz.read_array(covariance, f"{path}: `{COVARIANCE}`"))
        made = _made(path, archive) if ABOUT in names else None
    gaussian = Gaussian(torch.from_numpy(mu), _symmetric(path, torch.from_numpy(sigma)))
    if made is not None and made.features != width:
        raise UsageError(
            f"{path} says that it is of {made.features:,} features, but holds {width:,}: make it "
            "again with pdfast stats"
        )
    images = [name for name in names if name in npz.NAMES]
    unused = [name for name in names if name not in (MEAN, COVARIANCE, ABOUT, *images)]
    return Statistics(gaussian, made, bool(images), tuple(unused), files.sha256(path))


def write(path: Path, gaussian: Gaussian, made: Made) -> None:
    """Write a statistics file atomically, replacing any file at `path`.

    `np.load` reads it without pickles.

    Args:
        path: The .npz file.
        gaussian: Mean and covariance.
        made: The `about` of the file.

    Raises:
        PdfastError: The file cannot be written.
    """
    arrays: dict[str, Any] = {
        MEAN: gaussian.mean.double().cpu().numpy(),
        COVARIANCE: gaussian.cov.double().cpu().numpy(),
        ABOUT: np.array(json.dumps(to_table(made))),
    }
    files.write_file(path, lambda stage: save_npz(stage, **arrays))


def _check(path: Path, name: str, member: Member, fits: bool, shape: str) -> None:
    if not fits or member.dtype.kind != "f" or member.dtype.itemsize not in (4, 8):
        raise UsageError(
            f"{path}: `{name}` must be float64 or float32 of shape {shape}, not {member.dtype} of "
            f"shape {member.shape}: make the statistics again"
        )


def _finite(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    if not np.isfinite(array).all():
        raise UsageError(
            f"{path}: `{name}` holds numbers that are not finite: make the statistics again"
        )
    if float(np.abs(array).max()) > LARGEST:
        raise UsageError(
            f"{path}: `{name}` holds numbers above {LARGEST:g}, too large for features: make the "
            "statistics again"
        )
    return np.asarray(array, np.float64)


def _symmetric(path: Path, sigma: torch.Tensor) -> torch.Tensor:
    """Return the covariance, symmetrised; raise UsageError if more than rounding is wrong."""
    most = float(sigma.abs().max())
    if float((sigma - sigma.T).abs().max()) > ROUNDING * most:
        what = "is not symmetric"
    else:
        sigma = (sigma + sigma.T) / 2
        if float(torch.linalg.eigvalsh(sigma)[0]) >= -ROUNDING * most:
            return sigma
        what = "has negative eigenvalues"
    raise UsageError(
        f"{path}: `{COVARIANCE}` {what}, so it is not a covariance of features: make the "
        "statistics again"
    )


def _made(path: Path, archive: zipfile.ZipFile) -> Made:
    """Read an `about` that pdfast wrote; raise UsageError for any other array of that name."""
    table = _table(path, archive)
    format_ = table.get("format")
    if type(format_) is int and format_ > FORMAT:
        raise UsageError(
            f"{path} was written by a newer version of pdfast, in format {format_}: this one reads "
            f"up to {FORMAT}; upgrade pdfast"
        )
    with contextlib.suppress(UsageError, TypeError):  # unknown or missing keys, wrong types
        made = _printable(from_table(Made, table))
        if made.detector in detectors.NAMES:
            return made
    raise UsageError(
        f"{path}: `{ABOUT}` was not written by pdfast stats: make it again, or, in another "
        "program's file, remove that array"
    )


def _table(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return the JSON object in `about`; {} for anything else."""
    member = npz.open_array(archive, ABOUT)
    with member.file:
        of_text = member.shape == () and member.dtype.kind == "U"
        if not of_text or member.dtype.itemsize > 4 * MAX_ABOUT:
            return {}
        content = npz.read_array(member, f"{path}: `{ABOUT}`")
    try:
        table = json.loads(str(content[()]))
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _printable(value: T) -> T:
    """Return a dataclass with its strings, which come from a file, made safe for a terminal."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if isinstance(found, str):
            changes[field.name] = printable(found)
        elif isinstance(found, SetFacts):
            changes[field.name] = _printable(found)
    return dataclasses.replace(value, **changes)


def facts_of(path: Path, found: Statistics) -> SetFacts:
    """Return the known facts of the set behind statistics."""
    if found.made is not None:
        of = found.made.set
        return dataclasses.replace(of, source=f"{path} (of {of.source})")
    blank = dict.fromkeys(("size", "own_size", "reading", "images_sha256", "files_sha256"), "")
    return SetFacts(source=str(path), images=0, **blank)
