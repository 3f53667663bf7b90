"""Conversions between types, and arithmetic with pairs of 16-bit numbers."""

import re

import numpy as np

from .floats import mode_of, narrow, odd_sum, terms
from .operands import F32, F64, I32, I64, LOW, U32, U64, UnsupportedError, operation

INTEGERS = {"U32": U32, "S32": I32, "U64": U64, "S64": I64}
ROUND = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
HALVES = re.compile(r"(-?)(\|?)(U?R(?:\d+|Z))\|?(?:\.(H\d_H\d|F32))?\|?$")


def integer_of(ins):
    return next((kind for kind in INTEGERS if ins.has(kind)), "S32")


@operation("I2F", "I2FP", ignore=("F32",))
def i2f(m, ins):
    kind, mode = integer_of(ins), mode_of(ins)
    to, source = ins.operands
    write, read = m.to(to), m.wide(source) if kind.endswith("64") else m.bits(source)

    def act():
        value = read().view(INTEGERS[kind]).astype(I64 if kind[0] == "S" else U64)
        thirty_two = value.dtype.type(32)
        high, low = (value >> thirty_two).astype(F64), (value.view(U64) & LOW).astype(F64)
        write(narrow(odd_sum(high * 2.0**32, low), mode))

    return act


@operation("F2I", ignore=("NTZ",))
def f2i(m, ins):
    kind, (to, source) = integer_of(ins), ins.operands
    limits, wide = np.iinfo(INTEGERS[kind]), kind.endswith("64")
    (read,) = terms(m, ins, [source])
    rounded = next((ROUND[k] for k in ROUND if ins.has(k)), np.rint)
    write = m.to_wide(to) if wide else m.to(to)

    def act():
        """Values out of range become the nearest in range, NaN becomes 0."""
        value = rounded(read().astype(F64))
        over, under = value > limits.max, value < limits.min
        inside = np.where(over | under | np.isnan(value), 0.0, value)
        whole = inside.astype(U64 if kind[0] == "U" else I64).view(U64)
        for lanes, edge in ((over, limits.max), (under, limits.min)):
            whole = np.where(lanes, U64(int(edge) & (2**64 - 1)), whole)
        write(whole if wide else (whole & LOW).astype(U32))

    return act


@operation("F2F")
def f2f(m, ins):
    to, source = ins.operands
    mode, kinds = mode_of(ins), ins.modifiers[:2]
    ins.has("F32", "F64")
    if kinds == ["F32", "F64"]:
        write, read = m.to(to), m.wide(source)
        return lambda: write(narrow(read().view(F64), mode))
    if kinds == ["F64", "F32"]:
        write, (read,) = m.to_wide(to), terms(m, ins, [source])
        return lambda: write(read().astype(F64).view(U64))
    raise UnsupportedError("this conversion")


def to_half(x):
    """Return the bits of the nearest float16."""
    return x.astype(np.float16).view(np.uint16).astype(U32)


def to_bf16(x):
    """Return the bits of the nearest bfloat16."""
    toward_zero = narrow(x.astype(F64), "RZ")
    bits = toward_zero.view(U32)
    # Rounded to odd in float32 first, so that the second rounding is exact.
    bits = np.where((toward_zero != x) & np.isfinite(toward_zero), bits | U32(1), bits)
    rounded = bits + U32(0x7FFF) + (bits >> U32(16) & U32(1)) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), rounded)


@operation("F2FP", ignore=("F32",))
def f2fp(m, ins):
    """Convert two float32 to a pair, the first in the high half."""
    to, *sources = ins.operands
    if len(sources) != 2 or not ins.has("PACK_AB"):
        raise UnsupportedError("other than two float32")
    (high, low), write = [m.float(text) for text in sources], m.to(to)
    (convert,) = [f for name, f in (("BF16", to_bf16), ("F16", to_half)) if ins.has(name)]
    return lambda: write(convert(high()) << U32(16) | convert(low()))


def pair(m, text, bf16):
    """Read a pair of 16-bit numbers: (low, high), as float64."""
    found = HALVES.fullmatch(text)
    if not found:
        raise UnsupportedError(f"operand {text}")
    negative, absolute, register, halves = found.groups()
    read, whole = m.bits(register), m.float(register)
    chosen = {"H0_H0": (0, 0), "H1_H1": (1, 1)}.get(halves, (0, 1))

    def half(k):
        if halves == "F32":
            value = whole().astype(F64)
        else:
            bits = read() >> U32(16 * k) & U32(0xFFFF)
            value = (bits << U32(16)).view(F32) if bf16 else bits.astype(np.uint16).view(np.float16)
            value = value.astype(F64)
        value = np.abs(value) if absolute else value
        return -value if negative else value

    return lambda: tuple(half(k) for k in chosen)


def pairs(m, texts, bf16):
    """Read all operands; an immediate is two numbers, the high one first."""
    reads, texts = [], list(texts)
    while texts:
        if HALVES.fullmatch(texts[0]):
            reads.append(pair(m, texts.pop(0), bf16))
        else:
            high, low = (m.float(texts.pop(0))().astype(F64) for _ in range(2))
            reads.append(lambda both=(low, high): both)
    return reads


@operation("HADD2", "HMUL2", "HFMA2", ignore=("MMA",))
def half_arithmetic(m, ins):
    bf16, single = ins.has("BF16_V2", "BF16"), ins.has("F32")
    to, *texts = ins.operands
    reads, write = pairs(m, texts, bf16), m.to(to)
    arithmetic = {
        "HADD2": lambda a, b: odd_sum(a, b),
        "HMUL2": lambda a, b: a * b,  # exact
        "HFMA2": lambda a, b, c: odd_sum(a * b, c),
    }[ins.opcode]

    def act():
        low, high = (arithmetic(*half) for half in zip(*(read() for read in reads), strict=True))
        if single:
            write(narrow(low, "RN"))
        else:
            convert = to_bf16 if bf16 else to_half
            write(convert(high) << U32(16) | convert(low))

    return act
