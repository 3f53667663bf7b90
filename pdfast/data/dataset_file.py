"""`pdfast data`: write any source as one .npz of one image size, checked and deduplicated."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pdfast.config.class_names import shown
from pdfast.config.schema import LabelFolders, Resize
from pdfast.console.progress import Screen
from pdfast.data import prepare, sources
from pdfast.data.classes import unused
from pdfast.data.image_grid import grid, rows
from pdfast.data.prepare import Order
from pdfast.data.readers import npz
from pdfast.data.readers.pictures import MAX_LABEL
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError
from pdfast.storage import files
from pdfast.storage.marked import save_png

Duplicates = Literal["keep", "drop"]
Images = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]
Names = tuple[str, ...]
COLUMNS, ROWS = 16, 8  # of the contact sheet; with labels it has a row for each class
MAX_WIDTH = 2048  # of the contact sheet in pixels, about
MAX_CLASSES = 20  # classes on the contact sheet, and the most that are listed without names
BLOCK = 2**21  # values summed at once


def make(
    source: str,
    out: Path,
    *,
    size: int,
    channels: int = 0,
    labels: bool = False,
    duplicates: Duplicates = "drop",
    folders: LabelFolders = "auto",
    method: Resize = "bicubic",
    skip_bad: bool = False,
    force: bool = False,
    screen: Screen,
) -> None:
    """Write `source` to the new file `out`, an .npz, and a contact sheet (.png) beside it.

    Images become uint8 (N, size, size, channels) under `images`, by centre crop and resize. With
    `labels` their classes become int64 (N,) under `labels`; `class_names`, texts (K,), are added if
    they are known. `about`, a JSON text, records what the file was made from.

    Args:
        source: Any source that `data.source` can name.
        out: The .npz to write.
        size: Height and width of the images in pixels.
        channels: 1 or 3; 0: 3 if any image has colour, else 1.
        labels: Write the classes too.
        duplicates: Keep or drop images whose pixels repeat an earlier image.
        folders: Which sub-folders are classes; see DataConfig.labels.
        method: How images are resized; see DataConfig.resize.
        skip_bad: Leave out images that cannot be decoded; see DataConfig.skip_bad.
        force: Replace both files if pdfast wrote them.
        screen: Where progress, the summary and warnings are shown.

    Raises:
        UsageError: The source cannot be read or has no labels, or `out` must not be written.
        PdfastError: `out` cannot be written.
    """
    sheet = out.with_suffix(".png")
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} must be an .npz")
    for path in (out, sheet):
        files.check_new(path, force)
    if os.path.isdir(source) and out.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(
            f"--out {out} lies in {source}, where its contact sheet would be taken for one of the "
            "pictures: choose a place outside"
        )
    wanted = Wanted(
        size, channels, labels, resize=True, folders=folders, method=method, skip_bad=skip_bad
    )
    order = Order(source, wanted, duplicates)
    if not source:
        raise UsageError("no data: name a folder of images, or a file of them")
    found = sources.find(source, wanted)
    if labels:
        _check_classes(source, found.labels)

    def check() -> None:
        for path in (out, sheet):
            files.check_new(path, force)  # again: reading may have taken long

    made = prepare.make(order, found, out, screen, prepare.key_of(order, found), check)
    images, classes, names = npz.read_prepared(out, wanted)[:3]
    picture = _contact_sheet(images, classes, names)
    files.write_file(sheet, lambda stage: save_png(picture, stage))
    if made.torn:
        _warn_of_contradictions(made.torn, found.labels, duplicates, screen)
    what = {"keep": "kept", "drop": "dropped"}[duplicates]
    screen.say(
        f"{out}: {_summary(images, classes, names)}; exact duplicates {what}: {made.repeated:,}; "
        f"{sheet}"
    )
    if said := unused(found.unused, "add --labels to keep them"):
        screen.say(said)
    if lacking := prepare.left_out(out, found.left_out):
        screen.warn(f"left out: {lacking}")


def _check_classes(source: str, numbers: NDArray[np.integer[Any]] | None) -> None:
    if numbers is None:
        raise UsageError(f"{source} has no labels: omit --labels, or add labels")
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= MAX_LABEL:
        raise UsageError(f"{source} has labels from {least} to {most}: number classes from 0")


def _warn_of_contradictions(
    torn: tuple[int, int, int], labels: Labels | None, duplicates: Duplicates, screen: Screen
) -> None:
    if labels is not None:
        count, n, k = torn
        kept = "the first of each is kept" if duplicates == "drop" else "all are kept"
        screen.warn(
            f"{count:,} images repeat one of another class, such as image {n} (class {labels[n]}), "
            f"which is image {k} (class {labels[k]}); {kept}"
        )


def _summary(images: Images, classes: Labels | None, names: Names) -> str:
    """Describe the set on one line: size, classes, mean and standard deviation."""
    num, size, _, channels = images.shape
    sums = np.zeros((2, channels))  # of values and of their squares; exact, being below 2^53
    step = max(1, BLOCK // (size**2 * channels))
    for k in range(0, num, step):
        block = images[k : k + step].reshape(-1, channels).astype(np.float64)
        sums[0] += np.ones(len(block)) @ block
        sums[1] += np.einsum("nc,nc->c", block, block)
    mean, square = sums / (num * size**2)
    deviation = np.sqrt(square - mean**2)
    return (
        f"{num:,} images of {size}x{size}x{channels}, {_counts(classes, names)}, mean "
        f"{' '.join(f'{m:.1f}' for m in mean)} and standard deviation "
        f"{' '.join(f'{d:.1f}' for d in deviation)} of 255"
    )


def _counts(classes: Labels | None, names: Names) -> str:
    if classes is None:
        return "no labels"
    numbers, counts = np.unique(classes, return_counts=True)
    what = f"{len(numbers)} class{'es' if len(numbers) > 1 else ''}"
    if not names and counts.min() == counts.max():
        return f"{what} of {counts[0]:,}"
    if not names and len(numbers) > MAX_CLASSES:
        return f"{what} of {counts.min():,} to {counts.max():,}"
    pairs = zip(numbers, counts, strict=True)
    return f"{what} ({', '.join(f'{shown(k, names)}: {n:,}' for k, n in pairs)})"


def _contact_sheet(images: Images, classes: Labels | None, names: Names) -> Image.Image:
    """Draw images from all over the set; with labels, a row for each of the first classes."""
    columns = max(1, min(COLUMNS, MAX_WIDTH // images.shape[2]))
    if classes is None:
        return grid(_spread(images, np.arange(len(images)), columns * ROWS), columns)
    numbers, counts = np.unique(classes, return_counts=True)
    return rows(
        [
            (
                f"class {shown(k, names)}: {n:,}",
                _spread(images, np.flatnonzero(classes == k), columns),
            )
            for k, n in zip(numbers[:MAX_CLASSES], counts[:MAX_CLASSES], strict=True)
        ]
    )


def _spread(images: Images, numbers: NDArray[np.int64], most: int) -> torch.Tensor:
    """Return at most `most` of the numbered images, evenly spaced."""
    num = min(most, len(numbers))
    return torch.from_numpy(images[numbers[np.arange(num) * len(numbers) // num]])
