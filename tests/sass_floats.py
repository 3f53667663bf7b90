"""Floating-point instructions, rounded as the hardware does; MUFU's are rounded exactly."""

import operator
import re

import numpy as np
from sass_machine import F32, I32, I64, SPECIAL_FLOATS, U32, U64, Unsupported, operation

F64 = np.float64
TINY = np.finfo(F32).tiny
MODES = ("RM", "RP", "RZ", "RN")
COMPARE = {
    "LT": operator.lt,
    "EQ": operator.eq,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
FUNCTIONS = {
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "TANH": np.tanh,
}


def flush(x):
    return np.where(np.abs(x) < TINY, np.copysign(F32(0), x), x)


def odd_sum(a, b):
    """a + b in double, rounded to odd, so that a second rounding to float32 is exact."""
    total = a + b
    part = total - a
    rest = (a - (total - part)) + (b - part)
    if not rest.any():
        return total
    bits = total.view(I64)
    inexact = (rest != 0) & np.isfinite(total) & np.isfinite(rest) & (bits & 1 == 0)
    toward = np.where((rest > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + toward, bits).view(F64)


def narrow(x, mode):
    """float64 to float32; x is exact, or rounded to odd."""
    with np.errstate(all="ignore"):
        near = x.astype(F32)
    if mode == "RN":
        return near
    back = near.astype(F64)
    if mode == "RM":
        return np.where(back > x, np.nextafter(near, F32(-np.inf)), near)
    if mode == "RP":
        return np.where(back < x, np.nextafter(near, F32(np.inf)), near)
    return np.where(np.abs(back) > np.abs(x), np.nextafter(near, F32(0)), near)


def narrow_integer(value, mode):
    """Integers to float32."""
    near = value.astype(F32)
    if mode == "RN":
        return near
    # Exact, as integers; near may be above all of 64 bits.
    back = [int(f) for f in near]
    return np.array(
        [
            np.nextafter(f, F32(np.inf)) if mode == "RP" and b < int(v)
            else np.nextafter(f, F32(-np.inf)) if mode == "RM" and b > int(v)
            else np.nextafter(f, F32(0)) if mode == "RZ" and abs(b) > abs(int(v))
            else f
            for f, b, v in zip(near, back, value, strict=True)
        ],
        F32,
    )  # fmt: skip


def mode_of(ins):
    return next((mode for mode in MODES if ins.has(mode)), "RN")


def finished(ins, write):
    """Writes a float32 result, saturated or with subnormal numbers flushed where asked for."""
    ftz, saturate = ins.has("FTZ"), ins.has("SAT")

    def finish(value):
        value = flush(value) if ftz else value
        if saturate:
            value = np.where(value > 0, np.minimum(value, F32(1)), F32(0))
        write(value)

    return finish


def terms(m, ins, texts):
    reads = [m.float(text) for text in texts]
    return [lambda r=read: flush(r()) for read in reads] if ins.has("FTZ") else reads


@operation("FADD")
def fadd(m, ins):
    to, *sources = ins.operands
    (a, b), write, mode = terms(m, ins, sources), finished(ins, m.to(to)), mode_of(ins)
    if mode == "RN":
        return lambda: write(a() + b())
    return lambda: write(narrow(odd_sum(a().astype(F64), b().astype(F64)), mode))


@operation("FMUL")
def fmul(m, ins):
    to, *sources = ins.operands
    (a, b), write, mode = terms(m, ins, sources), finished(ins, m.to(to)), mode_of(ins)
    if mode == "RN":
        return lambda: write(a() * b())
    return lambda: write(narrow(a().astype(F64) * b(), mode))


@operation("FFMA")
def ffma(m, ins):
    to, *sources = ins.operands
    (a, b, c), write, mode = terms(m, ins, sources), finished(ins, m.to(to)), mode_of(ins)
    return lambda: write(narrow(odd_sum(a().astype(F64) * b(), c().astype(F64)), mode))


@operation("FSETP")
def fsetp(m, ins):
    first, second, a, b, given = ins.operands
    (a, b), given = terms(m, ins, (a, b)), m.predicate(given)
    writes = [m.to_predicate(first), m.to_predicate(second)]
    join = np.logical_and if ins.has("AND") else np.logical_or if ins.has("OR") else None
    if join is None:
        raise Unsupported("neither AND nor OR")
    ordered = next((k for k in (*COMPARE, "NE") if ins.has(k)), None)
    unordered = next((k for k in (*COMPARE, "NE") if ins.has(k + "U")), None)
    name = ordered or unordered
    if not name:
        raise Unsupported("this comparison")

    def act():
        x, y = a(), b()
        nan = np.isnan(x) | np.isnan(y)
        holds = (x != y) & ~nan if name == "NE" else COMPARE[name](x, y)
        holds = holds | nan if unordered else holds
        p = given()
        for put_in, value in zip(writes, (join(holds, p), join(~holds, p)), strict=True):
            put_in(value)

    return act


@operation("FSEL")
def fsel(m, ins):
    to, *sources, p = ins.operands
    (a, b), write, p = terms(m, ins, sources), m.to(to), m.predicate(p)
    return lambda: write(np.where(p(), a().view(U32), b().view(U32)))


@operation("FMNMX")
def fmnmx(m, ins):
    to, *sources, p = ins.operands
    (a, b), write, p = terms(m, ins, sources), m.to(to), m.predicate(p)
    nan = ins.has("NAN")

    def act():
        x, y = a(), b()
        value = np.where(p(), np.fmin(x, y), np.fmax(x, y))
        write(np.where(np.isnan(x) | np.isnan(y), F32(np.nan), value) if nan else value)

    return act


@operation("MUFU")
def mufu(m, ins):
    to, source = ins.operands
    write, (read,) = m.to(to), terms(m, ins, [source])
    (name,) = [k for k in FUNCTIONS if ins.has(k)] or [None]
    if not name:
        raise Unsupported("this function")
    return lambda: write(FUNCTIONS[name](read().astype(F64)).astype(F32))


@operation("FCHK")
def fchk(m, ins):
    """Whether a quotient needs the slow path: its steps would over- or underflow."""
    to, a, b = ins.operands
    write, a, b = m.to_predicate(to), m.bits(a), m.bits(b)

    def act():
        up, down = (a() >> U32(23) & U32(255)).astype(I32), (b() >> U32(23) & U32(255)).astype(I32)
        zero = a() << U32(1) == 0
        usual = (up > 24) & (up < 255) & (down > 1) & (down < 253) & (np.abs(up - down) < 125)
        write(~(usual | zero & (down > 1) & (down < 253)))

    return act


# ---- conversions


def integer_type(ins, default):
    for kind in ("U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64"):
        if ins.has(kind):
            return kind
    return default


@operation("I2F", "I2FP")
def i2f(m, ins):
    if ins.has("F64", "F16"):
        raise Unsupported("results other than float32")
    ins.has("F32")
    kind, mode = integer_type(ins, "S32"), mode_of(ins)
    write = m.to(ins.operands[0])
    if kind[1:] == "64":
        read = m.wide(ins.operands[1])
        types = (U64, I64)
    elif kind[1:] == "32":
        read, types = m.bits(ins.operands[1]), (U32, I32)
    else:
        raise Unsupported("narrow integers")
    return lambda: write(narrow_integer(read().view(types[kind[0] == "S"]), mode))


@operation("F2I", "F2IP", ignore=("NTZ",))
def f2i(m, ins):
    if ins.has("F64", "F16"):
        raise Unsupported("sources other than float32")
    kind = integer_type(ins, "S32")
    (read,) = terms(m, ins, [ins.operands[1]])
    rounds = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
    rounding = next((rounds[k] for k in rounds if ins.has(k)), np.rint)
    bits = int(kind[1:])
    if bits < 32:
        raise Unsupported("narrow integers")
    low, high = (0, 2**bits - 1) if kind[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    write = m.to_wide(ins.operands[0]) if bits == 64 else m.to(ins.operands[0])

    def act():
        value = rounding(read().astype(F64))
        over, under = value > high, value < low
        inside = np.where(over | under | np.isnan(value), 0.0, value)
        whole = inside.astype(U64) if kind[0] == "U" else inside.astype(I64).view(U64)
        for where, edge in ((over, high), (under, low)):
            whole = np.where(where, U64(edge & (2**64 - 1)), whole)
        write(whole if bits == 64 else (whole & U64(0xFFFFFFFF)).astype(U32))

    return act


@operation("F2F")
def f2f(m, ins):
    to, source = ins.operands
    mode = mode_of(ins)
    if ins.modifiers[:2] == ["F32", "F64"] and ins.has("F32", "F64"):
        write, read = m.to(to), m.wide(source)
        return lambda: write(narrow(read().view(F64), mode))
    if ins.modifiers[:2] == ["F64", "F32"] and ins.has("F32", "F64"):
        write, (read,) = m.to_wide(to), terms(m, ins, [source])
        return lambda: write(read().astype(F64).view(U64))
    raise Unsupported("this conversion")


def to_half(x):
    """float32 or float64 to the bits of float16."""
    return x.astype(np.float16).view(np.uint16).astype(U32)


def to_bf16(x):
    """float32, or float64 that it holds, to the bits of bfloat16."""
    bits = x.astype(F32).view(U32)
    rounded = bits + U32(0x7FFF) + (bits >> U32(16) & U32(1)) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), rounded)


@operation("F2FP", ignore=("PACK_AB", "F32"))
def f2fp(m, ins):
    to, *sources = ins.operands
    if len(sources) != 2 or not ins.has("PACK_AB"):
        raise Unsupported("other than two float32")
    (high, low), write = [m.float(text) for text in sources], m.to(to)
    (convert,) = [f for name, f in (("BF16", to_bf16), ("F16", to_half)) if ins.has(name)]
    relu = ins.has("RELU")

    def act():
        values = [np.fmax(v, F32(0)) if relu else v for v in (high(), low())]
        top, bottom = (np.broadcast_to(convert(v), m.lanes) for v in values)
        write(top << U32(16) | bottom)

    return act


# ---- pairs of 16-bit numbers

HALVES = re.compile(r"([-|]*)(U?R(?:\d+|Z))\|?(?:\.(H\d_H\d|F32))?\|?$")


def half_pair(m, text, bf16):
    """Reads a pair of 16-bit numbers: (low, high) as float64."""
    found = HALVES.fullmatch(text)
    if not found:
        raise Unsupported(f"operand {text}")
    sign, register, swizzle = found.groups()
    read = m.bits(register)
    if swizzle == "F32":
        whole = m.float(register)
        pair = lambda: (whole().astype(F64),) * 2  # noqa: E731
    else:
        low, high = {"H0_H0": (0, 0), "H1_H1": (1, 1)}.get(swizzle, (0, 1))

        def half(word, k):
            bits = word >> U32(16 * k) & U32(0xFFFF)
            if bf16:
                return (bits << U32(16)).view(F32).astype(F64)
            return bits.astype(np.uint16).view(np.float16).astype(F64)

        pair = lambda: (half(read(), low), half(read(), high))  # noqa: E731

    def act():
        values = pair()
        values = [np.abs(v) for v in values] if "|" in sign else values
        return [-v for v in values] if "-" in sign else values

    return act


def half_number(text):
    return float(F32(np.array([SPECIAL_FLOATS[text]], U32).view(F32)[0])) if text in (
        SPECIAL_FLOATS
    ) else float(text)  # fmt: skip


@operation("HADD2", "HMUL2", "HFMA2", ignore=("MMA", "V2"))
def half_arithmetic(m, ins):
    bf16, single = ins.has("BF16_V2", "BF16"), ins.has("F32")
    to, *texts = ins.operands
    reads, k = [], 0
    while k < len(texts):
        if re.match(r"[-|]*U?R", texts[k]):
            reads.append(half_pair(m, texts[k], bf16))
            k += 1
        else:  # an immediate is two numbers, the high one first
            high, low = (np.array([half_number(t)]) for t in texts[k : k + 2])
            reads.append(lambda pair=(low, high): pair)
            k += 2
    write = m.to(to)

    def act():
        operands = [read() for read in reads]
        results = []
        for half in range(2):
            x = [operand[half] for operand in operands]
            if ins.opcode == "HFMA2":
                results.append(odd_sum(x[0] * x[1], x[2]))
            else:
                results.append(x[0] + x[1] if ins.opcode == "HADD2" else x[0] * x[1])
        if single:
            write(np.broadcast_to(results[0], m.lanes).astype(F32))
            return
        low, high = (
            to_bf16(odd_float(v)) if bf16 else to_half(v)
            for v in (np.broadcast_to(r, m.lanes) for r in results)
        )
        write(high << U32(16) | low)

    return act


def odd_float(x):
    """float64 to float32, rounded to odd."""
    toward_zero = narrow(np.ascontiguousarray(x), "RZ")
    inexact = (toward_zero.astype(F64) != x) & np.isfinite(toward_zero)
    return np.where(inexact, toward_zero.view(U32) | U32(1), toward_zero.view(U32)).view(F32)
