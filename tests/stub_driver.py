"""Triton's own launcher without a GPU: the driver compiles for one and launches nothing.

Binding of arguments, specialisation, options and compilation are Triton's. Tensors may be on the
CPU; a kernel would then receive their addresses there.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pdfast.kernels import runtime


@dataclass
class Launch:
    """One launch of a kernel."""

    kernel: str
    grid: tuple[int, int, int]
    args: dict[str, Any]
    """All arguments of the kernel, by name, as they reached the launcher."""
    compiled: Any
    """Triton's CompiledKernel."""


class Launcher:
    """The launcher that Triton makes for each compiled kernel, and calls at each launch."""

    last: tuple[Any, ...] = ()

    def __init__(self, src: Any, metadata: Any) -> None:
        self.names = src.fn.arg_names

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *args) -> None:
        Launcher.last = (x, y, z), dict(zip(self.names, args, strict=True))


class StubDriver:
    """A device of compute capability `arch` / 10; `arch` is also its device number in Triton."""

    def __init__(self, arch: int = 90) -> None:
        self.arch = arch
        self.launcher_cls = Launcher
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (1, 2, 32, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 232_448},
        )

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def install(driver: Any) -> list[Launch]:
    """Make `driver` Triton's, for good, and let CPU tensors launch; return all later launches.

    Refuses if a GPU is visible, which a stub must not hide.
    """
    assert not torch.cuda.is_available(), "a GPU is visible: set CUDA_VISIBLE_DEVICES to nothing"
    assert not runtime.INTERPRETING, "Triton is interpreting: unset TRITON_INTERPRET"
    triton.runtime.driver.set_active(driver)
    runtime.uses_triton = lambda device, *dtypes: torch.float64 not in dtypes
    launches: list[Launch] = []
    run = JITFunction.run

    def noted(self, *args, **kwargs):
        compiled = run(self, *args, **kwargs)
        launches.append(Launch(self.fn.__name__, *Launcher.last, compiled))
        return compiled

    JITFunction.run = noted
    return launches
