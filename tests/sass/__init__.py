"""An emulator of NVIDIA machine code (SASS, sm_90): runs a kernel and counts what it issues.

For tests without a GPU. It runs the requested clusters of a launch, with the results and the number
of warp instructions that a GPU would have:

    kernel = sass.Cubin(path).kernel(name)
    memory = sass.Memory()
    x = memory.place(array)
    run = sass.emulate(kernel, sass.Launch(blocks, threads, shared=65536), [call, grid], memory)
    run.per_element(elements), run.histogram(elements)

It knows the instructions that pdfast's kernels have needed. For any other, or an unknown form of
one, it raises UnsupportedError; it skips none. It does not model latencies, caches or the order of
warps, so it may miss a missing barrier.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from . import bits, control, conversions, floats, integers, memory
from .machine import WARP, Machine
from .operands import FaultError, UnsupportedError
from .spaces import RESERVED, Memory, Shared
from .text import Cubin, Kernel

INSTRUCTIONS = (bits, control, conversions, floats, integers, memory)  # they register themselves
# Offsets in constant bank 0, before the parameters. CLUSTERED is 1 if a launch sets the size of its
# clusters: cluster barriers read it, and otherwise are the block's.
BLOCK, GRID, STACK, CLUSTERED, DESCRIPTOR = 0x0, 0xC, 0x28, 0x140, 0x208


@dataclass
class Launch:
    blocks: int
    threads: int  # of a block
    cluster: int = 1
    shared: int = 0  # bytes beside the kernel's static ones


@dataclass
class Run:
    """Result of a launch; the arrays have one entry for each emulated block."""

    kernel: Kernel
    memory: Memory
    blocks: np.ndarray  # their indices in the grid
    issued: np.ndarray  # warp instructions
    barriers: np.ndarray
    cluster_barriers: np.ndarray
    stored: np.ndarray  # bytes, by buffer and block
    hits: np.ndarray  # warp instructions of all blocks together, by instruction of the kernel
    shared: Shared

    def bytes_stored(self, address):
        """Return the bytes that each block has stored in the buffer at an address."""
        return self.stored[self.memory.index(address)]

    def per_element(self, elements):
        """Return thread instructions per element, 32 for each warp instruction."""
        return WARP * int(self.issued.sum()) / elements

    def histogram(self, elements, full=False):
        """Return these by opcode, the most frequent first; `full`: with its modifiers."""
        counts = Counter()
        for ins, hits in zip(self.kernel.code, self.hits, strict=True):
            if hits:
                name = ".".join([ins.opcode, *ins.modifiers]) if full else ins.opcode
                counts[name] += WARP * int(hits) / elements
        return dict(counts.most_common())

    def regions(self, elements):
        """Return runs of instructions issued equally often: (first and last address, warp
        instructions of each, thread instructions per element of all)."""
        found = []
        edges = [0, *(np.flatnonzero(np.diff(self.hits)) + 1), len(self.hits)]
        for first, end in pairwise(edges):
            if times := int(self.hits[first]):
                cost = WARP * times * (end - first) / elements
                found.append((16 * first, 16 * (end - 1), times, cost))
        return found

    def conflicts(self, kind):
        """Return the wavefronts of shared loads (LDS) or stores (STS): per request, and relative to
        those without bank conflicts."""
        count = self.shared.wavefronts[kind]
        return count / self.shared.requests[kind], count / self.shared.least[kind]


def constant_bank(kernel, launch, arguments):
    """Return bank 0, and which of its bytes are known."""
    given, wanted = [len(bytes(a)) for a in arguments], [size for _, size in kernel.params]
    assert given == wanted, f"{kernel.name} takes {wanted} bytes, not {given}"
    words = {BLOCK: [launch.threads, 1, 1], GRID: [launch.blocks, 1, 1]}
    words |= {STACK: [0], CLUSTERED: [launch.cluster > 1], DESCRIPTOR: [0, 0]}
    content = {at: np.array(values, np.uint32).tobytes() for at, values in words.items()}
    for argument, (offset, _) in zip(arguments, kernel.params, strict=True):
        content[kernel.param_base + offset] = bytes(argument)
    size = max(at + len(raw) for at, raw in content.items())
    bank, known = np.zeros(size, np.uint8), np.zeros(size, bool)
    for at, raw in content.items():
        bank[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
        known[at : at + len(raw)] = True
    return bank, known


def emulate(kernel, launch, arguments, memory, clusters=(0,)):
    """Run these clusters of the grid; `arguments`: each parameter's bytes."""
    assert launch.blocks % launch.cluster == 0
    first = np.array(clusters)[:, None] * launch.cluster
    blocks = (first + np.arange(launch.cluster)).ravel()
    assert blocks.max() < launch.blocks, "no such cluster"
    constants = {0: constant_bank(kernel, launch, arguments)}
    for bank, content in kernel.constants.items():
        constants[bank] = np.frombuffer(content, np.uint8), np.ones(len(content), bool)
    size = max(kernel.static_shared - RESERVED, 0) + launch.shared
    shared = Shared(len(blocks), launch.cluster, size)
    m = Machine(kernel, launch, blocks, shared, memory, constants)
    m.run()
    return Run(
        *(kernel, memory, blocks, m.issued, m.barriers, m.cluster_barriers, m.stored, m.hits),
        shared,
    )


__all__ = ["Cubin", "FaultError", "Launch", "Memory", "Run", "UnsupportedError", "emulate"]
