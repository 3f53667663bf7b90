"""`pdfast stats`: mean and covariance of a set's features, in a file that other tools read."""

from pathlib import Path

import torch

from pdfast.config import detectors
from pdfast.console.progress import Screen
from pdfast.distributed import collectives
from pdfast.distributed.settings import kept
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError
from pdfast.evaluation import statistics_file
from pdfast.evaluation.against import Reading, read_set
from pdfast.evaluation.detectors.opening import open_detector
from pdfast.evaluation.reference_set import Reference
from pdfast.evaluation.set_facts import SetFacts
from pdfast.evaluation.statistics_file import FORMAT, MAX_FEATURES, Made
from pdfast.storage import files
from pdfast.training.precision import set_precision
from pdfast.version import __version__


def make_statistics(
    source: str,
    out: Path,
    how: Reading,
    *,
    detector: str,
    device: str = "auto",
    threads: int = 0,
    force: bool = False,
    quiet: bool = False,
) -> Made:
    """Write the statistics of a set to an .npz file.

    Args:
        source: The set, named as in `data.source`.
        out: The new .npz file.
        how: Options of reading.
        detector: The detector, as in `eval.detector`.
        device: The device, or "auto".
        threads: CPU threads; 0 for PyTorch's default.
        force: Replace a file that pdfast wrote.
        quiet: Print warnings only.

    Returns:
        The `about` of the file.

    Raises:
        PdfastError: The set or `out` is not usable. The message names the fix.
    """
    screen = Screen(quiet)
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} must be an .npz")
    detectors.split(detector)
    files.check_new(out, force)
    with kept(), collectives.session(device, threads, poll) as where:
        set_precision("fp32", where)
        read = read_set(source, how, where, screen)
        looks = open_detector(detector, read.data, where)
        looks.check_number("images", len(read.data), "take a larger set, or another --detector")
        width = looks.features(read.data.images)
        assert width <= MAX_FEATURES
        made = Made(
            format=FORMAT,
            pdfast=__version__,
            torch=torch.__version__,
            metric=looks.metric,
            detector=looks.name,
            detector_resize=looks.resize,
            detector_sha256=looks.weights,
            features=width,
            set=SetFacts.of(source, read),
        )
        gaussian = Reference(read.data, looks, screen).gaussian
        files.check_new(out, force)  # reading may have taken long
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(out, error) from None
        statistics_file.write(out, gaussian, made)
    if looks.warning:
        screen.warn(looks.warning)
    if len(read.data) <= width:
        screen.warn(
            f"{len(read.data):,} images are too few for a covariance of {width:,} features to have "
            f"full rank, which takes {width + 1:,}"
        )
    for what, value in made.set.rows("set"):
        screen.say(f"{what}: {value}")
    by = f", weights SHA-256 {looks.weights}" if looks.weights else ""
    screen.say(f"{out}: mean and covariance of {width:,} features for {looks.metric}{by}")
    return made
