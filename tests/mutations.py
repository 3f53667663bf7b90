"""Mutations: the values that replace the original ones in a mutated file."""

import struct

EDGES = [0, 1, 2, 3, 7, 255, 256, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
EDGES += [2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
TEXTS = ["", "x", "..", "../x", "/x", "a/b", "\0", "a\nb", "\x1b[2J", "é", "x" * 300, "9" * 5000]
TEXTS += ["images.npy", "images", "labels.npy", "nan", "\N{ARABIC-INDIC DIGIT FOUR}", "exit()"]


def number(rng, old=1):
    """Return a whole number that a file may declare in place of `old`."""
    near = [old - 1, old + 1, 2 * old, old // 2, -old, -1]
    return rng.choice([rng.choice(near), rng.choice(EDGES), rng.randrange(2**16)])


def value(rng, old, depth=0):
    """Return a value for JSON or TOML in place of `old`."""
    kinds = ["number", "float", "text", "bool", "list", "table", "same kind", "same kind"]
    kind = rng.choice(kinds if depth < 3 else kinds[:4])
    if kind == "same kind":
        if isinstance(old, bool):
            return not old
        if isinstance(old, int):
            return number(rng, old)
        if isinstance(old, list) and old:
            return changed(rng, old)
        kind = "float" if isinstance(old, float) else "text"
    return {
        "number": lambda: number(rng),
        "float": lambda: rng.choice([0.0, -0.5, 1e300, -1e-300, float("nan"), float("inf"), 0.5]),
        "text": lambda: rng.choice(TEXTS),
        "bool": lambda: rng.random() < 0.5,
        "list": lambda: [value(rng, 1, depth + 1) for _ in range(rng.choice([0, 1, 3, 100]))],
        "table": lambda: {rng.choice(TEXTS): value(rng, 1, depth + 1) for _ in range(2)},
    }[kind]()


def changed(rng, tree):
    """Return a copy of a table or list with one change somewhere in it."""
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = rng.choice(keys) if keys else None
    how = rng.choice(["deeper"] * 6 + ["value", "value", "remove", "add"])
    if how == "add" or key is None:
        if isinstance(tree, dict):
            tree[rng.choice(TEXTS)] = value(rng, 1)
        else:
            tree.append(value(rng, 1))
    elif how == "deeper" and isinstance(tree[key], dict | list) and tree[key]:
        tree[key] = changed(rng, tree[key])
    elif how == "remove":
        del tree[key]
    else:
        tree[key] = value(rng, tree[key])
    return tree


def blind(rng, content):
    """Return the bytes altered, cut, repeated or extended at random places."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, length = rng.randrange(len(content) + 1), rng.choice([1, 2, 4, 40, 1000])
        how = rng.choice(["set", "set", "cut", "remove", "double", "insert", "swap"])
        if how == "set":
            for k in range(at, min(at + min(length, 4), len(content))):
                content[k] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif how == "cut":
            del content[at:]
        elif how == "remove":
            del content[at : at + length]
        elif how == "double":
            content[at:at] = content[at : at + length]
        elif how == "insert":
            content[at:at] = rng.choice([bytes(length), b"\xff" * length, b"(" * length, b"PK\1\2"])
        else:
            content[at : at + length] = reversed(content[at : at + length])
    return bytes(content)


def field(rng, content, at, form):
    """Replace the binary number at `at` by another one that fits the field."""
    content = bytearray(content)
    size = struct.calcsize(form)
    if 0 <= at <= len(content) - size:
        old = int.from_bytes(content[at : at + size], "little" if form[0] == "<" else "big")
        new = number(rng, old) % 256**size
        content[at : at + size] = new.to_bytes(size, "little" if form[0] == "<" else "big")
    return bytes(content)
