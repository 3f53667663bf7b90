"""The registry of readers, and the choice of the reader for a source.

`discover` imports every module of this package. A module that reads a kind of source calls
`register` with a `Reader`, which declares how such a source is recognized, what messages call it,
and how it is read. There is no other list of the readers.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pdfast.data.readers.pictures import Pictures
from pdfast.data.readers.reading import Arrays, Wanted

LAST = 1000  # priority of the reader that takes any folder


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The reader of one kind of source."""

    open: Callable[[str, Wanted], Arrays | Pictures]
    """Read a source: arrays if its images have one size, else pictures yet to be decoded."""

    # How a source is recognized: first by keywords, then by patterns, then, by priority, by what
    # the source is on the disk.
    keyword: str = ""
    """The whole source, such as "digits", or its prefix, such as "hf:"."""
    pattern: re.Pattern[str] | None = None
    """Pattern of sources that name several files at once."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of file names, in lower case; names are compared ignoring case."""
    sniff: Callable[[Path], bool] | None = None
    """Whether a file with such a suffix is of this kind, if the suffix alone does not say so."""
    folder: Callable[[Path], bool] | None = None
    """Whether a folder is of this kind."""
    priority: int = 0
    """If two kinds recognize a source, the one with the lower number reads it.

    No two readers may have the same number; readers with a keyword need none.
    """

    # Texts for messages.
    kind: str = ""
    """Kind of source, such as "an .npz", for a list of kinds; empty if the reader has a keyword."""
    labels: str = ""
    """Where to add labels to a source without any; empty for sources that always have labels."""

    # Answers that do not require reading the source.
    files: Callable[[str], list[Path]] | None = None
    """All files of a source whose images have one size; None if its pictures are resized."""
    count: Callable[[str], int] | None = None
    """The number of images, if it is known without reading them all."""
    downloads: Callable[[str], bool] | None = None
    """Whether opening the source may download it."""
    absolute: Callable[[str], str] | None = None
    """The same source with an absolute path; None if the source is a path itself."""

    def named(self, source: str) -> bool:
        """Return whether the source's text alone shows that it is of this kind."""
        if self.keyword.endswith(":"):
            return source.startswith(self.keyword)
        return bool(self.keyword) and source == self.keyword

    def recognizes(self, path: Path) -> bool:
        """Return whether the file or folder at a path is of this kind."""
        if self.folder is not None and path.is_dir():
            return self.folder(path)
        if not (path.name.lower().endswith(self.suffixes) and path.is_file()):
            return False
        return self.sniff is None or self.sniff(path)


READERS: list[Reader] = []


def register(reader: Reader) -> None:
    """Add a reader.

    Raises:
        ValueError: A reader with a clashing keyword or the same priority is registered already.
    """
    for other in READERS:
        if reader.keyword and other.keyword:
            clash = reader.keyword.startswith(other.keyword)
            clash = clash or other.keyword.startswith(reader.keyword)
        else:
            clash = not (reader.keyword or other.keyword) and reader.priority == other.priority
        if clash:
            raise ValueError(
                f"two readers clash: {reader.keyword or reader.kind!r} and "
                f"{other.keyword or other.kind!r} need different keywords or priorities"
            )
    READERS.append(reader)


def discover() -> None:
    """Import every module of this package, so that all readers are registered."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


# ------------------------------------------------------------------------------------------
# Which reader a source is for


def reader_of(source: str) -> Reader | None:
    """Return the reader of a source; None if no reader recognizes it.

    Raises:
        OSError: The source cannot be looked at.
        UsageError: A reader recognizes the source, but refuses it.
    """
    return by_text(source) or next((r for r in _of_paths() if r.recognizes(Path(source))), None)


def by_text(source: str) -> Reader | None:
    """Return the reader that the source's text alone asks for, or None."""
    for reader in READERS:
        if reader.named(source):
            return reader
    return next((r for r in _of_paths() if r.pattern and r.pattern.fullmatch(source)), None)


def reader_of_arrays(source: str) -> Reader | None:
    """Return the reader of a source whose images have one size; None for any other source.

    Readers of pictures, which may list a whole folder to recognize it, are not asked.
    """
    reader = by_text(source)
    if reader is None:
        asked = (reader for reader in _of_paths() if reader.files is not None)
        reader = next((reader for reader in asked if reader.recognizes(Path(source))), None)
    return reader if reader is not None and reader.files is not None else None


def _of_paths() -> list[Reader]:
    return sorted((r for r in READERS if not r.keyword), key=lambda reader: reader.priority)


# ------------------------------------------------------------------------------------------
# Texts for messages
def suffixes() -> tuple[str, ...]:
    """Return the suffixes of all files that are read, except for pictures."""
    return tuple(suffix for reader in READERS for suffix in reader.suffixes)


def kinds() -> str:
    """List what is read, to follow the word "neither"."""
    first, *others, last = (reader.kind for reader in _listed() if reader.kind)
    return f"{first} nor {', '.join(others)}, or {last}"


def labels() -> str:
    """List where labels can be added."""
    return ", ".join(reader.labels for reader in _listed() if reader.labels)


def _listed() -> list[Reader]:
    """Return the readers in the order of lists: folders, then by priority, then keywords."""
    return sorted(READERS, key=lambda r: (bool(r.keyword), r.priority != LAST, r.priority))
