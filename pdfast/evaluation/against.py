"""The reference side of `pdfast eval --against`: a data set, or statistics of one."""

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
SEED = 0  # seed of the resamples that give the floor


class Reading(NamedTuple):
    """Options of reading a set; see `own_size.read`."""

    size: int
    method: Resize
    skip_bad: bool


@dataclass(frozen=True, kw_only=True)
class Against:
    """The reference that samples are compared with."""

    detector: Detector
    gaussian: Gaussian
    facts: SetFacts
    images: Reference | None
    """Images for precision and recall, or None."""
    floor: tuple[float, float] | None = None
    """Mean and standard deviation of the distance of as many resampled images as there are samples;
    None for statistics."""
    statistics_sha256: str = ""
    """SHA-256 of the statistics file; "" for a data set."""
    warnings: tuple[str, ...] = ()


def read_set(source: str, how: Reading, where: torch.device, screen: Screen) -> SetRead:
    """Read a set, and move it to the device unless it is too large for that.

    Args:
        source: The set, as `data.source` names it.
        how: Options of reading.
        where: The device.
        screen: Where progress is reported.

    Raises:
        UsageError: The set cannot be read; see `own_size.read`.
    """
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
    """Read the reference and extract its features.

    Args:
        source: A data set, as `data.source` names it, or an .npz of statistics.
        detector: The detector, as `eval.detector` names it; None for the detector that the
            statistics name, or for "pixel" with a data set.
        samples: The samples to compare with it.
        how: Options of reading.
        where: Device of the features.
        screen: Where progress is reported.

    Raises:
        UsageError: The reference cannot be compared with the samples.
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
    more = f"{source} has statistics of {found.width:,} features, which are not of {looks.name}"
    return dataclasses.replace(against, warnings=(f"{more}: only its images are used",))


def _chosen(asked: str | None, source: str, found: Statistics | None) -> str:
    """Return the name of the detector, as in `eval.detector`."""
    if asked is not None:
        return asked
    if found is None:
        return DEFAULT
    if found.made is None:
        raise UsageError(
            f"{source} holds statistics of {found.width:,} features and does not say of which "
            "detector: name it, with --detector inception:PATH for FID's (2,048 features)"
        )
    return found.made.detector


def _images_instead(found: Statistics, detector: Detector, samples: Dataset) -> bool:
    """Whether a statistics file is of another detector, but has images to use instead."""
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
            f"the samples are {ours} and {source} {facts.size}, for which {detector.metric} has "
            f"{counts[0]:,} and {counts[1]:,} features: give both the same size by --size, and "
            "the same number of channels"
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
            f"{path} holds statistics of {made.metric}, but detector {detector.name} computes "
            f"{detector.metric}: pass --detector {made.detector}, or name the data set itself"
        )
    if count != found.width:
        raise UsageError(
            f"{path} holds statistics of {found.width:,} features, and {detector.metric} of these "
            f"samples has {count:,}: name the detector of the statistics by --detector, and the "
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
    """Return reasons why statistics may be of other features than the samples'."""
    made = found.made
    if made is None:
        return [
            f"{path} does not record the number, size and resize of its images, nor the network: "
            f"the distance is {detector.metric} only if that was {detector.name}, on images "
            "resized as the samples are"
        ]
    doubts = []
    if made.detector_sha256 != detector.weights:
        doubts.append(
            f"{path} is of {made.detector} with other weights (SHA-256 "
            f"{made.detector_sha256[:SHOWN]}) than the ones here ({detector.weights[:SHOWN]}): the "
            "distance is between features of two networks"
        )
    if made.detector_resize != detector.resize:
        doubts.append(
            f"{path} was made with another resize before the detector ({made.detector_resize}) "
            f"than this version uses ({detector.resize})"
        )
    return doubts
