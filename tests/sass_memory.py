"""Global and shared memory, and the instructions that read and write them.

Every access is checked: inside a buffer or the block's shared memory, and aligned. Asynchronous
copies arrive when the thread has waited for their group and not before. Shared memory holds NaN
until it is written.
"""

import re

import numpy as np
from sass_machine import F32, I64, U32, U64, WARP, Fault, Unsupported, operation, put

SPAN = 36  # each buffer's address is a multiple of 2^36
RESERVED = 1024  # bytes at the start of a block's shared memory that are the system's
RANK_SHIFT = 24  # of a block's rank in an address of its cluster's shared memory
TOKEN = re.compile(r"(U?R(?:\d+|Z))(?:\.(64|U32|X4|X8|X16))?$")
HINTS = ("E", "EF", "EL", "EU", "LU", "NA", "STRONG", "WEAK", "CONSTANT", "GPU", "SM", "SYS",
         "CTA", "LTC64B", "LTC128B", "LTC256B", "BYPASS", "ACCESS", "PRIVATE")  # fmt: skip


class Memory:
    """Global memory: numpy arrays at made-up addresses."""

    def __init__(self):
        self.buffers = []

    def place(self, array, offset=0):
        """Maps a contiguous array; its address, `offset` bytes after a multiple of 2^36."""
        data = array.reshape(-1).view(np.uint8)
        assert data.base is not None, "a contiguous array is needed"
        written = np.zeros(len(data), np.uint8)
        self.buffers.append((data, written, offset))
        return (len(self.buffers) << SPAN) + offset

    def find(self, addresses, width):
        """(Buffer, lanes, offsets) for each buffer among these addresses of active lanes."""
        number = (addresses >> U64(SPAN)).astype(I64) - 1
        for k in np.unique(number):
            lanes = number == k
            if not 0 <= k < len(self.buffers):
                raise Fault(f"address {int(addresses[lanes][0]):#x} is in no buffer")
            data, written, start = self.buffers[k]
            within = (addresses[lanes] & U64(2**SPAN - 1)).astype(I64)
            at = within - start
            if (at < 0).any() or (at + width > len(data)).any():
                raise Fault(f"buffer {k} of {len(data)} bytes: access at {at.min()} to {at.max()}")
            if (within % width).any():
                raise Fault(f"buffer {k}: misaligned access of {width} bytes")
            yield int(k), data, written, lanes, at


def gather(data, at, width):
    """The words (uint32) of `width` bytes at each offset; below 4 bytes, one, zero-extended."""
    if width < 4:
        kind = np.uint16 if width == 2 else np.uint8
        if width == 2 and (at % 2).any():
            return [sum(data[at + k].astype(U32) << U32(8 * k) for k in range(2))]
        return [data[: len(data) // width * width].view(kind)[at // width].astype(U32)]
    if (at % 4).any():  # a buffer that does not start at a multiple of 4
        octets = [[data[at + 4 * w + k].astype(U32) for k in range(4)] for w in range(width // 4)]
        return [sum(o << U32(8 * k) for k, o in enumerate(word)) for word in octets]
    words = data[: len(data) // 4 * 4].view(U32)
    return [words[at // 4 + w] for w in range(width // 4)]


def scatter(data, at, width, values):
    for w, value in enumerate(values):
        octets = np.ascontiguousarray(value).view(np.uint8).reshape(-1, 4)
        count = min(width, 4)
        data[(at + 4 * w)[:, None] + np.arange(count)] = octets[:, :count]


class Shared:
    """The shared memory of all emulated blocks."""

    window = 0x7FFF  # the high word of its generic addresses

    def __init__(self, blocks, cluster, size):
        self.size, self.cluster = size, cluster
        self.stride = -(-size // 16) * 16
        self.data = np.full(blocks * self.stride, 0xFF, np.uint8)
        self.requests = {"LDS": 0, "STS": 0}  # by all warps
        self.wavefronts = {"LDS": 0, "STS": 0}
        self.least = {"LDS": 0, "STS": 0}  # wavefronts had there been no conflicts

    def offsets(self, m, lanes, addresses, width, distributed=False):
        """Offsets in `data`; without `distributed` an address must be of the lane's own block."""
        address = addresses.astype(I64)
        rank, inside = address >> RANK_SHIFT, (address & (1 << RANK_SHIFT) - 1) - RESERVED
        if distributed:
            if (rank >= self.cluster).any():
                raise Fault("an address outside the cluster")
            block = m.block[lanes] // self.cluster * self.cluster + rank
        else:
            block = m.block[lanes]
            if ((rank != m.rank[lanes]) & (rank != 0)).any():
                raise Fault("the shared memory of another block by an instruction for one's own")
        if (inside < 0).any() or (inside + width > self.size).any():
            raise Fault(f"shared memory of {self.size}: {inside.min()} to {inside.max()}")
        if (inside % width).any():
            raise Fault(f"shared memory: misaligned access of {width} bytes")
        return block * self.stride + inside

    def count(self, kind, lanes, addresses, width):
        """Wavefronts: 32 banks of 4 bytes; as many lanes at a time as 128 bytes allow."""
        at_a_time = min(WARP, 128 // width)
        warp = lanes // WARP
        turn = lanes // at_a_time
        words = max(width // 4, 1)
        word = (addresses.astype(I64)[:, None] // 4 + np.arange(words)).ravel()
        turns = np.repeat(turn, words)
        distinct = np.unique(turns << 32 | word)  # the same word is sent to all who want it
        _, per_bank = np.unique(distinct >> 32 << 5 | distinct & 31, return_counts=True)
        banks = np.unique(distinct >> 32 << 5 | distinct & 31)
        worst = np.zeros(turn.max() + 1, I64)
        np.maximum.at(worst, banks >> 5, per_bank)
        self.requests[kind] += len(np.unique(warp))
        self.wavefronts[kind] += int(worst.sum())
        self.least[kind] += len(np.unique(turn))


def address_of(m, text, wide):
    """Reads an address such as [R2.64+UR4+0x10]."""
    inside = text[text.rindex("[") + 1 : text.rindex("]")]
    reads, offset, registers = [], 0, 0
    for token in inside.split("+"):
        if re.fullmatch(r"-?0x\w+", token):
            offset += int(token, 16)
            continue
        found = TOKEN.fullmatch(token)
        if not found:
            raise Unsupported(f"address {text}")
        name, kind = found.groups()
        registers += 1
        if kind and kind.startswith("X"):
            scale = U64(int(kind[1:]))
            reads.append(lambda r=m.bits(name), scale=scale: r().astype(U64) * scale)
        elif not wide or kind == "U32":
            reads.append(lambda r=m.bits(name): r().astype(U64))
        else:
            reads.append(m.wide(name))
    limit = U64(2**64 - 1) if wide else U64(2**32 - 1)
    offset = np.array([offset & (2**64 - 1)], U64)

    def read():
        return np.broadcast_to(sum((r() for r in reads), offset) & limit, m.lanes)

    return read


def width_of(ins):
    for name, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if ins.has(name):
            return width
    return 4


def extended(ins, words):
    for name, bits in (("S16", 16), ("S8", 8)):
        if ins.has(name):
            return [(w << U32(32 - bits)).view(np.int32) >> np.int32(32 - bits) for w in words]
    return words


def loads(m, ins, to, fetch):
    """What a load does with the words that `fetch(lanes)` returns for the active lanes."""
    width = width_of(ins)
    write = m.to(to, max(width // 4, 1))

    def act():
        lanes = np.flatnonzero(m.active())
        words = extended(ins, fetch(lanes, width))
        full = []
        for word in words:
            row = np.zeros(m.lanes, U32)
            row[lanes] = word.view(U32)
            full.append(row)
        write(*full)

    return act


def fetch_global(m, addresses, width):
    words = [np.zeros(len(addresses), U32) for _ in range(max(width // 4, 1))]
    for _, data, _, lanes, at in m.memory.find(addresses, width):
        for word, value in zip(words, gather(data, at, width), strict=True):
            word[lanes] = value
    return words


@operation("LDG", ignore=HINTS)
def ldg(m, ins):
    to, *_, source = ins.operands
    address = address_of(m, source, wide=True)
    return loads(m, ins, to, lambda lanes, width: fetch_global(m, address()[lanes], width))


@operation("LD", ignore=HINTS)
def ld(m, ins):
    """A load by generic address: the cluster's shared memory, or global memory."""
    to, *_, source = ins.operands
    address = address_of(m, source, wide=True)

    def fetch(lanes, width):
        addresses = address()[lanes]
        shared = addresses >> U64(32) == m.shared.window
        words = [np.zeros(len(lanes), U32) for _ in range(max(width // 4, 1))]
        if shared.any():
            low = addresses[shared] & U64(2**32 - 1)
            at = m.shared.offsets(m, lanes[shared], low, width, distributed=True)
            for word, value in zip(words, gather(m.shared.data, at, width), strict=True):
                word[shared] = value
        if not shared.all():
            for word, value in zip(words, fetch_global(m, addresses[~shared], width), strict=True):
                word[~shared] = value
        return words

    return loads(m, ins, to, fetch)


@operation("LDS", ignore=HINTS)
def lds(m, ins):
    to, source = ins.operands
    address = address_of(m, source, wide=False)

    def fetch(lanes, width):
        addresses = address()[lanes]
        at = m.shared.offsets(m, lanes, addresses, width)
        m.shared.count("LDS", lanes, addresses, width)
        return gather(m.shared.data, at, width)

    return loads(m, ins, to, fetch)


def words_of(m, text, width):
    rows, k = m.file(text)
    if k == len(rows) - 1:
        return [rows[k]] * max(width // 4, 1)
    return [rows[k + w] for w in range(max(width // 4, 1))]


@operation("STG", ignore=HINTS)
def stg(m, ins):
    *_, to, source = ins.operands
    address, width = address_of(m, to, wide=True), width_of(ins)
    rows = words_of(m, source, width)

    def act():
        lanes = np.flatnonzero(m.active())
        for k, data, written, these, at in m.memory.find(address()[lanes], width):
            chosen = lanes[these]
            scatter(data, at, width, [row[chosen] for row in rows])
            written[at[:, None] + np.arange(width)] = 1
            m.stored[k] += width * np.bincount(m.block[chosen], minlength=len(m.blocks))

    return act


@operation("STS", ignore=HINTS)
def sts(m, ins):
    to, source = ins.operands
    address, width = address_of(m, to, wide=False), width_of(ins)
    rows = words_of(m, source, width)

    def act():
        lanes = np.flatnonzero(m.active())
        addresses = address()[lanes]
        at = m.shared.offsets(m, lanes, addresses, width)
        m.shared.count("STS", lanes, addresses, width)
        scatter(m.shared.data, at, width, [row[lanes] for row in rows])

    return act


# ---- asynchronous copies


@operation("LDGSTS", ignore=HINTS)
def ldgsts(m, ins):
    to, *_, source = ins.operands
    there, address = address_of(m, to, wide=False), address_of(m, source, wide=True)
    width = width_of(ins)

    def act():
        lanes = np.flatnonzero(m.active())
        words = fetch_global(m, address()[lanes], width)
        at = m.shared.offsets(m, lanes, there()[lanes], width)
        m.copies.append((lanes, m.groups[lanes], at, width, words))

    return act


@operation("LDGDEPBAR")
def close_group(m, ins):
    def act():
        m.groups += m.active()

    return act


@operation("DEPBAR", ignore=("LE",))
def wait_for_groups(m, ins):
    if ins.operands[0] != "SB0" or not ins.has("LE"):
        raise Unsupported("another scoreboard than SB0")
    pending = int(ins.operands[1], 16)

    def act():
        active, kept = m.active(), []
        for lanes, group, at, width, words in m.copies:
            arrived = active[lanes] & (group < m.groups[lanes] - pending)
            if arrived.any():
                scatter(m.shared.data, at[arrived], width, [w[arrived] for w in words])
            left = ~arrived
            if left.any():
                kept.append((lanes[left], group[left], at[left], width, [w[left] for w in words]))
        m.copies = kept

    return act


# ---- constants


@operation("LDC", "ULDC")
def ldc(m, ins):
    to, source = ins.operands
    width = width_of(ins)
    bank, register, offset = re.fullmatch(
        r"c\[0x(\w+)\]\[(U?R\w+)?\+?(-?0x\w+)?\]", source
    ).groups()
    bank, offset = int(bank, 16), int(offset or "0", 16)
    write = m.to(to, max(width // 4, 1))
    if register:
        read = m.bits(register)

        def act():
            lanes = np.flatnonzero(m.active())
            at = np.broadcast_to(read(), m.lanes)[lanes].astype(I64) + offset
            raw, known = m.constants[bank]
            if not known[at[:, None] + np.arange(width)].all():
                raise Fault(f"constant bank {bank} is not known at {at.min():#x}")
            full = np.zeros((max(width // 4, 1), m.lanes), U32)
            for row, value in zip(full, extended(ins, gather(raw, at, width)), strict=True):
                row[lanes] = value
            write(*full)

        return act
    raw = m.constant(bank, offset, width).copy()
    words = extended(ins, gather(raw, np.array([0]), width))
    return lambda: write(*words)


__all__ = ["F32", "Memory", "Shared", "put"]
