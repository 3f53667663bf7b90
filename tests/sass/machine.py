"""The emulated threads, and which of them execute the next instruction.

All threads of all emulated blocks are the lanes of numpy arrays. Each has its own program counter;
the lanes at the smallest counter are issued together. Warps do not see each other between barriers,
so every warp runs as if it were alone and its own smallest counter went first. An instruction
counts once for a warp, however many of its lanes execute it, as in Nsight's `inst_executed`. At
BSYNC, WARPSYNC and the barriers, lanes wait for the same lanes as in the hardware.
"""

import numpy as np

from .operands import (
    BUILDERS,
    I64,
    IGNORED,
    U32,
    FaultError,
    Operands,
    UnsupportedError,
    is_uniform,
    put,
)

WARP = 32
NEVER = np.iinfo(I64).max
MOST_JUMPS = 10**6
SCATTERED = object()  # returned by a jump that has set the lanes' counters one by one


class Machine(Operands):
    def __init__(self, kernel, launch, blocks, shared, memory, constants):
        """`blocks`: their indices in the grid, in whole clusters."""
        per_block = -(-launch.threads // WARP) * WARP
        lanes = per_block * len(blocks)
        super().__init__(lanes, constants)
        self.kernel, self.memory, self.shared = kernel, memory, shared
        self.blocks, self.cluster, self.per_block = blocks, launch.cluster, per_block
        self.lane = np.arange(lanes) % WARP
        self.tid = (np.arange(lanes) % per_block).astype(U32)
        self.block = np.arange(lanes) // per_block  # index among the emulated blocks
        self.rank = (self.block % launch.cluster).astype(U32)
        self.alive = self.tid < launch.threads
        self.pc = np.where(self.alive, 0, NEVER)  # in instructions; NEVER while a lane waits
        self.resume = np.zeros(lanes, I64)  # counter of a waiting lane when it resumes
        self.waiting = np.full(lanes, "", "U8")  # kind of the instruction that it waits at
        self.convergence = np.zeros((16, lanes), U32)  # registers B0 to B15
        self.needs = np.zeros(lanes, U32)  # BSYNC, WARPSYNC: lanes of the warp to wait for
        self.barrier = np.zeros(lanes, I64)  # BAR: its number, and for how many threads
        self.expected = np.zeros(lanes, I64)
        self.votes = np.zeros(lanes, bool)  # BAR.RED: the thread's vote, the function, the result
        self.reduction = np.full(lanes, "", "U4")
        self.reduced = np.zeros(lanes, I64)
        self.arrivals = np.zeros(lanes, I64)  # at the cluster's barrier
        self.groups = np.zeros(lanes, I64)  # groups of asynchronous copies that a lane has closed
        self.copies = []  # not yet arrived
        self.actions = [None] * len(kernel.code)
        self.jumps = 0
        # Counts: `hits` by instruction, in warp instructions of all blocks; the others by block.
        self.hits = np.zeros(len(kernel.code), I64)
        self.issued = np.zeros(len(blocks), I64)
        self.barriers = np.zeros(len(blocks), I64)
        self.cluster_barriers = np.zeros(len(blocks), I64)
        self.stored = np.zeros((len(memory.buffers), len(blocks)), I64)  # bytes by buffer

    # ---- lanes, warps and blocks

    def active(self):
        return np.ones(self.lanes, bool) if self.mask is None else self.mask

    def ballot(self, lanes):
        """Return, for each lane, a bit for each of its warp's lanes that is among `lanes`."""
        octets = np.packbits(lanes.reshape(-1, WARP), axis=1, bitorder="little")
        return np.repeat(octets.view(U32).ravel(), WARP)

    def whole_warps(self, lanes):
        return np.repeat(lanes.reshape(-1, WARP).any(1), WARP)

    def first(self, values):
        """Return, for each lane, the value of its warp's first active lane."""
        values = np.broadcast_to(values, self.lanes)
        lowest = self.active().reshape(-1, WARP).argmax(1)
        return np.repeat(values[np.arange(len(lowest)) * WARP + lowest], WARP)

    def by_block(self, lanes):
        return lanes.reshape(len(self.blocks), self.per_block)

    def of_block(self, values):
        """Return, for each lane, its block's value."""
        return np.repeat(values, self.per_block)

    # ---- actions

    def build(self, index):
        """Return an instruction's action, which returns None, or a jump's next instruction."""
        ins = self.kernel.code[index]
        where = f"{self.kernel.name} at {ins.address:#x}, {ins.text}"
        if ins.opcode not in BUILDERS:
            raise UnsupportedError(f"{where}: unknown opcode {ins.opcode}")
        try:
            act = BUILDERS[ins.opcode](self, ins)
            if ins.guard:
                act = self.when(self.predicate(ins.guard), act, ins, is_uniform(ins.guard))
        except (UnsupportedError, ValueError) as error:
            raise UnsupportedError(f"{where}: {error}") from error
        unknown = set(ins.modifiers) - ins.asked - IGNORED[ins.opcode]
        if unknown:
            raise UnsupportedError(f"{where}: unknown modifiers {sorted(unknown)}")
        return act

    def when(self, read, act, ins, uniform=False):
        """Return an action for the active lanes at which a predicate holds."""

        def run():
            before, warps_before = self.mask, self.warp_mask
            allowed = read().copy()  # the instruction may change its own guard
            self.mask = allowed if before is None else before & allowed
            if uniform:  # a warp also writes for all of its lanes
                self.warp_mask = allowed if warps_before is None else warps_before & allowed
            else:
                self.warp_mask = self.whole_warps(self.mask)
            try:
                goes = act() if self.mask.any() else None
            finally:
                taken, self.mask, self.warp_mask = self.mask, before, warps_before
            rest = self.active() & ~taken
            if goes is None or not rest.any():
                return goes
            self.pc[rest] = ins.following
            if goes is not SCATTERED:
                self.pc[taken] = goes
            return SCATTERED

        return run

    # ---- running

    def run(self):
        with np.errstate(all="ignore"):
            while self.step():
                pass

    def step(self):
        """Issue the lanes at the smallest counter until they diverge, meet others or wait."""
        pc, actions = self.pc, self.actions
        here = start = int(pc.min())
        if start == NEVER:
            return self.release()
        active = pc == start
        warps = active.reshape(-1, WARP).any(1)
        limit = int(np.where(active, NEVER, pc).min())
        self.mask = None if active.all() else active
        self.warp_mask = None if warps.all() else np.repeat(warps, WARP)
        of_block = warps.reshape(len(self.blocks), -1).sum(1)
        total = int(of_block.sum())
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
            self.jumps += 1
            if self.jumps > MOST_JUMPS:
                raise FaultError(f"{self.kernel.name} does not end")
            if goes is SCATTERED:
                return True
            here = start = here if goes is None else goes
            if here >= limit:
                pc[active] = here
                return True

    # ---- waiting

    def wait(self, kind, lanes, ins):
        self.resume[lanes], self.pc[lanes], self.waiting[lanes] = ins.following, NEVER, kind
        return SCATTERED

    def go_on(self, lanes):
        self.pc[lanes], self.waiting[lanes] = self.resume[lanes], ""

    def release(self):
        """Release waiting lanes when no other lane can run; return False when all have ended."""
        if not self.alive.any():
            return False
        for ready in (self.converged, self.synchronized, self.at_barrier, self.at_cluster):
            lanes = ready()
            if lanes.any():
                self.go_on(lanes)
                return True
        stuck = sorted({(str(k), 16 * int(at)) for k, at in zip(
            self.waiting, self.resume, strict=True) if k})  # fmt: skip
        raise FaultError(f"{self.kernel.name} hangs: lanes wait before {stuck[:8]}")

    def converged(self):
        """Return the lanes at a BSYNC that all lanes of its BSSY have reached, or have ended."""
        ready, waits = np.zeros(self.lanes, bool), self.waiting == "BSYNC"
        for at in np.unique(self.resume[waits]):
            here = waits & (self.resume == at)
            ready |= here & (self.needs & self.ballot(self.alive) & ~self.ballot(here) == 0)
        return ready

    def synchronized(self):
        """Return these lanes for WARPSYNC, which lanes may reach at different places."""
        waits = self.waiting == "WARPSYNC"
        return waits & (self.needs & self.ballot(self.alive) & ~self.ballot(waits) == 0)

    def at_barrier(self):
        waits, ready = self.waiting == "BAR", np.zeros(self.lanes, bool)
        for number in np.unique(self.barrier[waits]):
            here = waits & (self.barrier == number)
            arrived = self.by_block(here).sum(1)
            expected = self.by_block(np.where(here, self.expected, 0)).max(1)
            expected = np.where(expected > 0, expected, self.by_block(self.alive).sum(1))
            full = (arrived > 0) & (arrived >= expected)
            done = here & self.of_block(full)
            yes = self.by_block(here & self.votes).sum(1)
            for kind, result in (("POPC", yes), ("OR", yes > 0), ("AND", yes == arrived)):
                put(self.reduced, self.of_block(result), done & (self.reduction == kind))
            self.barriers += full
            ready |= done
        return ready

    def at_cluster(self):
        """Return the lanes that wait at the cluster's barrier and have no lane to wait for."""
        least = np.where(self.alive, self.arrivals, NEVER)
        least = least.reshape(-1, self.per_block * self.cluster).min(1)
        least = np.repeat(least, self.per_block * self.cluster)
        ready = (self.waiting == "CLUSTER") & (least >= self.arrivals)
        self.cluster_barriers += self.by_block(ready).any(1)
        return ready
