"""A reader of flax's files, nested maps of arrays in msgpack, one array at a time.

An array is msgpack's ext type 1, a scalar ext type 3. Both hold msgpack again: (shape, name of the
dtype, bytes in row-major order). An array of more than a gigabyte is a map of chunks. Nothing in a
file is trusted: nothing is unpickled, only the dtypes named here are accepted, and names, nesting,
counts and sizes are bounded. flax itself is not needed.
"""

import math
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from pdfast.errors import PdfastError, UsageError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
CHUNKED = "__msgpack_chunked_array__"
ARRAY, SCALAR = 1, 3  # ext types
MAX_DEPTH = 8
MAX_LEAVES = 100_000
MAX_DIMS = 32
HEADER = 4096  # bytes of msgpack around an array's numbers
DTYPES = {
    name: cast(torch.dtype, getattr(torch, name))
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64"),
    )
}
FOREIGN = {  # first bytes of other files of weights
    b"PK\3\4": "a zip archive, as .npz files and PyTorch's pickled weights are",
    **{bytes([0x80, version]): "a pickle, which is never loaded" for version in (2, 3, 4, 5)},
    b"\x1f\x8b": "gzipped: unpack it first",
    b"\x89HDF": "an HDF5 file",
}


class FlaxFile:
    """The leaves of a file under some of its top-level keys; other keys are skipped.

    Args:
        path: The file.
        keys: Top-level keys to read.
        most: Most bytes of one array.
    """

    def __init__(self, path: Path, keys: Collection[str], most: int) -> None:
        self.path, self._wanted, self._most = path, keys, most
        self.keys: list[str] = []
        """Top-level keys read or skipped so far."""
        self._at = ""  # the name being read, for messages

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Yield (path, leaf) in the file's order.

        A path is "a/b/c"; a leaf is a Tensor on the CPU, or a plain value.

        Raises:
            UsageError: The file does not exist, or msgpack is not installed.
            PdfastError: The file is damaged, or not one of flax's.
        """
        try:
            import msgpack
        except ImportError:
            raise UsageError(
                "reading flax's files needs the package msgpack: pip install msgpack"
            ) from None
        if not self.path.is_file():
            kind = "is a folder, not a file" if self.path.is_dir() else "does not exist"
            raise UsageError(f"{self.path} {kind}")
        broken = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)
        try:
            with self.path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                unpacker = msgpack.Unpacker(
                    file,
                    max_buffer_size=self._most + HEADER,
                    max_array_len=MAX_DIMS,
                    max_map_len=MAX_DIMS,
                )
                for number, leaf in enumerate(self._top(unpacker, file)):
                    if number == MAX_LEAVES:
                        raise self._error(f"has more than {MAX_LEAVES} leaves")
                    yield leaf
                if size > unpacker.tell():
                    raise self._error(f"has {size - unpacker.tell()} more bytes after its end")
        except OSError as error:
            raise PdfastError(f"{self.path} cannot be read: {error.strerror}") from None
        except msgpack.OutOfData:
            raise self._error(f"is cut short{self._where()}") from None
        except msgpack.BufferFull:
            raise self._error(f"has something of over {self._most} bytes{self._where()}") from None
        except broken as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise self._error(f"is not what flax writes{self._where()}: {text[:200]}") from None

    def _top(self, unpacker: Any, file: BinaryIO) -> Iterator[tuple[str, Any]]:
        head = os.pread(file.fileno(), 4, 0)
        for begin, what in FOREIGN.items():
            if head.startswith(begin):
                raise self._error(f"is {what}")
        if not _is_map(head):
            raise self._error("is no flax file: it does not begin with a map")
        for _ in range(unpacker.read_map_header()):
            key = self._key(unpacker.unpack())
            self.keys.append(key)
            if key in self._wanted:
                yield from self._value(unpacker, file, key, 1)
            else:
                self._at = key
                unpacker.skip()

    def _value(
        self, unpacker: Any, file: BinaryIO, name: str, depth: int
    ) -> Iterator[tuple[str, Any]]:
        """Yield one leaf, or the leaves of a map."""
        self._at = name
        if not _is_map(os.pread(file.fileno(), 1, unpacker.tell())):
            yield name, self._leaf(unpacker.unpack())
            return
        if depth == MAX_DEPTH:
            raise self._error(f"is nested more than {MAX_DEPTH} deep{self._where()}")
        for number in range(unpacker.read_map_header()):
            key = self._key(unpacker.unpack())
            if key == CHUNKED and number == 0:
                yield name, self._chunked(unpacker)
                return
            yield from self._value(unpacker, file, f"{name}/{key}", depth + 1)

    def _chunked(self, unpacker: Any) -> Tensor:
        """Read the rest of a chunked array: True, "shape", "chunks" with keys "0", "1", ..."""
        unpacker.unpack()
        if unpacker.unpack() != "shape":
            raise ValueError("a chunked array without a shape")
        shape = self._shape(_listed(unpacker.unpack()))
        if unpacker.unpack() != "chunks":
            raise ValueError("a chunked array without chunks")
        flat: list[Tensor] = []
        for number in range(unpacker.read_map_header()):
            if unpacker.unpack() != str(number):
                raise ValueError("chunks that are not numbered 0, 1, ...")
            flat.append(self._leaf(unpacker.unpack()))
            if not isinstance(flat[-1], Tensor) or flat[-1].dtype != flat[0].dtype:
                raise ValueError("chunks that are not arrays of one dtype")
            if sum(part.nbytes for part in flat) > self._most:
                raise ValueError(f"chunks of more than {self._most} bytes together")
        if sum(part.numel() for part in flat) != math.prod(shape) or not flat:
            raise ValueError(f"chunks that do not fill the shape {shape}")
        return torch.cat([part.reshape(-1) for part in flat]).reshape(shape)

    def _leaf(self, value: Any) -> Any:
        """Return the array or scalar of an ext type; any other value unchanged."""
        import msgpack

        if not isinstance(value, msgpack.ExtType):
            return value
        if value.code not in (ARRAY, SCALAR):
            raise ValueError(f"ext type {value.code}, where arrays have {ARRAY}")
        content = msgpack.unpackb(value.data, raw=True, max_array_len=MAX_DIMS, max_map_len=0)
        if not isinstance(content, list) or len(content) != 3:
            raise ValueError("an array that is not (shape, dtype, bytes)")
        sizes, dtype_name, data = content
        shape = self._shape(sizes)
        if not isinstance(dtype_name, bytes) or not isinstance(data, bytes):
            raise ValueError("an array that is not (shape, dtype, bytes)")
        dtype = DTYPES.get(dtype_name.decode("ascii", "replace"))
        if dtype is None:
            raise ValueError(f"an array of dtype {dtype_name[:40]!r}, where numbers are expected")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype_name.decode()}")
        if not data:
            return torch.empty(shape, dtype=dtype)
        if sys.byteorder == "big":
            raise ValueError("numbers of the other byte order than this machine's")
        array = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
        return array.item() if not shape else array

    @staticmethod
    def _shape(sizes: Any) -> tuple[int, ...]:
        if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
            raise ValueError("an array whose shape is not whole numbers")
        return tuple(sizes)

    def _key(self, key: Any) -> str:
        if not isinstance(key, str) or not NAME.fullmatch(key):
            raise self._error(f"has a key that is no plain name{self._where()}")
        return key

    def _where(self) -> str:
        return f" in {self._at[:300]}" if self._at else ""

    def _error(self, how: str) -> PdfastError:
        return PdfastError(
            f"{self.path} {how}; a whole file is needed, as flax's serialization.to_bytes writes it"
        )


def _is_map(head: bytes) -> bool:
    """Return whether msgpack's next object is a map, by its first byte."""
    return bool(head) and (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))


def _listed(table: Any) -> list[Any]:
    """Return the values of {"0": ..., "1": ...} as a list."""
    if not isinstance(table, dict) or list(table) != [str(n) for n in range(len(table))]:
        raise ValueError("a shape that is not numbered 0, 1, ...")
    return list(table.values())
