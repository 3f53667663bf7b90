"""Scan a folder and everything below it: pictures in the order of their names, and other files.

Symbolic links are followed. Nothing is skipped without being noted, except for texts and tables.
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

# Folders that file systems and file managers make.
SYSTEM = ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
# Suffixes of texts, tables and programs: the only files that are skipped without a note.
QUIET = {
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".htm", ".yaml"),
    *(".yml", ".toml", ".ini", ".cfg", ".log", ".py", ".pyc", ".ipynb", ".sh", ".m", ".r", ".pdf"),
    *(".doc", ".docx", ".xls", ".xlsx", ".db", ".sqlite", ".lock", ".md5", ".sha1", ".sha256"),
}
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class _Id(NamedTuple):
    """Identity of a folder, whatever path leads to it."""

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
    """Prefix of the paths in it."""
    entries: Iterator[_Entry]
    above: frozenset[_Id]
    """The folder itself, and all folders that contain it."""
    linked: bool
    """Whether a link led here."""


@dataclass
class Tree:
    """The result of a scan; all paths are relative to the scanned folder."""

    folders: list[str] = field(default_factory=list)
    """All folders, beginning with "", the scanned folder itself."""
    pictures: list[str] = field(default_factory=list)
    """All pictures in the order of their paths, compared part by part."""
    of_pictures: "array[int]" = field(default_factory=lambda: array("q"))
    """For each picture the number of the folder that contains it."""
    broken: list[str] = field(default_factory=list)
    """Links that lead nowhere, and may have been pictures or folders of them."""
    tables: list[str] = field(default_factory=list)
    """Folders that hold a dataset.json."""
    left_out: LeftOut = field(default_factory=LeftOut)


def shown(path: str) -> str:
    """Return a path in printable form; file names are bytes, and may hold line breaks."""
    if path.isprintable():
        return path
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def scan(root: str, as_before: bool = False) -> Tree:
    """List a folder and everything below it.

    Args:
        root: The folder.
        as_before: Scan as pdfast 0.1.0 did: fewer kinds of pictures, no links to folders, and
            folders that cannot be read are skipped and noted.

    Raises:
        UsageError: A folder cannot be read, or would be counted twice.
    """
    tree = _Scan(root, as_before)
    tree.run()
    return tree.found


class _Scan:
    def __init__(self, root: str, as_before: bool) -> None:
        self.root, self.as_before = root, as_before
        self.suffixes = frozenset(kinds.OLD_SUFFIXES if as_before else kinds.SUFFIXES)
        self.found = Tree()
        self.seen: dict[_Id, tuple[str, bool]] = {}  # path, and whether a link led there

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
                    found.left_out.add("folders that contain themselves", shown(path))
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
        # Without a link between them, equal numbers mean that the file system has no inode numbers.
        other, other_linked = self.seen.setdefault(this, (path, linked))
        if other != path and (linked or other_linked):
            raise UsageError(
                f"{shown(self._absolute(other))} and {shown(self._absolute(path))} are one folder, "
                "whose pictures would count twice: remove the link"
            )

    def _unreadable(self, path: str, error: OSError) -> UsageError:
        return UsageError(
            f"{shown(self._absolute(path))} cannot be read ({error.strerror}): give yourself "
            "access, or move it elsewhere"
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
        """Return the pictures and folders in a folder, by name; anything else is noted."""
        prefix = folder + "/" if folder else ""
        kept = []
        with os.scandir(self._absolute(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                listen()
                if (found := self._kind(entry, prefix)) is not None:
                    kept.append(found)
        return kept

    def _kind(self, entry: os.DirEntry[str], prefix: str) -> _Entry | None:
        """Return the entry if it is a picture or a folder; else note it and return None."""
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
    """Return whether a folder is a run directory, with samples as pictures, or holds only runs."""
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
    """Return the folders that really contain the one at a path, as far as they can be read."""
    found, path = set(), os.path.realpath(path)
    while (parent := os.path.dirname(path)) != path:
        path = parent
        try:
            of = os.stat(path)
        except OSError:
            continue
        found.add(_Id(of.st_dev, of.st_ino))
    return frozenset(found)
