"""CIFAR-10 and CIFAR-100 as they are published: the binary archives, or the Python pickles.

The classes of CIFAR-100 are its 100 fine ones. The archive is read in order and nothing is unpacked
from it. `_unpickle` says how the pickles of the python versions are read safely.
"""

import contextlib
import io
import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdfast.data.readers.reading import (
    UNREADABLE,
    Arrays,
    Wanted,
    allocate,
    check_number,
    check_shape,
    unreadable,
)
from pdfast.data.readers.registry import Reader, register
from pdfast.data.readers.tars import Member, Stream, exactly, members, opened
from pdfast.errors import UsageError, printable

SIZE = 32
PIXELS = 3 * SIZE * SIZE  # of a record: one colour after the other, each row by row
MAX_MEMBER, MAX_MEMBERS = 2**28, 100  # bytes of a member, and members; published: 1.6e8 and 8
MAX_TOTAL = 2**29  # bytes of all members; published: 1.9e8
MAX_NAMES = 2**16  # bytes of the member that holds the class names
ENDINGS = (".tar.gz", ".tgz", ".tar")
Batch = tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class _Layout:
    """The layout of one of the archives."""

    folder: str
    batches: tuple[str, ...]
    """Members of the training set, in order."""
    records: int
    """Images in a batch, at most."""
    meta: str
    """The member that holds the class names."""
    key: bytes
    """Key of the labels in a pickle; empty for a binary archive."""
    label_bytes: int = 0
    """Label bytes of a binary record, of which the last is the label."""
    classes: int = 10

    @property
    def names(self) -> list[str]:
        """The members to read."""
        return [f"{self.folder}/{name}" for name in self.batches]


FIVE = tuple(f"data_batch_{k}" for k in range(1, 6))
LAYOUTS = (
    _Layout(
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in FIVE),
        10_000,
        "batches.meta.txt",
        b"",
        label_bytes=1,
    ),
    _Layout("cifar-10-batches-py", FIVE, 10_000, "batches.meta", b"labels"),
    _Layout(
        "cifar-100-binary",
        ("train.bin",),
        50_000,
        "fine_label_names.txt",
        b"",
        label_bytes=2,
        classes=100,
    ),
    _Layout("cifar-100-python", ("train",), 50_000, "meta", b"fine_labels", classes=100),
)
PUBLISHED = ("cifar-10-binary", "cifar-10-python", "cifar-100-binary", "cifar-100-python")


def holds(path: Path) -> bool:
    """Return whether a .tar.gz is a published archive, by its name or its first members."""
    if not path.name.lower().endswith(ENDINGS):
        return False
    if path.name.lower().startswith(PUBLISHED):
        return True
    with contextlib.suppress(*UNREADABLE), path.open("rb") as file:
        for n, member in enumerate(members(opened(file), MAX_MEMBER)):
            if n == MAX_MEMBERS or member.kind == "file":
                return _layout(member.name) is not None
            if _layout(f"{member.name}/") is not None:
                return True
    return False


def read(path: Path, wanted: Wanted) -> Arrays:
    """Read the training set, in the order of its batches.

    Args:
        path: The archive.
        wanted: The wanted size and channels, which must be 32 and 3, and whether to return labels.

    Returns:
        Images uint8 (N, 32, 32, 3), and with `wanted.labels` their classes and class names.

    Raises:
        UsageError: The archive is damaged, incomplete, or not of the wanted size.
    """
    try:
        with path.open("rb") as file:
            layout, images, labels, names = _read(path, opened(file), wanted)
    except UsageError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, "CIFAR archive", error, "download it again") from None
    for k, name in enumerate(layout.names):
        if k not in labels:
            raise UsageError(f"{path} has no {name}: download it again")
    parts = [images[k, : len(labels[k])] for k in range(len(layout.batches))]
    whole = images.reshape(-1, SIZE, SIZE, 3)
    check_number(str(path), sum(map(len, parts)))
    if sum(map(len, parts)) < len(whole):  # not in a published archive
        whole = np.concatenate(parts)
    numbers = np.concatenate([labels[k] for k in range(len(parts))])
    if len(names) != layout.classes or numbers.max() >= len(names):
        names = ()
    return Arrays(whole, numbers if wanted.labels else None, names if wanted.labels else ())


def count(path: Path) -> int:
    """Count the images, for which the whole archive is read."""
    return len(read(path, Wanted(SIZE, 3)).images)


def _layout(name: str) -> _Layout | None:
    """Return the layout of the archive that has this member, or None."""
    folder = name.removeprefix("./").partition("/")[0]
    return next((layout for layout in LAYOUTS if layout.folder == folder), None)


def _read(
    path: Path, stream: Stream, wanted: Wanted
) -> tuple[_Layout, NDArray[np.uint8], dict[int, NDArray[np.integer[Any]]], tuple[str, ...]]:
    """Return the archive's layout, images (batches, records, 32, 32, 3), labels and class names."""
    layout = LAYOUTS[0]
    images: NDArray[np.uint8] | None = None
    names: tuple[str, ...] = ()
    labels: dict[int, NDArray[np.integer[Any]]] = {}
    for member in _members(stream):
        of = _layout(member.name)
        if of is None:
            continue
        if images is None:
            layout = of
            # The batches lie in the archive in any order: each has its place from the start.
            shape = (len(of.batches), of.records, SIZE, SIZE, 3)
            check_shape(str(path), (shape[0] * shape[1], *shape[2:]), wanted)
            images = allocate(str(path), shape)
        elif of is not layout:
            raise ValueError(f"it holds both {layout.folder} and {of.folder}")
        name = member.name.removeprefix("./")
        if name == f"{of.folder}/{of.meta}" and 0 < member.size <= MAX_NAMES:
            names = _names(exactly(stream, member.size), of)
        if name not in of.names:
            continue
        k = of.names.index(name)
        if k in labels:
            raise ValueError(f"it holds batch {k + 1} twice")
        if member.kind == "folder":
            raise ValueError(f"{name} is a folder")
        if not of.key:
            _check_binary(member, of)
        content = exactly(stream, member.size)
        try:
            pixels, labels[k] = _python(content, of) if of.key else _binary(content, of)
        except MemoryError:
            raise ValueError(f"{name} takes more memory than is available") from None
        except Exception as error:  # a pickle may fail in any way
            raise ValueError(f"{name}: {error}") from None
        planes = pixels.reshape(-1, 3, SIZE, SIZE)
        images[k, : len(planes)] = planes.transpose(0, 2, 3, 1)
    if images is None:
        raise ValueError(f"it holds none of {', '.join(of.folder for of in LAYOUTS)}")
    return layout, images, labels, names


def _members(stream: Stream) -> Iterator[Member]:
    total = 0
    for n, member in enumerate(members(stream, MAX_MEMBER)):
        total += member.size
        if n == MAX_MEMBERS or total > MAX_TOTAL:
            raise ValueError(f"it has more than {MAX_MEMBERS} members or {MAX_TOTAL:,} bytes")
        if member.kind not in ("file", "folder"):
            raise ValueError(f"its member {member.name} is neither a file nor a folder")
        yield member


def _names(content: bytes, layout: _Layout) -> tuple[str, ...]:
    """Return the class names; () if they cannot be read."""
    found: Any = content.split(b"\n")
    if layout.key:
        try:
            found = _unpickle(content, 2 * layout.records).get(layout.key[:-1] + b"_names")
        except Exception:  # the names are optional
            return ()
    if type(found) is not list or not all(type(name) is bytes for name in found):
        return ()
    texts = [name.decode("utf-8", "backslashreplace").strip() for name in found]
    return tuple(printable(text) for text in texts if text)


def _check_number(num: int, layout: _Layout) -> None:
    if not 1 <= num <= layout.records:
        raise ValueError(f"it holds {num:,} images, not 1 to {layout.records:,}")


def _check_binary(member: Member, layout: _Layout) -> None:
    length = layout.label_bytes + PIXELS
    num, rest = divmod(member.size, length)
    if rest or not 1 <= num <= layout.records:
        raise ValueError(
            f"{member.name} has {member.size:,} bytes, not 1 to {layout.records:,} records of "
            f"{length:,}"
        )


def _binary(content: bytes, layout: _Layout) -> Batch:
    """Return pixels (n, 3072) and labels (n,) of binary records: label bytes, then pixels."""
    records = np.frombuffer(content, np.uint8).reshape(-1, layout.label_bytes + PIXELS)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].copy()


def _python(content: bytes, layout: _Layout) -> Batch:
    """Return pixels (n, 3072) and labels (n,) of a pickled dict with `data` and the labels."""
    table = _unpickle(content, 10 * layout.records)
    if type(table) is not dict:
        raise ValueError("it holds no dict")
    data, labels = table.get(b"data"), table.get(layout.key)
    if not isinstance(data, _Inert) or data.made_by != RECONSTRUCT or type(data.state) is not tuple:
        raise ValueError("it holds no array `data`")
    _, shape, dtype, transposed, pixels = data.state
    if not isinstance(dtype, _Inert) or dtype.made_by != "numpy dtype" or transposed:
        raise ValueError("`data` is not a plain array")
    if dtype.args[0] not in (b"u1", "u1") or type(pixels) is not bytes:
        raise ValueError("`data` must be of type uint8")
    if type(shape) is not tuple or len(shape) != 2 or any(type(n) is not int for n in shape):
        raise ValueError("`data` must have two dimensions")
    num = shape[0]
    _check_number(num, layout)
    if shape[1] != PIXELS or len(pixels) != num * PIXELS:
        raise ValueError(f"`data` must be of shape (n, {PIXELS}), not {shape}")
    if type(labels) is not list or len(labels) != num or any(type(k) is not int for k in labels):
        raise ValueError(f"`{layout.key.decode()}` must be a list of {num:,} whole numbers")
    return np.frombuffer(pixels, np.uint8).reshape(shape), np.array(labels, np.int64)


# ------------------------------------------------------------------------------------------
# Pickles

RECONSTRUCT = "numpy.core.multiarray _reconstruct"
# The only globals that these files name. Python 3 writes bytes for Python 2 by `_codecs encode`.
# NumPy 2 renamed the module `core` to `_core`.
ENCODE = "_codecs encode"
GLOBALS = {
    name.replace("core", core): name
    for name in (RECONSTRUCT, "numpy ndarray", "numpy dtype")
    for core in ("core", "_core")
} | {ENCODE: ENCODE}
MAX_CALLS = 20  # and tuples; published: 2 of either kind
CALLS = {"GLOBAL", "REDUCE", "BUILD"}
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
OPCODES = {
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", *CALLS, *TUPLES),
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINUNICODE"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}


class _Inert:
    """Stand-in for a global of NumPy, or for the result of calling it: it only records.

    So no argument from a file ever reaches NumPy.
    """

    def __init__(self, name: str, made_by: str = "", args: tuple[Any, ...] = ()) -> None:
        self.name, self.made_by, self.args = name, made_by, args
        self.state: Any = None

    def __call__(self, *args: Any) -> Any:
        return _Inert("", self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Encode(_Inert):
    """Stand-in for `_codecs.encode`: Latin-1 only, in all at most as many bytes as the file has."""

    def __init__(self, most: int) -> None:
        super().__init__(ENCODE)
        self._left = most

    def __call__(self, *args: Any) -> bytes:
        if len(args) != 2 or type(args[0]) is not str or args[1] != "latin1":
            raise ValueError("its pickle has bytes in another encoding than latin1")
        self._left -= len(args[0])
        if self._left < 0:
            raise ValueError("its pickle has more bytes than the file")
        return args[0].encode("latin-1")


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._encode = _Encode(len(content))

    def find_class(self, module: str, name: str) -> Any:
        full = GLOBALS[f"{module} {name}"]
        return self._encode if full == ENCODE else _Inert(full)


def _unpickle(content: bytes, most: int) -> Any:
    """Load a pickle of at most `most` opcodes, if it does no more than CIFAR's pickles do.

    Restricting `find_class` alone would not be safe: one opcode makes the unpickler allocate any
    number of memo slots, BUILD sets attributes of objects on its stack, and nested tuples can take
    forever to hash as keys. So the opcodes, which are data, are checked before anything is loaded.
    Only those that CIFAR's files use are allowed, with memo indices that this many opcodes can
    fill, and few tuples and calls.
    """
    opcodes = tuples = calls = end = 0
    for opcode, argument, position in pickletools.genops(content):  # checks lengths
        name, end = opcode.name, (position or 0) + 1
        opcodes, tuples, calls = opcodes + 1, tuples + (name in TUPLES), calls + (name in CALLS)
        if name not in OPCODES:
            raise ValueError(f"its pickle uses {name}, which CIFAR's do not")
        if name == "GLOBAL" and argument not in GLOBALS:
            named = str(argument).replace(" ", ".")
            raise ValueError(f"its pickle names {named}, which CIFAR's do not")
        if isinstance(argument, int) and not -1 <= argument < most:
            raise ValueError(f"its pickle holds the number {argument}")
        if name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > opcodes:
            raise ValueError(f"its pickle fills memo slot {argument:,} by opcode {opcodes:,}")
        if opcodes > most or max(tuples, calls) > MAX_CALLS:
            raise ValueError("its pickle is longer than CIFAR's are")
    if end != len(content):
        raise ValueError("its pickle ends too early")
    return _Unpickler(content).load()


register(
    Reader(
        kind="a .tar.gz of CIFAR",
        suffixes=ENDINGS,
        sniff=holds,
        priority=30,  # before shards, which have the same suffixes
        open=lambda source, wanted: read(Path(source), wanted),
        files=lambda source: [Path(source)],
        count=lambda source: count(Path(source)),
    )
)
