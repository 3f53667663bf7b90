"""CIFAR-10 as it is published: its binary archive, or the one of Python's pickles.

The archive is read in order and nothing is ever unpacked from it. Of the python version's pickles
see `_unpickle`.
"""

import io
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdfast.errors import UsageError
from pdfast.sources.reading import UNREADABLE, Arrays, Gunzip, Wanted, allocate, check_shape
from pdfast.sources.tars import Entry

BATCHES, RECORDS, SIZE = 5, 10_000, 32
PIXELS = 3 * SIZE * SIZE  # of a record: one colour after the other, each row by row
MAX_MEMBER, MAX_MEMBERS = 2**26, 100  # bytes of one, and how many; published: 2**25 and 8
MAX_TOTAL = 2**29  # bytes of all; published: 2**28
NAMES = [
    *(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, BATCHES + 1)),
    *(f"cifar-10-batches-py/data_batch_{k}" for k in range(1, BATCHES + 1)),
]
Batch = tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]


def reads(name: str) -> bool:
    """Whether a file of this name is for this module."""
    return name.endswith(".tar.gz")


def read(path: Path, wanted: Wanted) -> Arrays:
    """The training set, in the order of its batches; see the package."""
    check_shape(str(path), (BATCHES * RECORDS, SIZE, SIZE, 3), wanted)
    # The batches lie in the archive in any order: each has its place from the start.
    images = allocate(str(path), (BATCHES, RECORDS, SIZE, SIZE, 3))
    labels: dict[int, NDArray[np.integer[Any]]] = {}
    try:
        with path.open("rb") as file:
            packed = Gunzip(file)
            names = _read_members(packed, images, labels)
            for _ in range(100):  # the archive's padding, at whose end is the checksum
                if not packed.read(tarfile.RECORDSIZE):
                    break
            else:
                raise ValueError("bytes are left over at its end")
    except UsageError:
        raise
    except (*UNREADABLE, tarfile.TarError) as error:
        raise UsageError(f"{path} is not a readable CIFAR-10 archive ({error})") from None
    for k, name in enumerate(names):
        if k not in labels:
            raise UsageError(f"{path} has no {name}: download it again")
    parts = [images[k, : len(labels[k])] for k in range(BATCHES)]
    whole = images.reshape(-1, SIZE, SIZE, 3)
    if sum(map(len, parts)) < len(whole):  # never as published
        whole = np.concatenate(parts)
    return Arrays(whole, np.concatenate([labels[k] for k in range(BATCHES)]))


def files(path: Path) -> list[Path]:
    """All that `read` may read."""
    return [path]


def count(path: Path) -> int:
    """Number of images, for which the archive is read."""
    return len(read(path, Wanted(SIZE, 3)).images)


def _read_members(
    packed: Gunzip, images: NDArray[np.uint8], labels: dict[int, NDArray[np.integer[Any]]]
) -> list[str]:
    """Put the archive's batches into `images` and `labels`; the names that it should hold."""
    names: list[str] = []
    total = 0
    # Mode r| reads forward only. `packed` has all that it needs of a file.
    with tarfile.open(fileobj=packed, mode="r|", tarinfo=_Entry) as archive:  # type: ignore[call-overload]
        for n, entry in enumerate(archive):
            total += entry.size
            if n == MAX_MEMBERS or total > MAX_TOTAL:
                raise ValueError(f"it has more than {MAX_MEMBERS} members or {MAX_TOTAL:,} bytes")
            if entry.name not in NAMES:
                continue
            pickled, k = divmod(NAMES.index(entry.name), BATCHES)
            wanted = NAMES[pickled * BATCHES :][:BATCHES]
            if k in labels or (names and names != wanted):
                raise ValueError(f"it holds batch {k + 1} twice")
            names = wanted
            if not pickled:
                _check_binary(entry)
            file = archive.extractfile(entry)
            if file is None:
                raise ValueError(f"{entry.name} is a folder")
            content = file.read(entry.size)
            if len(content) < entry.size:
                raise EOFError(f"{entry.name} is cut short")
            try:
                pixels, labels[k] = (_python if pickled else _binary)(content)
            except MemoryError:
                raise ValueError(f"{entry.name} takes more memory than there is") from None
            except Exception as error:  # of a pickle anything may come
                raise ValueError(f"{entry.name}: {error}") from None
            planes = pixels.reshape(-1, 3, SIZE, SIZE)
            images[k, : len(planes)] = planes.transpose(0, 2, 3, 1)
    return names or NAMES[:BATCHES]


class _Entry(Entry):
    most = MAX_MEMBER


def _check_number(num: int) -> None:
    if not 1 <= num <= RECORDS:
        raise ValueError(f"it holds {num:,} images, not 1 to {RECORDS:,}")


def _check_binary(entry: tarfile.TarInfo) -> None:
    num, rest = divmod(entry.size, 1 + PIXELS)
    if rest or not 1 <= num <= RECORDS:
        raise ValueError(
            f"{entry.name} has {entry.size:,} bytes, not 1 to {RECORDS:,} records of {1 + PIXELS:,}"
        )


def _binary(content: bytes) -> Batch:
    """Pixels (n, 3072) and labels (n,) of records of 1 + 3072 bytes."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].copy()


def _python(content: bytes) -> Batch:
    """Pixels (n, 3072) and labels (n,) of a pickled dict of `data` and `labels`."""
    table = _unpickle(content)
    if type(table) is not dict:
        raise ValueError("it holds no dict")
    data, labels = table.get(b"data"), table.get(b"labels")
    if not isinstance(data, _Inert) or data.made_by != RECONSTRUCT or type(data.state) is not tuple:
        raise ValueError("it holds no array `data`")
    _, shape, dtype, transposed, pixels = data.state
    if not isinstance(dtype, _Inert) or dtype.made_by != "numpy dtype" or transposed:
        raise ValueError("`data` is no plain array")
    if dtype.args[0] not in (b"u1", "u1") or type(pixels) is not bytes:
        raise ValueError("`data` must be of type uint8")
    if type(shape) is not tuple or len(shape) != 2 or any(type(n) is not int for n in shape):
        raise ValueError("`data` must have two dimensions")
    num = shape[0]
    _check_number(num)
    if shape[1] != PIXELS or len(pixels) != num * PIXELS:
        raise ValueError(f"`data` must be of shape (n, {PIXELS}), not {shape}")
    if type(labels) is not list or len(labels) != num or any(type(k) is not int for k in labels):
        raise ValueError(f"`labels` must be a list of {num:,} whole numbers")
    return np.frombuffer(pixels, np.uint8).reshape(shape), np.array(labels, np.int64)


# ------------------------------------------------------------------------------------------
# Pickles

RECONSTRUCT = "numpy.core.multiarray _reconstruct"
# The only names in CIFAR-10's files. NumPy 2 calls the first one's module otherwise.
GLOBALS = {
    name.replace("core", core): name
    for name in (RECONSTRUCT, "numpy ndarray", "numpy dtype")
    for core in ("core", "_core")
}
MAX_OPCODES, MAX_CALLS = 200_000, 10  # published: about 30,000, and 2 of either kind
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
    """Stands for a name of NumPy's, or for what calling it would make: records, and does nothing.

    So no argument from a file ever reaches NumPy.
    """

    def __init__(self, name: str, made_by: str = "", args: tuple[Any, ...] = ()) -> None:
        self.name, self.made_by, self.args = name, made_by, args
        self.state: Any = None

    def __call__(self, *args: Any) -> "_Inert":
        return _Inert("", self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Inert(GLOBALS[f"{module} {name}"])


def _unpickle(content: bytes) -> Any:
    """What a pickle holds, if it does no more than CIFAR-10's do.

    The unpickler alone would be no shelter, whatever it finds for names: one opcode makes it
    allocate any number of memo slots, BUILD sets attributes of what lies on its stack, and tuples
    of tuples take for ever to hash as keys. So the opcodes, which are data, are looked through
    first: only those that CIFAR-10's files are made of, memo indices that this many opcodes can
    fill, and few enough tuples and calls.
    """
    opcodes = tuples = calls = end = 0
    for opcode, argument, position in pickletools.genops(content):  # checks lengths
        name, end = opcode.name, (position or 0) + 1
        opcodes, tuples, calls = opcodes + 1, tuples + (name in TUPLES), calls + (name in CALLS)
        if name not in OPCODES:
            raise ValueError(f"its pickle uses {name}, which CIFAR-10's do not")
        if name == "GLOBAL" and argument not in GLOBALS:
            named = str(argument).replace(" ", ".")
            raise ValueError(f"its pickle names {named}, which CIFAR-10's do not")
        if isinstance(argument, int) and not -1 <= argument < MAX_OPCODES:
            raise ValueError(f"its pickle holds the number {argument}")
        if name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > opcodes:
            raise ValueError(f"its pickle fills memo slot {argument:,} by opcode {opcodes:,}")
        if opcodes > MAX_OPCODES or max(tuples, calls) > MAX_CALLS:
            raise ValueError("its pickle is longer than CIFAR-10's are")
    if end != len(content):
        raise ValueError("its pickle ends too early")
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()
