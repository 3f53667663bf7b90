"""A set read at the size that its images have, or at one that is asked for; with what it is.

Training reads a set as its model asks. Samples of other tools, and what they are compared with,
have no model: a detector sees them at their own size, which they must share, unless `size` says to
which all are centre-cropped and resized.
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

SHOWN = 3  # sizes that a refusal names

Sizes = Counter[tuple[int, int]]  # images of each width and height


class SetRead(NamedTuple):
    """A set, and what was done to read it."""

    data: Dataset
    """uint8 (N, size, size, C) on the CPU, without labels; its digest is known."""
    own_size: str
    """Height and width of its images before they were read, in words."""
    reading: str
    """How images were brought to their size, in words; "none"."""
    files_sha256: str
    """As `files_digest`."""


def read(source: str, size: int, method: Resize, skip_bad: bool, screen: Screen) -> SetRead:
    """Read any source, as `data.source` names it.

    Without a `size` (0) all images must be square and of one size. Pictures are prepared in the
    cache folder, as for training. Raises UsageError that names the source and the fix.
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
        warnings.simplefilter("ignore", UserWarning)  # of images that cannot be written to
        images = torch.from_numpy(arrays.images)
    data = Dataset(
        images, None, left_out=arrays.left_out, stamp=arrays.stamp, checksum=arrays.checksum
    )
    how = {"bicubic": "antialiased bicubic", "area": "area"}[method]
    reading = "none" if alike else f"centre crop, {how} resize to {size}x{size}"
    return SetRead(digest.known(data), _shown(sizes), reading, files_digest(source, paths, screen))


def _sizes_of(found: Arrays | Pictures) -> Sizes:
    """(width, height) of all images; of pictures by their headers, where those can be read."""
    if isinstance(found, Arrays):
        num, height, width = found.images.shape[:3]
        return Counter({(width, height): num})
    sizes: Sizes = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of oddities, as in decoding
        for name, held in found.files(0):
            listen()
            if (of := pictures.own_size(name, held)) is not None:
                sizes[of] += 1
    return sizes


def _common(source: str, sizes: Sizes) -> int:
    """The one size of all; 1 where no header could be read, of which decoding says more."""
    fix = "give a size by --size, to which each is centre-cropped and resized"
    if len(sizes) > 1:
        raise UsageError(f"{source} has images of {_shown(sizes)}: {fix}, or make them of one size")
    width, height = next(iter(sizes), (1, 1))
    if width != height:
        raise UsageError(f"{source} has images of {_shown(sizes)}, which are not square: {fix}")
    return width


def _shown(sizes: Sizes) -> str:
    """Heights and widths in a few words."""
    named = [f"{height}x{width}" for (width, height), _ in sizes.most_common(SHOWN)]
    if len(sizes) < 2:
        return "".join(named)
    more = ", ..." if len(sizes) > SHOWN else ""
    return f"{len(sizes):,} sizes ({', '.join(named)}{more})"


def files_digest(source: str, paths: Sequence[Path], screen: Screen) -> str:
    """SHA-256 of a source's file; of several that of what `sha256sum` prints of them, by name.

    Names are relative to the source, where that is a folder. "" where no files are known.
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
