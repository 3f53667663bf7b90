"""The readers, which register themselves, and which of them a source is for.

Every module of this package is imported by `discover`; one that reads a kind of source calls
`register` with a `Reader`, which says how such a source is recognized, what it is called in
messages, and how it is read. No other place lists the readers.
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
    """A kind of source."""

    open: Callable[[str, Wanted], Arrays | Pictures]
    """Read a source: arrays where its images have one size, else pictures yet to be decoded."""

    # How a source is recognized. First come the keywords, then the patterns, then, by priority,
    # what the source is on the disk.
    keyword: str = ""
    """The whole source, such as "digits", or what it begins with, such as "hf:"."""
    pattern: re.Pattern[str] | None = None
    """Of sources that name several files at once."""
    suffixes: tuple[str, ...] = ()
    """What names of files end in, in small letters; capitals are taken too."""
    sniff: Callable[[Path], bool] | None = None
    """Whether a file with such a suffix is of this kind, where the suffix alone does not say so."""
    folder: Callable[[Path], bool] | None = None
    """Whether a folder is of this kind."""
    priority: int = 0
    """Where two kinds may recognize a source, that of the lower number reads it.

    No two have the same one; those with a keyword need none.
    """

    # What messages say.
    kind: str = ""
    """"an .npz", in the list of what is read; empty for a kind with a keyword."""
    labels: str = ""
    """Where to add labels to a source that has none; empty where it cannot lack them."""

    # What is asked without reading the source.
    files: Callable[[str], list[Path]] | None = None
    """All files of a source whose images have one size; None where pictures are resized."""
    count: Callable[[str], int] | None = None
    """The number of images, if that is known without reading them all."""
    downloads: Callable[[str], bool] | None = None
    """Whether opening the source may download it."""
    absolute: Callable[[str], str] | None = None
    """The same source, found from any folder; None where the source is a path."""

    def named(self, source: str) -> bool:
        """Whether the source's text alone says that it is of this kind."""
        if self.keyword.endswith(":"):
            return source.startswith(self.keyword)
        return bool(self.keyword) and source == self.keyword

    def recognizes(self, path: Path) -> bool:
        """Whether what lies at a path is of this kind."""
        if self.folder is not None and path.is_dir():
            return self.folder(path)
        if not (path.name.lower().endswith(self.suffixes) and path.is_file()):
            return False
        return self.sniff is None or self.sniff(path)


READERS: list[Reader] = []


def register(reader: Reader) -> None:
    """Add a reader. Raises ValueError where chance would say which of two reads a source."""
    for other in READERS:
        if reader.keyword and other.keyword:
            clash = reader.keyword.startswith(other.keyword)
            clash = clash or other.keyword.startswith(reader.keyword)
        else:
            clash = not (reader.keyword or other.keyword) and reader.priority == other.priority
        if clash:
            raise ValueError(
                f"two readers are asked at once: {reader.keyword or reader.kind!r} and "
                f"{other.keyword or other.kind!r} need other keywords or priorities"
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
    """The reader of a source; None where there is none. Raises OSError, and what readers raise."""
    return by_text(source) or next((r for r in _of_paths() if r.recognizes(Path(source))), None)


def by_text(source: str) -> Reader | None:
    """The reader that the source's text alone asks for."""
    for reader in READERS:
        if reader.named(source):
            return reader
    return next((r for r in _of_paths() if r.pattern and r.pattern.fullmatch(source)), None)


def reader_of_arrays(source: str) -> Reader | None:
    """As `reader_of`, for a source whose images have one size; None for any other.

    Other readers, which may list a whole folder to recognize it, are not asked.
    """
    reader = by_text(source)
    if reader is None:
        asked = (reader for reader in _of_paths() if reader.files is not None)
        reader = next((reader for reader in asked if reader.recognizes(Path(source))), None)
    return reader if reader is not None and reader.files is not None else None


def _of_paths() -> list[Reader]:
    return sorted((r for r in READERS if not r.keyword), key=lambda reader: reader.priority)


# ------------------------------------------------------------------------------------------
# What messages say


def suffixes() -> tuple[str, ...]:
    """What the names of all files that are read end in, but for pictures."""
    return tuple(suffix for reader in READERS for suffix in reader.suffixes)


def kinds() -> str:
    """What is read, behind "neither"."""
    first, *others, last = (reader.kind for reader in _listed() if reader.kind)
    return f"{first} nor {', '.join(others)}, or {last}"


def labels() -> str:
    """Where labels can be added."""
    return ", ".join(reader.labels for reader in _listed() if reader.labels)


def _listed() -> list[Reader]:
    """In the order of lists: folders, then by priority, then those with keywords."""
    return sorted(READERS, key=lambda r: (bool(r.keyword), r.priority != LAST, r.priority))
