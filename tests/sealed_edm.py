"""NVlabs/edm network pickles with one change: in arguments, storages or opcodes."""

import edm_files as ef
from mutations import changed
from sealed_files import mutated, opcodes

EDM = ef.dumped({"ema": ef.network("tiny")})
OPCODES = opcodes(EDM)
HEADER = 300  # approximate bytes of a storage before its numbers


def sealed_edm(rng):
    """Change a network's arguments, the bytes of a storage, or opcodes."""
    how = rng.choice(["arguments", "state", "storage", "opcodes", "opcodes"])
    if how == "opcodes":
        return mutated(rng, OPCODES)
    if how == "storage":  # so that the lengths in the pickle stay right
        at = rng.choice([n for n, op in enumerate(OPCODES) if len(op) > HEADER])
        ops = list(OPCODES)
        op = bytearray(ops[at])
        place = op.index(b"\x80\x02") + rng.randrange(HEADER)
        op[place % len(op)] = rng.choice([0, 1, 2, 127, 128, 255, rng.randrange(256)])
        ops[at] = bytes(op)
        return b"".join(ops)
    tree = ef.network("tiny")
    state = ef.inner(tree)["state"]
    if how == "arguments":
        state["_init_kwargs"] = changed(rng, state["_init_kwargs"])
    else:
        layer = state["_modules"]["map_layer0"].meta["state"]
        owner = rng.choice([state, tree.meta["state"], layer])
        key = rng.choice(list(owner))
        owner[key] = rng.choice([None, 0, "text", [], {}, {"a": 1}, owner["_modules"], -1.0])
    return ef.dumped({"ema": tree})
