"""What lies in a folder and below it: pictures in the order of their names, and what is no picture.

Symbolic links are followed. Nothing is passed over without being noted.
"""

import errno
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pdfast.data.readers import kinds
from pdfast.data.readers.edm_labels import LABELS
from pdfast.data.readers.reading import LeftOut, listen
from pdfast.errors import UsageError

# Folders that file systems and file managers make, not people.
SYSTEM = ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
# Texts, tables and programs, which nobody takes for pictures: the only files that are not noted.
QUIET = {
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".htm", ".yaml"),
    *(".yml", ".toml", ".ini", ".cfg", ".log", ".py", ".pyc", ".ipynb", ".sh", ".m", ".r", ".pdf"),
    *(".doc", ".docx", ".xls", ".xlsx", ".db", ".sqlite", ".lock", ".md5", ".sha1", ".sha256"),
}
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class _Id(NamedTuple):
    """What a folder is, by whatever path."""

    device: int
    inode: int


class _Entry(NamedTuple):
    name: str
    folder: bool
    linked: bool


@dataclass
class _Level:
    """A folder that is being listed."""

    number: int
    prefix: str
    """Of the paths in it."""
    entries: Iterator[_Entry]
    above: frozenset[_Id]
    """The folder itself, and all that it lies in."""
    linked: bool
    """Whether a link led here."""


@dataclass
class Tree:
    """What was found; all paths are relative to the folder."""

    folders: list[str] = field(default_factory=list)
    """All of them, from "", the folder itself, on."""
    pictures: list[str] = field(default_factory=list)
    """In the order of their paths, part by part."""
    of_pictures: "array[int]" = field(default_factory=lambda: array("q"))
    """The number of the folder that holds the picture itself."""
    broken: list[str] = field(default_factory=list)
    """Links that lead nowhere, and may have been pictures or folders of them."""
    tables: list[str] = field(default_factory=list)
    """Folders that hold a dataset.json."""
    left_out: LeftOut = field(default_factory=LeftOut)


def shown(path: str) -> str:
    """A path as it may be printed: names on a disk are bytes, and may hold the ends of lines."""
    if path.isprintable():
        return path
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def scan(root: str, as_before: bool = False) -> Tree:
    """List a folder and all below it.

    `as_before`: as pdfast 0.1.0 did, which took fewer kinds of pictures, followed no links to
    folders, and went past folders that it could not read; these are then noted.
    """
    tree = _Scan(root, as_before)
    tree.run()
    return tree.found


class _Scan:
    def __init__(self, root: str, as_before: bool) -> None:
        self.root, self.as_before = root, as_before
        self.suffixes = frozenset(kinds.OLD_SUFFIXES if as_before else kinds.SUFFIXES)
        self.found = Tree()
        self.seen: dict[_Id, tuple[str, bool]] = {}  # where, and whether a link led there

    def run(self) -> None:
        found = self.found
        levels = [self._level("", self._id(""), _above(self.root), linked=False)]
        while levels:
            level = levels[-1]
            for name, is_folder, linked in level.entries:
                path = level.prefix + name
                if not is_folder:
                    found.pictures.append(path)
                    found.of_pictures.append(level.number)
                    continue
                if not self.as_before and _is_of_runs(self._absolute(path)):
                    found.left_out.add("folders of pdfast's runs", shown(path))
                    continue
                this, above = self._id(path), level.above
                if linked:
                    above |= _above(self._absolute(path))
                if this in above:
                    found.left_out.add("folders that lie in themselves", shown(path))
                    continue
                linked |= level.linked
                self._check_once(this, path, linked)
                levels.append(self._level(path, this, above, linked))
                break
            else:
                levels.pop()

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root

    def _id(self, path: str) -> _Id:
        try:
            of = os.stat(self._absolute(path))
        except OSError as error:
            raise self._unreadable(path, error) from None
        return _Id(of.st_dev, of.st_ino)

    def _check_once(self, this: _Id, path: str, linked: bool) -> None:
        # Without a link between them, equal numbers are a file system's that gives none of its own.
        other, other_linked = self.seen.setdefault(this, (path, linked))
        if other != path and (linked or other_linked):
            raise UsageError(
                f"{shown(self._absolute(other))} and {shown(self._absolute(path))} are one folder, "
                "whose pictures would count twice: remove the link"
            )

    def _unreadable(self, path: str, error: OSError) -> UsageError:
        return UsageError(
            f"{shown(self._absolute(path))} cannot be read ({error.strerror}): give yourself the "
            "right to, or move it elsewhere"
        )

    def _level(self, path: str, this: _Id, above: frozenset[_Id], linked: bool) -> _Level:
        try:
            entries = self._entries(path)
        except OSError as error:
            if not (self.as_before and isinstance(error, PermissionError)):
                raise self._unreadable(path, error) from None
            self.found.left_out.add("folders that cannot be read", shown(path))
            entries = []
        self.found.folders.append(path)
        prefix = path + "/" if path else ""
        number = len(self.found.folders) - 1
        return _Level(number, prefix, iter(entries), above | {this}, linked)

    def _entries(self, folder: str) -> list[_Entry]:
        """The pictures and folders in a folder, by name; all else is noted."""
        prefix = folder + "/" if folder else ""
        kept = []
        with os.scandir(self._absolute(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                listen()
                if (found := self._kind(entry, prefix)) is not None:
                    kept.append(found)
        return kept

    def _kind(self, entry: os.DirEntry[str], prefix: str) -> _Entry | None:
        """A picture or a folder; None of all else."""
        name = entry.name
        suffix = kinds.suffix(name)
        taken = suffix in self.suffixes
        linked = entry.is_symlink()
        if name.startswith("."):
            if entry.is_dir(follow_symlinks=False):
                self._note("hidden folders", prefix + name)
            elif taken or linked:
                self._note("hidden files", prefix + name)
            return None
        if linked:
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                if error.errno not in NOWHERE:
                    raise self._unreadable(prefix + name, error) from None
                if name == LABELS and not self.as_before:
                    raise UsageError(
                        f"{shown(self._absolute(prefix + name))}, the labels of the pictures, is a "
                        "link that leads nowhere: repair or remove it"
                    ) from None
                if self.as_before or suffix in QUIET:
                    self._note("broken links", prefix + name)
                else:
                    self.found.broken.append(prefix + name)
                return None
            is_folder, is_file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
        else:
            is_folder = entry.is_dir()
            is_file = not is_folder and entry.is_file()
        if is_folder:
            if not self.as_before and name in SYSTEM:
                self._note("folders that file systems make", prefix + name)
            elif self.as_before and linked:
                self._note("links to folders", prefix + name)
            else:
                return _Entry(name, True, linked)
        elif not is_file:
            self._note("pipes, sockets and devices", prefix + name)
        elif taken:
            return _Entry(name, False, linked)
        elif name == LABELS:
            self.found.tables.append(prefix[:-1])
        elif suffix not in QUIET:
            why = "files of kinds that are not read" if suffix else "files without a suffix"
            self._note(why, prefix + name)
        return None

    def _note(self, why: str, path: str) -> None:
        self.found.left_out.add(why, shown(path))


def _is_of_runs(path: str) -> bool:
    """Whether a folder is a run directory, whose pictures are samples, or holds nothing else."""
    if _is_run(path):
        return True
    try:
        with os.scandir(path) as entries:
            found = False
            for entry in entries:
                if not _is_run(entry.path):
                    return False
                found = True
            return found
    except OSError:
        return False


def _is_run(path: str) -> bool:
    made = [os.path.exists(os.path.join(path, name)) for name in ("metrics.jsonl", "samples")]
    return os.path.isfile(os.path.join(path, "config.toml")) and all(made)


def _above(path: str) -> frozenset[_Id]:
    """The folders that the one at a path really lies in, as far as they can be seen."""
    found, path = set(), os.path.realpath(path)
    while (parent := os.path.dirname(path)) != path:
        path = parent
        try:
            of = os.stat(path)
        except OSError:
            continue
        found.add(_Id(of.st_dev, of.st_ino))
    return frozenset(found)
