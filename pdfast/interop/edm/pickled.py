"""A reader of NVlabs/edm's pickles that runs no code in them.

The networks are persistent objects: each is a record of its class's name, its state, and the source
of its module, which NVlabs/edm's loader runs. This module interprets the pickle's opcodes itself,
over a stack of plain data. It imports no name and calls nothing: the few names that such files
contain have a fixed meaning here, any other is refused, and the source is dropped unread.

The number of opcodes is bounded, and with it the memo, as is the input of torch.load. Keys are
strings or integers.
"""

import pickletools
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from pdfast.errors import PdfastError
from pdfast.interop.edm.storages import numbers

MOST_OPCODES = 2**20  # published files have some 10^5
MOST_DIMS = 8
VERSION = 6  # of the persistence records
FIELDS = {"type", "version", "module_src", "class_name", "state"}
NAMES = {  # the names in NVlabs/edm's pickles, and their meaning here
    "torch_utils.persistence._reconstruct_persistent_obj": "record",
    "collections.OrderedDict": "dict",
    "dnnlib.util.EasyDict": "dict",
    "builtins.set": "set",
    "torch.storage._load_from_bytes": "storage",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_parameter": "parameter",
    "torch.nn.modules.container.ModuleDict": "container",
    "torch.nn.modules.container.ModuleList": "container",
    "torch.nn.modules.container.Sequential": "container",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
}
SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}
FOREIGN = {  # first bytes of other files of weights
    b"PK\3\4": "a zip archive, as torch.save writes, where NVlabs/edm's networks are plain pickles",
    b"\x1f\x8b": "gzipped: unpack it first",
    b"\x89HDF": "an HDF5 file",
}


class Record:
    """The class name and state of a persistent object or of one of PyTorch's containers."""

    def __init__(self, class_name: str, state: dict[Any, Any]) -> None:
        self.class_name, self.state = class_name, state


class _Name(NamedTuple):
    """A name in the pickle, with its meaning."""

    kind: str
    name: str


class _Bytes:
    """Bytes of the pickle, released once a storage is made of them."""

    def __init__(self, content: bytes) -> None:
        self.content: bytes | None = content
        self.storage: _Storage | None = None


class _Storage(NamedTuple):
    numbers: Tensor


class _Dtype(NamedTuple):
    """One of NumPy's dtypes."""

    code: str


class Asked(ValueError):  # noqa: N818  # the message is what was asked for
    """A pickle asks for something that is neither a tensor nor plain data."""


class _Bounded:
    """A file whose reads end at its size, since pickletools reads as much as a pickle declares."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(max(0, min(size, self._size - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline(4096)  # a name; a longer one lacks its newline and is refused


def read(path: Path) -> Any:
    """Read a pickle as plain data, tensors on the CPU, and `Record`s.

    Raises:
        PdfastError: The file is damaged, or asks for anything else, which the message names.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            head = file.read(4)
            for begin, what in FOREIGN.items():
                if head.startswith(begin):
                    raise PdfastError(f"{path} is {what}")
            file.seek(0)
            machine = _Machine()
            with warnings.catch_warnings():
                # pickletools decodes backslashes in names, and warns about invalid escapes.
                warnings.simplefilter("ignore", DeprecationWarning)
                for opcode, argument, _ in pickletools.genops(_Bounded(file, size)):  # type: ignore[arg-type]
                    machine.step(opcode.name, argument)
            if file.tell() != size:
                raise ValueError(f"{size - file.tell()} bytes follow its end")
            return machine.result
    except Asked as error:
        raise PdfastError(
            f"{path} asks for {error}, so it is refused: pdfast reads only the tensors and plain "
            "data of NVlabs/edm's pickles, and has run nothing in the file"
        ) from None
    except OSError as error:
        raise PdfastError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise PdfastError(f"{path} takes more memory than is available") from None
    except (ValueError, IndexError, OverflowError, struct.error) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise PdfastError(
            f"{path} is not a complete pickle of NVlabs/edm: {text[:300]}; download it again"
        ) from None


class _Machine:
    """The stack and the memo of a pickle, updated opcode by opcode."""

    def __init__(self) -> None:
        self.result: Any = None
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._opcodes = 0

    def step(self, name: str, argument: Any) -> None:
        """Interpret one opcode.

        Args:
            name: Its name in pickletools.
            argument: Its decoded argument; None where it has none.

        Raises:
            Asked: It asks for a name that NVlabs/edm's pickles do not have.
            ValueError: It is used in a way in which NVlabs/edm's pickles do not use it.
            IndexError: It takes more from the stack than was put there.
        """
        self._opcodes += 1
        if self._opcodes > MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES} opcodes")
        if name in CONSTANTS:
            self._stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self._stack.append(EMPTY[name]())
        elif name in PLAIN:
            if isinstance(argument, int) and not -(2**63) <= argument < 2**63:
                raise ValueError("it holds a number of more than 64 bits")
            self._stack.append(_Bytes(argument) if isinstance(argument, bytes) else argument)
        elif name in PUTS:
            self._put(len(self._memo) if argument is None else argument)
        elif name in GETS:
            if argument not in self._memo:
                raise ValueError(f"it takes memo slot {argument}, which is empty")
            self._stack.append(self._memo[argument])
        elif name in HANDLERS:
            HANDLERS[name](self, argument)
        elif name == "INST":
            raise Asked(str(argument).replace(" ", "."))
        elif name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"):
            raise Asked(f"an object from outside the file (opcode {name})")
        elif name not in IGNORED:
            raise ValueError(f"it uses the opcode {name}")

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise ValueError("it takes what is before a mark")
        return self._stack.pop()

    def _items(self) -> list[Any]:
        """Pop the items above the last mark."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if type(top) is not kind:
            raise ValueError(f"it fills {type(top).__name__} as if it were {kind.__name__}")
        return top

    def _put(self, place: int) -> None:
        if not 0 <= place <= self._opcodes:
            raise ValueError(f"it fills memo slot {place} by opcode {self._opcodes}")
        self._memo[place] = self._stack[-1]

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._items()))

    def _append(self, _: Any) -> None:
        item = self._pop()
        self._top(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._items()
        self._top(list).extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._fill([key, value])

    def _set_items(self, _: Any) -> None:
        self._fill(self._items())

    def _fill(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("it has a key without a value")
        keys = items[::2]
        if not all(type(key) in (str, int) for key in keys):
            raise ValueError("it has a key that is neither a text nor a whole number")
        self._top(dict).update(zip(keys, items[1::2], strict=True))

    def _global(self, argument: Any) -> None:
        self._named(str(argument).replace(" ", "."))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a module or class name in it is not text")
        self._named(f"{module}.{name}")

    def _named(self, name: str) -> None:
        if name not in NAMES:
            raise Asked(name[:200])
        self._stack.append(_Name(NAMES[name], name))

    def _reduce(self, _: Any) -> None:
        args, name = self._pop(), self._pop()
        if type(name) is not _Name or type(args) is not tuple:
            raise ValueError("it calls something that is not a function or class")
        self._stack.append(_made(name, args))

    def _new(self, _: Any) -> None:
        args, name = self._pop(), self._pop()
        if type(name) is not _Name or name.kind not in ("container", "dict") or args != ():
            raise ValueError("it creates an object of something that is not a class of NVlabs/edm")
        plain = name.kind == "dict"
        self._stack.append({} if plain else Record(name.name.rpartition(".")[2], {}))

    def _build(self, _: Any) -> None:
        state = self._pop()
        top = self._stack[-1]
        if type(top) is Record and not top.state and type(state) is dict:
            top.state = state
        elif type(top) is _Dtype and type(state) is tuple:
            if state[1:2] not in (("<",), ("|",), ("=",)):
                raise ValueError("it holds numbers of another byte order")
        elif type(top) is not dict or state:
            raise ValueError(f"it gives a state to {type(top).__name__}")

    def _stop(self, _: Any) -> None:
        self.result = self._pop()
        if self._stack or self._marks:
            raise ValueError("it ends with more than one object")


def _made(name: _Name, args: tuple[Any, ...]) -> Any:
    """Return the object that a call of a known name stands for."""
    kind = name.kind
    if kind == "dict" and not args:
        return {}
    if kind == "set" and len(args) == 1 and type(args[0]) is list:
        return args[0]
    if kind == "record" and len(args) == 1:
        return _record(args[0])
    if kind == "storage" and len(args) == 1 and type(args[0]) is _Bytes:
        return _storage(args[0])
    if kind == "tensor" and len(args) in (6, 7):
        return _tensor(*args[:4])
    if kind == "parameter" and len(args) == 3 and isinstance(args[0], Tensor):
        return args[0]
    if kind == "dtype" and args and type(args[0]) is str:
        return _Dtype(args[0])
    if kind == "scalar" and len(args) == 2:
        return _scalar(*args)
    raise ValueError(f"it calls {name.name} as NVlabs/edm does not")


def _record(meta: Any) -> Record:
    if type(meta) is not dict or set(meta) != FIELDS or meta["type"] != "class":
        raise ValueError("it holds a persistent object of another form")
    if meta["version"] != VERSION:
        raise ValueError(
            f"its persistent objects are of version {str(meta['version'])[:20]}, not {VERSION}"
        )
    if type(meta["class_name"]) is not str or type(meta["state"]) is not dict:
        raise ValueError("it holds a persistent object without a class or a state")
    return Record(meta["class_name"], meta["state"])


def _storage(given: _Bytes) -> _Storage:
    if given.storage is None:
        content, given.content = given.content, None
        if content is None:
            raise ValueError("it makes a storage of what has been read")
        given.storage = _Storage(numbers(content))
    return given.storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return a view of a storage, with no more elements than it holds and all of them within it."""
    if type(storage) is not _Storage or type(offset) is not int or offset < 0:
        raise ValueError("it holds a tensor without a storage")
    for sizes in (size, stride):
        if type(sizes) is not tuple or not all(type(n) is int and 0 <= n < 2**40 for n in sizes):
            raise ValueError("it holds a tensor whose shape is not whole numbers")
    if len(size) != len(stride) or len(size) > MOST_DIMS:
        raise ValueError(f"it holds a tensor of {len(size)} dimensions with {len(stride)} strides")
    flat, count = storage.numbers, 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > len(flat) or (count and last >= len(flat)):
        raise ValueError(f"it holds a tensor of shape {size} in {len(flat)} numbers")
    return torch.as_strided(flat, size, stride, offset)


def _scalar(dtype: Any, content: Any) -> int | float:
    if type(dtype) is not _Dtype or type(content) is not _Bytes or content.content is None:
        raise ValueError("it holds a number without a type")
    if dtype.code not in SCALARS:
        raise ValueError(f"it holds a number of type {dtype.code[:20]}")
    return struct.unpack(SCALARS[dtype.code], content.content)[0]  # type: ignore[no-any-return]


CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
PLAIN = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
PUTS, GETS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
IGNORED = {"PROTO", "FRAME"}
HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "STOP": _Machine._stop,
    "TUPLE": _Machine._tuple,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._new,
    "BUILD": _Machine._build,
}


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def handle(machine: _Machine, _: Any) -> None:
        items = [machine._pop() for _ in range(count)]
        machine._stack.append(tuple(reversed(items)))

    return handle


HANDLERS |= {f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)}
