"""Loads, stores and asynchronous copies, which arrive when they have been waited for."""

import re

import numpy as np

from .operands import (
    CONSTANT,
    I32,
    I64,
    U32,
    U64,
    FaultError,
    UnsupportedError,
    is_uniform,
    operation,
)
from .spaces import gather, scatter, words_in

TOKEN = re.compile(r"(U?R(?:\d+|Z))(?:\.(64|U32|X4|X8|X16))?$")
# Modifiers of caches and visibility; E: addresses have 64 bits.
HINTS = (
    *("E", "EF", "EL", "EU", "LU", "NA", "STRONG", "WEAK", "CONSTANT", "GPU", "SM", "SYS", "CTA"),
    *("LTC64B", "LTC128B", "LTC256B", "BYPASS"),
)


def address_of(m, text, wide=True):
    """Read an address such as desc[UR4][R2.64+0x10]; `wide`: of 64 bits."""
    inside = text[text.rindex("[") + 1 : text.rindex("]")]
    reads, offset = [], 0
    for token in inside.split("+"):
        if re.fullmatch(r"-?0x\w+", token):
            offset += int(token, 16)
            continue
        found = TOKEN.fullmatch(token)
        if not found:
            raise UnsupportedError(f"address {text}")
        name, kind = found.groups()
        if wide and kind in (None, "64"):
            reads.append(m.wide(name))
        else:
            scale = U64(int(kind[1:]) if kind and kind[0] == "X" else 1)
            read = m.bits(name)
            reads.append(lambda read=read, scale=scale: read().astype(U64) * scale)
    if wide and len(reads) > 1 and not any(".U32" in token for token in inside.split("+")):
        raise UnsupportedError(f"address {text}")
    bits = U64(2**64 - 1) if wide else U64(2**32 - 1)
    offset = np.array([offset & 2**64 - 1], U64)
    return lambda lanes: np.broadcast_to(sum((r() for r in reads), offset) & bits, m.lanes)[lanes]


def width_of(ins):
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((width for name, width in widths.items() if ins.has(name)), 4)


def extended(ins, words):
    for name, shift in (("S16", 16), ("S8", 24)):
        if ins.has(name):
            return [((w << U32(shift)).view(I32) >> I32(shift)).view(U32) for w in words]
    return words


def load(m, ins, to, fetch):
    """Return an action that loads the result of fetch(lanes, width) for the active lanes."""
    width, uniform = width_of(ins), is_uniform(to)
    write = m.to(to, words_in(width))

    def act():
        lanes = np.flatnonzero(m.active())
        rows = np.zeros((words_in(width), m.lanes), U32)
        rows[:, lanes] = extended(ins, fetch(lanes, width))
        write(*([m.first(row) for row in rows] if uniform else rows))

    return act


@operation("LDG", ignore=HINTS)
def ldg(m, ins):
    to, source = ins.operands
    address = address_of(m, source)
    return load(m, ins, to, lambda lanes, width: m.memory.load(address(lanes), width))


@operation("LDS", ignore=HINTS)
def lds(m, ins):
    to, source = ins.operands
    address = address_of(m, source, wide=False)

    def fetch(lanes, width):
        addresses = address(lanes)
        at = m.shared.offsets(m, lanes, addresses, width)
        m.shared.count("LDS", lanes, addresses, width)
        return gather(m.shared.data, at, width)

    return load(m, ins, to, fetch)


def split(m, addresses):
    """Split generic addresses: positions in the cluster's shared memory, and the rest."""
    shared = addresses >> U64(32) == m.shared.window
    return np.flatnonzero(shared), np.flatnonzero(~shared)


def offsets_in_cluster(m, lanes, addresses, width):
    return m.shared.offsets(m, lanes, addresses & U64(2**32 - 1), width, of_cluster=True)


@operation("LD", ignore=HINTS)
def ld(m, ins):
    to, source = ins.operands
    address = address_of(m, source)

    def fetch(lanes, width):
        addresses, words = address(lanes), np.zeros((words_in(width), len(lanes)), U32)
        shared, others = split(m, addresses)
        if len(shared):
            at = offsets_in_cluster(m, lanes[shared], addresses[shared], width)
            words[:, shared] = gather(m.shared.data, at, width)
        if len(others):
            words[:, others] = m.memory.load(addresses[others], width)
        return words

    return load(m, ins, to, fetch)


def stored(m, ins):
    """Return a store's address operand, its width, and the rows of registers that it stores."""
    to, source = ins.operands
    width = width_of(ins)
    rows, _ = m.registers(source, words_in(width))
    return to, width, rows


def store_global(m, lanes, addresses, width, words):
    for k, chosen in m.memory.store(addresses, width, words):
        m.stored[k] += width * np.bincount(m.block[lanes[chosen]], minlength=len(m.blocks))


@operation("STG", ignore=HINTS)
def stg(m, ins):
    to, width, rows = stored(m, ins)
    address = address_of(m, to)

    def act():
        lanes = np.flatnonzero(m.active())
        store_global(m, lanes, address(lanes), width, [row[lanes] for row in rows])

    return act


@operation("STS", ignore=HINTS)
def sts(m, ins):
    to, width, rows = stored(m, ins)
    address = address_of(m, to, wide=False)

    def act():
        lanes = np.flatnonzero(m.active())
        addresses = address(lanes)
        at = m.shared.offsets(m, lanes, addresses, width)
        m.shared.count("STS", lanes, addresses, width)
        scatter(m.shared.data, at, width, [row[lanes] for row in rows])

    return act


@operation("ST", ignore=HINTS)
def st(m, ins):
    to, width, rows = stored(m, ins)
    address = address_of(m, to)

    def act():
        lanes = np.flatnonzero(m.active())
        addresses, words = address(lanes), [row[lanes] for row in rows]
        shared, others = split(m, addresses)
        if len(shared):
            at = offsets_in_cluster(m, lanes[shared], addresses[shared], width)
            scatter(m.shared.data, at, width, [word[shared] for word in words])
        if len(others):
            left = [word[others] for word in words]
            store_global(m, lanes[others], addresses[others], width, left)

    return act


# ---- asynchronous copies


@operation("LDGSTS", ignore=HINTS)
def ldgsts(m, ins):
    to, source = ins.operands
    there, address, width = address_of(m, to, wide=False), address_of(m, source), width_of(ins)

    def act():
        lanes = np.flatnonzero(m.active())
        words = m.memory.load(address(lanes), width)
        at = m.shared.offsets(m, lanes, there(lanes), width)
        m.copies.append((lanes, m.groups[lanes], at, width, words))

    return act


@operation("LDGDEPBAR")
def close_group(m, ins):
    def act():
        m.groups += m.active()

    return act


@operation("DEPBAR", ignore=("LE",))
def wait_for_groups(m, ins):
    if ins.operands[0] != "SB0":
        raise UnsupportedError("another scoreboard than SB0")
    pending = int(ins.operands[1], 16)

    def act():
        active, under_way = m.active(), []
        for lanes, group, at, width, words in m.copies:
            arrived = active[lanes] & (group < m.groups[lanes] - pending)
            scatter(m.shared.data, at[arrived], width, [word[arrived] for word in words])
            left = ~arrived
            if left.any():
                words = [word[left] for word in words]
                under_way.append((lanes[left], group[left], at[left], width, words))
        m.copies = under_way

    return act


# ---- constants


@operation("LDC", "ULDC")
def ldc(m, ins):
    to, source = ins.operands
    width = width_of(ins)
    bank, register, offset = CONSTANT.fullmatch(source).groups()
    bank, offset = int(bank, 16), int(offset or "0", 16)
    if not register:
        content = m.constant(bank, offset, width)
        words, write = gather(content, np.zeros(1, I64), width), m.to(to, words_in(width))
        return lambda: write(*extended(ins, words))
    read = m.bits(register)

    def fetch(lanes, width):
        at = np.broadcast_to(read(), m.lanes)[lanes].astype(I64) + offset
        content, known = m.constants[bank]
        if at.max() + width > len(content) or not known[at].all():
            raise FaultError(f"constant bank {bank} is not known at {at.min():#x}")
        return gather(content, at, width)

    return load(m, ins, to, fetch)
