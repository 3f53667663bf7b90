"""Integer arithmetic, comparison and choice."""

import operator

import numpy as np

from .operands import I32, I64, LOW, U32, U64, UnsupportedError, is_predicate, operation

COMPARE = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
JOIN = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def parts(ins):
    """Return the destination, predicates written, sources, and predicates read."""
    to, *rest = ins.operands
    written, sources, read = [], [], []
    for text in rest:
        if is_predicate(text):
            (read if sources else written).append(text)
        else:
            sources.append(text)
    return to, written, sources, read


def addend(m, text):
    """Read a term of a sum with carry, in 64 bits: -x is ~x + 1, which carries if x is 0."""
    if text.startswith("-") and not text.startswith("-0x"):
        read = m.bits(text[1:])
        return lambda: (~read()).astype(U64) + U64(1)
    read = m.bits(text)
    return lambda: read().astype(U64)


def carries_in(m, texts):
    reads = [m.predicate(text) for text in texts]
    return lambda: sum((read().astype(U64) for read in reads), np.zeros(1, U64))


def carries_out(m, texts):
    """Write a sum's carries out of 32 bits: whether there is one, and whether there are two."""
    writes = [m.to_predicate(text) for text in texts]

    def write(total):
        for k, set_to in enumerate(writes):
            set_to(total >> U64(32) > k)

    return write


def check_carries(ins, read):
    if ins.has("X") != bool(read):
        raise UnsupportedError("carries without .X, or .X without carries")


def signed(ins):
    return not ins.has("U32")


@operation("IADD3", "UIADD3")
def iadd3(m, ins):
    to, written, sources, read = parts(ins)
    write, carry = m.to(to), carries_out(m, written)
    check_carries(ins, read)
    if not written and not read:
        a, b, c = (m.bits(text) for text in sources)
        return lambda: write(a() + b() + c())
    terms = [carries_in(m, read), *(addend(m, text) for text in sources)]

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


@operation("IMAD", "UIMAD")
def imad(m, ins):
    to, written, sources, read = parts(ins)
    a, b, is_signed = m.bits(sources[0]), m.bits(sources[1]), signed(ins)
    wide, high = ins.has("WIDE"), ins.has("HI")
    ins.has("MOV", "IADD", "SHL")  # other uses that the compiler makes of the product
    check_carries(ins, read)
    carry = carries_in(m, read)
    if not (wide or high):
        if written:
            raise UnsupportedError("a carry out")
        write, c = m.to(to), m.bits(sources[2])
        if not read:
            return lambda: write(a() * b() + c())
        return lambda: write(a() * b() + c() + carry().astype(U32))

    c, into = m.wide(sources[2]), [m.to_predicate(text) for text in written]
    write = m.to_wide(to) if wide else m.to(to)

    def act():
        x, y = (v.view(I32).astype(I64).view(U64) if is_signed else v.astype(U64)
                for v in (a(), b()))  # fmt: skip
        product = x * y
        part = product + c()
        total = part + carry()
        write(total if wide else (total >> U64(32)).astype(U32))
        for set_to in into:
            set_to((part < product) | (total < part))

    return act


@operation("LEA", "ULEA")
def lea(m, ins):
    """Add a shifted word; the bits above it are the third source, or its own sign."""
    to, written, sources, read = parts(ins)
    write, carry = m.to(to), carries_out(m, written)
    extended, high = ins.has("SX32"), ins.has("HI")
    check_carries(ins, read)
    *sources, shift = sources
    low, base, shift = m.bits(sources[0]), addend(m, sources[1]), U64(int(shift, 16))
    upper, carry_in = [m.bits(text) for text in sources[2:]], carries_in(m, read)

    def act():
        value = low().view(I32).astype(I64).view(U64) if extended else low().astype(U64)
        for read_upper in upper:
            value = value | read_upper().astype(U64) << U64(32)
        value = value << shift
        total = ((value >> U64(32) if high else value) & LOW) + base() + carry_in()
        write((total & LOW).astype(U32))
        carry(total)

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
        raise UnsupportedError("a comparison of 64 bits without its lower half")

    def act():
        x, y = (v.view(I32) if is_signed else v for v in (a(), b()))
        holds = COMPARE[name](x, y)
        if extended:  # the upper halves: if equal, the lower halves decide
            lower = before[0]()
            if name == "NE":
                holds = holds | lower
            elif name == "EQ":
                holds = holds & lower
            else:
                holds = COMPARE[name[0] + "T"](x, y) | ((x == y) & lower)
        p = given()
        for set_to, value in zip(writes, (join(holds, p), join(~holds, p)), strict=True):
            set_to(value)

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
