"""Facts of the two sets behind a distance, and warnings where they make it misleading."""

from dataclasses import dataclass

from pdfast.data.own_size import SetRead
from pdfast.errors import printable
from pdfast.evaluation.detectors.base import Detector
from pdfast.storage.digests import SHOWN

UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """Facts of one side of a comparison; part of JSON files."""

    source: str
    images: int
    """Number of images; 0 if not known."""
    size: str
    """Height, width and channels of the detector's input images; "" if not known."""
    own_size: str
    """Height and width in the files; "" if not known."""
    reading: str
    """How they were resized, in words, or "none"; "" if not known."""
    images_sha256: str
    """SHA-256 of the tensor of images as read; "" if not known."""
    files_sha256: str
    """SHA-256 of the file, or of several files by `own_size.files_digest`; "" without files."""
    left_out: str = ""
    """Images that were left out, and why."""

    @classmethod
    def of(cls, source: str, read: SetRead) -> "SetFacts":
        """Return the facts of a set that was read."""
        return cls(
            source=printable(source),
            images=len(read.data),
            size="x".join(map(str, read.data.images.shape[1:])),
            own_size=read.own_size,
            reading=read.reading,
            images_sha256=read.data.digest.images,
            files_sha256=read.files_sha256,
            left_out=printable(read.data.left_out),
        )

    def rows(self, name: str) -> list[tuple[str, str]]:
        """Return (what, value) of each fact, for a table that calls the set `name`."""
        num = f"{self.images:,} images" if self.images else f"number of images {UNKNOWN}"
        sums = (("images", self.images_sha256), ("files", self.files_sha256))
        hashes = ", ".join(f"{what} {found[:SHOWN]}" for what, found in sums if found)
        rows = [
            (name, f"{self.source}, {num}"),
            (f"{name}: size", f"{self.size or UNKNOWN}, in the files {self.own_size or UNKNOWN}"),
            (f"{name}: resize when read", self.reading or UNKNOWN),
            (f"{name}: SHA-256", hashes or UNKNOWN),
        ]
        if self.left_out:
            rows.append((f"{name}: left out", self.left_out))
        return rows


def differences(samples: SetFacts, reference: SetFacts, detector: Detector) -> list[str]:
    """Return warnings on known differences of two sets besides their content."""
    found = []
    if reference.size and samples.size != reference.size:
        found.append(
            f"the samples are {samples.size} and the reference {reference.size} (resize before the "
            f"detector: {detector.resize}): sharpness and colours differ by that alone"
        )
    if reference.reading and samples.reading != reference.reading:
        found.append(
            f"the samples were resized by: {samples.reading}; the reference by: "
            f"{reference.reading}: the distance includes that difference"
        )
    return found
