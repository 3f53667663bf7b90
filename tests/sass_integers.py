"""Integer, logical and predicate instructions."""

import operator

import numpy as np
from sass_machine import I32, I64, PREDICATE, U32, U64, Unsupported, operation

LOW = U64(0xFFFFFFFF)
COMPARE = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
JOIN = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def is_predicate(text):
    return PREDICATE.fullmatch(text) is not None


def parts(ins):
    """Destination, predicates written, sources, predicates read."""
    to, *rest = ins.operands
    written, sources, read = [], [], []
    for text in rest:
        if is_predicate(text):
            (read if sources else written).append(text)
        else:
            sources.append(text)
    return to, written, sources, read


def addend(m, text):
    """A term of a sum with carry, in 64 bits: -x is ~x + 1, which carries where x is 0."""
    if text.startswith("-") and not text.startswith("-0x"):
        read = m.bits(text[1:])
        return lambda: (~read()).astype(U64) + U64(1)
    read = m.bits(text)
    return lambda: read().astype(U64)


def carries(m, written):
    """Writes the carries out of a sum of 32-bit terms: at least one, at least two."""
    writes = [m.to_predicate(text) for text in written]

    def write(total):
        for k, put_in in enumerate(writes):
            put_in(total >> U64(32) > k)

    return write


@operation("IADD3", "UIADD3")
def iadd3(m, ins):
    to, written, sources, read = parts(ins)
    write, carry = m.to(to), carries(m, written)
    if ins.has("X") != bool(read):
        raise Unsupported("carries without .X")
    if not written and not read:
        a, b, c = (m.bits(text) for text in sources)
        return lambda: write(a() + b() + c())
    terms = [addend(m, text) for text in sources]
    terms += [lambda p=m.predicate(text): p().astype(U64) for text in read]

    def act():
        total = sum(term() for term in terms)
        write((total & LOW).astype(U32))
        carry(total)

    return act


@operation("VIADD", "UVIADD")
def viadd(m, ins):
    to, a, b = ins.operands
    write, a, b = m.to(to), m.bits(a), m.bits(b)
    return lambda: write(a() + b())


def signed(ins):
    """Whether a product or comparison is of signed numbers."""
    return not ins.has("U32")


@operation("IMAD", "UIMAD")
def imad(m, ins):
    to, written, sources, read = parts(ins)
    a_text, b_text, c_text = sources
    a, b = m.bits(a_text), m.bits(b_text)
    wide, high, is_signed = ins.has("WIDE"), ins.has("HI"), signed(ins)
    ins.has("MOV", "IADD", "SHL", "X")
    carry_in = [m.predicate(text) for text in read]
    if not (wide or high):
        if written:
            raise Unsupported("a carry out")
        write, c = m.to(to), m.bits(c_text)
        if not carry_in:
            return lambda: write(a() * b() + c())
        return lambda: write(a() * b() + c() + sum(p().astype(U32) for p in carry_in))

    c, writes = m.wide(c_text), [m.to_predicate(text) for text in written]
    write = m.to_wide(to) if wide else m.to(to)

    def product():
        if is_signed:
            return (a().view(I32).astype(I64) * b().view(I32).astype(I64)).view(U64)
        return a().astype(U64) * b().astype(U64)

    def act():
        term, base = product(), c()
        total = term + base
        over = total < term
        for p in carry_in:
            more = total + p().astype(U64)
            over, total = over | (more < total), more
        write(total if wide else (total >> U64(32)).astype(U32))
        for put_in in writes:
            put_in(over)

    return act


@operation("LEA", "ULEA")
def lea(m, ins):
    to, written, sources, read = parts(ins)
    write, carry = m.to(to), carries(m, written)
    extended, high, x = ins.has("SX32"), ins.has("HI"), ins.has("X")
    *sources, shift = sources
    shift = int(shift, 16)
    if x != bool(read):
        raise Unsupported("carries without .X")
    low, base = m.bits(sources[0]), addend(m, sources[1])
    upper = m.bits(sources[2]) if high and not extended else None
    carry_in = [m.predicate(text) for text in read]

    def act():
        value = low().view(I32).astype(I64).view(U64) if extended else low().astype(U64)
        if upper:
            value = value | upper().astype(U64) << U64(32)
        value = value << U64(shift)
        total = (value >> U64(32) if high else value) & LOW
        total = total + base() + sum(p().astype(U64) for p in carry_in)
        write((total & LOW).astype(U32))
        carry(total)

    return act


@operation("SHF", "USHF")
def shf(m, ins):
    """A shift of two words, the third operand's above the first's."""
    to, low, by, high = ins.operands
    write, low, by, high = m.to(to), m.bits(low), m.bits(by), m.bits(high)
    left, upper, wrap = ins.has("L"), ins.has("HI"), ins.has("W")
    if left == ins.has("R"):
        raise Unsupported("a direction")
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
    """Bitwise, any function of three: bit 4a + 2b + c of the table."""
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
        for put_in in writes:
            some = value != 0
            put_in(some & given() if every else some | given())

    return act


@operation("PLOP3", "UPLOP3", ignore=("LUT",))
def plop3(m, ins):
    first, second, a, b, c, lut, lut2 = ins.operands
    a, b, c = (m.predicate(text) for text in (a, b, c))
    writes = [(m.to_predicate(first), int(lut, 16)), (m.to_predicate(second), int(lut2, 16))]

    def act():
        values = a(), b(), c()
        for put_in, value in [(write, table(lut, *values)) for write, lut in writes]:
            put_in(value)

    return act


@operation("ISETP", "UISETP")
def isetp(m, ins):
    first, second, a, b, given, *before = ins.operands
    a, b, given = m.bits(a), m.bits(b), m.predicate(given)
    writes, is_signed, extended = [m.to_predicate(t) for t in (first, second)], signed(ins), False
    (name,) = [k for k in COMPARE if ins.has(k)]
    (join,) = [JOIN[k] for k in JOIN if ins.has(k)]
    extended, before = ins.has("EX"), [m.predicate(text) for text in before]
    if extended != bool(before):
        raise Unsupported("a comparison of 64 bits without its lower half")

    def act():
        x, y = (v.view(I32) if is_signed else v for v in (a(), b()))
        holds = COMPARE[name](x, y)
        if extended:  # the upper halves: equal ones leave it to the lower
            lower = before[0]()
            if name == "NE":
                holds = holds | lower
            elif name == "EQ":
                holds = holds & lower
            else:
                holds = COMPARE[name[0] + "T"](x, y) | ((x == y) & lower)
        p = given()
        for put_in, value in zip(writes, (join(holds, p), join(~holds, p)), strict=True):
            put_in(value)

    return act


@operation("SEL", "USEL")
def sel(m, ins):
    to, a, b, p = ins.operands
    write, a, b, p = m.to(to), m.bits(a), m.bits(b), m.predicate(p)
    return lambda: write(np.where(p(), a(), b()))


@operation("VIMNMX", "IMNMX")
def vimnmx(m, ins):
    to, a, b, p = ins.operands
    return least_or_most(m, ins, to, m.bits(a), m.bits(b), p)


@operation("VIADDMNMX")
def viaddmnmx(m, ins):
    to, a, b, c, p = ins.operands
    a, b = m.bits(a), m.bits(b)
    return least_or_most(m, ins, to, lambda: a() + b(), m.bits(c), p)


def least_or_most(m, ins, to, a, b, p):
    write, p, is_signed = m.to(to), m.predicate(p), signed(ins)

    def act():
        x, y = (v.view(I32) if is_signed else v for v in (a(), b()))
        write(np.where(p(), np.minimum(x, y), np.maximum(x, y)))

    return act


@operation("MOV", "UMOV")
def mov(m, ins):
    to, source = ins.operands[:2]
    write, read = m.to(to), m.bits(source)
    return lambda: write(read())


@operation("IABS")
def iabs(m, ins):
    write, read = m.to(ins.operands[0]), m.bits(ins.operands[1])
    return lambda: write(np.abs(read().view(I32)))


@operation("PRMT", "UPRMT")
def prmt(m, ins):
    """Bytes of two words, by the digits of a third; a digit's top bit replicates the sign."""
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
    """The highest bit set, or with .SH how many zeros are above it; of 0, all ones."""
    write, read, above = m.to(ins.operands[0]), m.bits(ins.operands[1]), ins.has("SH")
    if not ins.has("U32"):
        raise Unsupported("signed numbers")

    def act():
        value = read()
        at = np.frexp(value.astype(np.float64))[1] - 1
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
        raise Unsupported("these predicates")
    write, read, keep = m.to(to), m.bits(source), m.bits(keep)

    def act():
        packed = sum(m.p[k].astype(U32) << U32(k) for k in range(7))
        write((read() & ~keep()) | (packed & keep()))

    return act


@operation("R2P")
def r2p(m, ins):
    bank, source, chosen = ins.operands
    if bank != "PR":
        raise Unsupported("these predicates")
    read, chosen = m.bits(source), int(chosen, 16)
    writes = [(k, m.to_predicate(f"P{k}")) for k in range(7) if chosen >> k & 1]

    def act():
        value = read().copy()
        for k, put_in in writes:
            put_in(value >> U32(k) & U32(1) != 0)

    return act
