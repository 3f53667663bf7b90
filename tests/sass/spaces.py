"""Global and shared memory of the emulated blocks. Every access is checked: bounds, alignment."""

from dataclasses import dataclass

import numpy as np

from .operands import I64, U32, U64, FaultError

SPAN = 36  # a buffer's address is a multiple of 2^36
PAGE = 4096
RESERVED = 1024  # bytes that the system takes at the start of a block's shared memory
RANK = 24  # bit of a shared address where its block's rank in the cluster begins
BANKS = 32  # of 4 bytes


def words_in(width):
    return max(width // 4, 1)


def gather(data, at, width):
    """Return `width` bytes at each offset as words of 32 bits; fewer than 4 are zero-extended."""
    size = min(width, 4)
    octets = data[at[:, None] + np.arange(width)].reshape(-1, words_in(width), size)
    words = np.zeros((len(at), words_in(width), 4), np.uint8)
    words[:, :, :size] = octets
    return list(words.view(U32)[:, :, 0].T)


def scatter(data, at, width, words):
    octets = np.stack(words, axis=1).view(np.uint8)  # (lanes, bytes)
    data[at[:, None] + np.arange(width)] = octets[:, :width]


@dataclass
class Buffer:
    """An array in global memory, as bytes. If it repeats, it appears as many times in a row; the
    copies take no room and may not be written."""

    data: np.ndarray
    start: int  # of its address after a multiple of 2^SPAN
    repeats: int
    written: np.ndarray  # which bytes
    pages: np.ndarray  # which pages have written bytes

    def rows_written(self, rows):
        """Return which of the array's rows, so many of equal size, have been written to at all."""
        whole_pages = len(self.data) % (rows * PAGE) == 0
        return (self.pages if whole_pages else self.written).reshape(rows, -1).any(1)


class Memory:
    """Global memory: numpy arrays at made-up addresses."""

    def __init__(self):
        self.buffers = []

    def place(self, array, offset=0, repeats=1):
        """Map a contiguous array; return its address, `offset` after a multiple of 2^SPAN."""
        assert array.flags.c_contiguous
        data = array.reshape(-1).view(np.uint8)
        written = np.zeros(len(data) if repeats == 1 else 0, bool)
        pages = np.zeros(-(-len(written) // PAGE), bool)
        self.buffers.append(Buffer(data, offset, repeats, written, pages))
        return (len(self.buffers) << SPAN) + offset

    def buffer(self, address):
        return self.buffers[self.index(address)]

    def index(self, address):
        return (address >> SPAN) - 1

    def find(self, addresses, width):
        """Yield (buffer's index, positions in `addresses`, offsets) for each buffer among them."""
        number = (addresses >> U64(SPAN)).astype(I64) - 1
        for k in np.unique(number):
            chosen = np.flatnonzero(number == k)
            if not 0 <= k < len(self.buffers):
                raise FaultError(f"address {int(addresses[chosen[0]]):#x} is in no buffer")
            buffer = self.buffers[k]
            in_span = (addresses[chosen] & U64(2**SPAN - 1)).astype(I64)
            at, size = in_span - buffer.start, len(buffer.data) * buffer.repeats
            if at.min() < 0 or at.max() + width > size:
                raise FaultError(f"buffer {k} has {size} bytes, not {at.min()} to {at.max()}")
            if (in_span % width).any():
                raise FaultError(f"buffer {k}: a misaligned access of {width} bytes")
            yield int(k), chosen, at if buffer.repeats == 1 else at % len(buffer.data)

    def load(self, addresses, width):
        words = np.zeros((words_in(width), len(addresses)), U32)
        for k, chosen, at in self.find(addresses, width):
            words[:, chosen] = gather(self.buffers[k].data, at, width)
        return list(words)

    def store(self, addresses, width, words):
        """Store words; return (index, positions in `addresses`) for each buffer written."""
        touched = []
        for k, chosen, at in self.find(addresses, width):
            buffer = self.buffers[k]
            if buffer.repeats > 1:
                raise FaultError(f"a store to buffer {k}, which is there to be read")
            scatter(buffer.data, at, width, [word[chosen] for word in words])
            buffer.written[at[:, None] + np.arange(width)] = True
            buffer.pages[at // PAGE] = True
            touched.append((k, chosen))
        return touched


class Shared:
    """The blocks' shared memory, all NaN at first, and bank conflicts of its accesses."""

    window = 0x7FFF  # the high word of generic addresses

    def __init__(self, blocks, cluster, size):
        self.size, self.cluster = size, cluster
        self.data = np.full(blocks * size, 0xFF, np.uint8)
        # Counts over all warps, by kind of access.
        self.requests = {"LDS": 0, "STS": 0}
        self.wavefronts = {"LDS": 0, "STS": 0}
        self.least = {"LDS": 0, "STS": 0}  # wavefronts without bank conflicts

    def offsets(self, m, lanes, addresses, width, of_cluster=False):
        """Return offsets in `data`; only with `of_cluster` may an address be another block's."""
        addresses = addresses.astype(I64)
        rank, at = addresses >> RANK, (addresses & (1 << RANK) - 1) - RESERVED
        block = m.block[lanes]
        if of_cluster:
            if (rank >= self.cluster).any():
                raise FaultError(f"block {rank.max()} of a cluster of {self.cluster}")
            block = block // self.cluster * self.cluster + rank
        elif ((rank != m.rank[lanes]) & (rank != 0)).any():
            raise FaultError("an access to its block's shared memory at another block's address")
        if at.min() < 0 or at.max() + width > self.size:
            raise FaultError(f"shared memory has {self.size} bytes, not {at.min()} to {at.max()}")
        if (addresses % width).any():
            raise FaultError(f"shared memory: a misaligned access of {width} bytes")
        return block * self.size + at

    def count(self, kind, lanes, addresses, width):
        """Count wavefronts. 128 bytes are served at a time, to 32, 16 or 8 lanes: of these, words
        of one bank are served one after the other, and a word for several lanes once."""
        turn = lanes // min(32, 128 // width)
        word = addresses.astype(I64)[:, None] // 4 + np.arange(words_in(width))
        distinct = np.unique(turn[:, None] << 32 | word)
        bank, times = np.unique(distinct >> 32 << 5 | distinct % BANKS, return_counts=True)
        worst = np.zeros(turn.max() + 1, I64)
        np.maximum.at(worst, bank >> 5, times)
        self.requests[kind] += len(np.unique(lanes // 32))
        self.wavefronts[kind] += int(worst.sum())
        self.least[kind] += int((worst > 0).sum())
