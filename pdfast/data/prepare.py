"""Prepare any source as one .npz of one image size: once, on all cores, resumably.

The file is made next to its destination as `.NAME.part`, which has its full size from the start,
with `.NAME.part.json`, a journal of what it is made from and how far it is. The process that makes
it holds a lock on it: of several processes one works and the others wait. The same call resumes
from the part that a killed process left; a source that is refused leaves no files.
"""

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdfast.console.progress import Screen
from pdfast.data.readers.decoding import decoded, first_alike, is_grey
from pdfast.data.readers.npz_file import NpzFile, size_of
from pdfast.data.readers.pictures import REPAIR, Pictures, own_size
from pdfast.data.readers.reading import Wanted, check_number, listen
from pdfast.distributed.signals import poll
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.storage import files
from pdfast.storage.lock import NO_LOCKS, names

FORMAT = 1  # of parts; a part of another format is made again from the start
MAX_BAD = 10  # unusable images that an error names
LOOKED_AT = 64  # pictures whose own size is looked at
SHORT = 40  # characters of a name in such an error
SAVED_EVERY, SAID_EVERY, ASKED_EVERY = 10.0, 60.0, 0.1  # seconds
SPARE = 2**20  # bytes of disk for everything after the images except the labels
DIGITS = 64  # of a SHA-256
SETTLED = 2 * 10**9  # nanoseconds after which a file system's clock has surely moved on


@dataclass(frozen=True)
class Order:
    """What to prepare, and how."""

    source: str
    wanted: Wanted
    duplicates: Literal["ignore", "keep", "drop"] = "ignore"
    """Treatment of images whose pixels repeat an earlier image; ignore: do not look for any."""


class Made(NamedTuple):
    """The duplicates found while preparing."""

    repeated: int
    """Number of images whose pixels repeat an earlier image."""
    torn: tuple[int, int, int] | None
    """Number of repeated images whose class differs from the earlier image's, the number of the
    first of them, and the number of the image that it repeats; None if all classes agree."""


def cache_folder() -> Path:
    """Return the folder of prepared sets, digests and features.

    It is pdfast in $XDG_CACHE_HOME, or in ~/.cache where that is not set.

    Raises:
        UsageError: XDG_CACHE_HOME is not set, and there is no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdfast"
    except RuntimeError:
        raise UsageError(
            "there is no home folder to cache prepared data in: set XDG_CACHE_HOME to a folder"
        ) from None


def stamp(paths: Sequence[Path]) -> tuple[str, int]:
    """Fingerprint files; it changes whenever one of them is written to or replaced.

    Returns:
        The fingerprint, SHA-256 in hexadecimal, and the time of the last change in nanoseconds.
            Another change within SETTLED of that time may not show.

    Raises:
        OSError: A file is missing.
    """
    found, newest = hashlib.sha256(), 0
    for path in paths:
        of = os.stat(path)
        newest = max(newest, of.st_ctime_ns)  # st_mtime can be set to any value
        facts = f"{path}\0{of.st_size} {of.st_mtime_ns} {of.st_ctime_ns}\n"
        found.update(facts.encode("utf-8", "surrogateescape"))
    return found.hexdigest(), newest


def key_of(order: Order, found: Pictures, settle: bool = False) -> str:
    """Return the key of a prepared file, as JSON: its source's files and how they are processed.

    If the files are unknown, or so new that a change may not show, the key is random and never
    matches again.

    Args:
        order: What to prepare, and how.
        found: The source's pictures.
        settle: Wait until the files are old enough for a change to show.

    Raises:
        UsageError: A file is missing.
    """
    paths = list(found.paths())
    try:
        of_files, newest = stamp(paths)
        while settle and paths and 0 <= (age := time.time_ns() - newest) < SETTLED:
            listen()
            time.sleep(min(ASKED_EVERY, (SETTLED - age) / 1e9))
            of_files, newest = stamp(paths)
        if not paths or 0 <= time.time_ns() - newest < SETTLED:
            of_files += secrets.token_hex(16)
    except OSError as error:
        raise UsageError(
            f"{order.source}: {error.filename} cannot be read: {files.reason(error)}"
        ) from None
    fields = {name: str(value) for name, value in vars(order.wanted).items()}
    labels = hashlib.sha256(b"" if found.labels is None else found.labels.tobytes()).hexdigest()
    del fields["skip_bad"], fields["folders"]  # the files and the labels show their effect
    fields |= {"labels": labels, "names": str(found.names)}
    table = {
        "format": FORMAT,
        "source": order.source,
        "duplicates": order.duplicates,
        "files": of_files,
    }
    return json.dumps(table | {"wanted": fields, "num": found.num})


def make(
    order: Order,
    found: Pictures,
    out: Path,
    screen: Screen,
    key: str,
    check: Callable[[], None] = lambda: None,
) -> Made:
    """Write the pictures to `out`, an .npz with `images`, `labels`, `class_names` and `about`.

    Args:
        order: What to prepare, and how.
        found: The source's pictures.
        out: The file, which is replaced.
        screen: Where progress is shown.
        key: The file's key, by `key_of`.
        check: Called before `out` is replaced; may raise to prevent that.

    Raises:
        UsageError: A picture cannot be used, the source changed, or the disk is too small.
        PdfastError: Another process is making the file, or it cannot be written.
        Stopped: A signal came; the same call resumes from what was done.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_part(out), wait=False) as file:
            return _make(order, found, out, screen, key, file, check)
    except OSError as error:
        raise files.cannot_write(out, error) from None


def make_once(order: Order, found: Pictures, out: Path, screen: Screen, key: str) -> None:
    """Make `out` unless it exists: of several processes one makes it and the others wait.

    Takes the arguments of `make`, and raises what it raises.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        while not out.is_file():
            with _locked(_part(out), wait=True, until=out.is_file) as file:
                if out.is_file():  # another process has just made it
                    _part(out).unlink(missing_ok=True)
                else:
                    screen.say(f"preparing {found.num:,} images of {order.source} in {out}")
                    _make(order, found, out, screen, key, file)
    except OSError as error:
        raise PdfastError(
            f"cannot write to {out}: {files.reason(error)}; fix the cause, or set XDG_CACHE_HOME "
            "to a folder on another disk"
        ) from None


def _stamp_now(found: Pictures) -> str:
    """Fingerprint the source again after reading; "gone" if a file is missing."""
    try:
        return stamp(list(found.paths()))[0]
    except OSError:
        return "gone"


def _part(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


@contextlib.contextmanager
def _locked(
    path: Path, wait: bool, until: Callable[[], bool] = lambda: False
) -> Iterator[io.FileIO]:
    """Open the file under an exclusive lock; `wait` for another process to release it.

    A file that was renamed before it could be locked is opened again, unless `until()` is true.
    """
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise PdfastError(
                        f"{path} is being written by another process: wait for it to end, or stop "
                        "it"
                    ) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                path.unlink(missing_ok=True)
                raise UsageError(
                    f"the file system of {path.parent} has no locks: choose another one by "
                    "XDG_CACHE_HOME, or --out of pdfast data"
                ) from None
            else:
                if names(path, file) or until():
                    try:
                        yield file
                    finally:  # a memory map that is still in use keeps the file open
                        fcntl.flock(file, fcntl.LOCK_UN)
                    return
                continue  # the process that held the lock has renamed the file
        listen()
        time.sleep(ASKED_EVERY)


def _make(
    order: Order,
    found: Pictures,
    out: Path,
    screen: Screen,
    key: str,
    file: io.FileIO,
    check: Callable[[], None] = lambda: None,
) -> Made:
    part = _part(out)
    _warn_of_small(order, found, screen)
    work = _Work(order, found, file, part.with_name(f"{part.name}.json"), key)
    try:
        made = work.run(screen)
        _check_unchanged(order, found, key)
        check()
        part.replace(out)
        files.fsync(out.parent)
        work.forget()
        return made
    except BaseException as error:
        foreseen = isinstance(error, UsageError | OSError | Stopped)
        if not work.resumable and (foreseen or not work.journal.exists()):
            part.unlink(missing_ok=True)
            work.forget()
        raise


def _check_unchanged(order: Order, found: Pictures, key: str) -> None:
    if not json.loads(key)["files"].startswith(_stamp_now(found)):
        raise UsageError(f"{order.source} was changed while it was read: run it again")


def _warn_of_small(order: Order, found: Pictures, screen: Screen) -> None:
    """Warn of pictures that will be enlarged, by the headers of the first ones."""
    size, few = order.wanted.size, itertools.islice(found.files(0), LOOKED_AT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of oddities in files that they can read
        sizes = [of for name, held in few if (of := own_size(name, held)) is not None]
    small = sum(min(of) < size for of in sizes)
    if small:
        screen.warn(
            f"{small:,} of the first {len(sizes):,} images of {order.source} are smaller than "
            f"{size}x{size}, and are enlarged"
        )


class _Work:
    """The making of one file in place of `file`, with its progress saved in `journal`."""

    def __init__(
        self, order: Order, found: Pictures, file: io.FileIO, journal: Path, key: str
    ) -> None:
        self._order, self._found, self._file = order, found, file
        self.journal, self._key = journal, key
        wanted = order.wanted
        self._shape = (found.num, wanted.size, wanted.size, wanted.channels or 3)
        self._done, self._bad = 0, dict[int, tuple[str, str]]()
        self._known = len(json.loads(key)["files"]) == DIGITS
        self._moved = False
        self.resumable = False
        """Whether the same call can resume from what is there."""

    def run(self, screen: Screen) -> Made:
        """Decode the images, find duplicates, and finish the file."""
        check_number(self._order.source, self._found.num)
        self._begin(screen)
        npz = NpzFile(self._file, self._shape)
        try:
            self._decode(npz, screen)
            kept = np.ones(len(npz.images), bool)
            kept[list(self._bad)] = False
            first = np.arange(len(kept))
            if self._order.duplicates != "ignore":
                first = first_alike(npz.images, kept, screen, self._poll)
            repeats = first != np.arange(len(kept))
            torn = self._torn(first, repeats)
            if self._order.duplicates == "drop":
                kept &= ~repeats
            self._keep(npz, kept)
            npz.finish(partial(self._arrays, kept), self._poll)
        except Stopped:
            if self._is_worth_keeping():
                self._save(npz)
                self.resumable = True
            raise
        return Made(int(repeats.sum()), torn)

    # -- progress --------------------------------------------------------------------------

    def _begin(self, screen: Screen) -> None:
        """Resume from what a killed process left, or begin with a file of the full size."""
        needed = size_of(self._shape)
        try:
            table = files.read_json(self.journal)
            if table["key"] == self._key and os.fstat(self._file.fileno()).st_size >= needed:
                self._done = int(table["done"])
                self._bad = {
                    int(n): (str(name), str(why)) for n, (name, why) in table["bad"].items()
                }
                screen.say(
                    f"{self._order.source}: {self._done:,} of {self._found.num:,} images were "
                    "prepared before; preparing the rest"
                )
                return
        except (files.Damaged, OSError, KeyError, ValueError, TypeError, AttributeError):
            pass  # there is no journal, or it is not of this key
        self._file.truncate(0)
        labels = 0 if self._found.labels is None else 8 * self._found.num
        free = shutil.disk_usage(self.journal.parent).free
        if needed + labels + SPARE > free:
            raise UsageError(
                f"{self._order.source} takes {(needed + labels) / 1e9:,.1f} GB as images of "
                f"{self._shape[1]}x{self._shape[2]}, and the disk of {self.journal.parent} has "
                f"{free / 1e9:,.1f} GB free: free some, or choose another disk by XDG_CACHE_HOME, "
                "or --out of pdfast data"
            )
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, needed)  # the disk cannot fill up later
        else:  # macOS
            self._file.truncate(needed)

    def _save(self, npz: NpzFile) -> None:
        """Flush the images to disk, then record the progress in the journal."""
        npz.sync()
        table = {"key": self._key, "done": self._done, "bad": self._bad}
        files.write_file(self.journal, lambda stage: stage.write_text(json.dumps(table)))

    def forget(self) -> None:
        """Delete the journal."""
        self.journal.unlink(missing_ok=True)

    def _is_worth_keeping(self) -> bool:
        """Return whether images are done, in place, and of a source that can be recognized."""
        return bool(self._done) and self._known and not self._moved

    def _poll(self) -> None:
        if not self._is_worth_keeping():
            listen()
        poll(
            f"{self._done:,} of {self._found.num:,} images are prepared; the same command resumes "
            "from there"
        )

    # -- images ----------------------------------------------------------------------------

    def _decode(self, npz: NpzFile, screen: Screen) -> None:
        """Fill in the images, beginning with the first missing one."""
        num, start = self._found.num, self._done
        saved = said = time.monotonic()
        with screen.task("reading", num, start) as task:
            for name, image, why in decoded(self._order.wanted, self._found, start, self._poll):
                if image is None:
                    self._bad[self._done] = name, why
                else:
                    npz.images[self._done] = image
                self._done += 1
                task.advance()
                if len(self._bad) == MAX_BAD and not self._order.wanted.skip_bad:
                    break
                now = time.monotonic()
                if now - saved > SAVED_EVERY:
                    self._save(npz)
                    saved = now
                if now - said > SAID_EVERY:
                    screen.progress(
                        f"{self._done:,} of {num:,} images, {task.rate():,.0f} a second"
                    )
                    said = now
        if self._bad and not self._order.wanted.skip_bad:
            _check_unchanged(self._order, self._found, self._key)
            raise self._refused()
        if self._done < num:
            raise UsageError(f"{self._order.source} was changed while it was read: run it again")

    def _refused(self) -> UsageError:
        bad, source = list(self._bad.values()), self._order.source
        if len(bad) == 1:
            return UsageError(f"{bad[0][1]}, or skip such images with --skip-bad (data.skip_bad)")
        names, reasons = [], []
        for name, why in bad:
            short = name.removeprefix(source).lstrip(":/ ")
            names.append(short if len(short) <= SHORT else f"...{short[-SHORT:]}")
            reasons.append(_reason(why).removeprefix(name).lstrip(": "))
        listed = ", ".join(f"{name} ({why})" for name, why in zip(names, reasons, strict=True))
        if len(set(reasons)) == 1:
            listed = f"{', '.join(names)} (each {reasons[0]})"
        return UsageError(
            f"{len(bad)} of the first {self._done:,} images of {source} cannot be used: {listed}; "
            "repair or remove them, or skip them with --skip-bad (data.skip_bad)"
        )

    def _torn(
        self, first: NDArray[np.int64], repeats: NDArray[np.bool_]
    ) -> tuple[int, int, int] | None:
        if self._found.labels is None:
            return None
        torn = np.flatnonzero(repeats & (self._found.labels != self._found.labels[first]))
        return (len(torn), int(torn[0]), int(first[torn[0]])) if len(torn) else None

    def _keep(self, npz: NpzFile, kept: NDArray[np.bool_]) -> None:
        """Drop the images not kept; reduce grey images to one channel if any number will do."""
        channels = self._shape[3]
        if not self._order.wanted.channels and channels == 3 and is_grey(npz.images):
            channels = 1
        if not kept.all() or channels != self._shape[3]:
            if kept.sum() < 2:
                raise UsageError(
                    f"{self._order.source} has fewer than two different usable images: nothing "
                    "was written"
                )
            self.forget()  # the images move: a resumed call would find others in their places
            self._moved = True
            npz.keep(kept, channels)

    def _arrays(self, kept: NDArray[np.bool_], digest: str) -> dict[str, NDArray[Any]]:
        """Return the other arrays of the .npz: labels, class names and `about`."""
        found: dict[str, NDArray[Any]] = {}
        about: dict[str, Any] = {"source": self._order.source, "resize": self._order.wanted.method}
        if self._found.labels is not None:
            found["labels"] = self._found.labels[kept]
            numbers, counts = np.unique(found["labels"], return_counts=True)
            about["class_counts"] = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        if self._found.names:
            found["class_names"] = np.array(self._found.names)
        about |= {
            "num": int(kept.sum()),
            "images_sha256": digest,
            "left_out": self._found.left_out,
            "unusable": [why for _, why in self._bad.values()],
        }
        return found | {"about": np.array(json.dumps(about))}


def _reason(why: str) -> str:
    """Return why a picture cannot be used, without the advice to repair it."""
    return why.removesuffix(f": {REPAIR}")


def left_out(path: Path, passed_over: str, skip_bad: bool = True) -> str:
    """Describe which parts of its source a prepared file lacks, and why; "" if it lacks nothing.

    Args:
        path: The prepared file.
        passed_over: What the source's reader leaves out now, as a phrase.
        skip_bad: Whether images that cannot be used may be skipped.

    Raises:
        UsageError: Images cannot be used, and `skip_bad` is False.
    """
    with np.load(path) as arrays:
        bad = json.loads(str(arrays["about"]))["unusable"]
    if bad and not skip_bad:
        what = "1 image" if len(bad) == 1 else f"{len(bad):,} images"
        raise UsageError(
            f"{what} cannot be used, {bad[0]}, or skip such images with --skip-bad (data.skip_bad)"
        )
    found = [passed_over] if passed_over else []
    if bad:
        more = f"; ... (all are listed in {path}, `about`)" if len(bad) > MAX_BAD else ""
        listed = "; ".join(map(_reason, bad[:MAX_BAD]))
        found.append(f"images that cannot be used: {len(bad):,} ({listed}{more})")
    return "; ".join(found)
