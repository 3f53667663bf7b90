"""Facts of the two sets behind a distance, and warnings where these may mislead."""

from dataclasses import dataclass

from pdfast.data.own_size import SetRead
from pdfast.errors import printable
from pdfast.evaluation.detectors.base import Detector
from pdfast.storage.digests import SHOWN

UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """One side of a comparison; JSON files hold it as it is."""

    source: str
    images: int
    """0: not known."""
    size: str
    """Height, width and channels of the images that the detector was given; "" where not known."""
    own_size: str
    """Height and width in the files; "" where not known."""
    reading: str
    """How they were brought to that size, in words, or "none"; "" where not known."""
    images_sha256: str
    """SHA-256 of the tensor of images as they were read; "" where not known."""
    files_sha256: str
    """SHA-256 of the file, or of several as `own_size.files_digest`; "" without files."""
    left_out: str = ""
    """Images that were left out, and why."""

    @classmethod
    def of(cls, source: str, read: SetRead) -> "SetFacts":
        """The facts of a set that was read."""
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
        """(what, value) for a table to read; `name` is what the set is."""
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
    """Sentences on what makes two sets differ besides their content, where both are known."""
    found = []
    if reference.size and samples.size != reference.size:
        found.append(
            f"the samples are {samples.size} and the reference {reference.size} (resize before the "
            f"detector: {detector.resize}): sharpness and colours differ by that alone"
        )
    if reference.reading and samples.reading != reference.reading:
        found.append(
            f"the samples were resized by: {samples.reading}; the reference by: "
            f"{reference.reading}: the distance is of that difference, too"
        )
    return found
