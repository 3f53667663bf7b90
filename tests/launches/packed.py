"""Launch every case through Triton's C launcher on a fake CUDA driver; write the packed arguments.

test_packed_arguments.py runs it in a process whose libcuda.so.1 is the fake one:
packed.py LIBRARY RESULT. RESULT is JSON, a list of launches; an argument is its name, its type,
the number that was passed, and the number that the kernel would have received.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from launch_cases import CASES
from stub_driver import Launcher, StubDriver, install
from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "u8": 1, "u32": 4, "u64": 8}
BITS64 = 2**64 - 1
launched: list[dict[str, object]] = []


class Record(ctypes.Structure):
    _fields_ = [
        ("launches", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("function", ctypes.c_void_p),
        ("values", ctypes.c_ulonglong * 64),
    ]


class PackingLauncher(CudaLauncher):
    """Triton's launcher for CUDA, with a note of what it passes to the driver."""

    def __init__(self, src, metadata):
        super().__init__(src, metadata)
        self.kernel, self.names = src.fn.__name__, src.fn.arg_names
        self.types, self.metadata = list(src.signature.values()), metadata

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *args):
        real = [
            (name, kind, arg)
            for name, kind, arg in zip(self.names, self.types, args, strict=True)
            if kind != "constexpr"
        ]
        sizes = [8 if kind.startswith("*") else BYTES[kind] for _, kind, _ in real]
        fake.fake_expect(len(sizes), (ctypes.c_int * len(sizes))(*sizes))
        before = fake.fake_record().contents.launches
        super().__call__(x, y, z, stream, function, packed, metadata, enter, leave, *args)
        Launcher.last = (x, y, z), dict(zip(self.names, args, strict=True))
        made = fake.fake_record().contents
        arguments = []
        for k, (name, kind, arg) in enumerate(real):
            passed = arg.data_ptr() if kind.startswith("*") else arg & (BITS64 >> 64 - 8 * sizes[k])
            arguments.append((name, kind, passed, made.values[k]))
        launched.append(
            {
                "kernel": self.kernel,
                "launches": made.launches - before,
                "grids": [[x, y, z], list(made.grid)],
                "threads": [32 * self.metadata.num_warps, made.block[0]],
                "shared": [self.metadata.shared, made.shared],
                "arguments": arguments,
            }
        )


library, result = sys.argv[1:]
fake = ctypes.CDLL(library)
fake.fake_record.restype = ctypes.POINTER(Record)
driver = StubDriver()
driver.launcher_cls = PackingLauncher
with tempfile.TemporaryDirectory() as cache, knobs.cache.scope():
    knobs.cache.dir = cache  # others must not find what is linked with the fake
    utils = CudaUtils()
properties = {"max_shared_mem": utils.get_device_properties(0)["max_shared_mem"]}


def load_binary(name, binary, shared, device):
    return utils.load_binary(name, binary, shared, 0)


driver.utils = SimpleNamespace(**vars(utils))
driver.utils.load_binary = load_binary
driver.utils.get_device_properties = lambda device: properties
install(driver)
cases = {}
for case, call in CASES.items():
    launched.clear()
    call(torch.device("cpu"))
    cases[case] = list(launched)
Path(result).write_text(json.dumps(cases))
