"""Tensor storages in a plain pickle: the bytes that torch.save made of each.

Such a pickle asks for `torch.storage._load_from_bytes`, which would unpickle anything. It is never
called. The bytes are checked first, and then given to torch.load with weights_only.

The bytes have the format that torch.save used before zip archives: five small pickles (a magic
number, a version, the machine's properties, the storage's type, key, place and length, and the list
of keys), then the length again, and the numbers.
"""

import io
import pickletools
import struct
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
HEADER = 4096  # most bytes of the five pickles; about 300 are usual
MOST_OPCODES = 200
PICKLES = 5
DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
# All that torch.save uses in these five pickles, with protocol 2.
OPCODES = {
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "BINPERSID"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("BINPUT", "BINGET"),
}


def numbers(content: bytes) -> Tensor:
    """Return the numbers of one storage, (N,), on the CPU.

    Args:
        content: Bytes that torch.save wrote before zip archives.

    Raises:
        ValueError: The bytes are not one whole storage.
    """
    dtype, length = _looked_through(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are deprecated
        try:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # a pickle can cause any error
            text = " ".join(str(error).split())
            raise ValueError(f"a storage that torch.load does not read ({text[:200]})") from None
        if not isinstance(loaded, torch.storage.TypedStorage) or loaded.dtype != dtype:
            raise ValueError("a storage that torch.load reads as something else")
        found = torch.empty(0, dtype=dtype).set_(loaded._untyped_storage)
    if found.shape != (length,):
        raise ValueError("a storage that torch.load reads as something else")
    return found


def _looked_through(content: bytes) -> tuple[torch.dtype, int]:
    """Return a storage's dtype and length, once its bytes are known to be one whole storage.

    The declared length must match the bytes that follow, so that no memory is allocated for numbers
    that are missing.
    """
    if not content.startswith(MAGIC):
        raise ValueError("a storage that torch.save did not write")
    head = io.BytesIO(content[:HEADER])
    names: list[str] = []
    for count, (number, opcode, argument) in enumerate(_header(head)):
        if opcode not in OPCODES or count == MOST_OPCODES:
            raise ValueError(f"a storage whose header uses {opcode}")
        if opcode == "GLOBAL":
            names.append(str(argument))
        whole = isinstance(argument, int) and number > 2  # the first pickles hold large constants
        if whole and not 0 <= argument <= len(content):
            raise ValueError(f"a storage whose header holds {argument}")
    if len(names) != 1 or names[0] not in DTYPES:
        asked = ", ".join(name.replace(" ", ".") for name in names) or "nothing"
        raise ValueError(f"a storage whose header asks for {asked}")
    dtype, data = DTYPES[names[0]], len(content) - head.tell() - 8
    length = struct.unpack("<q", content[head.tell() : head.tell() + 8])[0] if data >= 0 else -1
    if length < 0 or length * dtype.itemsize != data:
        raise ValueError(f"a storage of {max(data, 0)} bytes that declares {length} numbers")
    return dtype, length


def _header(head: BinaryIO) -> Iterator[tuple[int, str, Any]]:
    """Yield (index of the pickle, name, argument) of every opcode of the header."""
    for number in range(PICKLES):
        try:
            for opcode, argument, _ in pickletools.genops(head):
                yield number, opcode.name, argument
        except ValueError as error:
            text = " ".join(str(error).split())
            raise ValueError(f"a storage with a damaged header ({text[:200]})") from None
