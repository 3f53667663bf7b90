"""Read a set at the native size of its images, or at a given size, with facts about it.

Training reads a set at its model's size. Samples of other tools, and the sets that they are
compared with, have no model: a detector sees them at their own size, which all images must share.
With `size` all images are centre-cropped and resized to that instead.
"""

import dataclasses
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pdfast.config.schema import Resize
from pdfast.console.progress import Screen
from pdfast.data import digest, sources
from pdfast.data.dataset import Dataset
from pdfast.data.readers import pictures
from pdfast.data.readers.pictures import Pictures
from pdfast.data.readers.reading import Arrays, Wanted, check_number, listen
from pdfast.errors import UsageError
from pdfast.storage import files

SHOWN = 3  # sizes that an error names

Sizes = Counter[tuple[int, int]]  # images of each width and height


class SetRead(NamedTuple):
    """A set, and how it was read."""

    data: Dataset
    """The set: images uint8 (N, size, size, C) on the CPU, without labels; its digest is known."""
    own_size: str
    """Height and width of the images in their files, as a phrase."""
    reading: str
    """How the images were brought to one size, as a phrase; "none" if they were left as they
    are."""
    files_sha256: str
    """SHA-256 of the files, as `files_digest` returns it."""


def read(source: str, size: int, method: Resize, skip_bad: bool, screen: Screen) -> SetRead:
    """Read any source that `data.source` can name.

    Pictures are prepared in the cache folder, as for training.

    Args:
        source: The source.
        size: Height and width in pixels; 0: all images must be square and of one size.
        method: How images are resized if `size` is not their own.
        skip_bad: Leave out images that cannot be decoded, instead of raising.
        screen: Where progress is shown.

    Raises:
        UsageError: The source cannot be used; the message names it and the fix.
    """
    asked = Wanted(size or 1, resize=True, method=method, skip_bad=skip_bad)
    before = sources.stamp(source)
    found = sources.opened(source, asked)
    paths = sources.files_of(source, found)
    sizes = _sizes_of(found)
    if not size:
        size = _common(source, sizes)
        asked = dataclasses.replace(asked, size=size)
    alike = set(sizes) == {(size, size)}
    if isinstance(found, Arrays):
        check_number(source, len(found.images))
        if not alike:
            found = sources.pictures_of(source, found)
    if isinstance(found, Arrays):
        arrays = found._replace(stamp=before)
    else:
        arrays = sources.prepared(source, asked, found, screen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's warning about read-only arrays
        images = torch.from_numpy(arrays.images)
    data = Dataset(
        images, None, left_out=arrays.left_out, stamp=arrays.stamp, checksum=arrays.checksum
    )
    how = {"bicubic": "antialiased bicubic", "area": "area"}[method]
    reading = "none" if alike else f"centre crop, {how} resize to {size}x{size}"
    return SetRead(digest.known(data), _shown(sizes), reading, files_digest(source, paths, screen))


def _sizes_of(found: Arrays | Pictures) -> Sizes:
    """Count the images of each (width, height); pictures by their headers, if those can be read."""
    if isinstance(found, Arrays):
        num, height, width = found.images.shape[:3]
        return Counter({(width, height): num})
    sizes: Sizes = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of oddities in files that they can read
        for name, held in found.files(0):
            listen()
            if (of := pictures.own_size(name, held)) is not None:
                sizes[of] += 1
    return sizes


def _common(source: str, sizes: Sizes) -> int:
    """Return the side that all images share.

    Returns 1 if no header could be read: decoding then reports the cause.
    """
    fix = "pass --size to centre-crop and resize them"
    if len(sizes) > 1:
        raise UsageError(f"{source} has images of {_shown(sizes)}: {fix}, or make them of one size")
    width, height = next(iter(sizes), (1, 1))
    if width != height:
        raise UsageError(f"{source} has images of {_shown(sizes)}, which are not square: {fix}")
    return width


def _shown(sizes: Sizes) -> str:
    """Format heights and widths as a short phrase."""
    named = [f"{height}x{width}" for (width, height), _ in sizes.most_common(SHOWN)]
    if len(sizes) < 2:
        return "".join(named)
    more = ", ..." if len(sizes) > SHOWN else ""
    return f"{len(sizes):,} sizes ({', '.join(named)}{more})"


def files_digest(source: str, paths: Sequence[Path], screen: Screen) -> str:
    """Compute SHA-256 of a source's file, or of a list of its files.

    For a folder or several files it is the SHA-256 of what `sha256sum` prints of them, sorted by
    name, with names relative to the source if that is a folder.

    Args:
        source: The source that the files belong to.
        paths: Its files; may be empty.
        screen: Where progress is shown.

    Returns:
        The digest in hexadecimal; "" if no files are known.

    Raises:
        UsageError: A file cannot be read.
    """
    if len(paths) == 1 and not Path(source).is_dir():
        return _digest_of(paths[0])
    lines = []
    with screen.task("SHA-256 of the files", len(paths)) as task:
        for path in paths:
            listen()
            name = os.path.relpath(path, source) if Path(source).is_dir() else path.name
            lines.append((name, f"{_digest_of(path)}  {name}\n"))
            task.advance()
    text = "".join(line for _, line in sorted(lines))
    return hashlib.sha256(os.fsencode(text)).hexdigest() if lines else ""


def _digest_of(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {files.reason(error)}") from None
