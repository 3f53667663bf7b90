"""Floating-point instructions, rounded as the hardware does; MUFU's are rounded exactly."""

import operator

import numpy as np

from .operands import F32, F64, I32, I64, U32, UnsupportedError, operation

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
    """Return a + b in double, rounded to odd, so that a second rounding to float32 is exact."""
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
    """Convert float64 to float32; x is exact, or rounded to odd."""
    near = x.astype(F32)
    if mode == "RN":
        return near
    back = near.astype(F64)
    if mode == "RM":
        return np.where(back > x, np.nextafter(near, F32(-np.inf)), near)
    if mode == "RP":
        return np.where(back < x, np.nextafter(near, F32(np.inf)), near)
    return np.where(np.abs(back) > np.abs(x), np.nextafter(near, F32(0)), near)


def mode_of(ins):
    return next((mode for mode in MODES if ins.has(mode)), "RN")


def finished(ins, write):
    """Write a float32 result, saturated or with subnormal numbers flushed if asked for."""
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
        raise UnsupportedError("neither AND nor OR")
    ordered = next((k for k in (*COMPARE, "NE") if ins.has(k)), None)
    unordered = next((k for k in (*COMPARE, "NE") if ins.has(k + "U")), None)
    name = ordered or unordered
    if not name:
        raise UnsupportedError("this comparison")

    def act():
        x, y = a(), b()
        nan = np.isnan(x) | np.isnan(y)
        holds = (x != y) & ~nan if name == "NE" else COMPARE[name](x, y)
        holds = holds | nan if unordered else holds
        p = given()
        for set_to, value in zip(writes, (join(holds, p), join(~holds, p)), strict=True):
            set_to(value)

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
        raise UnsupportedError("this function")
    return lambda: write(FUNCTIONS[name](read().astype(F64)).astype(F32))


@operation("FCHK")
def fchk(m, ins):
    """Find whether a quotient needs the slow path: its steps would over- or underflow."""
    to, a, b = ins.operands
    write, a, b = m.to_predicate(to), m.bits(a), m.bits(b)

    def act():
        up, down = (a() >> U32(23) & U32(255)).astype(I32), (b() >> U32(23) & U32(255)).astype(I32)
        zero = a() << U32(1) == 0
        usual = (up > 24) & (up < 255) & (down > 1) & (down < 253) & (np.abs(up - down) < 125)
        write(~(usual | zero & (down > 1) & (down < 253)))

    return act
