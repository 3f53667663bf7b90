"""`pdfast data`: any source as one .npz of one size, checked, without duplicates, written once."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pdfast import files, sources
from pdfast.errors import UsageError
from pdfast.marked import save_npz, save_png
from pdfast.plots import grid, rows
from pdfast.progress import Screen
from pdfast.sources.pictures import BLOCK
from pdfast.sources.reading import MIN_IMAGES, Wanted, listen

Duplicates = Literal["keep", "drop"]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
COLUMNS, ROWS = 16, 8  # of the contact sheet; with labels, a row for each class
MAX_WIDTH = 2048  # pixels, about
MAX_CLASSES = 20  # listed, and shown


def make(
    source: str,
    out: Path,
    *,
    size: int,
    channels: int = 0,
    labels: bool = False,
    duplicates: Duplicates = "drop",
    force: bool = False,
    screen: Screen,
) -> None:
    """Write `source` to the new file `out`, an .npz, and a contact sheet (.png) beside it.

    Images become uint8 (N, size, size, channels) under `images`, by centre crop and antialiased
    resize; channels 0: 3 if any has colour, else 1. `labels`: their classes too, int64 (N,) under
    `labels`. `force`: replace both files where pdfast wrote them. Raises UsageError for a source
    that cannot be read or has no labels, and PdfastError if `out` cannot be written.
    """
    sheet = out.with_suffix(".png")
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} must be an .npz")
    for path in (out, sheet):
        files.check_new(path, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(out, error) from None

    wanted = Wanted(size, channels, labels, resize=True)
    images, numbers, _, _ = sources.load(source, wanted, screen)
    classes = None
    if labels:
        classes = _classes(source, numbers)
    first = _first_alike(images, screen)
    repeated = int((first != np.arange(len(first))).sum())
    if classes is not None:
        _warn_of_contradictions(classes, first, duplicates, screen)
    if duplicates == "drop" and repeated:
        images, classes = _unique(images, classes, first)
        if len(images) < MIN_IMAGES:
            raise UsageError(f"{source} has no two images that differ: nothing was written")

    arrays: dict[str, Any] = {"images": images}
    if classes is not None:
        arrays["labels"] = classes
    picture = _contact_sheet(images, classes)
    for path in (out, sheet):
        files.check_new(path, force)  # reading may have taken long
    files.write_file(out, lambda stage: save_npz(stage, **arrays))
    files.write_file(sheet, lambda stage: save_png(picture, stage))
    what = {"keep": "kept", "drop": "dropped"}[duplicates]
    screen.say(
        f"{out}: {_summary(images, classes)}; exact duplicates {what}: {repeated:,}; {sheet}"
    )


def _classes(source: str, numbers: NDArray[np.integer[Any]] | None) -> Labels:
    if numbers is None:
        raise UsageError(f"{source} has no labels: leave --labels out, or add them")
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= sources.pictures.MAX_LABEL:
        raise UsageError(f"{source} has labels from {least} to {most}: number classes from 0")
    return numbers.astype(np.int64)


def _first_alike(images: Images, screen: Screen) -> NDArray[np.int64]:
    """For each image the number of the first that has the same pixels, by their SHA-256."""
    seen: dict[bytes, int] = {}
    first = np.empty(len(images), np.int64)
    with screen.task("comparing", len(images)) as task:
        for n, image in enumerate(images):
            listen()
            first[n] = seen.setdefault(hashlib.sha256(image).digest(), n)
            task.advance()
    return first


def _warn_of_contradictions(
    classes: Labels, first: NDArray[np.int64], duplicates: Duplicates, screen: Screen
) -> None:
    torn = np.flatnonzero(classes != classes[first])
    if len(torn):
        n, k = int(torn[0]), int(first[torn[0]])
        kept = "the first of each is kept" if duplicates == "drop" else "all are kept"
        screen.warn(
            f"{len(torn):,} images repeat one of another class, such as image {n} (class "
            f"{classes[n]}), which is image {k} (class {classes[k]}); {kept}"
        )


def _unique(
    images: Images, classes: Labels | None, first: NDArray[np.int64]
) -> tuple[Images, Labels | None]:
    """The images that are the first of their kind, moved within their own memory."""
    kept = np.flatnonzero(first == np.arange(len(first)))
    for to, of in enumerate(kept):
        images[to] = images[of]
    return images[: len(kept)], None if classes is None else classes[kept]


def _summary(images: Images, classes: Labels | None) -> str:
    """What the set has, on one line."""
    num, size, _, channels = images.shape
    histogram = np.zeros((channels, 256), np.int64)
    for k in range(0, num, BLOCK):
        for channel in range(channels):
            block = images[k : k + BLOCK, ..., channel].reshape(-1)
            histogram[channel] += np.bincount(block, minlength=256)
    share, values = histogram / histogram.sum(1, keepdims=True), np.arange(256)
    mean = share @ values
    deviation = np.sqrt(share @ values**2 - mean**2)
    return (
        f"{num:,} images of {size}x{size}x{channels}, {_counts(classes)}, mean "
        f"{' '.join(f'{m:.1f}' for m in mean)} and standard deviation "
        f"{' '.join(f'{d:.1f}' for d in deviation)} of 255"
    )


def _counts(classes: Labels | None) -> str:
    if classes is None:
        return "no labels"
    names, counts = np.unique(classes, return_counts=True)
    what = f"{len(names)} class{'es' if len(names) > 1 else ''}"
    if counts.min() == counts.max():
        return f"{what} of {counts[0]:,}"
    if len(names) > MAX_CLASSES:
        return f"{what} of {counts.min():,} to {counts.max():,}"
    listed = ", ".join(f"{k}: {n:,}" for k, n in zip(names, counts, strict=True))
    return f"{what} ({listed})"


def _contact_sheet(images: Images, classes: Labels | None) -> Image.Image:
    """Images from all over the set; with labels, a row for each of the first classes."""
    columns = max(1, min(COLUMNS, MAX_WIDTH // images.shape[2]))
    if classes is None:
        return grid(_spread(images, np.arange(len(images)), columns * ROWS), columns)
    names, counts = np.unique(classes, return_counts=True)
    return rows(
        [
            (f"class {k}: {n:,}", _spread(images, np.flatnonzero(classes == k), columns))
            for k, n in zip(names[:MAX_CLASSES], counts[:MAX_CLASSES], strict=True)
        ]
    )


def _spread(images: Images, numbers: NDArray[np.int64], most: int) -> torch.Tensor:
    """At most so many of the images of these numbers, evenly apart."""
    num = min(most, len(numbers))
    return torch.from_numpy(images[numbers[np.arange(num) * len(numbers) // num]])
