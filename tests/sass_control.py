"""Jumps, convergence, barriers, votes and shuffles of the emulated threads."""

import numpy as np
from sass_machine import (
    I32,
    I64,
    NEVER,
    SCATTERED,
    U32,
    U64,
    WARP,
    Unsupported,
    operation,
    put,
)


def target(ins):
    return int(ins.operands[-1], 16) // 16


@operation("BRA")
def bra(m, ins):
    goal = target(ins)
    *conditions, _ = ins.operands
    ins.has("U")
    act = lambda: goal  # noqa: E731
    for condition in conditions:
        act = m.guarded(condition, act, ins.address // 16 + 1)
    if ins.has("DIV"):  # where not all lanes of the mask are active
        raise Unsupported("a jump on divergence")
    return act


@operation("CALL", ignore=("REL", "NOINC"))
def call(m, ins):  # the return address is in a register already
    goal = target(ins)
    return lambda: goal


def scatter(m, goals):
    """Sends each active lane to its own address."""
    goals = (goals // 16).astype(I64)
    active = m.active()
    first = goals[active][0]
    if (goals[active] == first).all():
        return int(first)
    put(m.pc, goals, active)
    return SCATTERED


@operation("RET", ignore=("REL", "NODEC"))
def ret(m, ins):
    to, base = m.bits(ins.operands[0]), int(ins.operands[1], 16)
    return lambda: scatter(m, to().astype(I64) + base)


@operation("BRX")
def brx(m, ins):
    to, base = m.bits(ins.operands[0]), int(ins.operands[1], 16) + ins.address + 16
    return lambda: scatter(m, to().view(I32).astype(I64) + base)


@operation("EXIT")
def leave(m, ins):
    def act():
        active = m.active()
        m.alive[active], m.pc[active] = False, NEVER
        return SCATTERED

    return act


@operation("BSSY")
def bssy(m, ins):
    row = m.convergence[int(ins.operands[0][1:])]
    return lambda: put(row, m.spread(m.ballot(m.active())), m.mask)


@operation("BSYNC")
def bsync(m, ins):
    row, following = m.convergence[int(ins.operands[0][1:])], ins.address // 16 + 1

    def act():
        active = m.active()
        alive = m.spread(m.ballot(m.alive))
        there = m.spread(m.ballot(active))
        if (row & alive & ~there == 0)[active].all():
            return None
        m.needs[active] = row[active]
        m.wait("BSYNC", active, following)
        ready = m.together("BSYNC") & (m.resume == following)
        m.go_on(ready)
        return SCATTERED

    return act


@operation("BREAK")
def leave_convergence(m, ins):
    row = m.convergence[int(ins.operands[-1][1:])]
    if len(ins.operands) > 1:
        raise Unsupported("a condition beside the guard")

    def act():
        gone = m.spread(m.ballot(m.active()))
        put(row, row & ~gone, np.repeat(m.active().reshape(-1, WARP).any(1), WARP))

    return act


@operation("BMOV")
def bmov(m, ins):
    ins.has("32")
    clear = ins.has("CLEAR")
    to, source = ins.operands
    if to.startswith("B"):
        row, read = m.convergence[int(to[1:])], m.bits(source)
        return lambda: put(row, read(), m.mask)
    row, write = m.convergence[int(source[1:])], m.to(to)

    def act():
        write(row.copy())
        if clear:
            put(row, U32(0), m.mask)

    return act


@operation("WARPSYNC", ignore=("COLLECTIVE",))
def warpsync(m, ins):
    everyone = ins.has("ALL")
    read = (lambda: np.full(m.lanes, 0xFFFFFFFF, U32)) if everyone else m.bits(ins.operands[0])
    following = ins.address // 16 + 1

    def act():
        active = m.active()
        needs = np.broadcast_to(read(), m.lanes)
        missing = needs & m.spread(m.ballot(m.alive)) & ~m.spread(m.ballot(active))
        if not missing[active].any():
            return None
        m.needs[active] = needs[active]
        m.wait("WARPSYNC", active, following)
        return SCATTERED

    return act


@operation("BAR", ignore=("DEFER_BLOCKING",))
def bar(m, ins):
    following, *operands = ins.address // 16 + 1, *ins.operands
    votes = ins.has("RED")
    read_vote = m.predicate(operands.pop()) if votes else None
    kind = next((k for k in ("AND", "OR", "POPC") if ins.has(k)), "")
    if not (votes and kind or ins.has("SYNC")):
        raise Unsupported("a barrier without waiting")
    number = m.bits(operands[0])
    count = m.bits(operands[1]) if len(operands) > 1 else lambda: np.zeros(1, U32)

    def act():
        active = m.active()
        put(m.barrier, number(), active)
        put(m.expected, count(), active)
        if votes:
            put(m.votes, read_vote(), active)
            m.reduction[active] = kind
        m.wait("BAR", active, following)
        return SCATTERED

    return act


@operation("B2R")
def result_of_barrier(m, ins):
    if not ins.has("RESULT"):
        raise Unsupported("only the result of a vote")
    to, *predicates = ins.operands
    write, write_in = m.to(to), [m.to_predicate(p) for p in predicates]

    def act():
        write(m.reduced.astype(U32))
        for put_in in write_in:
            put_in(m.reduced != 0)

    return act


@operation("UCGABAR_ARV")
def arrive(m, ins):
    def act():
        m.arrivals += m.active()

    return act


@operation("UCGABAR_WAIT")
def await_cluster(m, ins):
    def act():
        m.wait("CLUSTER", m.active(), ins.address // 16 + 1)
        return SCATTERED

    return act


@operation("NOP", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "YIELD", "NANOSLEEP", "FENCE", "UCCTL",
           ignore=("ALL", "GPU", "IVALL", "SC", "CTA", "SYS", "VC", "ALI"))  # fmt: skip
def nothing(m, ins):
    return lambda: None


@operation("VOTE", "VOTEU")
def vote(m, ins):
    any_, every = ins.has("ANY"), ins.has("ALL")
    equal = ins.has("EQ")
    *to, source = ins.operands
    read = m.predicate(source)
    writes = [m.to_predicate(t) if "P" in t else m.to(t) for t in to]

    def act():
        active = m.active()
        yes = m.ballot(active & read())
        all_ = m.ballot(active)
        outcome = yes != 0 if any_ else yes == all_ if every else (yes == 0) | (yes == all_)
        for text, write in zip(to, writes, strict=True):
            write(m.spread(outcome if "P" in text else yes))

    if not (any_ or every or equal):
        raise Unsupported("a vote neither ANY nor ALL nor EQ")
    return act


@operation("SHFL")
def shfl(m, ins):
    predicate, to, source, by, bounds = ins.operands
    write, write_in = m.to(to), m.to_predicate(predicate)
    read, read_by, read_bounds = m.bits(source), m.bits(by), m.bits(bounds)
    (kind,) = [k for k in ("IDX", "UP", "DOWN", "BFLY") if ins.has(k)]
    first = np.arange(m.lanes) // WARP * WARP

    def act():
        lane, by = m.lane, (read_by() & U32(31)).astype(I64)
        bounds = np.broadcast_to(read_bounds(), m.lanes).astype(I64)
        clamp, segment = bounds & 31, bounds >> 8 & 31
        most = (lane & segment) | (clamp & ~segment)
        if kind == "UP":
            other = lane - by
            within = other >= most
        else:
            other = lane + by if kind == "DOWN" else lane ^ by
            if kind == "IDX":
                other = (lane & segment) | (by & ~segment)
            within = other <= most
        other = np.where(within, other, lane)
        active = m.active()
        if not active[(first + other)[active]].all():
            raise Unsupported("a shuffle from a lane that takes no part")
        write(read()[first + other])
        write_in(within)

    return act


@operation("REDUX")
def redux(m, ins):
    to, source = ins.operands
    write, read, signed = m.to(to), m.bits(source), ins.has("S32")
    kinds = {"SUM": (np.add, 0), "AND": (np.bitwise_and, -1), "OR": (np.bitwise_or, 0)}
    kinds |= {"XOR": (np.bitwise_xor, 0)}
    kinds |= {"MIN": (np.minimum, 2**31 - 1 if signed else 2**32 - 1)}
    kinds |= {"MAX": (np.maximum, -(2**31) if signed else 0)}
    ((reduce, neutral),) = [kinds[k] for k in kinds if ins.has(k)]

    def act():
        values = read().view(I32 if signed else U32).astype(I64)
        values = np.where(m.active(), values, neutral).reshape(-1, WARP)
        write(m.spread((reduce.reduce(values, axis=1) & 0xFFFFFFFF).astype(U32)))

    return act


@operation("S2R", "S2UR")
def special(m, ins):
    to, name = ins.operands
    zero = np.zeros(1, U32)
    known = {
        "SR_TID.X": lambda: m.tid,
        "SR_TID.Y": lambda: zero,
        "SR_TID.Z": lambda: zero,
        "SR_LANEID": lambda: m.lane.astype(U32),
        "SR_CTAID.X": lambda: m.blocks[m.block].astype(U32),
        "SR_CTAID.Y": lambda: zero,
        "SR_CTAID.Z": lambda: zero,
        "SR_CgaCtaId": lambda: m.rank,
        "SR_SWINHI": lambda: np.array([m.shared.window], U32),
    }
    if name not in known:
        raise Unsupported("this special register")
    write, read = m.to(to), known[name]
    return (lambda: write(m.first(read()))) if ins.opcode == "S2UR" else (lambda: write(read()))


@operation("R2UR")
def to_uniform(m, ins):
    write, read = m.to(ins.operands[0]), m.bits(ins.operands[1])
    return lambda: write(m.first(read()))


@operation("CS2R")
def clear_two(m, ins):
    to, name = ins.operands
    if name != "SRZ":
        raise Unsupported("this special register")
    if ins.has("32"):
        write = m.to(to)
        return lambda: write(np.zeros(1, U32))
    write = m.to_wide(to)
    return lambda: write(np.zeros(1, U64))
