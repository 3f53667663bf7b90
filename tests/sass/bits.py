"""Shifts, logic and the bits of words and predicates."""

import numpy as np

from .operands import F64, I32, I64, LOW, U32, U64, UnsupportedError, is_predicate, operation


@operation("SHF", "USHF")
def shf(m, ins):
    """Shift two words, the third operand's above the first's."""
    to, low, by, high = ins.operands
    write, low, by, high = m.to(to), m.bits(low), m.bits(by), m.bits(high)
    left, upper, wrap = ins.has("L"), ins.has("HI"), ins.has("W")
    if left == ins.has("R"):
        raise UnsupportedError("a direction")
    (kind,) = [k for k in ("U32", "S32", "U64", "S64") if ins.has(k)]
    bits = int(kind[1:])
    arithmetic = kind[0] == "S"

    def act():
        value = low() | high().astype(U64) << U64(32)
        shift = by().astype(U64)
        shift = shift & U64(bits - 1) if wrap else np.minimum(shift, U64(bits))
        rest = np.minimum(shift, U64(63))
        if left:
            value = np.where(shift > 63, U64(0), value << rest)
        elif arithmetic:
            value = (value.view(I64) >> rest.view(I64)).view(U64)
        else:
            value = np.where(shift > 63, U64(0), value >> rest)
        write(((value >> U64(32)) if upper else value & LOW).astype(U32))

    return act


def table(lut, a, b, c):
    """Compute any bitwise function of three words: bit 4a + 2b + c of the table."""
    total = None
    for k in range(8):
        if lut >> k & 1:
            term = (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
            total = term if total is None else total | term
    return np.zeros_like(a & b & c) if total is None else total


@operation("LOP3", "ULOP3", ignore=("LUT",))
def lop3(m, ins):
    written = [ins.operands[0]] if is_predicate(ins.operands[0]) else []
    to, *sources, given = ins.operands[len(written) :]
    *sources, lut = sources
    a, b, c = (m.bits(text) for text in sources)
    lut, every = int(lut, 16), ins.has("PAND")
    write, writes = m.to(to), [m.to_predicate(text) for text in written]
    given = m.predicate(given)

    def act():
        value = table(lut, a(), b(), c())
        write(value)
        for set_to in writes:
            some = value != 0
            set_to(some & given() if every else some | given())

    return act


@operation("PLOP3", "UPLOP3", ignore=("LUT",))
def plop3(m, ins):
    first, second, a, b, c, lut, lut2 = ins.operands
    a, b, c = (m.predicate(text) for text in (a, b, c))
    writes = [(m.to_predicate(first), int(lut, 16)), (m.to_predicate(second), int(lut2, 16))]

    def act():
        values = a(), b(), c()
        for set_to, value in [(write, table(lut, *values)) for write, lut in writes]:
            set_to(value)

    return act


@operation("PRMT", "UPRMT")
def prmt(m, ins):
    """Pick bytes of two words by the digits of a third; a digit's top bit replicates the sign."""
    to, a, choice, b = ins.operands
    write, a, choice, b = m.to(to), m.bits(a), m.bits(choice), m.bits(b)

    def act():
        word, digits = a() | b().astype(U64) << U64(32), choice().astype(U64)
        total = U64(0)
        for k in range(4):
            digit = digits >> U64(4 * k) & U64(15)
            byte = word >> (U64(8) * (digit & U64(7))) & U64(255)
            byte = np.where(digit & U64(8), np.where(byte & U64(128), U64(255), U64(0)), byte)
            total = total | byte << U64(8 * k)
        write(total.astype(U32))

    return act


@operation("POPC", "UPOPC")
def popc(m, ins):
    write, read = m.to(ins.operands[0]), m.bits(ins.operands[1])
    return lambda: write(np.bitwise_count(read()).astype(U32))


@operation("BREV", "UBREV")
def brev(m, ins):
    write, read = m.to(ins.operands[0]), m.bits(ins.operands[1])

    def act():
        octets = read().astype("<u4")[:, None].view(np.uint8)
        bits = np.unpackbits(octets, axis=1, bitorder="little")[:, ::-1]
        write(np.packbits(bits, axis=1, bitorder="little").view(U32).ravel())

    return act


@operation("FLO", "UFLO", ignore=("U32",))
def flo(m, ins):
    """Find the highest bit set, or with .SH the number of zeros above it; for 0, all ones."""
    write, read, above = m.to(ins.operands[0]), m.bits(ins.operands[1]), ins.has("SH")
    if not ins.has("U32"):
        raise UnsupportedError("signed numbers")

    def act():
        value = read()
        at = np.frexp(value.astype(F64))[1] - 1
        at = 31 - at if above else at
        write(np.where(value == 0, U32(0xFFFFFFFF), at.astype(U32)))

    return act


@operation("SGXT", "USGXT")
def sgxt(m, ins):
    to, source, bits = ins.operands
    write, read, bits = m.to(to), m.bits(source), int(bits, 16)
    shift = I32(32 - bits)
    if ins.has("U32"):
        return lambda: write(read() << U32(32 - bits) >> U32(32 - bits))
    return lambda: write(read().view(I32) << shift >> shift)


@operation("P2R")
def p2r(m, ins):
    to, bank, source, keep = ins.operands
    if bank != "PR":
        raise UnsupportedError("these predicates")
    write, read, keep = m.to(to), m.bits(source), m.bits(keep)

    def act():
        packed = sum(m.p[k].astype(U32) << U32(k) for k in range(7))
        write((read() & ~keep()) | (packed & keep()))

    return act


@operation("R2P")
def r2p(m, ins):
    bank, source, chosen = ins.operands
    if bank != "PR":
        raise UnsupportedError("these predicates")
    read, chosen = m.bits(source), int(chosen, 16)
    writes = [(k, m.to_predicate(f"P{k}")) for k in range(7) if chosen >> k & 1]

    def act():
        value = read().copy()
        for k, set_to in writes:
            set_to(value >> U32(k) & U32(1) != 0)

    return act
