"""Jumps, convergence, barriers, votes and shuffles, and queries of a thread's place."""

import numpy as np

from .machine import NEVER, SCATTERED, WARP
from .operands import (
    I32,
    I64,
    REGISTER,
    U32,
    U64,
    FaultError,
    UnsupportedError,
    always,
    is_predicate,
    operation,
    put,
)

ZERO = np.zeros(1, U32)


@operation("BRA", "CALL", ignore=("U", "REL", "NOINC"))  # a call's return address is set before
def bra(m, ins):
    *conditions, goal = ins.operands
    goal = int(goal, 16) // 16
    act = always(goal)
    if ins.has("DIV"):  # taken if the active lanes are not the given ones
        read = m.bits(conditions.pop())
        act = m.when(lambda: m.ballot(m.active()) != read(), act, ins)
    for condition in conditions:
        act = m.when(m.predicate(condition), act, ins)
    return act


def send(m, goals):
    """Send each active lane to its own address."""
    goals, active = goals.astype(I64) // 16, m.active()
    first = goals[active][0]
    if (goals[active] == first).all():
        return int(first)
    put(m.pc, goals, active)
    return SCATTERED


@operation("RET", ignore=("REL", "NODEC"))
def ret(m, ins):
    to, base = m.bits(ins.operands[0]), int(ins.operands[1], 16)
    return lambda: send(m, to().astype(I64) + base)


@operation("BRX")
def brx(m, ins):
    to, base = m.bits(ins.operands[0]), int(ins.operands[1], 16) + 16 * ins.following
    return lambda: send(m, to().view(I32).astype(I64) + base)


@operation("EXIT")
def leave(m, ins):
    def act():
        active = m.active()
        m.alive[active], m.pc[active] = False, NEVER
        return SCATTERED

    return act


# ---- convergence


def convergence(m, text):
    return m.convergence[int(text.removeprefix("B"))]


@operation("BSSY")
def bssy(m, ins):
    row = convergence(m, ins.operands[0])
    return lambda: put(row, m.ballot(m.active()), m.mask)


@operation("BSYNC")
def bsync(m, ins):
    row = convergence(m, ins.operands[0])

    def act():
        active = m.active()
        missing = row & m.ballot(m.alive) & ~m.ballot(active)
        if not missing[active].any():
            return None
        put(m.needs, row, active)
        m.wait("BSYNC", active, ins)
        m.go_on(m.converged() & (m.resume == ins.following))
        return SCATTERED

    return act


@operation("BREAK")
def leave_early(m, ins):
    *conditions, register = ins.operands
    row = convergence(m, register)

    def act():
        put(row, row & ~m.ballot(m.active()), m.whole_warps(m.active()))

    for condition in conditions:
        act = m.when(m.predicate(condition), act, ins)
    return act


@operation("BMOV")
def bmov(m, ins):
    to, source = ins.operands
    clear = ins.has("CLEAR")
    if not ins.has("32"):
        raise UnsupportedError("other than 32 bits")
    if to.startswith("B"):
        row, read = convergence(m, to), m.bits(source)
        return lambda: put(row, read(), m.mask)
    row, write = convergence(m, source), m.to(to)

    def act():
        write(row)
        if clear:
            put(row, U32(0), m.mask)

    return act


@operation("WARPSYNC", ignore=("COLLECTIVE",))
def warpsync(m, ins):
    everyone = np.full(1, 0xFFFFFFFF, U32)
    read = always(everyone) if ins.has("ALL") else m.bits(ins.operands[0])

    def act():
        active, needs = m.active(), np.broadcast_to(read(), m.lanes)
        missing = needs & m.ballot(m.alive) & ~m.ballot(active)
        if not missing[active].any():
            return None
        put(m.needs, needs, active)
        return m.wait("WARPSYNC", active, ins)

    return act


# ---- barriers


@operation("BAR", ignore=("DEFER_BLOCKING",))
def bar(m, ins):
    operands, votes = list(ins.operands), ins.has("RED")
    if not (votes or ins.has("SYNC")):
        raise UnsupportedError("a barrier without waiting")
    if votes:
        read_vote = m.predicate(operands.pop())
        (kind,) = [k for k in ("AND", "OR", "POPC") if ins.has(k)]
    number, *count = (m.bits(text) for text in operands)
    packed = REGISTER.fullmatch(operands[0])  # one register holds both

    def act():
        active = m.active()
        threads = count[0]() if count else ZERO
        put(m.barrier, number() & U32(15), active)
        put(m.expected, threads >> U32(16) if packed else threads, active)
        if votes:
            put(m.votes, read_vote(), active)
            m.reduction[active] = kind
        return m.wait("BAR", active, ins)

    return act


@operation("B2R")
def result_of_barrier(m, ins):
    if not ins.has("RESULT"):
        raise UnsupportedError("other than a vote's result")
    to, *predicates = ins.operands
    write, into = m.to(to), [m.to_predicate(text) for text in predicates]

    def act():
        write(m.reduced.astype(U32))
        for set_to in into:
            set_to(m.reduced != 0)

    return act


@operation("UCGABAR_ARV")
def arrive(m, ins):
    def act():
        m.arrivals += m.active()

    return act


@operation("UCGABAR_WAIT")
def await_cluster(m, ins):
    return lambda: m.wait("CLUSTER", m.active(), ins)


@operation("NOP", "YIELD", "NANOSLEEP", "ERRBAR", "CGAERRBAR")
def nothing(m, ins):
    return always(None)


@operation("MEMBAR", "CCTL", "FENCE", ignore=("ALL", "SC", "VC", "GPU", "CTA", "SYS", "IVALL"))
def order_accesses(m, ins):
    """Do nothing: accesses take effect at once, asynchronous copies when they are waited for."""
    return always(None)


# ---- between lanes


@operation("VOTE", "VOTEU")
def vote(m, ins):
    *to, source = ins.operands
    read = m.predicate(source)
    (kind,) = [k for k in ("ANY", "ALL", "EQ") if ins.has(k)]
    into = [(is_predicate(t), m.to_predicate(t) if is_predicate(t) else m.to(t)) for t in to]

    def act():
        active = m.active()
        yes, voters = m.ballot(active & read()), m.ballot(active)
        some, every = yes != 0, yes == voters
        outcome = {"ANY": some, "ALL": every, "EQ": every | ~some}[kind]
        for predicate, write in into:
            write(outcome if predicate else yes)

    return act


@operation("SHFL")
def shfl(m, ins):
    predicate, to, source, by, bounds = ins.operands
    write, write_in = m.to(to), m.to_predicate(predicate)
    read, read_by, read_bounds = m.bits(source), m.bits(by), m.bits(bounds)
    (kind,) = [k for k in ("IDX", "UP", "DOWN", "BFLY") if ins.has(k)]
    first = np.arange(m.lanes) // WARP * WARP

    def act():
        """Follow the PTX manual's `shfl`."""
        lane, by, limits = m.lane, read_by().astype(I64) & 31, read_bounds().astype(I64)
        segment = limits >> 8 & 31
        lowest = lane & segment
        most = lowest | (limits & 31 & ~segment)
        other = {
            "UP": lane - by,
            "DOWN": lane + by,
            "BFLY": lane ^ by,
            "IDX": lowest | (by & ~segment),
        }[kind]
        within = other >= most if kind == "UP" else other <= most
        other = first + np.where(within, other, lane)
        active = m.active()
        if not active[other[active]].all():
            raise FaultError(f"{m.kernel.name}, {ins.text}: from a lane that takes no part")
        write(np.broadcast_to(read(), m.lanes)[other])
        write_in(within)

    return act


@operation("REDUX")
def redux(m, ins):
    to, source = ins.operands
    signed = ins.has("S32")
    write, read, kind = m.to(to), m.bits(source), I32 if signed else U32
    limits = np.iinfo(kind)
    reductions = {
        "SUM": (np.add, 0),
        "AND": (np.bitwise_and, -1),
        "OR": (np.bitwise_or, 0),
        "XOR": (np.bitwise_xor, 0),
        "MIN": (np.minimum, limits.max),
        "MAX": (np.maximum, limits.min),
    }
    ((reduce, neutral),) = [reductions[k] for k in reductions if ins.has(k)]

    def act():
        values = np.where(m.active(), read().view(kind).astype(I64), neutral)
        results = reduce.reduce(values.reshape(-1, WARP), axis=1) & 0xFFFFFFFF
        write(np.repeat(results.astype(U32), WARP))

    return act


# ---- a thread's place


@operation("S2R", "S2UR")
def special(m, ins):
    to, name = ins.operands
    known = {
        "SR_TID.X": m.tid,
        "SR_LANEID": m.lane.astype(U32),
        "SR_CTAID.X": m.blocks[m.block].astype(U32),
        "SR_CgaCtaId": m.rank,
        "SR_SWINHI": np.array([m.shared.window], U32),
    }
    known |= {f"SR_{what}.{axis}": ZERO for what in ("TID", "CTAID") for axis in "YZ"}
    if name not in known:
        raise UnsupportedError(f"special register {name}")
    write, value = m.to(to), known[name]
    return (lambda: write(m.first(value))) if ins.opcode == "S2UR" else (lambda: write(value))


@operation("R2UR")
def to_uniform(m, ins):
    to, source = ins.operands
    write, read = m.to(to), m.bits(source)
    return lambda: write(m.first(read()))


@operation("CS2R")
def clear(m, ins):
    to, name = ins.operands
    if name != "SRZ":
        raise UnsupportedError(f"special register {name}")
    write, zero = (m.to(to), ZERO) if ins.has("32") else (m.to_wide(to), np.zeros(1, U64))
    return lambda: write(zero)
