"""The reference of samples of other tools: a data set, or statistics of one."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pdfast.config.schema import Resize
from pdfast.console.progress import Screen
from pdfast.data import own_size
from pdfast.data.dataset import Dataset
from pdfast.data.own_size import SetRead
from pdfast.errors import UsageError
from pdfast.evaluation import statistics_file
from pdfast.evaluation.detectors.base import Detector
from pdfast.evaluation.detectors.opening import open_detector
from pdfast.evaluation.frechet import Gaussian
from pdfast.evaluation.reference_set import Reference
from pdfast.evaluation.set_facts import SetFacts
from pdfast.evaluation.statistics_file import Statistics
from pdfast.storage.digests import SHOWN
from pdfast.training.image_stream import is_streamed

DEFAULT = "pixel"
SEED = 0  # of the resamples that give the floor


class Reading(NamedTuple):
    """How sets are read; see `own_size.read`."""

    size: int
    method: Resize
    skip_bad: bool


@dataclass(frozen=True, kw_only=True)
class Against:
    """The side that samples are compared with."""

    detector: Detector
    gaussian: Gaussian
    facts: SetFacts
    images: Reference | None
    """For precision and recall; None where there are no images."""
    floor: tuple[float, float] | None = None
    """Mean and deviation of the distance of as many resampled images; None of statistics."""
    statistics_sha256: str = ""
    """SHA-256 of a file of statistics; "" of a data set."""
    warnings: tuple[str, ...] = ()


def read_set(source: str, how: Reading, where: torch.device, screen: Screen) -> SetRead:
    """A set, on the device unless it is large there. Raises UsageError as `own_size.read`."""
    read = own_size.read(source, *how, screen)
    streamed = is_streamed("auto", read.data.images.nbytes, where)
    return read if streamed else read._replace(data=read.data.to(where))


def open_against(
    source: str,
    detector: str | None,
    samples: SetRead,
    how: Reading,
    where: torch.device,
    screen: Screen,
) -> Against:
    """Read what `source` names, and see it by a detector; without one by that of statistics.

    Raises UsageError for what cannot be compared with the samples.
    """
    path = Path(source)
    found = statistics_file.read(path) if statistics_file.is_one(path) else None
    looks = open_detector(_chosen(detector, source, found), samples.data, where)
    looks.check_number("samples", len(samples.data), "make more of them")
    if found is not None and not _images_instead(found, looks, samples.data):
        return _statistics(path, found, looks, samples, how, where, screen)
    against = _data_set(source, looks, samples, how, where, screen)
    if found is None:
        return against
    more = f"{source} has statistics of {found.width:,} features, which {looks.name} does not see"
    return dataclasses.replace(against, warnings=(f"{more}: its images are taken alone",))


def _chosen(asked: str | None, source: str, found: Statistics | None) -> str:
    """The detector's name, as `eval.detector` has it."""
    if asked is not None:
        return asked
    if found is None:
        return DEFAULT
    if found.made is None:
        raise UsageError(
            f"{source} holds statistics of {found.width:,} features and does not say by which "
            "detector: name it, by --detector inception:PATH for those of FID (2,048 features)"
        )
    return found.made.detector


def _images_instead(found: Statistics, detector: Detector, samples: Dataset) -> bool:
    """Whether to use the images in a file of statistics, whose features are another detector's."""
    if found.made is not None or not found.has_images:
        return False
    return detector.features(samples.images) != found.width


def _data_set(
    source: str,
    detector: Detector,
    samples: SetRead,
    how: Reading,
    where: torch.device,
    screen: Screen,
) -> Against:
    read = read_set(source, how, where, screen)
    detector.check_number("images", len(read.data), "take a larger set, or another --detector")
    facts, ours = SetFacts.of(source, read), "x".join(map(str, samples.data.images.shape[1:]))
    counts = [detector.features(data.images) for data in (samples.data, read.data)]
    if counts[0] != counts[1]:
        raise UsageError(
            f"the samples are {ours} and {source} {facts.size}, of which {detector.metric} has "
            f"{counts[0]:,} and {counts[1]:,} features: give both one size by --size, and one "
            "number of channels"
        )
    reference = Reference(read.data, detector, screen)
    return Against(
        detector=detector,
        gaussian=reference.gaussian,
        facts=facts,
        images=reference,
        floor=reference.floor(len(samples.data), SEED),
    )


def _statistics(
    path: Path,
    found: Statistics,
    detector: Detector,
    samples: SetRead,
    how: Reading,
    where: torch.device,
    screen: Screen,
) -> Against:
    made, count = found.made, detector.features(samples.data.images)
    if made is not None and made.detector != detector.name:
        raise UsageError(
            f"{path} holds statistics of {made.metric}, and {detector.name} finds "
            f"{detector.metric}: pass --detector {made.detector}, or name the data set itself"
        )
    if count != found.width:
        raise UsageError(
            f"{path} holds statistics of {found.width:,} features, and {detector.metric} of these "
            f"samples has {count:,}: name the detector that they are of by --detector, and the "
            "images' size by --size, or name the data set itself"
        )
    facts, reference = statistics_file.facts_of(path, found), None
    if found.has_images and detector.weights:
        images = read_set(str(path), how, where, screen)
        detector.check_number("images", len(images.data), "take a whole reference batch")
        reference = Reference(images.data, detector, screen)
        of = SetFacts.of(str(path), images)
        what = f"{path} (statistics, and {of.images:,} images for precision and recall)"
        facts = dataclasses.replace(of, source=what, images=0)
    if found.unused:
        unused = ", ".join(found.unused[:SHOWN])
        facts = dataclasses.replace(facts, left_out=f"arrays that are not used: {unused}")
    on = detector.device or samples.data.images.device
    return Against(
        detector=detector,
        gaussian=Gaussian(found.gaussian.mean.to(on), found.gaussian.cov.to(on)),
        facts=facts,
        images=reference,
        statistics_sha256=found.sha256,
        warnings=tuple(_doubts(path, found, detector)),
    )


def _doubts(path: Path, found: Statistics, detector: Detector) -> list[str]:
    """Reasons why statistics may be of other features than the samples'."""
    made = found.made
    if made is None:
        return [
            f"{path} does not say of how many images its statistics are, of which size and resize, "
            f"and by which network: the distance is {detector.metric} where that is "
            f"{detector.name}, on images resized as the samples are"
        ]
    doubts = []
    if made.detector_sha256 != detector.weights:
        doubts.append(
            f"{path} is of {made.detector} with other weights (SHA-256 "
            f"{made.detector_sha256[:SHOWN]}) than these ({detector.weights[:SHOWN]}): the "
            "distance is between features of two networks"
        )
    if made.detector_resize != detector.resize:
        doubts.append(
            f"{path} was made with another resize before the detector ({made.detector_resize}) "
            f"than this version has ({detector.resize})"
        )
    return doubts
