"""How instructions name their operands, and the table of their actions.

An instruction is turned once into an action without arguments. It reads operands through functions
made here, each returning an array with one value for all lanes or one a lane, and writes the active
lanes of a register. Uniform registers are also stored per lane, with equal values in a warp.
"""

import re

import numpy as np

REGISTER = re.compile(r"(U?)R(\d+|Z)$")
PREDICATE = re.compile(r"(!?)(U?)P(\d|T)$")
CONSTANT = re.compile(r"c\[0x(\w+)\]\[(U?R\w+)?\+?(-?0x\w+)?\]$")
SPECIAL_FLOATS = {"+INF": 0x7F800000, "-INF": 0xFF800000, "+QNAN": 0x7FC00000, "-QNAN": 0xFFC00000}
U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
LOW = U64(0xFFFFFFFF)
BUILDERS, IGNORED = {}, {}  # by opcode: builder of its action, modifiers without effect here


class UnsupportedError(NotImplementedError):
    """An instruction, or a form of one, that the emulator does not know."""


class FaultError(RuntimeError):
    """The machine code would trap or hang a GPU, or has no defined result."""


def operation(*names, ignore=()):
    """Register the decorated function as builder of the action of these opcodes."""

    def register(build):
        for name in names:
            BUILDERS[name], IGNORED[name] = build, set(ignore)
        return build

    return register


def put(row, value, where):
    """Write the lanes `where`; None: all."""
    if where is None:
        row[...] = value
    else:
        np.copyto(row, value, where=where)


def is_predicate(text):
    return PREDICATE.fullmatch(text) is not None


def is_uniform(text):
    return text.lstrip("!-~|").startswith("U")


def always(value):
    return lambda: value


class Operands:
    """The registers of all lanes. `mask` are the lanes that an action writes, None for all of
    them; `warp_mask` are all lanes of their warps."""

    def __init__(self, lanes, constants):
        self.lanes, self.constants = lanes, constants
        self.mask = self.warp_mask = None
        # The last register of each kind always reads zero or true.
        self.r, self.u = np.zeros((256, lanes), U32), np.zeros((64, lanes), U32)
        self.p, self.up = np.zeros((8, lanes), bool), np.zeros((8, lanes), bool)
        self.p[7] = self.up[7] = True

    def registers(self, text, count=1):
        """Return the rows of a register and those after it (RZ: zeros), and whether it is RZ."""
        found = REGISTER.fullmatch(text)
        if not found:
            raise UnsupportedError(f"a register was expected, not {text!r}")
        rows = self.u if found[1] else self.r
        if found[2] == "Z":
            return [rows[-1]] * count, True
        first = int(found[2])
        return [rows[first + k] for k in range(count)], False

    def constant(self, bank, offset, size):
        """Return these bytes of a constant bank."""
        content, known = self.constants.get(bank, (None, np.zeros(0, bool)))
        wanted = known[offset : offset + size]
        if len(wanted) < size or not wanted.all():
            raise UnsupportedError(f"constant c[{bank:#x}][{offset:#x}]")
        return content[offset : offset + size].copy()

    def bits(self, text):
        """Return a reader of an operand of 32 bits."""
        if re.fullmatch(r"[-~]?0x\w+", text):
            value = int(text.lstrip("~"), 16)
            value = ~value if text[0] == "~" else value
            return always(np.array([value & 0xFFFFFFFF], U32))
        if text[0] == "-":
            inner = self.bits(text[1:])
            return lambda: np.negative(inner())
        if text[0] == "~":
            inner = self.bits(text[1:])
            return lambda: ~inner()
        constant = CONSTANT.fullmatch(text)
        if constant and not constant[2]:
            return always(self.constant(int(constant[1], 16), int(constant[3], 16), 4).view(U32))
        (row,), _ = self.registers(text)
        return always(row)

    def wide(self, text):
        """Return a reader of an operand of 64 bits, two registers."""
        constant = CONSTANT.fullmatch(text)
        if constant and not constant[2]:
            return always(self.constant(int(constant[1], 16), int(constant[3], 16), 8).view(U64))
        (low, high), _ = self.registers(text, 2)
        return lambda: low | high.astype(U64) << U64(32)

    def float(self, text):
        """Return a reader of an operand of float32."""
        if text in SPECIAL_FLOATS:
            return always(np.array([SPECIAL_FLOATS[text]], U32).view(F32))
        if re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text):
            return always(np.array([float(text)], F32))
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
            raise UnsupportedError(f"a predicate was expected, not {text!r}")
        row = (self.up if found[2] else self.p)[7 if found[3] == "T" else int(found[3])]
        return (lambda: ~row) if found[1] else always(row)

    def to(self, text, count=1):
        """Return a writer of `count` registers, words of 32 bits."""
        rows, nowhere = self.registers(text, count)
        if nowhere:
            return lambda *values: None
        uniform = is_uniform(text)

        def write(*values):
            where = self.warp_mask if uniform else self.mask
            if count > 1:  # a word may be a view of a register that is written before it
                values = [value.copy() for value in values]
            for row, value in zip(rows, values, strict=True):
                put(row, value.view(U32), where)

        return write

    def to_wide(self, text):
        """Return a writer of two registers, from uint64."""
        write = self.to(text, 2)
        return lambda value: write((value & LOW).astype(U32), (value >> U64(32)).astype(U32))

    def to_predicate(self, text):
        _, uniform, number = PREDICATE.fullmatch(text).groups()
        if number == "T":
            return lambda value: None
        row = (self.up if uniform else self.p)[int(number)]
        return lambda value: put(row, value, self.warp_mask if uniform else self.mask)
