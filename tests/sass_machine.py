"""The state of the emulated threads, and which of them take the next instruction.

All threads of all emulated blocks are the lanes of numpy arrays. Each has its own program counter;
the lanes at the smallest one are issued together. Warps do not see each other between barriers, so
this is, for every warp, the same as if it ran alone with the rule that its own smallest counter
goes first; its instruction counts once however many of its lanes take it, as Nsight's
`inst_executed` does. Lanes wait at BSYNC, WARPSYNC and the barriers until those they wait for are
there, as the hardware's do.
"""

import re
from functools import partial

import numpy as np

WARP = 32
MOST_STEPS = 10**6  # jumps
NEVER = np.iinfo(np.int64).max
REGISTER = re.compile(r"(U?)R(\d+|Z)$")
PREDICATE = re.compile(r"(!?)(U?)P(\d|T)$")
CONSTANT = re.compile(r"c\[0x(\w+)\]\[(?:(U?R\w+)\+?)?(-?0x\w+)?\]$")
SPECIAL_FLOATS = {"+INF": 0x7F800000, "-INF": 0xFF800000, "+QNAN": 0x7FC00000, "-QNAN": 0xFFC00000}
U32, U64, I32, I64, F32 = np.uint32, np.uint64, np.int32, np.int64, np.float32
OPERATIONS, IGNORED = {}, {}


class Unsupported(NotImplementedError):
    """An instruction, or a form of one, that the emulator does not know."""


class Fault(RuntimeError):
    """The machine code did what a GPU would trap or hang on."""


def operation(*names, ignore=()):
    """Registers what builds the action of these opcodes; `ignore`: modifiers without effect."""

    def register(build):
        for name in names:
            OPERATIONS[name], IGNORED[name] = build, set(ignore)
        return build

    return register


def put(row, value, where):
    if where is None:
        row[...] = value
    else:
        np.copyto(row, value, where=where)


class Machine:
    def __init__(self, kernel, threads, blocks, cluster, shared, memory, constants):
        """`blocks`: an array of (block's index in the grid); `cluster`: blocks of one cluster."""
        self.kernel, self.memory, self.shared, self.constants = kernel, memory, shared, constants
        self.blocks, self.cluster = blocks, cluster
        per_block = -(-threads // WARP) * WARP
        self.per_block, lanes = per_block, per_block * len(blocks)
        self.lanes, self.warps = lanes, lanes // WARP
        self.lane = np.arange(lanes) % WARP
        self.tid = (np.arange(lanes) % per_block).astype(U32)
        self.block = np.arange(lanes) // per_block
        self.rank = (self.block % cluster).astype(U32)
        # Registers, the last of each kind always zero or true.
        self.r, self.u = np.zeros((256, lanes), U32), np.zeros((64, lanes), U32)
        self.p, self.up = np.zeros((8, lanes), bool), np.zeros((8, lanes), bool)
        self.p[7] = self.up[7] = True
        self.convergence = np.zeros((16, lanes), U32)
        self.alive = self.tid < threads
        self.pc = np.where(self.alive, 0, NEVER)  # in instructions; NEVER while a lane waits
        self.resume = np.zeros(lanes, I64)
        self.waiting = np.full(lanes, "", dtype="U8")  # the kind of barrier
        self.needs = np.zeros(lanes, U32)  # BSYNC, WARPSYNC: the lanes of the warp to wait for
        self.barrier = np.zeros(lanes, I64)  # BAR: its number
        self.expected = np.zeros(lanes, I64)  # BAR: for how many threads
        self.votes = np.zeros(lanes, bool)  # BAR.RED: the thread's predicate
        self.reduction = np.full(lanes, "", dtype="U4")
        self.reduced = np.zeros(lanes, I64)
        self.arrivals = np.zeros(lanes, I64)  # at the cluster's barrier
        self.groups = np.zeros(lanes, I64)  # of asynchronous copies that each lane has closed
        self.copies = []  # under way
        self.mask = self.warp_mask = None  # None: all lanes
        self.actions = [None] * len(kernel.code)
        self.steps = 0
        # What is counted.
        self.hits = np.zeros(len(kernel.code), I64)  # warp instructions, by instruction
        self.stored = np.zeros((len(memory.buffers), len(blocks)), I64)  # bytes
        self.issued = np.zeros(len(blocks), I64)
        self.barriers = np.zeros(len(blocks), I64)
        self.cluster_barriers = np.zeros(len(blocks), I64)

    # ---- operands

    def file(self, text):
        """The rows of registers that an operand such as R12 starts at, or None for RZ."""
        found = REGISTER.fullmatch(text)
        if not found:
            raise Unsupported(f"a register was expected, not {text!r}")
        uniform, number = found.groups()
        rows = self.u if uniform else self.r
        if number == "Z":
            return rows, len(rows) - 1
        return rows, int(number)

    def constant(self, bank, offset, size=4):
        known = self.constants.get(bank)
        if known is None or not known[1][offset : offset + size].all():
            raise Unsupported(f"constant c[{bank:#x}][{offset:#x}]")
        return known[0][offset : offset + size]

    def bits(self, text):
        """Reads a 32-bit operand: a function to an array of uint32 (one value, or one a lane)."""
        sign = text[0] if text[0] in "-~|" else ""
        if re.fullmatch(r"[-~]?(0x\w+)", text):
            value = int(text.lstrip("~"), 16)
            value = ~value if sign == "~" else value
            return partial(np.asarray, np.array([value & 0xFFFFFFFF], U32))
        if sign:
            inner = self.bits(text.strip("-~|"))
            if sign == "-":
                return lambda: np.negative(inner())
            if sign == "~":
                return lambda: ~inner()
            raise Unsupported(f"operand {text}")
        constant = CONSTANT.fullmatch(text)
        if constant and not constant[2]:
            raw = self.constant(int(constant[1], 16), int(constant[3], 16))
            return partial(np.asarray, raw.view(U32).copy())
        rows, k = self.file(text)
        return partial(np.asarray, rows[k])

    def wide(self, text):
        """Reads a 64-bit operand, two registers."""
        if not REGISTER.fullmatch(text):
            raise Unsupported(f"64-bit operand {text}")
        rows, k = self.file(text)
        if k == len(rows) - 1:
            return partial(np.asarray, rows[k].astype(U64))
        low, high = rows[k], rows[k + 1]
        return lambda: low | high.astype(U64) << U64(32)

    def float(self, text):
        """Reads a float32 operand."""
        if text in SPECIAL_FLOATS:
            return partial(np.asarray, np.array([SPECIAL_FLOATS[text]], U32).view(F32))
        if re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text):
            return partial(np.asarray, np.array([float(text)], F32))
        if text[0] == "-":
            inner = self.float(text[1:])
            return lambda: -inner()
        if text[0] == "|":
            inner = self.float(text.strip("|"))
            return lambda: np.abs(inner())
        read = self.bits(text)
        return lambda: read().view(F32)

    def predicate(self, text):
        found = PREDICATE.fullmatch(text)
        if not found:
            raise Unsupported(f"a predicate was expected, not {text!r}")
        negated, uniform, number = found.groups()
        row = (self.up if uniform else self.p)[7 if number == "T" else int(number)]
        return (lambda: ~row) if negated else (lambda: row)

    def to(self, text, words=1):
        """Writes a register of 32 bits or several: a function of the words."""
        rows, k = self.file(text)
        if k == len(rows) - 1:
            return lambda *values: None
        rows_to = [rows[k + j] for j in range(words)]
        uniform = rows is self.u

        def write(*values):
            where = self.warp_mask if uniform else self.mask
            values = [v.view(U32) if v.dtype != U32 else v for v in values]
            if words > 1:  # a value may be a view of another's register
                values = [v.copy() for v in values]
            for row, value in zip(rows_to, values, strict=True):
                put(row, value, where)

        return write

    def to_wide(self, text):
        write = self.to(text, 2)

        def write_wide(value):
            value = value.view(U64)
            write((value & U64(0xFFFFFFFF)).astype(U32), (value >> U64(32)).astype(U32))

        return write_wide

    def to_predicate(self, text):
        _, uniform, number = PREDICATE.fullmatch(text).groups()
        if number == "T":
            return lambda value: None
        row = (self.up if uniform else self.p)[int(number)]
        return lambda value: put(row, value, self.warp_mask if uniform else self.mask)

    # ---- lanes and warps

    def active(self):
        return np.ones(self.lanes, bool) if self.mask is None else self.mask

    def ballot(self, lanes):
        """For each warp, a bit for each lane."""
        return np.packbits(lanes.reshape(-1, WARP), axis=1, bitorder="little").view(U32).ravel()

    def spread(self, of_warps):
        return np.repeat(of_warps, WARP)

    def first(self, values):
        """For each warp, the value of its first active lane."""
        values = np.broadcast_to(values, self.lanes)
        if self.mask is None:
            return self.spread(values[::WARP])
        lowest = self.mask.reshape(-1, WARP).argmax(1)
        return self.spread(values[np.arange(self.warps) * WARP + lowest])

    def block_lanes(self, lanes):
        return lanes.reshape(len(self.blocks), self.per_block)

    def block_sum(self, lanes):
        return self.block_lanes(lanes).sum(1)

    # ---- running

    def build(self, index):
        """The action of one instruction: None, or for a jump the instruction that follows."""
        ins = self.kernel.code[index]
        if ins.opcode not in OPERATIONS:
            raise Unsupported(f"{self.kernel.name}: opcode {ins.opcode} at {ins.address:#x}: {ins}")
        try:
            act = OPERATIONS[ins.opcode](self, ins)
        except Unsupported as error:
            raise Unsupported(
                f"{self.kernel.name}: {ins.text} at {ins.address:#x}: {error}"
            ) from None
        unknown = set(ins.modifiers) - ins.asked - IGNORED[ins.opcode]
        if unknown:
            raise Unsupported(f"{self.kernel.name}: {ins.text}: modifiers {sorted(unknown)}")
        if not ins.guard:
            return act
        return self.guarded(ins.guard, act, index + 1)

    def guarded(self, guard, act, following):
        read, uniform = self.predicate(guard), "U" in guard

        def run():
            before, warps_before = self.mask, self.warp_mask
            allowed = read().copy()  # the instruction may change its own guard
            if uniform:
                self.warp_mask = allowed if warps_before is None else warps_before & allowed
            self.mask = allowed if before is None else before & allowed
            if self.mask.all():
                self.mask = None
            elif not uniform:
                self.warp_mask = self.spread(self.mask.reshape(-1, WARP).any(1))
            try:
                goes = act() if self.mask is None or self.mask.any() else None
            finally:
                taken, self.mask, self.warp_mask = self.mask, before, warps_before
            if goes is None:
                return None
            # A jump of some lanes: the others take the next instruction.
            if taken is None:
                return goes
            if not taken.any():
                return None
            rest = self.active() & ~taken
            if not rest.any():
                return goes
            self.pc[rest] = following
            if isinstance(goes, int):
                self.pc[taken] = goes
            return SCATTERED

        return run

    def run(self):
        old = np.seterr(all="ignore")
        try:
            while self.step():
                pass
        finally:
            np.seterr(**old)
        return self

    def step(self):
        """Issues the lanes at the smallest counter until they part, meet others or wait."""
        pc, actions = self.pc, self.actions
        start = int(pc.min())
        if start == NEVER:
            return self.release()
        active = pc == start
        warps = active.reshape(-1, WARP).any(1)
        if active.all():
            self.mask, limit = None, NEVER
        else:
            self.mask, limit = active, int(np.where(active, NEVER, pc).min())
        self.warp_mask = None if warps.all() else self.spread(warps)
        of_block = warps.reshape(len(self.blocks), -1).sum(1)
        total, here = int(of_block.sum()), start
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Fault(f"{self.kernel.name} does not end; at {self.kernel.code[here].text}")
        while True:
            act = actions[here]
            if act is None:
                act = actions[here] = self.build(here)
            goes = act()
            here += 1
            if goes is None and here < limit:
                continue
            self.hits[start:here] += total
            self.issued += (here - start) * of_block
            if goes is SCATTERED:
                return True
            here = start = here if goes is None else goes
            self.steps += goes is not None
            if here >= limit:
                pc[active] = here
                return True

    def wait(self, kind, lanes, following):
        self.resume[lanes], self.pc[lanes], self.waiting[lanes] = following, NEVER, kind

    def go_on(self, lanes):
        self.pc[lanes], self.waiting[lanes] = self.resume[lanes], ""

    def together(self, kind):
        """Which of the lanes that wait at BSYNC or WARPSYNC have all that they wait for."""
        waits = self.waiting == kind
        alive = self.spread(self.ballot(self.alive))
        ready = np.zeros(self.lanes, bool)
        for at in np.unique(self.resume[waits]):
            here = waits & (self.resume == at)
            # Lanes may sit at different WARPSYNCs of one mask, but only at one BSYNC.
            there = self.spread(self.ballot(here if kind == "BSYNC" else waits))
            ready |= here & (self.needs & alive & ~there == 0)
        return ready

    def at_barrier(self):
        waits = self.waiting == "BAR"
        ready = np.zeros(self.lanes, bool)
        for number in np.unique(self.barrier[waits]):
            here = waits & (self.barrier == number)
            arrived = self.block_sum(here)
            expected = self.block_lanes(np.where(here, self.expected, 0)).max(1)
            expected = np.where(expected, expected, self.block_sum(self.alive))
            full = (arrived >= expected) & (arrived > 0)
            self.barriers += full
            done = here & np.repeat(full, self.per_block)
            yes, voters = (self.block_sum(lanes) for lanes in (here & self.votes, here))
            for kind, result in (("POPC", yes), ("OR", yes > 0), ("AND", yes == voters)):
                lanes = done & (self.reduction == kind)
                put(self.reduced, np.repeat(result, self.per_block), lanes)
            ready |= done
        return ready

    def at_cluster(self):
        waits = self.waiting == "CLUSTER"
        least = np.where(self.alive, self.arrivals, NEVER)
        least = least.reshape(-1, self.per_block * self.cluster).min(1)
        return waits & (np.repeat(least, self.per_block * self.cluster) >= self.arrivals)

    def release(self):
        """Lets waiting lanes go on, as no other can; False when all are done."""
        if not self.alive.any():
            return False
        for kind in ("BSYNC", "WARPSYNC"):
            ready = self.together(kind)
            if ready.any():
                self.go_on(ready)
                return True
        ready = self.at_barrier()
        if ready.any():
            self.go_on(ready)
            return True
        ready = self.at_cluster()
        if ready.any():
            self.cluster_barriers += self.block_lanes(ready).any(1)
            self.go_on(ready)
            return True
        stuck = sorted({(k, int(at)) for k, at in zip(self.waiting, self.resume, strict=True) if k})
        raise Fault(f"{self.kernel.name}: deadlock; lanes wait at {stuck[:8]}")


SCATTERED = object()  # what a jump returns when the lanes' counters have been set one by one
