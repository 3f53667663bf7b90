"""An emulator of NVIDIA machine code (SASS, sm_90), to run a kernel and count what it issues.

For tests without a GPU. It takes a cubin as nvcc writes it and a launch, and runs some of the
grid's clusters with the effect and the number of warp instructions that a GPU would have:

    kernel = sass.read_kernel(cubin, name)
    memory = sass.Memory()
    x = memory.place(array)
    run = sass.emulate(kernel, sass.Launch(grid, threads, shared=65536), [call, geometry], memory)
    run.issued.sum() * 32 / elements, run.histogram(elements)

It knows the instructions that its kernels have needed. Of any other, or of a form of one that it
does not know, it raises Unsupported: nothing is skipped. Latencies, caches and the order in which
warps take turns are no part of it.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import sass_control
import sass_floats
import sass_integers
import sass_memory
from sass_machine import Fault, Machine, Unsupported
from sass_memory import RESERVED, Memory, Shared
from sass_text import Kernel, names, read_kernel

INSTRUCTIONS = (sass_control, sass_floats, sass_integers, sass_memory)  # they register themselves
# Constant bank 0 below the parameters: offset and what lies there.
BLOCK, GRID, STACK, DESCRIPTOR = 0x0, 0xC, 0x28, 0x208


@dataclass
class Launch:
    grid: int  # blocks
    threads: int  # of a block
    cluster: int = 1
    shared: int = 0  # dynamic, bytes


@dataclass
class Run:
    """What a launch did; the arrays have an entry for each emulated block."""

    kernel: Kernel
    blocks: np.ndarray  # their indices in the grid
    issued: np.ndarray  # warp instructions
    barriers: np.ndarray  # of the block
    cluster_barriers: np.ndarray
    stored: dict  # address of a buffer: bytes
    hits: np.ndarray  # warp instructions by instruction of the kernel, all blocks together
    shared: Shared
    written: dict  # address of a buffer: which of its bytes have been written

    def histogram(self, elements, full=False):
        """Thread instructions per element by opcode, most first; `full`: with modifiers."""
        counts = Counter()
        for ins, hits in zip(self.kernel.code, self.hits, strict=True):
            if hits:
                name = ".".join([ins.opcode, *ins.modifiers]) if full else ins.opcode
                counts[name] += 32 * int(hits) / elements
        return dict(counts.most_common())

    def per_element(self, elements):
        return 32 * int(self.issued.sum()) / elements

    def conflicts(self, kind):
        """Wavefronts of shared loads (LDS) or stores (STS): a request, and against the least."""
        s = self.shared
        return s.wavefronts[kind] / s.requests[kind], s.wavefronts[kind] / s.least[kind]


def constant_bank(kernel, launch, arguments):
    """Bank 0 and which of its bytes are known."""
    sizes = [(len(argument), size) for argument, (_, size) in zip(
        arguments, kernel.params, strict=True)]  # fmt: skip
    assert all(given == wanted for given, wanted in sizes), f"bytes of the arguments: {sizes}"
    size = kernel.param_base + max((offset + size for offset, size in kernel.params), default=0)
    bank, known = np.zeros(size, np.uint8), np.zeros(size, bool)
    content = {BLOCK: np.array([launch.threads, 1, 1], np.uint32)}
    content |= {GRID: np.array([launch.grid, 1, 1], np.uint32)}
    content |= {STACK: np.array([0], np.uint32), DESCRIPTOR: np.array([0, 0], np.uint32)}
    for argument, (offset, _) in zip(arguments, kernel.params, strict=True):
        content[kernel.param_base + offset] = np.frombuffer(bytes(argument), np.uint8)
    for offset, values in content.items():
        raw = values.view(np.uint8)
        bank[offset : offset + len(raw)], known[offset : offset + len(raw)] = raw, True
    return bank, known


def emulate(kernel, launch, arguments, memory, clusters=(0,)):
    """Runs these clusters of the grid; `arguments`: the bytes of each parameter."""
    assert launch.grid % launch.cluster == 0
    first = np.array(clusters)[:, None] * launch.cluster
    blocks = (first + np.arange(launch.cluster)).ravel()
    assert (blocks < launch.grid).all(), "no such cluster"
    constants = {0: constant_bank(kernel, launch, arguments)}
    for bank, content in kernel.constants.items():
        raw = np.frombuffer(content, np.uint8)
        constants[bank] = raw, np.ones(len(raw), bool)
    size = max(kernel.static_shared, RESERVED) - RESERVED + launch.shared
    shared = Shared(len(blocks), launch.cluster, size)
    machine = Machine(kernel, launch.threads, blocks, launch.cluster, shared, memory, constants)
    machine.run()
    addresses = [((k + 1) << sass_memory.SPAN) + b[2] for k, b in enumerate(memory.buffers)]
    return Run(
        kernel, blocks, machine.issued, machine.barriers, machine.cluster_barriers,
        {a: machine.stored[k] for k, a in enumerate(addresses)}, machine.hits, shared,
        {a: memory.buffers[k][1] for k, a in enumerate(addresses)},
    )  # fmt: skip


__all__ = [
    "Fault",
    "Launch",
    "Memory",
    "Run",
    "Unsupported",
    "emulate",
    "names",
    "read_kernel",
]
